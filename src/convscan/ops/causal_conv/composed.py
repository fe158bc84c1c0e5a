"""Gradients of a convolution composed of the operators of ``operator.py``: the Toeplitz matrix T(h), its transpose, and
their derivative with respect to h.

The operators are called by the names that they are registered under, so that derivatives of any order come by
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .arguments import Operands


def apply(operands: Operands) -> Tensor:
    """The operator causal_conv."""
    return cast(Tensor, torch.ops.convscan.causal_conv.default(*operands))


def convolve(x: Tensor, h: Tensor, **others: Any) -> Tensor:
    """The same of operands by name."""
    return apply(Operands(x, h, **others))


def filter_gradient(*arguments: Any) -> Tensor:
    """The operator causal_conv_filter_gradient."""
    return cast(Tensor, torch.ops.convscan.causal_conv_filter_gradient.default(*arguments))


def activation_gradient(activation: str | None, dy: Tensor, z: Tensor) -> Tensor:
    """dy activation'(z); of differentiable operators where somebody may differentiate it."""
    if activation is None:
        return dy
    if activation == "gelu":
        return cast(Tensor, torch.ops.aten.gelu_backward.default(dy, z))
    if torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0:
        s = torch.sigmoid(z)
        return dy * s * (1 + z * (1 - s))
    return cast(Tensor, torch.ops.aten.silu_backward.default(dy, z))


def state_gradient(dz: Tensor, h: Tensor, cu_seqlens: Tensor | None, precision: str) -> Tensor:
    """dstate[j] = sum_{i<=j} dz[i] h[K-1-j+i]: the flipped filter over the first K-1 samples of each sequence of dz."""
    steps, length = h.shape[-2] - 1, dz.shape[-2]
    if cu_seqlens is not None:
        at = cu_seqlens[:-1, None] + torch.arange(steps, device=dz.device)
        inside = (at < cu_seqlens[1:, None]).flatten()
        # One more row, of zeros, is what lies behind the end.
        padded = torch.nn.functional.pad(dz, (0, 0, 0, 1))
        head = padded.index_select(-2, torch.where(inside, at.flatten(), length)).reshape(
            *dz.shape[:-2], *at.shape, dz.shape[-1]
        )
        h = h if h.ndim == 2 else h.unsqueeze(-3)
    else:
        head = torch.nn.functional.pad(dz, (0, 0, 0, steps - length)) if length < steps else dz.narrow(-2, 0, steps)
    if steps == 0:
        return head
    return convolve(head, h.flip(-2)[..., :steps, :], precision=precision)


def reduce_filter(dh: Tensor, h: Tensor) -> Tensor:
    """The gradient of a filter per channel as that of h: summed over what a filter serves, in the dtype of h."""
    if h.shape[-1] != dh.shape[-1]:
        dh = dh.reshape(*dh.shape[:-1], h.shape[-1], dh.shape[-1] // h.shape[-1]).sum(-1)
    return dh.view((1,) * (h.ndim - dh.ndim) + dh.shape).sum_to_size(h.shape).to(h.dtype)


def _has_leading(h: Tensor) -> bool:
    """Whether filters differ along leading axes."""
    return h.ndim > 2


def times(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate


def composed_gradients(p: Operands, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, h, bias, initial_state, pre_gate and post_gate, where needed, each of convolutions."""
    needs_x, needs_h, needs_bias, needs_state, needs_pre, needs_post, *_ = needs
    dw, z = dy, None
    if p.activation is not None or needs_post:
        z = apply(p._replace(post_gate=None, activation=None))
    if p.activation is not None:
        dw = activation_gradient(p.activation, dy, times(cast(Tensor, z), p.post_gate))
    dx = dh = dbias = dstate = dpre = dpost = None
    back = p._replace(x=dw, bias=None, state=None, pre_gate=p.post_gate, activation=None)
    back = back._replace(transposed=not p.transposed)
    if needs_pre:
        du = apply(back._replace(post_gate=None))
        assert p.pre_gate is not None
        dx, dpre = du * p.pre_gate, (du * p.x).sum_to_size(p.pre_gate.shape)
    elif needs_x:
        dx = apply(back._replace(post_gate=p.pre_gate))
    if needs_post:
        assert p.post_gate is not None
        dpost = (dw * cast(Tensor, z)).sum_to_size(p.post_gate.shape)
    if needs_h:
        sides = [(p.x, p.pre_gate), (dw, p.post_gate)]
        # With the transpose, y[i] = sum_k h[k] u[i+k]: samples and gradient change places.
        (signal, its_gate), (other, other_gate) = reversed(sides) if p.transposed else sides
        gradients = filter_gradient(
            signal,
            other,
            p.state,
            its_gate,
            other_gate,
            p.cu_seqlens,
            p.h.shape[-2],
            p.origin,
            _has_leading(p.h),
            p.precision,
        )
        dh = reduce_filter(gradients, p.h)
    if needs_bias:
        assert p.bias is not None
        dbias = times(dw, p.post_gate).sum(-2).sum_to_size(p.bias.shape)
    if needs_state:
        dstate = state_gradient(times(dw, p.post_gate), p.h, p.cu_seqlens, p.precision)
    return dx if needs_x else None, dh, dbias, dstate, dpre, dpost
