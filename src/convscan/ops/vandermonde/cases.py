"""Named kernels of diagonal state-space layers. Tests, tuning and the profiler share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
OPERATOR = frozenset({"operator"})


@dataclass(frozen=True)
class Case:
    """One kernel, y = vandermonde(c, a, length), with where its shape comes from.

    ``features`` kernels of ``states`` conjugate pairs each. Tags: "default" runs in a plain profile, "operator"
    where this operator is asked for.
    """

    name: str
    source: str
    features: int
    states: int
    length: int
    dtype: str = "complex64"
    tags: frozenset[str] = DEFAULT

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = int(getattr(torch, self.dtype).itemsize)
        return self.features * (2 * item * self.states + item // 2 * self.length)

    @property
    def flops(self) -> int:
        """Real additions and multiplications: the real part of one complex product and a sum for each term and step."""
        return 4 * self.features * self.states * self.length


CASES: tuple[Case, ...] = (
    Case("s4d-long-range-arena", "S4D on Long Range Arena's sequential CIFAR: H 512, N 64 in 32 pairs", 512, 32, 1024),
    Case("s4d-speech", "S4D on Speech Commands: H 128, N 64 in 32 pairs, one second at 16 kHz", 128, 32, 16000,
         tags=OPERATOR),
    Case("h256-n64-l16384", "the requirement of this operator: 64 terms over 16384 steps", 256, 64, 16384,
         tags=OPERATOR),
)  # fmt: skip


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``vandermonde(**inputs(case, seed))``: S4D-Lin's powers over log-uniform steps in [0.001, 0.1]."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    dt = 10 ** (2 * torch.rand(case.features, 1, generator=generator) - 3)
    a = torch.polar(torch.exp(-dt / 2).expand(-1, case.states), dt * torch.pi * torch.arange(case.states))
    c = torch.randn(case.features, case.states, generator=generator, dtype=torch.complex64)
    return {"c": c.to(dtype), "a": a.to(dtype), "length": case.length}
