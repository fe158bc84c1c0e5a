"""causal_conv between two gates, and over packed sequences. Its truth is a float64 product of spectra, gated, of each
sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import convscan

from ..problem import Operator, by_formula

DEFAULT = frozenset({"default"})
LARGE = frozenset({"large"})


@dataclass(frozen=True)
class Case:
    """y = post_gate conv(pre_gate x), of ``sequences`` of random lengths packed along time where there are several."""

    name: str
    source: str
    batch: int
    length: int
    channels: int
    taps: int
    sequences: int = 1
    dtype: str = "float32"
    layout: str = "BLD"
    tags: frozenset[str] = DEFAULT

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: x and both gates read once, the output written once."""
        item = getattr(torch, self.dtype).itemsize
        return int(item * (4 * self.batch * self.length + self.taps) * self.channels)

    @property
    def flops(self) -> int:
        """Of the cheaper of the direct sum and one transform of the whole length, with two products a sample."""
        rows, taps = self.batch * self.channels, min(self.taps, self.length)
        points = max(2, (self.length + taps) // 2)
        spectral = rows * (10 * points * math.log2(points) + 6 * points)
        return int(min(2 * rows * self.length * taps, spectral)) + 2 * rows * self.length


CASES = (
    Case("lfm2-gated", "LFM2-1.2B: hidden size 2048, 3 taps between two gates", 1, 4096, 2048, 3),
    Case("lfm2-packed", "the same over 64 packed sequences", 1, 4096, 2048, 3, sequences=64, tags=LARGE),
    Case("width-7-gated", "a layer of that type with a filter of width 7", 1, 4096, 2048, 7, tags=LARGE),
    Case("hyena-gated", "Hyena on WikiText-103: width 768, K = L, between two gates", 4, 2048, 768, 2048, tags=LARGE),
    *(
        Case(f"gpu-{length}-{dtype}", "Hyena's operator over 8192 rows, K = L", 8, length, 1024, length, dtype=dtype,
             layout="BDL", tags=frozenset({"gpu"}))
        for dtype in ("bfloat16", "float32")
        for length in (256, 1024, 4096)
    ),
)  # fmt: skip


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Normal samples and gates, a filter that keeps their scale, boundaries anywhere."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    is_time = case.layout == "BDL"
    shape = (case.batch, *((case.channels, case.length) if is_time else (case.length, case.channels)))
    signals = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    x, pre_gate, post_gate = (signal.mT if is_time else signal for signal in signals)
    h = torch.randn(case.taps, case.channels, generator=generator) / math.sqrt(min(case.taps, case.length))
    cuts = torch.randint(case.length + 1, (case.sequences - 1,), generator=generator).sort().values
    ends = torch.tensor([0, case.length])
    packed = torch.cat([ends[:1], cuts, ends[1:]]) if case.sequences > 1 else None
    return {"x": x, "h": h.to(dtype), "pre_gate": pre_gate, "post_gate": post_gate, "cu_seqlens": packed}


def _gated(x: Tensor, h: Tensor, pre_gate: Tensor, post_gate: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    boundaries = [0, x.shape[1]] if cu_seqlens is None else cu_seqlens.long().tolist()
    return post_gate * torch.cat([_conv(pre_gate[:, i:j] * x[:, i:j], h) for i, j in pairwise(boundaries)], 1)


def _conv(u: Tensor, h: Tensor) -> Tensor:
    length = u.shape[1]
    points = 1 << (length + h.shape[0]).bit_length()
    y: Tensor = torch.fft.irfft(torch.fft.rfft(u, points, dim=1) * torch.fft.rfft(h, points, dim=0), points, dim=1)
    return y[:, :length]


OPERATOR = Operator(
    name="gated causal_conv",
    short="gated",
    cases=CASES,
    inputs=inputs,
    function=convscan.causal_conv,
    differentiable=("x", "h", "pre_gate", "post_gate"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["h"].shape[0]),
    axes="BLDK",
    group=lambda shape: "gated convolution, K ≤ 16" if shape[3] <= 16 else "gated convolution, K > 16",
    # Transforms spread the rounding of the largest values over all.
    answer=by_formula(_gated, lambda problem: 1 + math.log2(2 * problem.size("L") + 1)),
    bound=64.0,
    bandwidth="copy",
    explain=None,
)
