"""Einsum equations with one convolved axis: takes them apart, and says what is wrong with those without sense."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ... import _checks
from ..._errors import message

NAME = "fft_conv"
TIME = "l"


class Equation(NamedTuple):
    """The axes of x, of the operands beside it, and of the output, a letter each; ``kernel`` is the place of the
    operand that has l."""

    text: str
    signal: str
    operands: tuple[str, ...]
    kernel: int
    output: str

    @property
    def terms(self) -> tuple[str, ...]:
        """The axes of x and of the operands, in the order of the arguments."""
        return (self.signal, *self.operands)


def argument(place: int) -> str:
    """What errors call the tensor at a place of the equation."""
    return "x" if place == 0 else f"args[{place - 1}]"


def _refuse(expectation: str, got: object, remedy: str = "") -> ValueError:
    return ValueError(message(NAME, expectation, got, remedy))


@lru_cache(maxsize=1024)
def parse(text: str) -> Equation:
    """``"bli,loi->blo"`` taken apart; a ValueError that names the axis where it makes no sense."""
    compact = "".join(text.split())
    inputs, arrow, output = compact.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) < 2:
        raise _refuse("the equation must be 'x axes,kernel axes,...->output axes'", repr(text))
    for where, axes in (*((argument(place), axes) for place, axes in enumerate(terms)), ("the output", output)):
        for axis in axes:
            if not (axis.isascii() and axis.isalpha()):
                raise _refuse(f"the axes of {where} must be letters", f"{axis!r} in {text!r}")
            if axes.count(axis) > 1:
                remedy = "Take the diagonal with torch.diagonal first"
                raise _refuse(f"every axis must occur once in {where}", f"{axis!r} twice in {text!r}", remedy)
    for where, axes in (("x", terms[0]), ("the output", output)):
        if TIME not in axes:
            raise _refuse(f"the convolved axis 'l' must be an axis of {where}", repr(text))
    kernels = [place for place, axes in enumerate(terms[1:]) if TIME in axes]
    if len(kernels) != 1:
        found = " and ".join(argument(place + 1) for place in kernels) or "none"
        raise _refuse("the convolved axis 'l' must be an axis of one operand beside x", f"{found} in {text!r}")
    for axis in output:
        if not any(axis in axes for axes in terms):
            raise _refuse("every axis of the output must be an axis of an input", f"{axis!r} in {text!r}")
    return Equation(compact, terms[0], tuple(terms[1:]), kernels[0], output)


def sizes(equation: Equation, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of every axis but l, from the shapes of x and the operands."""
    if len(shapes) != len(equation.terms):
        raise _refuse(
            f"the equation {equation.text!r} has {len(equation.terms)} inputs", f"{len(shapes)} tensors with x"
        )
    found: dict[str, tuple[int, str]] = {}
    for place, (axes, shape) in enumerate(zip(equation.terms, shapes, strict=True)):
        name = argument(place)
        if len(shape) != len(axes):
            raise _refuse(f"{name} must have {len(axes)} axes, {axes!r}", _checks.shape_text(shape))
        for axis, size in zip(axes, shape, strict=True):
            if axis == TIME:
                continue
            known, first = found.setdefault(axis, (size, name))
            if known != size:
                remedy = "Only l may differ between x and the kernel; nothing is broadcast"
                raise _refuse(f"the axis {axis!r} has {known} entries in {first}", f"{size} in {name}", remedy)
    return {axis: size for axis, (size, _) in found.items()}


def check_tensors(x: Tensor, args: Sequence[Tensor]) -> None:
    """x and every operand is a tensor, on one device."""
    _checks.tensor_like(NAME, "x", x, x)
    for place, operand in enumerate(args, 1):
        _checks.tensor_like(NAME, argument(place), operand, x)
