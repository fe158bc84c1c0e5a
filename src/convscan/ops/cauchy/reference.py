"""The definition of the Cauchy product, one term after the other in double precision: truth and fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def cauchy(v: Tensor, z: Tensor, poles: Tensor, power: int = 1) -> Tensor:
    """k[..., w] = sum_n v[..., n] / (z[..., w] - poles[..., n])^power."""
    v, z, poles = (tensor.to(torch.complex128) for tensor in (v, z, poles))
    k = torch.zeros_like((v * poles).sum(-1, keepdim=True) * z)
    for n in range(v.shape[-1]):
        difference = z - poles[..., n : n + 1]
        k = k + v[..., n : n + 1] * torch.stack([1 / difference] * power).prod(0)
    return k
