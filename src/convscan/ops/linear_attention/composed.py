"""The gradients of linear attention with decay in differentiable operators, for whoever differentiates them again.

Both recurrences, of the states and of their gradients, are ``linear_recurrence`` over every number of the state, so
that derivatives of any order come by themselves. All states are kept: L K V numbers a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..linear_recurrence.api import linear_recurrence


class Gradients(NamedTuple):
    """With respect to q, k, v, g, w, and the state with the sums' column behind the values'."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    w: Tensor
    state: Tensor


def _over_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // max(1, tensor.shape[-2]), -2)


def _with(extra: Tensor, at: Tensor, tensor: Tensor) -> Tensor:
    """tensor + extra at these steps of the axis -2."""
    return tensor.index_add(-2, at, extra)


def gradients(
    dy: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    boundaries: list[int] | None,
    scale: float,
) -> Gradients:
    """The gradients where all tensors have the type of arithmetic, and states an axis of sequences in front of
    heads."""
    heads, groups, length = v.shape[-2], q.shape[-2], v.shape[-3]
    per_key = g.ndim == v.ndim
    q, k = scale * _over_heads(q, heads), _over_heads(k, heads)
    weighted = k if w is None else k * w.unsqueeze(-1)
    # Every number of the state by itself: (..., H, K, L, V), and decays that broadcast to it.
    a = (g if per_key else g.unsqueeze(-1)).exp().movedim(-3, -1).unsqueeze(-1)
    step = (weighted.unsqueeze(-1) * v.unsqueeze(-2)).movedim(-4, -2)
    read = (q.unsqueeze(-1) * dy.unsqueeze(-2)).movedim(-4, -2)
    spans = list(pairwise([0, length] if boundaries is None else boundaries))
    filled = [s for s, (first, end) in enumerate(spans) if end > first]
    firsts = torch.tensor([spans[s][0] for s in filled], dtype=torch.int64, device=v.device)
    lasts = torch.tensor([spans[s][1] - 1 for s in filled], dtype=torch.int64, device=v.device)
    at = torch.tensor(filled, dtype=torch.int64, device=v.device)
    first_decay = a.index_select(-2, firsts)  # (..., H, K, S, 1)
    inside = torch.ones(length, 1, dtype=v.dtype, device=v.device).index_fill(0, firsts, 0)
    decay = a * inside
    before = None
    if state is not None:
        before = state.movedim(-4, -2).index_select(-2, at)  # (..., H, K, S, V)
        step = _with(first_decay * before, firsts, step)
    states = linear_recurrence(step, None, decay)
    previous = torch.cat([torch.zeros_like(states[..., :1, :]), states[..., :-1, :]], -2)[..., :length, :] * inside
    if before is not None:
        previous = _with(before, firsts, previous)
    if dstate is not None:
        behind = dstate.movedim(-4, -2)
        read = _with(behind.index_select(-2, at), lasts, read)
    following = torch.cat([decay[..., 1:, :], torch.zeros_like(decay[..., :1, :])], -2)[..., :length, :]
    dstates = linear_recurrence(read, None, following, reverse=True)

    states, dstates_by_time = states.movedim(-2, -4), dstates.movedim(-2, -4)  # (..., L, H, K, V)
    dq = scale * (states * dy.unsqueeze(-2)).sum(-1)
    at_k = (dstates_by_time * v.unsqueeze(-2)).sum(-1)
    dv = (dstates_by_time * weighted.unsqueeze(-1)).sum(-2)
    dg = ((a * dstates * previous).sum(-1)).movedim(-1, -3)
    carried = dstates.new_zeros((*dstates.shape[:-2], len(spans), dstates.shape[-1]))
    if dstate is not None:
        empty = torch.ones(len(spans), 1, dtype=v.dtype, device=v.device).index_fill(0, at, 0)
        carried = carried + dstate.movedim(-4, -2) * empty
    carried = _with(first_decay * dstates.index_select(-2, firsts), at, carried)
    shape = (*q.shape[:-2], groups, heads // max(1, groups), q.shape[-1])
    return Gradients(
        q=dq.reshape(shape).sum(-2),
        k=(at_k if w is None else at_k * w.unsqueeze(-1)).reshape(shape).sum(-2),
        v=dv,
        g=dg if per_key else dg.sum(-1),
        w=(at_k * k).sum(-1),
        state=carried.movedim(-2, -4),
    )
