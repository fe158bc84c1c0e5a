"""The definition of the convolution, one tap at a time in float64: the truth in tests, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def causal_conv(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    transposed: bool = False,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    boundaries: Sequence[int] | None = None,
    origin: int = 0,
) -> Tensor:
    """y[i,n] = activation(post_gate (sum_k h[k,n] u[i+origin-k,n] + bias[n])), u = pre_gate x; with ``transposed``,
    u[i+k-origin,n] in place of u[i+origin-k,n]."""
    u = x.double() if pre_gate is None else x.double() * pre_gate.double()
    h = _per_channel(h.double(), x.shape[-1])
    sums = []
    for s, (begin, end) in enumerate(pairwise(boundaries or (0, x.shape[-2]))):
        state = initial_state if boundaries is None or initial_state is None else initial_state[..., s, :, :]
        sums.append(_sum(u[..., begin:end, :], h, state, origin, transposed))
    y = torch.cat(sums, -2)
    if bias is not None:
        y += bias.double().unsqueeze(-2)
    if post_gate is not None:
        y *= post_gate.double()
    if activation == "silu":
        y *= torch.sigmoid(y)
    if activation == "gelu":
        y *= (1 + torch.erf(y / 2**0.5)) / 2
    return y


def _per_channel(h: Tensor, channels: int) -> Tensor:
    """A filter for each channel: consecutive channels share those of which there are fewer."""
    return h.repeat_interleave(channels // max(1, h.shape[-1]), -1)


def _sum(u: Tensor, h: Tensor, state: Tensor | None, origin: int, transposed: bool) -> Tensor:
    """The convolution of one sequence."""
    taps, length = h.shape[-2], u.shape[-2]
    y = torch.zeros(u.shape, dtype=torch.float64, device=u.device)
    for k in range(taps):
        shift = k - origin if transposed else origin - k
        begin, end = max(0, -shift), min(length, length - shift)
        if begin < end:
            y[..., begin:end, :] += h[..., k : k + 1, :] * u[..., begin + shift : end + shift, :]
        if state is not None and k > 0:
            steps, start = min(k, length), taps - 1 - k
            y[..., :steps, :] += h[..., k : k + 1, :] * state[..., start : start + steps, :].double()
    return y


def filter_gradient(
    x: Tensor,
    dz: Tensor,
    initial_state: Tensor | None,
    taps: int,
    *,
    x_gate: Tensor | None = None,
    dz_gate: Tensor | None = None,
    boundaries: Sequence[int] | None = None,
    origin: int = 0,
    per_batch: bool = False,
) -> Tensor:
    """dh[k,n] = sum_i dz_gate dz[i,n] u[i+origin-k,n], u = x_gate x; summed over the leading axes too, or for each."""
    u = x.double() if x_gate is None else x.double() * x_gate.double()
    dz = dz.double() if dz_gate is None else dz.double() * dz_gate.double()
    dh = torch.zeros(*x.shape[:-2], taps, x.shape[-1], dtype=torch.float64, device=x.device)
    for s, (begin, end) in enumerate(pairwise(boundaries or (0, x.shape[-2]))):
        state = initial_state if boundaries is None or initial_state is None else initial_state[..., s, :, :]
        length = end - begin
        for k in range(taps):
            shift = origin - k
            low, high = begin + max(0, -shift), begin + min(length, length - shift)
            if low < high:
                dh[..., k, :] += (dz[..., low:high, :] * u[..., low + shift : high + shift, :]).sum(-2)
            if state is not None and k > 0:
                steps, start = min(k, length), taps - 1 - k
                past = state[..., start : start + steps, :].double()
                dh[..., k, :] += (dz[..., begin : begin + steps, :] * past).sum(-2)
    return dh if per_batch else dh.sum(tuple(range(x.ndim - 2))) if x.ndim > 2 else dh
