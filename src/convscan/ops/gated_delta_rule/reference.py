"""The definition of the gated delta rule, one step after the other in double precision: truth and fallback."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def _spans(cu_seqlens: Tensor | None, length: int) -> Iterator[tuple[int, int]]:
    return pairwise([0, length] if cu_seqlens is None else cu_seqlens.tolist())


def _step(state: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decayed state, what v differs from its answer to k, and the next state."""
    decayed = decay[..., None] * state
    error = v - (decayed * k[..., None]).sum(-2)
    return decayed, error, decayed + k[..., None] * (beta[..., None] * error)[..., None, :]


def _wide(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    decay = g.double().exp()
    decay = (decay if g.ndim == k.ndim else decay[..., None]).expand(k.shape)
    return q.double(), k.double(), v.double(), decay, beta.double()


def _starts(
    initial: Tensor | None, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, sequences: int
) -> tuple[Tensor, ...]:
    if initial is None:
        return (v.new_zeros(*k.shape[:-3], *k.shape[-2:], v.shape[-1], dtype=torch.float64),) * sequences
    return (initial.double(),) if cu_seqlens is None else initial.double().unbind(-4)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the last state, (..., H, K, V), or (..., S, H, K, V) with boundaries."""
    spans = list(_spans(cu_seqlens, v.shape[-3]))
    starts = _starts(initial_state, k, v, cu_seqlens, len(spans))
    q, k, v, decay, beta = _wide(q, k, v, g, beta)
    y, last = torch.empty_like(v), []
    for (begin, end), state in zip(spans, starts, strict=True):
        for t in range(begin, end):
            at = (..., t, slice(None), slice(None))
            _, _, state = _step(state, k[at], v[at], decay[at], beta[..., t, :])
            y[at] = scale * (state * q[at][..., None]).sum(-2)
        last.append(state)
    return y, last[0] if cu_seqlens is None else torch.stack(last, -4)


def gradient(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Those of q, k, v, g, beta and the initial state."""
    spans = list(_spans(cu_seqlens, v.shape[-3]))
    starts = _starts(initial_state, k, v, cu_seqlens, len(spans))
    ends = _starts(dlast, k, v, cu_seqlens, len(spans))
    by_key = g.ndim == k.ndim
    q, k, v, decay, beta = _wide(q, k, v, g, beta)
    dy = dy.double()
    dq, dk, dv, dbeta = map(torch.empty_like, (q, k, v, beta))
    dg, first = torch.empty_like(k), []
    for (begin, end), state, ds in zip(spans, starts, ends, strict=True):
        states = [state]
        for t in range(begin, end):
            at = (..., t, slice(None), slice(None))
            states.append(_step(states[-1], k[at], v[at], decay[at], beta[..., t, :])[2])
        for t in reversed(range(begin, end)):
            at = (..., t, slice(None), slice(None))
            before = states[t - begin]
            decayed, error, after = _step(before, k[at], v[at], decay[at], beta[..., t, :])
            ds = ds + scale * q[at][..., None] * dy[at][..., None, :]
            dq[at] = scale * (after * dy[at][..., None, :]).sum(-1)
            du = (ds * k[at][..., None]).sum(-2)
            dbeta[..., t, :] = (du * error).sum(-1)
            de = beta[..., t, :, None] * du
            dv[at] = de
            u = beta[..., t, :, None] * error
            dk[at] = (ds * u[..., None, :]).sum(-1) - (decayed * de[..., None, :]).sum(-1)
            ds = ds - k[at][..., None] * de[..., None, :]
            dg[at] = (ds * decayed).sum(-1)
            ds = decay[at][..., None] * ds
        first.append(ds)
    return dq, dk, dv, dg if by_key else dg.sum(-1), dbeta, first[0] if cu_seqlens is None else torch.stack(first, -4)
