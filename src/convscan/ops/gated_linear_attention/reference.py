"""The definition, one step after the other in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[t] = scale S[t]^T q[t] and the last state, of S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T."""
    v, heads = v.double(), v.shape[-2]
    q, k = (tensor.double().repeat_interleave(heads // max(1, tensor.shape[-2]), -2) for tensor in (q, k))
    decay = g.double().exp().expand(v.shape[:-1]) if g.ndim == 1 else g.double().exp()
    decay = decay if decay.ndim == v.ndim else decay[..., None]
    state = v.new_zeros(*v.shape[:-3], heads, k.shape[-1], v.shape[-1])
    if initial_state is not None:
        state = initial_state.double()
    y = torch.empty_like(v)
    for t in range(v.shape[-3]):
        state = decay[..., t, :, :, None] * state + k[..., t, :, :, None] * v[..., t, :, None, :]
        y[..., t, :, :] = scale * (q[..., t, :, :, None] * state).sum(-2)
    return y, state
