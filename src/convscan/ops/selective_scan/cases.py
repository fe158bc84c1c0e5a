"""Named selective scans of real models. Tests, tuning and the profiler share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
QUICK = frozenset({"default", "quick"})
OPERATOR = frozenset({"operator"})


@dataclass(frozen=True)
class Case:
    """One selective scan with where its shape comes from: D, z, delta_bias and softplus as Mamba has them.

    ``layout`` is the memory order of u, delta and z: "BLD" has channels contiguous, "BDL" has time contiguous. Tags:
    "default" runs in a plain profile, "operator" where this operator is asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    states: int
    dtype: str = "float32"
    layout: str = "BLD"
    state: bool = False
    tags: frozenset[str] = DEFAULT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of u and y, (B, L, D)."""
        return (self.batch, self.length, self.channels)

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        signal = self.batch * self.length * self.channels
        projections = 2 * self.batch * self.length * self.states
        parameters = self.channels * (self.states + 2)
        start = self.batch * self.channels * self.states if self.state else 0
        return int(getattr(torch, self.dtype).itemsize * (4 * signal + projections + parameters + start))

    @property
    def flops(self) -> int:
        """Operations of the loop over time: six a state, with a gate's exponential as one, and ten a channel."""
        return self.batch * self.length * self.channels * (6 * self.states + 10)


CASES: tuple[Case, ...] = (
    Case("small", "a toy model", 1, 64, 64, 8, tags=QUICK),
    Case("mamba-130m", "Mamba-130m: d_inner 1536, d_state 16", 1, 2048, 1536, 16),
    Case("mamba-130m-time", "the same in the memory order of the Hugging Face model", 1, 2048, 1536, 16, layout="BDL",
         tags=OPERATOR),
    Case("mamba-2.8b-decode", "Mamba-2.8b: d_inner 5120, one token", 1, 1, 5120, 16, state=True, tags=OPERATOR),
)  # fmt: skip


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``selective_scan(**inputs(case, seed))``: normal signals, Mamba's initial A and step sizes."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)

    def signal() -> torch.Tensor:
        if case.layout == "BDL":
            memory = (case.batch, case.channels, case.length)
            return torch.randn(memory, generator=generator).transpose(-1, -2).to(dtype)
        return torch.randn(case.shape, generator=generator).to(dtype)

    def projection() -> torch.Tensor:
        return torch.randn(case.batch, case.length, case.states, generator=generator).to(dtype)

    # softplus(delta_bias) is log-uniform in [0.001, 0.1]. Parameters and states have the type computed in.
    dt = torch.exp(torch.rand(case.channels, generator=generator) * 4.6051702 - 6.9077553)
    start = torch.randn(case.batch, case.channels, case.states, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "u": signal(),
        "delta": signal() * 0.3,
        "A": -torch.arange(1.0, case.states + 1, dtype=wide).repeat(case.channels, 1),
        "B": projection(),
        "C": projection(),
        "D": torch.ones(case.channels, dtype=wide),
        "z": signal(),
        "delta_bias": (dt + torch.log(-torch.expm1(-dt))).to(wide),
        "delta_softplus": True,
        "initial_state": start.to(wide) if case.state else None,
    }
