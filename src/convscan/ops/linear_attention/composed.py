"""The gradients of linear attention with decay in differentiable operators, for whoever differentiates them again.

Both recurrences, of the states and of their gradients, are ``linear_recurrence`` over every number of the state, so
that derivatives of any order come by themselves. All states are kept: L K V numbers a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..linear_recurrence.api import linear_recurrence
from ..packed import Packed
from .groups import over_groups, over_heads


class Gradients(NamedTuple):
    """With respect to q, k, v, g, w, and the state with the sums' column behind the values'."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    w: Tensor
    state: Tensor


def gradients(
    dy: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> Gradients:
    """The gradients where all tensors have the type of arithmetic, and states an axis of sequences in front of
    heads."""
    heads, groups, length = v.shape[-2], q.shape[-2], v.shape[-3]
    per_key = g.ndim == v.ndim
    q, k = scale * over_heads(q, heads), over_heads(k, heads)
    weighted = k if w is None else k * w.unsqueeze(-1)
    # Every number of the state by itself: (..., H, K, L, V), and decays that broadcast to it.
    a = (g if per_key else g.unsqueeze(-1)).exp().movedim(-3, -1).unsqueeze(-1)
    step = (weighted.unsqueeze(-1) * v.unsqueeze(-2)).movedim(-4, -2)
    read = (q.unsqueeze(-1) * dy.unsqueeze(-2)).movedim(-4, -2)
    packed, zero = Packed.of(cu_seqlens, length, v.device), v.new_zeros(())

    def of_steps(states: Tensor | None) -> Tensor:
        """Of each step, what its sequence has of (..., S, H, K, V)."""
        return zero if states is None else states.movedim(-4, -2).index_select(-2, packed.sequence)

    # The state before the first step enters by its forcing, so that no state passes from one sequence to the next.
    before = of_steps(state)
    step = step + torch.where(packed.is_first, a * before, zero)
    decay = torch.where(packed.is_first, zero, a)
    states = linear_recurrence(step, None, decay)
    shifted = torch.cat([torch.zeros_like(states[..., :1, :]), states[..., :-1, :]], -2)[..., :length, :]
    previous = torch.where(packed.is_first, before, shifted)
    read = read + torch.where(packed.is_last, of_steps(dstate), zero)
    following = torch.cat([decay[..., 1:, :], torch.zeros_like(decay[..., :1, :])], -2)[..., :length, :]
    dstates = linear_recurrence(read, None, following, reverse=True)

    states, dstates_by_time = states.movedim(-2, -4), dstates.movedim(-2, -4)  # (..., L, H, K, V)
    dq = scale * (states * dy.unsqueeze(-2)).sum(-1)
    at_k = (dstates_by_time * v.unsqueeze(-2)).sum(-1)
    dv = (dstates_by_time * weighted.unsqueeze(-1)).sum(-2)
    dg = ((a * dstates * previous).sum(-1)).movedim(-1, -3)
    # What a sequence without steps begins with is what it ends with.
    carried = zero if dstate is None else dstate.movedim(-4, -2)
    if length > 0:
        passed = a.index_select(-2, packed.first) * dstates.index_select(-2, packed.first)
        carried = torch.where(packed.has_steps, passed, carried)
    carried = carried.expand(*dstates.shape[:-2], packed.first.shape[0], dstates.shape[-1])
    return Gradients(
        q=over_groups(dq, groups),
        k=over_groups(at_k if w is None else at_k * w.unsqueeze(-1), groups),
        v=dv,
        g=dg if per_key else dg.sum(-1),
        w=(at_k * k).sum(-1),
        state=carried.movedim(-2, -4),
    )
