"""The definition, one time step after the other in double precision: truth and fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _heads(q: Tensor, heads: int) -> Tensor:
    """(..., L, G, K) as (..., L, H, K): a group's vectors for each of its heads."""
    return q.double().repeat_interleave(heads // max(1, q.shape[-2]), -2)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    boundaries: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """y[t] = scale S[t]^T q[t] and the last states, of S[t] = diag(exp(g[t])) S[t-1] + w[t] k[t] v[t]^T.

    q, k (..., L, G, K), v (..., L, H, V), g (..., L, H) or (..., L, H, K), w (..., L, H), states (..., S, H, K, V).
    """
    heads = v.shape[-2]
    q, k, v = scale * _heads(q, heads), _heads(k, heads), v.double()
    a = (g if g.ndim == v.ndim else g[..., None]).double().exp()
    k = k if w is None else k * w.double()[..., None]
    y = torch.empty_like(v)
    last = v.new_zeros(*v.shape[:-3], len(boundaries) - 1, heads, k.shape[-1], v.shape[-1])
    if state is not None:
        last.copy_(state)
    for s in range(len(boundaries) - 1):
        carried = last[..., s, :, :, :]
        for t in range(boundaries[s], boundaries[s + 1]):
            carried = a[..., t, :, :, None] * carried + k[..., t, :, :, None] * v[..., t, :, None, :]
            y[..., t, :, :] = (q[..., t, :, :, None] * carried).sum(-2)
        last[..., s, :, :, :] = carried
    return y, last


def gradient(
    dy: Tensor,
    dlast: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    boundaries: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dg, dw and dstate: dS[t] = exp(g[t+1]) dS[t+1] + scale q[t] dy[t]^T, read by what made S[t]."""
    heads, groups = v.shape[-2], q.shape[-2]
    q, k, v, dy = scale * _heads(q, heads), _heads(k, heads), v.double(), dy.double()
    a = (g if g.ndim == v.ndim else g[..., None]).double().exp().expand(k.shape)
    weights = v.new_ones(v.shape[:-1]) if w is None else w.double()
    dq, dk, dv, da = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(k)
    dw, dstate = torch.zeros_like(weights), dlast.double().clone()
    for s in range(len(boundaries) - 1):
        first, end = boundaries[s], boundaries[s + 1]
        empty = dstate.new_zeros(dstate[..., s, :, :, :].shape)
        states = [empty if state is None else state[..., s, :, :, :].double()]
        for t in range(first, end):
            step = (k[..., t, :, :] * weights[..., t, :, None])[..., None] * v[..., t, :, None, :]
            states.append(a[..., t, :, :, None] * states[-1] + step)
        carried = dstate[..., s, :, :, :]
        for t in reversed(range(first, end)):
            dq[..., t, :, :] = (states[t - first + 1] * dy[..., t, :, None, :]).sum(-1)
            carried = carried + q[..., t, :, :, None] * dy[..., t, :, None, :]
            at_k = (carried * v[..., t, :, None, :]).sum(-1)
            dk[..., t, :, :] = at_k * weights[..., t, :, None]
            dw[..., t, :] = (at_k * k[..., t, :, :]).sum(-1)
            dv[..., t, :, :] = (carried * (k[..., t, :, :] * weights[..., t, :, None])[..., None]).sum(-2)
            da[..., t, :, :] = (carried * states[t - first]).sum(-1)
            carried = a[..., t, :, :, None] * carried
        dstate[..., s, :, :, :] = carried
    dg = a * da if g.ndim == v.ndim else (a * da).sum(-1)
    shape = (*q.shape[:-2], groups, heads // max(1, groups), q.shape[-1])
    return scale * dq.reshape(shape).sum(-2), dk.reshape(shape).sum(-2), dv, dg, dw, dstate
