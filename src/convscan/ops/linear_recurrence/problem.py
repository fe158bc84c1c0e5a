"""What selection and kernels know of a recurrence: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

from ..._layout import Triple, order


class ScanProblem(NamedTuple):
    """y[b,i,n] = a[b,i,n] y[b,i-1,n] + x[b,i,n]; from the end when ``reverse``.

    Strides count elements, in the order (batch, time, channel); a stride of ``a`` is 0 where it is constant.
    ``y_init`` has the strides of (batch, sequence, channel), None for zeros; ``sequences`` is the number of those
    packed along time, None where there is one. ``offsets`` are those of (x, y_init, a, y) for every turn of a loop over
    leading axes that do not merge into the batch.
    """

    device: str
    dtype: str
    batch: int
    length: int
    channels: int
    reverse: bool
    x: Triple
    a: Triple
    y_init: Triple | None
    y: Triple
    sequences: int | None
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} D={self.channels} {self.dtype}"]
        parts.append(f"{order(self.x)} contiguous" if order(self.x) != "strided" else "strided")
        parts += ["constant coefficients"] if self.a[1] == 0 and self.length > 1 else []
        parts += ["reverse"] if self.reverse else []
        parts += [f"{self.sequences} sequences"] if self.sequences is not None else []
        parts += [f"{self.turns} calls"] if self.turns > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])


class ScanGradientProblem(NamedTuple):
    """The gradients of a recurrence; ``da`` has stride 0 where a is constant, ``offsets`` are those of its tensors.

    The order of the offsets is (a, y_init, y, dy, dx, da, dy_init).
    """

    forward: ScanProblem
    dy: Triple
    dx: Triple
    da: Triple | None
    dy_init: Triple | None
    offsets: tuple[tuple[int, ...], ...] | None

    def __str__(self) -> str:
        return f"gradient of {self.forward}"
