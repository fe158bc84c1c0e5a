"""The derivatives of a convolution as PyTorch records them, in both modes.

Backwards all gradients come from one pass where an implementation has them together, and else from the operators of
``operator.py``, of which derivatives of any order come by themselves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..._library import below_autograd
from .arguments import Operands
from .backward import fused
from .composed import (
    activation_gradient,
    apply,
    composed_gradients,
    convolve,
    filter_gradient,
    state_gradient,
    times,
)


def _saved(ctx: Any) -> Operands:
    *tensors, spectrum = ctx.saved_tensors
    return Operands(*tensors, *ctx.rest)._replace(spectrum=spectrum)  # type: ignore[call-arg]


class CausalConv(torch.autograd.Function):
    """With u = pre_gate x, z = T(h) u + bias and w = post_gate z, y = activation(w). The transpose of a gated
    convolution is one with the gates exchanged."""

    @staticmethod
    def forward(*operands: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return apply(Operands(*operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = inputs[7:11]
        ctx.save_for_backward(*inputs[:7], inputs[11])
        ctx.save_for_forward(*inputs[:7], inputs[11])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 12
        p = _saved(ctx)
        gradients = fused(p, dy, ctx.needs_input_grad)
        if gradients is None:
            gradients = composed_gradients(p, dy, ctx.needs_input_grad)
        needed = zip(ctx.needs_input_grad, gradients, strict=False)
        return (*(gradient if needs else None for needs, gradient in needed), *(None,) * 6)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:  # type: ignore[override]
        p = _saved(ctx)
        tx, th, tbias, tstate, tpre, tpost, *_ = tangents
        plain = p._replace(bias=None, state=None, activation=None)
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            terms.append(apply(plain._replace(x=torch.zeros_like(p.x) if tx is None else tx, state=tstate)))
        if tpre is not None:
            terms.append(apply(plain._replace(pre_gate=tpre)))
        if th is not None:
            terms.append(apply(plain._replace(h=th, state=p.state, spectrum=None)))
        if tbias is not None:
            terms.append(times(tbias.unsqueeze(-2), p.post_gate).expand(p.x.shape))
        z = None
        if tpost is not None or p.activation is not None:
            z = apply(p._replace(post_gate=None, activation=None))
        if tpost is not None:
            terms.append(tpost * cast(Tensor, z))
        if not terms:
            return None
        tangent = sum(terms[1:], terms[0])
        if p.activation is not None:
            tangent = activation_gradient(p.activation, tangent, times(cast(Tensor, z), p.post_gate))
        return tangent


class FilterGradient(torch.autograd.Function):
    """dh = sum of dz_gate dz and shifted x_gate x: linear in each of them."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return filter_gradient(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = inputs[6:]
        ctx.save_for_backward(*inputs[:6])
        ctx.save_for_forward(*inputs[:6])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if gradient is None:
            return (None,) * 10
        x, dz, state, x_gate, dz_gate, cu_seqlens = ctx.saved_tensors
        _, origin, _, precision = ctx.rest
        needs_x, needs_dz, needs_state, needs_x_gate, needs_dz_gate, *_ = ctx.needs_input_grad
        common = {"cu_seqlens": cu_seqlens, "origin": origin, "precision": precision}
        h = gradient.to(x.dtype)
        dx = ddz = dstate = dx_gate = ddz_gate = None
        if needs_x_gate:
            du = convolve(dz, h, pre_gate=dz_gate, transposed=True, **common)
            dx, dx_gate = du * x_gate, (du * x).sum_to_size(x_gate.shape)
        elif needs_x:
            dx = convolve(dz, h, pre_gate=dz_gate, post_gate=x_gate, transposed=True, **common)
        if needs_dz_gate:
            z = convolve(x, h, state=state, pre_gate=x_gate, **common)
            ddz, ddz_gate = z * dz_gate, (z * dz).sum_to_size(dz_gate.shape)
        elif needs_dz:
            ddz = convolve(x, h, state=state, pre_gate=x_gate, post_gate=dz_gate, **common)
        if needs_state:
            dstate = state_gradient(times(dz, dz_gate), h, cu_seqlens, precision)
        dx, ddz = dx if needs_x else None, ddz if needs_dz else None
        return dx, ddz, dstate, dx_gate, ddz_gate, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:  # type: ignore[override]
        x, dz, state, x_gate, dz_gate, cu_seqlens = ctx.saved_tensors
        tx, tdz, tstate, tx_gate, tdz_gate, *_ = tangents
        rest = (cu_seqlens, *ctx.rest)
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            terms.append(filter_gradient(torch.zeros_like(x) if tx is None else tx, dz, tstate, x_gate, dz_gate, *rest))
        if tdz is not None:
            terms.append(filter_gradient(x, tdz, state, x_gate, dz_gate, *rest))
        if tx_gate is not None:
            terms.append(filter_gradient(x, dz, None, tx_gate, dz_gate, *rest))
        if tdz_gate is not None:
            terms.append(filter_gradient(x, dz, state, x_gate, tdz_gate, *rest))
        return sum(terms[1:], terms[0]) if terms else None
