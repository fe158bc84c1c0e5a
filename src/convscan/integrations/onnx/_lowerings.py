"""Operators as PyTorch's own: a short convolution is ``conv1d``, a recurrence ``scan``: Conv and Scan in ONNX.

Functions take what the operator takes that is registered with PyTorch, and return what it returns. Shapes may be
symbolic. Half types are computed in float32, as by the operators. Nothing of the size of all states is made: a Scan
carries one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.nn.functional import conv1d, gelu, pad, silu, softplus

from ..._errors import message

Optional = Tensor | None


def _refuse(operator: str, what: str, remedy: str) -> None:
    raise ValueError(message("integrations.onnx", f"{operator} has no form in ONNX with {what}", what, remedy))


def _check(operator: str, cu_seqlens: Optional, *tensors: Optional) -> None:
    if cu_seqlens is not None:
        _refuse(operator, "packed sequences", "Export one sequence a row")
    if any(tensor is not None and tensor.is_complex() for tensor in tensors):
        _refuse(operator, "complex numbers", "Export real and imaginary parts as two")


def _wide(*tensors: Optional) -> list[Any]:
    """In the type of arithmetic."""
    return [
        tensor.float() if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        for tensor in tensors
    ]


def _scanned(
    step: Callable[..., tuple[Tensor, Tensor]],
    state: Tensor,
    inputs: Sequence[Tensor],
    axis: int,
    constants: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """The last state, and all outputs along the first axis, of ``state, output = step(state, *slices, *constants)``."""
    # The operator itself: its public function, torch.scan, would compile, and see sizes change from call to call.
    moved = [tensor.movedim(axis, 0) for tensor in inputs]
    last, outputs = scan_op(step, [state], moved, tuple(constants))
    return last, outputs


def causal_conv(
    x: Tensor,
    h: Tensor,
    bias: Optional,
    initial_state: Optional,
    pre_gate: Optional,
    post_gate: Optional,
    cu_seqlens: Optional,
    activation: str | None,
    origin: int,
    transposed: bool,
    precision: str,
    spectrum: Optional,
) -> Tensor:
    """A Conv with a group for each channel; with filters of each sequence and a fixed batch, for each of those too."""
    _check("causal_conv", cu_seqlens)
    if transposed:
        _refuse("causal_conv", "its gradient", "Export the model without gradients")
    dtype, lead = x.dtype, x.shape[:-2]
    x, h, bias, state, pre_gate, post_gate = _wide(x, h, bias, initial_state, pre_gate, post_gate)
    taps, channels = h.shape[-2], x.shape[-1]
    h = h if h.shape[-1] == channels else h.repeat_interleave(channels // h.shape[-1], -1)
    u = (x if pre_gate is None else x * pre_gate).mT
    if state is None:
        u = pad(u, (taps - 1 - origin, origin))
    else:
        u = pad(torch.cat([state.mT, u], -1), (-origin, origin)) if origin else torch.cat([state.mT, u], -1)
    weight = h.flip(-2).mT
    if h.ndim == 2:
        rows = u.flatten(0, -3) if u.ndim > 3 else u if u.ndim == 3 else u.unsqueeze(0)
        y = conv1d(rows, weight.unsqueeze(-2), groups=channels)
    elif all(isinstance(size, int) for size in (*lead, channels)):
        weights = weight.expand(*lead, *weight.shape[-2:]).flatten(0, -2)
        y = conv1d(u.flatten(0, -2).unsqueeze(0), weights.unsqueeze(-2), groups=weights.shape[0])
    else:
        # The number of groups is part of a Conv: where it may change, a sum over taps.
        terms = [weight[..., k : k + 1] * u.narrow(-1, k, x.shape[-2]) for k in range(taps)]
        y = sum(terms[1:], terms[0])
    y = y.reshape(x.mT.shape).mT
    y = y if bias is None else y + bias
    y = y if post_gate is None else y * post_gate
    y = silu(y) if activation == "silu" else gelu(y) if activation == "gelu" else y
    return y.to(dtype)  # type: ignore[no-any-return]


def linear_recurrence(x: Tensor, y_init: Optional, a: Tensor, cu_seqlens: Optional, reverse: bool) -> Tensor:
    """A Scan over time."""
    _check("linear_recurrence", cu_seqlens, x, y_init, a)
    dtype = x.dtype
    x, y_init, a = _wide(x, y_init, a)
    a = a.expand(x.shape)
    if reverse:
        x, a = x.flip(-2), a.flip(-2)
    y_init = torch.zeros_like(x[..., 0, :]) if y_init is None else y_init

    def step(y: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        after = a * y + x
        return after, after.clone()

    y = _scanned(step, y_init, (x, a), -2)[1].movedim(0, -2)
    return (y.flip(-2) if reverse else y).to(dtype)  # type: ignore[no-any-return]


def allpole_filter(x: Tensor, a: Tensor, initial_state: Optional, transposed: bool) -> Tensor:
    """A Scan over time that carries the last outputs, latest first."""
    if transposed:
        _refuse("allpole_filter", "its gradient", "Export the model without gradients")
    dtype = x.dtype
    x, a, state = _wide(x, a, initial_state)
    order = a.shape[-2]
    a = a.expand(*x.shape[:-1], order, x.shape[-1])
    state = x.new_zeros(*x.shape[:-2], order, x.shape[-1]) if state is None else state.flip(-2)

    def step(past: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        y = x + (a * past).sum(-2)
        return torch.cat([y.unsqueeze(-2), past[..., :-1, :]], -2), y

    # Time is the last axis but one of x, and one more of a.
    inputs = (x.unsqueeze(-2), a)
    _, y = _scanned(lambda past, x, a: step(past, x.squeeze(-2), a), state, inputs, -3)
    return y.movedim(0, -2).to(dtype)  # type: ignore[no-any-return]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional,
    z: Optional,
    delta_bias: Optional,
    initial_state: Optional,
    cu_seqlens: Optional,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Scan over time that carries a state (..., D, N), and the gates of a step."""
    _check("selective_scan", cu_seqlens, A, B, C, initial_state)
    dtype, channels = u.dtype, u.shape[-1]
    u, delta, A, B, C, D, z, delta_bias, state = _wide(u, delta, A, B, C, D, z, delta_bias, initial_state)
    dt = delta if delta_bias is None else delta + delta_bias
    dt = softplus(dt) if delta_softplus else dt
    lead = u.shape[:-2]
    # A projection that is constant is one for each channel already.
    b, c = (P.expand(*lead, u.shape[-2], *P.shape) if P.ndim == 2 else P for P in (B, C))
    state = u.new_zeros(*lead, *A.shape) if state is None else state
    inputs = (u.unsqueeze(-2), dt.unsqueeze(-2), b, c)

    def spread(P: Tensor) -> Tensor:
        return P if P.shape[-2] == channels else P.repeat_interleave(channels // P.shape[-2], -2)

    def step(h: Tensor, u: Tensor, dt: Tensor, b: Tensor, c: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        dt = dt.mT
        after = torch.exp(dt * A) * h + dt * u.mT * spread(b)
        return after, (after * spread(c)).sum(-1)

    last, y = _scanned(step, state, inputs, -3, (A,))
    y = y.movedim(0, -2)
    y = y if D is None else y + D * u
    y = y if z is None else y * silu(z)
    # The states before every tile, for a gradient that an export has no use for.
    checkpoints = u.new_zeros(*lead, (u.shape[-2] + 63) // 64 * A.shape[1], channels)
    return y.to(dtype), last, checkpoints


def selective_scan_step(state: Tensor, *arguments: Any) -> Tensor:
    """A sequence of one step, whose last state overwrites the one before."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = arguments
    y, last, _ = selective_scan(u, delta, A, B, C, D, z, delta_bias, state, None, delta_softplus)
    state.copy_(last)
    return y


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Optional,
    state: Optional,
    sum_state: Optional,
    cu_seqlens: Optional,
    scale: float,
    sums: bool,
    turned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A Scan over time that carries S = diag(exp(g)) S + w k v^T, and with ``sums`` n = diag(exp(g)) n + w k."""
    _check("linear_attention", cu_seqlens)
    dtype = v.dtype
    q, k, v, g, w, state, sum_state = _wide(q, k, v, g, w, state, sum_state)
    lead, heads, keys = v.shape[:-3], v.shape[-2], q.shape[-1]
    if sums:
        # One more value, of ones, whose memory is the sum of the keys.
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    values = v.shape[-1]
    if state is None:
        state = v.new_zeros(*lead, heads, keys, values)
    elif sums:
        column = torch.zeros_like(state[..., :1]) if sum_state is None else sum_state.unsqueeze(-1)
        state = torch.cat([state, column], -1)
    decay = (g if g.ndim == v.ndim else g.unsqueeze(-1)).exp().unsqueeze(-1)
    k = k if k.shape[-2] == heads else k.repeat_interleave(heads // k.shape[-2], -2)
    q = q if q.shape[-2] == heads else q.repeat_interleave(heads // q.shape[-2], -2)
    k = k if w is None else k * w.unsqueeze(-1)
    inputs = (q.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-2), decay)

    def step(S: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        after = decay * S + k * v
        return after, (q * after).sum(-2)

    last, y = _scanned(step, state, inputs, -4)
    y = scale * y.movedim(0, -3)
    if not sums:
        nothing = y.new_zeros(0)
        return y.to(dtype), nothing, last, nothing.clone()
    return y[..., :-1].to(dtype), y[..., -1], last[..., :-1], last[..., -1]


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Optional,
    cu_seqlens: Optional,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A Scan over time that carries S = exp(g) S + beta k (v - k^T exp(g) S)."""
    _check("gated_delta_rule", cu_seqlens)
    dtype = v.dtype
    q, k, v, g, beta, state = _wide(q, k, v, g, beta, state)
    state = v.new_zeros(*v.shape[:-3], v.shape[-2], k.shape[-1], v.shape[-1]) if state is None else state
    decay = (g if g.ndim == v.ndim else g.unsqueeze(-1)).exp().unsqueeze(-1)
    inputs = (q.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-2), decay, beta[..., None, None])

    def step(S: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        decayed = decay * S
        after = decayed + k * (beta * (v - (k * decayed).sum(-2, keepdim=True)))
        return after, (q * after).sum(-2)

    last, y = _scanned(step, state, inputs, -4)
    return (scale * y.movedim(0, -3)).to(dtype), last


def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """PyTorch's running maximum, which the exporter does not know: a Scan that carries the largest and its place."""
    moved = x.movedim(dim, 0)
    places = torch.arange(moved.shape[0], device=x.device).view(-1, *([1] * (x.ndim - 1))).expand(moved.shape)

    def step(most: Tensor, at: Tensor, x: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        larger = x >= most
        most, at = torch.where(larger, x, most), torch.where(larger, place, at)
        return most, at, most.clone(), at.clone()

    _, _, values, indices = scan_op(step, [moved[0].clone(), places[0].clone()], [moved, places.clone()], ())
    return values.movedim(0, dim), indices.movedim(0, dim)


def _without(operator: str, what: str, remedy: str) -> Callable[..., Any]:
    def lowered(*arguments: Any) -> Any:
        _refuse(operator, what, remedy)

    return lowered


_CONSTANT = "Compute the kernel before, and export a model that has it as a buffer"

LOWERINGS: dict[str, Callable[..., Any]] = {
    "allpole_filter": allpole_filter,
    "causal_conv": causal_conv,
    "cauchy": _without("cauchy", "complex numbers", _CONSTANT),
    "gated_delta_rule": gated_delta_rule,
    "linear_attention": linear_attention,
    "linear_recurrence": linear_recurrence,
    "selective_scan": selective_scan,
    "vandermonde": _without("vandermonde", "complex numbers", _CONSTANT),
}
