"""Named two-sided convolutions of real models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})


@dataclass(frozen=True)
class Case:
    """One call of convolve(x, h, origin=origin, circular=circular); x (B, L, D), h (K, D), channels contiguous."""

    name: str
    source: str
    batch: int
    length: int
    channels: int
    taps: int
    origin: int = 0
    circular: bool = False
    dtype: str = "float32"
    tags: frozenset[str] = DEFAULT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of x and y, (B, L, D)."""
        return (self.batch, self.length, self.channels)

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = getattr(torch, self.dtype).itemsize
        return int(item * (2 * self.batch * self.length + self.taps) * self.channels)

    @property
    def flops(self) -> int:
        """Of the cheaper of the direct sum and one transform of the whole length, counted as for causal_conv."""
        rows, taps = self.batch * self.channels, min(self.taps, 2 * self.length - 1)
        points = max(2, (self.length + taps) // 2)
        transform = 5 * points * math.log2(points)
        return int(min(2 * rows * self.length * taps, rows * (2 * transform + 6 * points) + self.channels * transform))


CASES: tuple[Case, ...] = (
    Case("centred-7", "ConvNeXt-like token mixing: 7 taps about the sample", 8, 1024, 384, 7, origin=3),
    Case("both-ways-2048", "bidirectional Hyena or S4: filters from -L to L", 1, 2048, 256, 4095, origin=2047),
    Case("circular-1021", "a global circular filter at a prime length", 1, 1021, 256, 1021, circular=True),
    Case(
        "both-ways-16384",
        "the same over long sequences",
        1,
        16384,
        128,
        32767,
        origin=16383,
        tags=frozenset({"large"}),
    ),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``convolve(**inputs(case, seed))``: normal samples, a filter that keeps their scale."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    x = torch.randn(*case.shape, generator=generator).to(dtype)
    h = torch.randn(case.taps, case.channels, generator=generator) / math.sqrt(min(case.taps, case.length))
    return {"x": x, "h": h.to(dtype), "origin": case.origin, "circular": case.circular}
