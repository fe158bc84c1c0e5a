"""Named convolutions of real models and benchmarks. Tests, tuning and the profiler share them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
QUICK = frozenset({"default", "quick"})


@dataclass(frozen=True)
class Case:
    """One convolution, y = causal_conv(x, h), with where its shape comes from.

    ``layout`` is the memory order of x and h: "BLD" has channels contiguous, "BDL" has time contiguous; the tensors
    are (B, L, D) and (K, D) in both. Tags: "default" runs in a plain profile, "quick" in a short one, "grid" is the
    challenge's full grid, "large" is left out unless asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    taps: int
    dtype: str = "float32"
    layout: str = "BLD"
    activation: str | None = None
    state: bool = False
    tags: frozenset[str] = DEFAULT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of x and y, (B, L, D)."""
        return (self.batch, self.length, self.channels)

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = getattr(torch, self.dtype).itemsize
        signal = self.batch * self.length * self.channels
        history = self.batch * (self.taps - 1) * self.channels if self.state else 0
        return int(item * (2 * signal + self.taps * self.channels + history))

    @property
    def flops(self) -> int:
        """Additions and multiplications of the cheaper of the direct sum and one FFT convolution of the whole length.

        The direct sum counts 2 per product of a filter tap with a sample inside the signal. The FFT counts
        5 M log2 M for each of two complex transforms of M = (L + K - 1) / 2 points per row, one more per filter, and
        6 M for the product.
        """
        rows, length, taps = self.batch * self.channels, self.length, min(self.taps, self.length)
        products = taps * length - (0 if self.state else taps * (taps - 1) // 2)
        points = max(2, (length + taps) // 2)
        transform = 5 * points * math.log2(points)
        spectral = rows * (2 * transform + 6 * points) + self.channels * transform
        return int(min(2 * rows * products, spectral))


def _grid() -> tuple[Case, ...]:
    source = "the challenge's grid: float32, batch 1, time contiguous, filters of 4, 32, 128 and L taps"
    spread = {(512, 256, 32), (512, 1024, 128), (512, 4096, 4), (512, 4096, 4096), (512, 65536, 4), (2048, 2048, 2048),
              (2048, 4096, 32), (2048, 16384, 4)}  # fmt: skip
    quick = {(512, 4096, 4), (2048, 2048, 2048)}
    cases = []
    for channels in (512, 2048):
        for length in (64, 256, 1024, 2048, 4096, 16384, 65536):
            for taps in (4, 32, 128, length):
                key = (channels, length, taps)
                tags = frozenset({"grid"}) | (DEFAULT if key in spread else set()) | (QUICK if key in quick else set())
                label = "L" if taps == length else str(taps)
                name = f"grid-c{channels}-l{length}-k{label}"
                cases.append(Case(name, source, 1, length, channels, taps, layout="BDL", tags=tags))
    return tuple(cases)


CASES: tuple[Case, ...] = (
    Case("small-64", "a toy model, K = 4", 1, 128, 64, 4, tags=QUICK),
    Case("small-512", "a small model, K = 16", 1, 512, 64, 16, tags=QUICK),
    Case("small-1024", "a small model, K = 64", 1, 1024, 64, 64, tags=QUICK),
    Case("small-1024-long", "a small model, K = L", 1, 1024, 64, 1024, tags=QUICK),
    Case("lfm2-prefill", "LFM2-1.2B: hidden size 2048, conv_L_cache 3; a prompt of 4096", 1, 4096, 2048, 3, tags=QUICK),
    Case("lfm2-decode", "LFM2-1.2B: one token with its two predecessors", 1, 1, 2048, 3, state=True, tags=QUICK),
    Case("width-7", "an LFM2-type layer with a filter of width 7", 1, 4096, 2048, 7),
    Case("mamba-130m", "Mamba-130m: d_inner 1536, d_conv 4, silu", 1, 2048, 1536, 4, activation="silu", tags=QUICK),
    Case("recurrentgemma-2b", "RecurrentGemma-2b: lru_width 2560, conv1d_width 4", 1, 2048, 2560, 4),
    Case("hyena-mr", "Hyena-MR of StripedHyena 2: medium filters of 128 taps", 1, 4096, 1024, 128, tags=QUICK),
    Case("hyena-small", "Hyena on WikiText-103: width 768, K = L", 4, 2048, 768, 2048),
    Case("s4-path-x", "S4 on Long Range Arena's Path-X: width 256, K = L", 1, 16384, 256, 16384),
    Case("sashimi-audio", "SaShiMi: 64 channels over 65536 audio samples, K = L", 1, 65536, 64, 65536),
    Case("hyenadna-128k", "HyenaDNA-medium: width 128 over 131072 bases, K = L", 1, 131072, 128, 131072),
    Case("hyenadna-1m", "HyenaDNA-large: 1048576 bases, K = L", 1, 1048576, 32, 1048576, tags=frozenset({"large"})),
    Case("room-reverberation", "10 s of stereo sound at 48 kHz with a 2 s room response", 1, 480000, 2, 96000),
    *_grid(),
)


def _gpu() -> tuple[Case, ...]:
    tags = frozenset({"gpu"})
    shapes = (("short", 4096, 2048, 4), ("medium", 4096, 1024, 128), ("long-1024", 1024, 1024, 1024),
              ("long-4096", 4096, 1024, 4096))  # fmt: skip
    cases = []
    for dtype in ("bfloat16", "float32"):
        for layout in ("BLD", "BDL"):
            for name, length, channels, taps in shapes:
                label = f"gpu-{name}-{dtype}-{'time' if layout == 'BDL' else 'channels'}"
                source = f"a batch of 8 in training, K = {taps}"
                cases.append(Case(label, source, 8, length, channels, taps, dtype=dtype, layout=layout, tags=tags))
    million = Case("gpu-million", "HyenaDNA-large's 2^20 bases", 1, 1 << 20, 64, 1 << 20, layout="BDL", tags=tags)
    return (*cases, million)


# What fills a GPU, and is measured there.
GPU_CASES = _gpu()


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``causal_conv(**inputs(case, seed))``: normal samples, a filter that keeps their scale."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)

    def normal(*leading: int, length: int) -> torch.Tensor:
        if case.layout == "BDL":
            return torch.randn(*leading, case.channels, length, generator=generator).transpose(-1, -2)
        return torch.randn(*leading, length, case.channels, generator=generator)

    x = normal(case.batch, length=case.length).to(dtype)
    h = (normal(length=case.taps) / math.sqrt(max(1, min(case.taps, case.length)))).to(dtype)
    state = normal(case.batch, length=case.taps - 1).to(dtype) if case.state else None
    return {"x": x, "h": h, "activation": case.activation, "initial_state": state}
