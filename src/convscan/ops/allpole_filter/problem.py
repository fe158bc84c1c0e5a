"""What selection and the kernel know of an all-pole filter: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

from ..._layout import Triple, order


class AllpoleProblem(NamedTuple):
    """y[b,i,n] = x[b,i,n] + sum_k a[b,i,k-1,n] y[b,i-k,n], or with ``transposed`` the transpose of that matrix.

    Strides count elements, in the order (batch, time, channel); ``a_order`` is that between coefficients of one step,
    and the time stride of ``a`` is 0 where they are constant. ``state`` is None for zeros. ``offsets`` are those of
    (x, a, state, y) for every turn of a loop over leading axes that do not merge into the batch.
    """

    device: str
    dtype: str
    batch: int
    length: int
    channels: int
    order: int
    transposed: bool
    x: Triple
    a: Triple
    a_order: int
    state: Triple | None
    y: Triple
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} D={self.channels} p={self.order} {self.dtype}"]
        parts.append(f"{order(self.x)} contiguous" if order(self.x) != "strided" else "strided")
        parts += ["constant coefficients"] if self.a[1] == 0 and self.length > 1 else []
        parts += ["transposed"] if self.transposed else []
        parts += [f"{self.turns} calls"] if self.turns > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])
