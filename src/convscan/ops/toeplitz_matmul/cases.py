"""Named Toeplitz products of real models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})


@dataclass(frozen=True)
class Case:
    """One call of toeplitz_matmul(column, row, X); X (B, H, L, F), column and row (H, L), features contiguous."""

    name: str
    source: str
    batch: int
    heads: int
    length: int
    features: int
    dtype: str = "float32"
    tags: frozenset[str] = DEFAULT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of X and the product as (B, L, H F)."""
        return (self.batch, self.length, self.heads * self.features)

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = getattr(torch, self.dtype).itemsize
        return int(2 * item * self.heads * self.length * (self.batch * self.features + 1))

    @property
    def flops(self) -> int:
        """Of the cheaper of the product with the matrix and transforms of twice the length."""
        rows = self.batch * self.heads * self.features
        transform = 5 * self.length * math.log2(max(2, self.length))
        return int(min(2 * rows * self.length**2, rows * (2 * transform + 6 * self.length) + self.heads * transform))


SOURCE = "Luo et al. 2021, kernelised attention with relative positions, arXiv 2106.12566: "

CASES: tuple[Case, ...] = (
    Case("relative-512", SOURCE + "a translation model, 8 heads of 64 features", 4, 8, 512, 64),
    Case("relative-2048", SOURCE + "a language model, 8 heads of 64 features", 1, 8, 2048, 64),
    Case("relative-8192", SOURCE + "over long text", 1, 8, 8192, 64, tags=frozenset({"large"})),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``toeplitz_matmul(**inputs(case, seed))``: normal, of a scale that the product keeps."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    X = torch.randn(case.batch, case.heads, case.length, case.features, generator=generator).to(dtype)
    column, row = torch.randn(2, case.heads, case.length, generator=generator) / math.sqrt(case.length)
    return {"column": column.to(dtype), "row": row.to(dtype), "X": X}
