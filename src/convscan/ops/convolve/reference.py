"""The definition of the two-sided convolution, one tap at a time in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(x: Tensor, h: Tensor, origin: int = 0, circular: bool = False) -> Tensor:
    """y[i,n] = sum_k h[k,n] x[i+origin-k,n]; x is zero outside 0 <= i < L, or, with ``circular``, has the period L."""
    x, h, length = x.double(), h.double(), x.shape[-2]
    h = h.repeat_interleave(x.shape[-1] // max(1, h.shape[-1]), -1)
    y = torch.zeros_like(x)
    times = torch.arange(length, device=x.device)
    for k in range(h.shape[-2] if length > 0 else 0):
        at = times + origin - k
        inside = torch.ones_like(at, dtype=torch.bool) if circular else (at >= 0) & (at < length)
        y += h[..., k : k + 1, :] * x[..., at % length, :] * inside[:, None]
    return y
