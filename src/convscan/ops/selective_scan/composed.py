"""Derivatives of the selective scan in differentiable operators: those that are differentiated again, and forward mode.

The states and their gradients are each a ``linear_recurrence`` over the states of all channels, in memory for L D N
numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..linear_recurrence.api import linear_recurrence
from ..packed import Packed
from .arguments import Arguments, compute_dtype


def _spread(projection: Tensor, channels: int) -> Tensor:
    """B or C of every channel: (D, N) or (..., L, D, N)."""
    if projection.ndim == 2 or projection.shape[-2] == channels:
        return projection
    return projection.repeat_interleave(channels // projection.shape[-2], -2)


def _gather(gradient: Tensor, projection: Tensor) -> Tensor:
    """The transpose of ``_spread``."""
    if projection.ndim == 2:
        return gradient.sum_to_size(projection.shape)
    groups = projection.shape[-2]
    return torch.unflatten(gradient, -2, (groups, gradient.shape[-2] // groups)).sum(-2)


def _recur(x: Tensor, initial: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, *, reverse: bool = False) -> Tensor:
    """linear_recurrence over the states of all channels, (..., L, D, N)."""
    start = None if initial is None else initial.flatten(-2)
    y = linear_recurrence(x.flatten(-2), start, a.flatten(-2), reverse=reverse, cu_seqlens=cu_seqlens)
    return torch.unflatten(y, -1, x.shape[-2:])


def of_sequences(states: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """(..., S, D, N), also where there is one sequence."""
    return states if states is None or cu_seqlens is not None else states.unsqueeze(-3)


class _States(NamedTuple):
    """What derivatives need of the forward scan, in differentiable operators: everything of the size (..., L, D, N)."""

    u: Tensor
    dt: Tensor
    slope: Tensor | None  # of the softplus
    b: Tensor
    c: Tensor
    a: Tensor
    h: Tensor
    previous: Tensor
    packed: Packed

    @staticmethod
    def of(arguments: Arguments, is_softplus: bool) -> _States:
        u, delta, A, B, C, _, _, delta_bias, initial_state, cu_seqlens = arguments
        real = compute_dtype(u.dtype)
        u, dt = u.to(real), delta.to(real)
        dt = dt if delta_bias is None else dt + delta_bias
        slope = torch.sigmoid(dt) if is_softplus else None
        dt = softplus(dt) if is_softplus else dt
        b, c = _spread(B, u.shape[-1]), _spread(C, u.shape[-1])
        a = torch.exp(dt.unsqueeze(-1) * A)
        h = _recur((dt * u).unsqueeze(-1) * b, initial_state, a, cu_seqlens)
        packed = Packed.of(cu_seqlens, u.shape[-2], u.device)
        before = torch.cat([h[..., :1, :, :], h[..., :-1, :, :]], -3)
        start = of_sequences(initial_state, cu_seqlens)
        at_first = h.new_zeros(()) if start is None else start.index_select(-3, packed.sequence)
        previous = torch.where(packed.is_first.unsqueeze(-1), at_first, before)
        return _States(u, dt, slope, b, c, a, h, previous, packed)

    def sum_states(self, product: Tensor) -> Tensor:
        """What the states contribute to y, of products with C."""
        return 2 * product.sum(-1).real if product.is_complex() else product.sum(-1)

    def ungated(self, D: Tensor | None) -> Tensor:
        """y before it is multiplied by silu(z)."""
        y = self.sum_states(self.c * self.h)
        return y if D is None else y + D * self.u


def _silu_slope(z: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


def _real(product: Tensor) -> Tensor:
    return product.real if product.is_complex() else product


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gradients(dy: Tensor, dfinal: Tensor | None, arguments: Arguments, is_softplus: bool) -> Gradients:
    """The gradient in differentiable operators; empty for arguments that are not there."""
    u_, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens = arguments
    s = _States.of(arguments, is_softplus)
    has_steps = s.packed.has_steps.unsqueeze(-1)
    none = s.u.new_empty(0)
    dy, dz = dy.to(s.u.dtype), none
    if z is not None:
        wide = z.to(s.u.dtype)
        dz = (dy * s.ungated(D) * _silu_slope(wide)).to(z.dtype)
        dy = dy * silu(wide)
    scale = 2 if A.is_complex() else 1
    forcing = scale * s.c.conj_physical() * dy.unsqueeze(-1)
    behind = of_sequences(dfinal, cu_seqlens)
    is_last = s.packed.is_last.unsqueeze(-1)
    if behind is not None:
        forcing = forcing + torch.where(is_last, behind.index_select(-3, s.packed.sequence), behind.new_zeros(()))
    following = torch.where(is_last, s.a.new_zeros(()), torch.cat([s.a[..., 1:, :, :], s.a[..., -1:, :, :]], -3))
    g = _recur(forcing, None, following.conj_physical(), cu_seqlens, reverse=True)
    carried = s.a.conj_physical() * g
    rate = carried * s.previous.conj_physical()
    projected = _real(s.b.conj_physical() * g).sum(-1)
    du = projected * s.dt
    if D is not None:
        du = du + D * dy
    ddelta = projected * s.u + _real(A.conj_physical() * rate).sum(-1)
    if s.slope is not None:
        ddelta = ddelta * s.slope
    start = none
    if initial_state is not None:
        # What a sequence without steps begins with is what it ends with.
        passed = carried.new_zeros(()) if behind is None else behind
        if u_.shape[-2] > 0:
            passed = torch.where(has_steps, carried.index_select(-3, s.packed.first), passed)
        start = passed.expand(initial_state.shape if cu_seqlens is not None else initial_state.unsqueeze(-3).shape)
        start = start if cu_seqlens is not None else start.squeeze(-3)
    return (
        du.to(u_.dtype),
        ddelta.to(delta.dtype),
        (s.dt.unsqueeze(-1) * rate).sum_to_size(A.shape),
        _gather(g * (s.dt * s.u).unsqueeze(-1), B),
        _gather(scale * dy.unsqueeze(-1) * s.h.conj_physical(), C),
        none if D is None else (dy * s.u).sum_to_size(D.shape),
        dz,
        none if delta_bias is None else ddelta.sum_to_size(delta_bias.shape),
        start,
    )


def tangents(arguments: Arguments, t: Arguments, is_softplus: bool) -> tuple[Tensor, Tensor]:
    """Forward mode: the tangents of y and the last state, of those of the arguments, None for zero."""
    s = _States.of(arguments, is_softplus)
    zero = torch.zeros_like(s.u)
    real = s.u.dtype
    tu, tdt, tz = (zero if tangent is None else tangent.to(real) for tangent in (t.u, t.delta, t.z))
    tdt = tdt if t.delta_bias is None else tdt + t.delta_bias
    tdt = tdt if s.slope is None else tdt * s.slope
    exponent = tdt.unsqueeze(-1) * arguments.A
    exponent = exponent if t.A is None else exponent + s.dt.unsqueeze(-1) * t.A
    forcing = (tdt * s.u + s.dt * tu).unsqueeze(-1) * s.b + s.a * s.previous * exponent
    if t.B is not None:
        forcing = forcing + (s.dt * s.u).unsqueeze(-1) * _spread(t.B, s.u.shape[-1])
    th = _recur(forcing, t.initial_state, s.a, arguments.cu_seqlens)
    product = s.c * th if t.C is None else s.c * th + _spread(t.C, s.u.shape[-1]) * s.h
    ty = s.sum_states(product)
    ty = ty if arguments.D is None else ty + arguments.D * tu
    ty = ty if t.D is None else ty + t.D * s.u
    if arguments.z is not None:
        z = arguments.z.to(real)
        ty = ty * silu(z) + s.ungated(arguments.D) * _silu_slope(z) * tz
    start = of_sequences(t.initial_state, arguments.cu_seqlens)
    final = th.new_zeros(()) if start is None else start
    if th.shape[-3]:
        final = torch.where(s.packed.has_steps.unsqueeze(-1), th.index_select(-3, s.packed.last), final)
    final = final.expand(*s.u.shape[:-2], s.packed.first.shape[0], *arguments.A.shape)
    return ty.to(arguments.u.dtype), final if arguments.cu_seqlens is not None else final.squeeze(-3)
