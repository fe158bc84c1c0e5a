"""The derivatives of a convolution: the Toeplitz matrix T(h), its transpose, and their derivative with respect to h.

All are composed of the operators of ``operator.py``, called by the names that they are registered under, so that
derivatives of any order come by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..._library import below_autograd
from .arguments import Operands, empty_filter_gradient


def apply(operands: Operands) -> Tensor:
    """The operator causal_conv."""
    return cast(Tensor, torch.ops.convscan.causal_conv.default(*operands))


def convolve(x: Tensor, h: Tensor, **others: Any) -> Tensor:
    """The same of operands by name."""
    return apply(Operands(x, h, **others))


def filter_gradient(*arguments: Any) -> Tensor:
    """The operator causal_conv_filter_gradient."""
    return cast(Tensor, torch.ops.convscan.causal_conv_filter_gradient.default(*arguments))


def both_gradients(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator causal_conv_gradients."""
    return cast("tuple[Tensor, Tensor]", torch.ops.convscan.causal_conv_gradients.default(*arguments))


def _activation_gradient(activation: str | None, dy: Tensor, z: Tensor) -> Tensor:
    """dy activation'(z); of differentiable operators where somebody may differentiate it."""
    if activation is None:
        return dy
    if activation == "gelu":
        return cast(Tensor, torch.ops.aten.gelu_backward.default(dy, z))
    if torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0:
        s = torch.sigmoid(z)
        return dy * s * (1 + z * (1 - s))
    return cast(Tensor, torch.ops.aten.silu_backward.default(dy, z))


def _state_gradient(dz: Tensor, h: Tensor, cu_seqlens: Tensor | None, precision: str) -> Tensor:
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
    return dh.sum_to_size(h.shape).to(h.dtype)


def _has_leading(h: Tensor) -> bool:
    """Whether filters differ along leading axes."""
    return h.ndim > 2


def _is_plain_filter(p: Operands) -> bool:
    """Whether both gradients may come from one pass: no gates, no boundaries, a filter for each channel or for all."""
    filters = p.h.shape[-1]
    alone = p.h.ndim == 2 and (filters == 1 or filters == p.x.shape[-1])
    plain = p.pre_gate is None and p.post_gate is None and p.cu_seqlens is None
    return alone and plain and not p.transposed and isinstance(p.origin, int) and p.origin == 0


def _times(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate


def _saved(ctx: Any) -> Operands:
    *tensors, spectrum = ctx.saved_tensors
    return Operands(*tensors, *ctx.rest)._replace(spectrum=spectrum)  # type: ignore[call-arg]


def composed_gradients(p: Operands, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, h, bias, initial_state, pre_gate and post_gate, where needed, each of convolutions."""
    needs_x, needs_h, needs_bias, needs_state, needs_pre, needs_post, *_ = needs
    dw, z = dy, None
    if p.activation is not None or needs_post:
        z = apply(p._replace(post_gate=None, activation=None))
    if p.activation is not None:
        dw = _activation_gradient(p.activation, dy, _times(cast(Tensor, z), p.post_gate))
    dx = dh = dbias = dstate = dpre = dpost = None
    back = p._replace(x=dw, bias=None, state=None, pre_gate=p.post_gate, activation=None)
    back = back._replace(transposed=not p.transposed)
    if needs_x and needs_h and _is_plain_filter(p):
        dx, dh = both_gradients(p.x, p.h, dw, p.state, p.precision, p.spectrum)
        dh = reduce_filter(dh, p.h)
    elif needs_pre:
        du = apply(back._replace(post_gate=None))
        assert p.pre_gate is not None
        dx, dpre = du * p.pre_gate, (du * p.x).sum_to_size(p.pre_gate.shape)
    elif needs_x:
        dx = apply(back._replace(post_gate=p.pre_gate))
    if needs_post:
        assert p.post_gate is not None
        dpost = (dw * cast(Tensor, z)).sum_to_size(p.post_gate.shape)
    if needs_h and dh is None:
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
        dbias = _times(dw, p.post_gate).sum(-2).sum_to_size(p.bias.shape)
    if needs_state:
        dstate = _state_gradient(_times(dw, p.post_gate), p.h, p.cu_seqlens, p.precision)
    return dx if needs_x else None, dh, dbias, dstate, dpre, dpost


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
        from .backward import fused  # which describes its problems as this module does

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
            terms.append(_times(tbias.unsqueeze(-2), p.post_gate).expand(p.x.shape))
        z = None
        if tpost is not None or p.activation is not None:
            z = apply(p._replace(post_gate=None, activation=None))
        if tpost is not None:
            terms.append(tpost * cast(Tensor, z))
        if not terms:
            return None
        tangent = sum(terms[1:], terms[0])
        if p.activation is not None:
            tangent = _activation_gradient(p.activation, tangent, _times(cast(Tensor, z), p.post_gate))
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
            dstate = _state_gradient(_times(dz, dz_gate), h, cu_seqlens, precision)
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


class Gradients(torch.autograd.Function):
    """dx = transpose of T(h) dz and dh = sum of dz and shifted x, of a convolution without gates."""

    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, spectrum: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return both_gradients(x, h, dz, state, precision, spectrum)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h, dz, state, ctx.precision, spectrum = inputs
        ctx.save_for_backward(x, h, dz, state, spectrum)
        ctx.save_for_forward(x, h, dz, state, spectrum)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gdx: Tensor | None, gdh: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, h, dz, state, spectrum = ctx.saved_tensors
        rest, precision = (None, None, None, h.shape[-2], 0, False, ctx.precision), ctx.precision
        need_x, need_h, need_dz, need_state = ctx.needs_input_grad[:4]
        gx = gh = gstate = None
        terms: list[Tensor] = []  # of the gradient of dz
        if gdx is not None:
            if need_h:
                gh = reduce_filter(filter_gradient(gdx, dz, None, *rest), h)
            if need_dz:
                terms.append(convolve(gdx, h, precision=precision, spectrum=spectrum))
        if gdh is not None:
            taps = gdh.to(x.dtype)
            gx = convolve(dz, taps, transposed=True, precision=precision) if need_x else None
            gstate = _state_gradient(dz, taps, None, precision) if need_state else None
            if need_dz:
                terms.append(convolve(x, taps, state=state, precision=precision))
        gdz = sum(terms[1:], terms[0]) if terms else None
        return gx, gh, gdz, gstate, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, th: Tensor | None, tdz: Tensor | None, tstate: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        x, h, dz, state, spectrum = ctx.saved_tensors
        rest, precision = (None, None, None, h.shape[-2], 0, False, ctx.precision), ctx.precision
        dx, dh = torch.zeros_like(x), empty_filter_gradient(x, dz, state, *rest).zero_()
        if tdz is not None:
            dx = dx + convolve(tdz, h, transposed=True, precision=precision, spectrum=spectrum)
            dh = dh + filter_gradient(x, tdz, state, *rest)
        if th is not None:
            dx = dx + convolve(dz, th, transposed=True, precision=precision)
        if tx is not None or tstate is not None:
            tx = torch.zeros_like(x) if tx is None else tx
            dh = dh + filter_gradient(tx, dz, tstate, *rest)
        return dx, dh
