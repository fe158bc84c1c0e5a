"""Named state-space layers: sizes where each order of contraction is the best. Tests and the profiler share them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
GRID = frozenset({"grid"})


@dataclass(frozen=True)
class Case:
    """One layer y = opt_ssm_forward(x, K, B_, C) with as many outputs as inputs, with its source.

    Tags: "default" runs in a plain profile, "grid" where it is asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    states: int
    dtype: str = "float32"
    layout: str = "BLD"
    tags: frozenset[str] = DEFAULT

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        signal = self.batch * self.length * self.channels
        weights = self.length * self.states + 2 * self.states * self.channels
        return int(getattr(torch, self.dtype).itemsize * (2 * signal + weights))

    @property
    def flops(self) -> int:
        """Additions and multiplications of the cheapest of the three orders, with transforms of 2 L points."""
        pairs, rows, points = self.channels**2, 2 * self.batch * self.channels, 2 * self.length
        transform = 2.5 * points * math.log2(points)
        contraction = 4 * self.batch * self.states * self.channels
        states = self.batch * self.states
        full = 2 * self.length * self.states * pairs + (rows + pairs) * transform + 8 * self.batch * self.length * pairs
        projected = self.length * (contraction + 6 * states) + (2 * states + self.states) * transform
        fused = points * contraction + 6 * self.length * states + (rows + self.states) * transform
        return int(min(full, projected, fused))


CASES: tuple[Case, ...] = (
    Case("ssm-4x64", "four channels, 64 states: the full kernel is smaller than the states'", 32, 1024, 4, 64),
    Case("ssm-64x128", "the usage example: 64 channels, 128 states", 32, 1024, 64, 128),
    Case("ssm-8x32", "eight channels, 32 states, a long sequence", 32, 4096, 8, 32),
    Case("ssm-64x16", "fewer states than channels", 16, 1024, 64, 16, tags=GRID),
    Case("ssm-32x256", "one sequence, many states", 1, 4096, 32, 256, tags=GRID),
    Case("ssm-8x128", "eight channels, 128 states", 32, 1024, 8, 128, tags=GRID),
    Case("ssm-16x64", "short sequences", 8, 512, 16, 64, tags=GRID),
    Case("ssm-64x64", "one sequence, as many states as channels", 1, 4096, 64, 64, tags=GRID),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``opt_ssm_forward(**inputs(case, seed))``: normal samples, weights that keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    return {
        "x": normal(case.batch, case.length, case.channels),
        "K": normal(case.length, case.states, scale=case.length**-0.5),
        "B_": normal(case.states, case.channels, scale=case.channels**-0.5),
        "C": normal(case.channels, case.states, scale=case.states**-0.5),
    }
