"""Named convolutions with full kernels. Tests and the profiler share them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

EQUATION = "bli,loi->blo"
DEFAULT = frozenset({"default"})
GRID = frozenset({"grid"})


@dataclass(frozen=True)
class Case:
    """One convolution y = fft_conv("bli,loi->blo", x, kernel) between as many outputs as inputs, with its source.

    Tags: "default" runs in a plain profile, "grid" where it is asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    taps: int
    dtype: str = "float32"
    layout: str = "BLD"
    tags: frozenset[str] = DEFAULT

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        signal = self.batch * self.length * self.channels
        return int(getattr(torch, self.dtype).itemsize * (2 * signal + self.taps * self.channels**2))

    @property
    def flops(self) -> int:
        """Additions and multiplications of the cheaper of sums over the taps and products of spectra."""
        pairs, points = self.channels**2, self.length + self.taps
        transforms = (2 * self.batch * self.channels + pairs) * 2.5 * points * math.log2(points)
        spectral = transforms + 4 * self.batch * points * pairs
        return int(min(2 * self.batch * self.length * self.taps * pairs, spectral))


CASES: tuple[Case, ...] = (
    Case("full-128", "a convolutional layer with wide filters: 32 channels, 128 taps", 8, 2048, 32, 128),
    Case("full-16", "a convolutional layer: 32 channels, 16 taps", 8, 2048, 32, 16, tags=GRID),
    Case("full-long", "the full kernel of a state-space layer of 16 channels, K = L", 4, 1024, 16, 1024, tags=GRID),
    Case("full-wide", "the full kernel of a state-space layer of 64 channels, K = L", 32, 1024, 64, 1024, tags=GRID),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments by name: normal samples, kernels that keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    x = torch.randn(case.batch, case.length, case.channels, generator=generator)
    kernel = torch.randn(case.taps, case.channels, case.channels, generator=generator)
    return {"x": x.to(dtype), "kernel": (kernel / math.sqrt(case.taps * case.channels)).to(dtype)}
