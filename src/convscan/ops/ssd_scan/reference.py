"""The definition of Mamba-2's state-space layer, one step after the other in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y[t] = S[t] C[t] + D x[t] and the last state, of S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T."""
    x, heads = x.double(), x.shape[-2]
    B, C = (tensor.double().repeat_interleave(heads // max(1, tensor.shape[-2]), -2) for tensor in (B, C))
    step = dt.double() if dt_bias is None else dt.double() + dt_bias.double()
    step = torch.nn.functional.softplus(step) if dt_softplus else step
    decay = (step * A.double()).exp()
    state = x.new_zeros(*x.shape[:-3], heads, x.shape[-1], B.shape[-1])
    if initial_state is not None:
        state = initial_state.double()
    y = torch.empty_like(x)
    for t in range(x.shape[-3]):
        added = (step[..., t, :, None] * x[..., t, :, :])[..., None] * B[..., t, :, None, :]
        state = decay[..., t, :, None, None] * state + added
        y[..., t, :, :] = (state * C[..., t, :, None, :]).sum(-1)
    if D is not None:
        y = y + (D.double() if D.ndim == 2 else D.double()[:, None]) * x
    return y if z is None else y * torch.nn.functional.silu(z.double()), state
