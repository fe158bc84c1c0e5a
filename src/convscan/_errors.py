"""The wording of errors: function, argument, what was expected, what came, the remedy."""

from __future__ import annotations


def message(function: str, expectation: str, got: object, remedy: str = "") -> str:
    """``function: expectation; got ...`` and, where there is one, the remedy in a sentence of its own."""
    text = f"{function}: {expectation}; got {got}"
    return f"{text}. {remedy}" if remedy else text


def cannot_run(function: str, implementation: str, reasons: list[str]) -> str:
    """Why a forced implementation refuses a problem."""
    return (
        f"{function}: the forced implementation {implementation!r} cannot run this problem: {'; '.join(reasons)}. "
        f"Call without force(), or see explain({function!r}, ...)"
    )
