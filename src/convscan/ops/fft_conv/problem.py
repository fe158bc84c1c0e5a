"""What the choice of a plan knows of a call: the equation, sizes, dtype; no data."""

from __future__ import annotations

from typing import NamedTuple

from .equation import Equation


class EinsumProblem(NamedTuple):
    """``equation`` over axes of the given sizes, L time steps of x and K taps of the kernel.

    ``compute`` is the dtype of the arithmetic. ``chunked`` is false where somebody records the operations (autograd,
    compilation, a function transform): the whole is then computed at once, and nothing in place.
    """

    equation: Equation
    sizes: tuple[tuple[str, int], ...]
    length: int
    taps: int
    dtype: str
    compute: str
    device: str
    chunked: bool
    threads: int
    isa: str

    def __str__(self) -> str:
        sizes = " ".join(f"{axis}={size}" for axis, size in self.sizes)
        return f"{self.equation.text}, {sizes} L={self.length} K={self.taps} {self.dtype}, {self.threads} threads"
