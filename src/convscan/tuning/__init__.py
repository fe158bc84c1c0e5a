"""Measured constants of the cost models: data in JSON files, read once, and the measurement that makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["tune"]


def tune(progress: Callable[[str, float], None] | None = None, path: Path | None = None) -> Path:
    """Measures this machine's kernels, stores the constants and uses them from now on; returns the file.

    ``progress(what, fraction)`` is called before each measurement. ``path`` defaults to the user's cache directory
    (or ``CONVSCAN_TUNING``). Takes about ten seconds.
    """
    from .measure import measure  # the measurement runs the operators, which read this table

    return measure(progress, path)
