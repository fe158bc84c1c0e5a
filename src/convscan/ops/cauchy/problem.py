"""What selection and kernels know of a Cauchy product: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

from ..._layout import Triple

Pair = tuple[int, int]


class CauchyProblem(NamedTuple):
    """k[s,r,w] = sum_n v[s,r,n] / (z[r,w] - poles[r,n])^power for ``sides`` right hand sides that share z and poles.

    Strides count elements: v (side, row, term), poles (row, term), z (row, point), k (side, row). ``offsets`` are those
    of (v, poles, z, k) for every turn of a loop over leading axes that do not merge into rows.
    """

    device: str
    dtype: str
    sides: int
    rows: int
    terms: int
    points: int
    power: int
    v: Triple
    poles: Pair
    z: Pair
    k: Pair
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    def __str__(self) -> str:
        parts = [f"sides={self.sides} rows={self.turns * self.rows} N={self.terms} points={self.points} {self.dtype}"]
        parts += [f"power {self.power}"] if self.power > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])
