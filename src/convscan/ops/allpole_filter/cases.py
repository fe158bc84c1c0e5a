"""Named all-pole filters of speech and audio. Tests and the profiler share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
OPERATOR = frozenset({"operator"})


@dataclass(frozen=True)
class Case:
    """One filter, y = allpole_filter(x, a), of ``order`` coefficients, constant in time or not, with its source.

    Tags: "default" runs in a plain profile, "operator" where this operator is asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    order: int
    constant: bool = False
    dtype: str = "float32"
    tags: frozenset[str] = OPERATOR

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        signal = self.batch * self.length * self.channels
        coefficients = self.order * (self.channels if self.constant else signal)
        return int(getattr(torch, self.dtype).itemsize * (2 * signal + coefficients))

    @property
    def flops(self) -> int:
        """Additions and multiplications of the loop over time."""
        return 2 * self.order * self.batch * self.length * self.channels


CASES: tuple[Case, ...] = (
    Case("lpc-speech", "GOLF vocoder: linear prediction of order 22, half a second at 24 kHz, batch 16", 16, 12000, 1,
         22, tags=DEFAULT),
    Case("resonators", "a bank of 256 two-pole resonators over a quarter of a second at 16 kHz", 1, 4000, 256, 2, True),
    Case("lpc-frames", "order 16, 512 frames of 30 ms at 8 kHz, each with its coefficients", 1, 240, 512, 16, True),
    Case("mono-2", "one biquad over a second of sound at 48 kHz", 1, 48000, 1, 2, True),
    Case("mono-16", "order 16 over a second of speech at 16 kHz", 1, 16000, 1, 16, True),
)  # fmt: skip


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``allpole_filter(**inputs(case, seed))``: normal samples; poles at random angles, within 0.95.

    Where they vary, a slow tremolo moves all poles together towards the centre and back.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    x = torch.randn(case.batch, case.length, case.channels, generator=generator)
    polynomial = torch.ones(1, case.channels, dtype=torch.float64)
    for pole in range(case.order // 2):
        angle = torch.pi * (pole + torch.rand(case.channels, generator=generator).double()) / (case.order // 2)
        factor = torch.stack([torch.ones_like(angle), -1.9 * torch.cos(angle), torch.full_like(angle, 0.9025)])
        polynomial = _product(polynomial, factor)
    if case.order % 2:
        polynomial = _product(polynomial, torch.stack([torch.ones(case.channels), torch.full((case.channels,), -0.5)]))
    a = -polynomial[1:]
    if not case.constant:
        shrunk = 0.985 + 0.015 * torch.cos(torch.arange(case.length) / 500)
        powers = shrunk[:, None] ** torch.arange(1, case.order + 1)
        a = (powers[:, :, None] * a).expand(case.batch, -1, -1, -1).contiguous()
    return {"x": x.to(dtype), "a": a.to(dtype)}


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Of polynomials, their coefficients (n, channels)."""
    result = left.new_zeros(left.shape[0] + right.shape[0] - 1, left.shape[1])
    for k, coefficient in enumerate(right):
        result[k : k + left.shape[0]] += coefficient * left
    return result
