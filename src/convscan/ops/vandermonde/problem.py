"""What selection and kernels know of a product with powers: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]


class PowersProblem(NamedTuple):
    """y[r,l] = Re sum_n c[r,n] a[r,n]^l, or with ``adjoint`` w[r,n] = sum_l g[r,l] a[r,n]^l.

    ``order`` derivatives with respect to a are taken of the powers. ``dtype`` is the complex one of the result's
    precision, ``a_dtype`` that of a. ``left`` has the strides of
    c (row, term) or g (row, time), ``out`` the row stride of the result. ``offsets`` are those of (left, a, result) for
    every turn of a loop over leading axes that do not merge into rows.
    """

    device: str
    dtype: str
    a_dtype: str
    rows: int
    terms: int
    length: int
    order: int
    adjoint: bool
    left: Pair
    a: Pair
    out: int
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    def __str__(self) -> str:
        parts = [f"rows={self.turns * self.rows} N={self.terms} L={self.length} {self.dtype}"]
        parts += [f"derivative {self.order}"] if self.order else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])
