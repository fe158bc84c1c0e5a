"""Named generating functions of S4 layers. Tests, tuning and the profiler share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
OPERATOR = frozenset({"operator"})


@dataclass(frozen=True)
class Case:
    """One product, k = cauchy(v, z, poles), with where its shape comes from.

    ``features`` rows of ``states`` poles each, with ``sides`` right hand sides. Tags: "default" runs in a plain
    profile, "operator" where this operator is asked for.
    """

    name: str
    source: str
    sides: int
    features: int
    states: int
    points: int
    dtype: str = "complex64"
    tags: frozenset[str] = DEFAULT

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = int(getattr(torch, self.dtype).itemsize)
        inputs = (self.sides + 1) * self.features * self.states + self.points
        return item * (inputs + self.sides * self.features * self.points)

    @property
    def flops(self) -> int:
        """Real operations: a difference and its reciprocal, 8; a product and a sum for each right hand side, 8."""
        return 8 * (1 + self.sides) * self.features * self.states * self.points


CASES: tuple[Case, ...] = (
    Case("s4-long-range-arena", "S4 of rank 1 on Long Range Arena's sequential CIFAR: H 512, N 64, L 1024", 4, 512, 64,
         1024),
    Case("h256-n64-l16384", "the requirement of this operator: 64 terms at 16384 points", 1, 256, 64, 16384,
         tags=OPERATOR),
)  # fmt: skip


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``cauchy(**inputs(case, seed))``: poles like HiPPO, points of the bilinear transform."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    dt = 10 ** (2 * torch.rand(case.features, 1, generator=generator) - 3)
    poles = dt * torch.complex(torch.tensor(-0.5), torch.pi * torch.arange(case.states))
    root = 0.999 * torch.exp(-2j * torch.pi * torch.arange(case.points) / case.points)
    v = torch.randn(case.sides, case.features, case.states, generator=generator, dtype=torch.complex64)
    return {"v": v.to(dtype), "z": (2 * (1 - root) / (1 + root)).to(dtype), "poles": poles.to(dtype)}
