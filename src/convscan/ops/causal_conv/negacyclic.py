"""Transforms modulo X^2M + 1 by PyTorch's own, and the order of their frequencies.

The transform of 2M real samples x is that of the M complex numbers (x[n] + i x[n+M]) exp(iπ n / 2M), whose frequencies
(k - 1/4) / M stand for themselves and their conjugates.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_UNIT = 512  # a multiple of every instruction set's unit, so that frequencies are the same on all


@lru_cache
def points(taps: int, length: int) -> int:
    """M, the complex points of transforms of which a part is kept."""
    least = math.ceil((length + min(taps, length) - 1) / 2 / _UNIT)
    sizes = (2**a * 3**b * 5**c for a in range(40) for b in range(6) for c in range(4))
    smallest: int = min(size for size in sizes if size >= least)
    return _UNIT * smallest


def ascending(count: int) -> Tensor:
    """The place in ascending order of each frequency (k - 1/4) / M of a transform: those of the upper half stand for
    their conjugates."""
    k = torch.arange(count)
    return torch.where(2 * k - 1 < count, (2 * k - 1).clamp(min=0), 2 * (count - k))


def _turns(count: int, like: Tensor) -> Tensor:
    kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    angle = torch.arange(count, dtype=torch.float64, device=like.device) * (math.pi / (2 * count))
    turns: Tensor = torch.polar(torch.ones_like(angle), angle).to(kind)[:, None]
    return turns


def transform(x: Tensor, count: int) -> Tensor:
    """(..., L, D) to (..., M, D), in the order of k."""
    x = torch.nn.functional.pad(x, (0, 0, 0, 2 * count - x.shape[-2]))
    z: Tensor = torch.fft.fft(torch.complex(x[..., :count, :], x[..., count:, :]) * _turns(count, x), dim=-2)
    return z


def inverse(z: Tensor, count: int, length: int) -> Tensor:
    """The first samples of what has that transform."""
    z = torch.fft.ifft(z, dim=-2) * _turns(count, z.real).conj()
    return torch.cat([z.real, z.imag], -2)[..., :length, :]
