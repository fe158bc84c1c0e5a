"""The definition, one lag at a time in float64: the truth in tests, and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def opt_ssm_forward(x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None) -> Tensor:
    """y[b,i] = sum_k C (K[k] * (B_ x[b,i-k])) for K (L, N); sum_k K[k] x[b,i-k] for K (L, H_out, H_in)."""
    length, x, K = x.shape[1], x.double(), K.double()
    outputs = K.shape[1] if C is None else C.shape[0]
    y = torch.zeros(x.shape[0], length, outputs, dtype=torch.float64, device=x.device)
    u = x if B_ is None else x @ B_.double().T
    for k in range(min(K.shape[0], length)):
        states = u[:, : length - k]
        y[:, k:] += states @ K[k].T if C is None else (states * K[k]) @ C.double().T
    return y
