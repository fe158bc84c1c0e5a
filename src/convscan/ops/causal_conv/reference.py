"""The definition of the convolution, one tap at a time in float64: the truth in tests, and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """y[i,n] = activation(sum_k h[k,n] x[i-k,n] + bias[n]); with ``transposed``, x[i+k,n] in place of x[i-k,n]."""
    x, h = x.double(), h.double()
    (taps, _), length = h.shape, x.shape[-2]
    y = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for k in range(min(taps, length)):
        if transposed:
            y[..., : length - k, :] += h[k] * x[..., k:, :]
        else:
            y[..., k:, :] += h[k] * x[..., : length - k, :]
    if initial_state is not None:
        for k in range(1, taps):
            steps, start = min(k, length), taps - 1 - k
            y[..., :steps, :] += h[k] * initial_state[..., start : start + steps, :].double()
    if bias is not None:
        y += bias.double()
    if activation == "silu":
        y *= torch.sigmoid(y)
    if activation == "gelu":
        y *= (1 + torch.erf(y / 2**0.5)) / 2
    return y


def filter_gradient(x: Tensor, dz: Tensor, initial_state: Tensor | None, taps: int) -> Tensor:
    """dh[k,n] = sum_i dz[i,n] x[i-k,n], summed over the leading axes too."""
    x, dz = x.double(), dz.double()
    length, channels = x.shape[-2:]
    leading = tuple(range(x.ndim - 1))
    dh = torch.zeros(taps, channels, dtype=torch.float64, device=x.device)
    for k in range(min(taps, length)):
        dh[k] = (dz[..., k:, :] * x[..., : length - k, :]).sum(leading)
    if initial_state is not None:
        for k in range(1, taps):
            steps, start = min(k, length), taps - 1 - k
            dh[k] += (dz[..., :steps, :] * initial_state[..., start : start + steps, :].double()).sum(leading)
    return dh
