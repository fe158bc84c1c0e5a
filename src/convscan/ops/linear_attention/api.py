"""Linear attention with decay: registration with PyTorch and derivatives. The public operators are made of it.

    S[t] = diag(exp(g[t])) S[t-1] + w[t] k[t] v[t]^T,   y[t] = scale S[t]^T q[t]

for every head, and with ``sums`` what y would be of one more column of v that is all ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import in_huge_pages
from ..._dispatch import Cost, Implementation, choose, register
from ..._layout import dtype_name
from ..._library import below_autograd, define, derivative, is_plain, is_recorded, with_leading_axis
from ..._targets import processor
from . import composed, cpu, reference, triton
from .groups import over_heads
from .problem import AttentionGradientProblem, AttentionProblem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Results = tuple[Tensor, Tensor, Tensor, Tensor]
Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type that gates and states have and sums are made in: float32 for half types."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Attended(NamedTuple):
    """The output, the sums of weights (empty where they are not wanted), and the last states of both."""

    y: Tensor
    sums: Tensor
    state: Tensor
    sum_state: Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    w: Tensor | None = None,
    skip: Tensor | None = None,
    state: Tensor | None = None,
    sum_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sums: bool = False,
    turned: bool = False,
) -> Attended:
    """The operator on arguments that have been checked.

    q, k (..., L, G, K) and v (..., L, H, V) of one dtype; g (..., L, H) or (..., L, H, K) and w (..., L, H) of its
    arithmetic, like the states (..., H, K, V) and (..., H, K) with an axis of sequences in front of H where there are
    cu_seqlens. ``skip`` (H, V) times v is added to y. ``turned``: the last state has consecutive keys, not values.
    """
    arguments = (q, k, v, g, w, state, sum_state, cu_seqlens, scale, sums, turned)
    if is_plain(q, k, v, g, w, skip, state, sum_state, cu_seqlens):
        return Attended(*_run(skip, *arguments))
    y, *others = _operator(*arguments)
    return Attended(y if skip is None else y + (skip * v).to(y.dtype), *others)


# ---- problem and call ----


def describe(q: Tensor, v: Tensor, g: Tensor, cu_seqlens: Tensor | None, sums: bool) -> AttentionProblem:
    """The problem of these arguments of ``attend``."""
    batch = 1
    for size in v.shape[:-3]:
        batch *= size
    return AttentionProblem(
        device=v.device.type,
        dtype=dtype_name(v.dtype),
        batch=batch,
        length=v.shape[-3],
        groups=q.shape[-2],
        heads=v.shape[-2],
        keys=q.shape[-1],
        values=v.shape[-1],
        sequences=1 if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        per_key=g.ndim == v.ndim,
        sums=sums,
        threads=_native.thread_count(),
        isa=processor(v.device),
    )


def _empty_results(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, sums: bool, turned: bool) -> Results:
    lead = v.shape[:-3]
    sequences = () if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    heads, keys, values = v.shape[-2], q.shape[-1], v.shape[-1]
    wide = arithmetic(v.dtype)
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    state = (values, keys) if turned else (keys, values)
    last = torch.empty((*lead, *sequences, heads, *state), dtype=wide, device=v.device)
    return (
        y,
        torch.empty((*lead, v.shape[-3], heads) if sums else (0,), dtype=wide, device=v.device),
        last.transpose(-1, -2) if turned else last,
        torch.empty((*lead, *sequences, heads, keys) if sums else (0,), dtype=wide, device=v.device),
    )


def _run(
    skip: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    sum_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    sums: bool,
    turned: bool,
) -> Results:
    y, total, last, last_sum = _empty_results(q, v, cu_seqlens, sums, turned)
    in_huge_pages(y)
    problem = describe(q, v, g, cu_seqlens, sums)
    inputs = (q, k, v, g, w, state, sum_state)
    outputs = (y, total if sums else None, last, last_sum if sums else None)
    choose("gated_linear_attention", problem).prepare(problem)(inputs, skip, outputs, cu_seqlens, scale)
    return y, total, last, last_sum


def _kernel(*arguments: Any) -> Results:
    return _run(None, *arguments)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    sum_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    sums: bool,
    turned: bool,
) -> Results:
    return _empty_results(q, v, cu_seqlens, sums, turned)


# ---- gradient ----


def _gradient_fake(
    dy: Tensor,
    dsums: Tensor | None,
    dlast: Tensor | None,
    dlast_sum: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    sum_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    sums: bool,
) -> Seven:
    wide = arithmetic(v.dtype)

    def like(tensor: Tensor | None, dtype: torch.dtype) -> Tensor:
        return torch.empty((0,) if tensor is None else tensor.shape, dtype=dtype, device=v.device)

    return (
        like(q, q.dtype),
        like(k, k.dtype),
        like(v, v.dtype),
        like(g, wide),
        like(w, wide),
        like(state, wide),
        like(sum_state, wide),
    )


def _gradient_kernel(
    dy: Tensor,
    dsums: Tensor | None,
    dlast: Tensor | None,
    dlast_sum: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    sum_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    sums: bool,
) -> Seven:
    results = _gradient_fake(dy, dsums, dlast, dlast_sum, q, k, v, g, w, state, sum_state, cu_seqlens, scale, sums)
    problem = AttentionGradientProblem(describe(q, v, g, cu_seqlens, sums))
    row = choose("linear_attention_gradient", problem, strict=False)
    blocks = (
        -(-(v.shape[-2] // max(1, q.shape[-2])) // cpu.heads_together(problem.forward)) if row.target == "cpu" else 1
    )
    dq, dk = (torch.empty((blocks, *q.shape), dtype=arithmetic(q.dtype), device=q.device) for _ in range(2))
    _, _, dv, dg, dw, dstate, dsum_state = results
    row.prepare(problem)(
        (q, k, v, g, w, state, sum_state),
        (dy, dsums, dlast, dlast_sum),
        (
            dq,
            dk,
            in_huge_pages(dv),
            dg,
            None if w is None else dw,
            None if state is None else dstate,
            None if sum_state is None else dsum_state,
        ),
        cu_seqlens,
        scale,
    )

    def summed(partial: Tensor) -> Tensor:
        return (partial[0] if blocks == 1 else partial.sum(0)).to(q.dtype)

    return summed(dq), summed(dk), dv, dg, dw, dstate, dsum_state


def _with_column(tensor: Tensor, column: Tensor | None) -> Tensor:
    """A tensor with the column of the sums behind its last; zeros where there is none."""
    last = torch.zeros_like(tensor[..., :1]) if column is None else column.unsqueeze(-1)
    return torch.cat([tensor, last], -1)


def _composed_gradient(
    dy: Tensor,
    dsums: Tensor | None,
    dlast: Tensor | None,
    dlast_sum: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    state: Tensor | None,
    sum_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    sums: bool,
) -> Seven:
    """The gradient in differentiable operators."""
    wide = arithmetic(v.dtype)
    values = v.shape[-1]
    v_dtype, v, dy = v.dtype, v.to(wide), dy.to(wide)
    if sums:
        v, dy = _with_column(v, torch.ones_like(v[..., 0])), _with_column(dy, dsums)
        if dlast is not None or dlast_sum is not None:
            assert dlast is not None
            dlast = _with_column(dlast, dlast_sum)
        state = None if state is None else _with_column(state, sum_state)
    packed = cu_seqlens is not None
    dlast, state = (s if packed or s is None else s.unsqueeze(-4) for s in (dlast, state))
    found = composed.gradients(dy, dlast, q.to(wide), k.to(wide), v, g, w, state, cu_seqlens, scale)
    dstate = found.state if packed else found.state.squeeze(-4)
    absent = v.new_empty(0)
    return (
        found.q.to(q.dtype),
        found.k.to(k.dtype),
        found.v[..., :values].to(v_dtype),
        found.g,
        absent if w is None else found.w,
        absent if state is None else dstate[..., :values],
        absent if sum_state is None else dstate[..., values],
    )


def _gradient_autograd(*arguments: Any) -> Seven:
    """Fused where nobody differentiates the gradient; composed of differentiable operators where someone does."""
    if is_recorded(*(argument for argument in arguments if isinstance(argument, Tensor))):
        return _composed_gradient(*arguments)
    with below_autograd():
        return cast(Seven, _gradient(*arguments))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> Results:  # type: ignore[override]
        with below_autograd():
            return cast(Results, _operator(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        *tensors, ctx.scale, ctx.sums, ctx.turned = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors, output[2], output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if all(gradient is None for gradient in gradients):
            return (None,) * 11
        tensors = ctx.saved_tensors
        v = tensors[2]
        dy, dsums, dlast, dlast_sum = gradients
        dy = torch.zeros_like(v) if dy is None else dy
        if dlast is None and dlast_sum is not None:
            # Both or none: the kernels have one state.
            dlast = dlast_sum.new_zeros((*dlast_sum.shape, v.shape[-1]))
        results = _gradient(
            dy,
            dsums if ctx.sums else None,
            dlast,
            dlast_sum if ctx.sums else None,
            *tensors,
            ctx.scale,
            ctx.sums,
        )
        needed = ctx.needs_input_grad[:7]
        return (*(result if need else None for result, need in zip(results, needed, strict=True)), *(None,) * 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Results:  # type: ignore[override]
        q, k, v, g, w, state, sum_state, cu_seqlens, last, last_sum = ctx.saved_tensors
        primals = (q, k, v, g, w, state, sum_state, cu_seqlens)
        return _tangents(primals, (last, last_sum), tangents[:7], (ctx.scale, ctx.sums, ctx.turned))


def _within_sequences(total: Tensor, cu_seqlens: Tensor | None, time: int) -> tuple[Tensor, Tensor]:
    """Running sums since the beginning of each step's sequence, and those of whole sequences; ``time`` is the axis."""
    padded = torch.cat([torch.zeros_like(total.narrow(time, 0, 1)), total], time) if total.shape[time] else None
    if padded is None:
        return total, torch.zeros_like(total.sum(time, keepdim=cu_seqlens is not None))
    if cu_seqlens is None:
        return total, padded.select(time, -1)
    bounds = cu_seqlens.to(torch.int64)
    begin, end = padded.index_select(time, bounds[:-1]), padded.index_select(time, bounds[1:])
    steps = torch.arange(total.shape[time], device=total.device)
    of_step = torch.bucketize(steps, bounds[1:], right=True)
    return total - begin.index_select(time, of_step), end - begin


def _tangents(
    primals: tuple[Any, ...], lasts: tuple[Tensor, Tensor], tangents: tuple[Any, ...], rest: tuple[float, bool, bool]
) -> Results:
    """Forward mode. A decay over (s, t] changes by the difference of the running sums of g's tangent at t and s:
    times its value at q less times its value at k, so that the tangent is a sum of three calls of the operator."""
    q, k, v, g, w, state, sum_state, cu_seqlens = primals
    tq, tk, tv, tg, tw, tstate, tsum_state = tangents
    scale, sums, turned = rest
    heads, time = v.shape[-2], v.ndim - 3
    per_head = tg is not None or tw is not None
    q_of, k_of = (over_heads(q, heads), over_heads(k, heads)) if per_head else (q, k)
    changed_q = torch.zeros_like(q_of) if tq is None else (over_heads(tq, heads) if per_head else tq)
    changed_k = torch.zeros_like(k_of) if tk is None else (over_heads(tk, heads) if per_head else tk)
    whole = None
    if tg is not None:
        running, whole = _within_sequences(tg.cumsum(time), cu_seqlens, time)
        running = running if g.ndim == v.ndim else running.unsqueeze(-1)
        changed_q, changed_k = changed_q + (running * q_of).to(q.dtype), changed_k - (running * k_of).to(k.dtype)
    weight = w
    if tw is not None:
        # w k changes to w (dk) + (dw) k, which has the weight one.
        changed_k, weight = (changed_k * w.unsqueeze(-1) + tw.unsqueeze(-1) * k_of).to(k.dtype), None
    at_q = _operator(changed_q, k_of, v, g, w, state, sum_state, cu_seqlens, scale, sums, turned)
    at_k = _operator(q_of, changed_k, v, g, weight, tstate, tsum_state, cu_seqlens, scale, sums, turned)
    y, last, last_sum = at_q[0] + at_k[0], at_k[2], at_k[3]
    if tv is not None:
        at_v = _operator(q, k, tv, g, w, None, None, cu_seqlens, scale, False, turned)
        y, last = y + at_v[0], last + at_v[2]
    if whole is not None:
        by_key = whole if g.ndim == v.ndim else whole.unsqueeze(-1)
        last = last + by_key.unsqueeze(-1) * lasts[0]
        last_sum = last_sum + by_key * lasts[1] if sums else last_sum
    return y, at_q[1] + at_k[1], last, last_sum


# ---- vmap: one more leading axis ----


def _vmap(info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int | None, ...]]:
    of_sums = 0 if arguments[9] else None
    out_axes = (0, of_sums, 0, of_sums)
    return with_leading_axis(_operator, info.batch_size, axes, arguments, out_axes, 7), out_axes


def _gradient_vmap(info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int | None, ...]]:
    out_axes = (0, 0, 0, 0, *(None if argument is None else 0 for argument in arguments[8:11]))
    return with_leading_axis(_gradient, info.batch_size, axes, arguments, out_axes, 11), out_axes


_operator = define(
    "linear_attention(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? w, Tensor? state, Tensor? sum_state, "
    "Tensor? cu_seqlens, float scale, bool sums, bool turned) -> (Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=derivative(_Attention),
    vmap=_vmap,
)
_gradient = define(
    "linear_attention_gradient(Tensor dy, Tensor? dsums, Tensor? dlast, Tensor? dlast_sum, Tensor q, Tensor k, "
    "Tensor v, Tensor g, Tensor? w, Tensor? state, Tensor? sum_state, Tensor? cu_seqlens, float scale, bool sums) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradient_kernel,
    fake=_gradient_fake,
    autograd=_gradient_autograd,
    vmap=_gradient_vmap,
)


# ---- registry ----


def _spans(cu_seqlens: Tensor | None, length: int) -> list[int]:
    return [0, length] if cu_seqlens is None else _checks.boundaries("linear attention", cu_seqlens, length)


def _column(tensor: Tensor | None, column: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or column is None else torch.cat([tensor, column.unsqueeze(-1)], -1)


def _prepare_reference(problem: AttentionProblem) -> cpu.Run:
    def run(
        inputs: cpu.Optionals, skip: Tensor | None, outputs: cpu.Optionals, cu_seqlens: Tensor | None, scale: float
    ) -> None:
        q, k, v, g, w, state, sum_state = inputs
        y, sums, last, last_sum = outputs
        assert q is not None
        assert k is not None
        assert v is not None
        assert g is not None
        assert y is not None
        assert last is not None
        packed = cu_seqlens is not None
        columns = v.double() if sums is None else torch.cat([v.double(), torch.ones_like(v[..., :1]).double()], -1)
        initial = _column(state, sum_state)
        initial = initial if packed or initial is None else initial.unsqueeze(-4)
        result, final = reference.linear_attention(
            q, k, columns, g, w, initial, _spans(cu_seqlens, problem.length), scale
        )
        final = final if packed else final.squeeze(-4)
        result_y = result[..., : problem.values]
        y.copy_(result_y if skip is None else result_y + skip * v.double())
        last.copy_(final[..., : problem.values])
        if sums is not None and last_sum is not None:
            sums.copy_(result[..., problem.values])
            last_sum.copy_(final[..., problem.values])

    return run


def _prepare_gradient_reference(problem: AttentionGradientProblem) -> cpu.RunGradient:
    forward = problem.forward

    def run(
        inputs: cpu.Optionals,
        gradients: cpu.Optionals,
        outputs: cpu.Optionals,
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> None:
        q, k, v, g, w, state, sum_state = inputs
        dy, dsums, dlast, dlast_sum = gradients
        assert q is not None
        assert k is not None
        assert v is not None
        assert g is not None
        assert dy is not None
        packed = cu_seqlens is not None
        v, dy, values = v.double(), dy.double(), forward.values
        spans = _spans(cu_seqlens, forward.length)
        if forward.sums:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
            dy = _with_column(dy, None if dsums is None else dsums.double())
            dlast = None if dlast is None else _with_column(dlast, dlast_sum)
            state = _column(state, sum_state)
        shape = (*v.shape[:-3], len(spans) - 1, v.shape[-2], q.shape[-1], v.shape[-1])
        carried = v.new_zeros(shape) if dlast is None else dlast.double().reshape(shape)
        initial = None if state is None else state.reshape(shape)
        found = list(reference.gradient(dy, carried, q, k, v, g, w, initial, spans, scale))
        dstate = found[5] if packed else found[5].squeeze(-4)
        found = [*found[:2], found[2][..., :values], *found[3:5], dstate[..., :values], dstate[..., -1]]
        for output, result in zip(outputs, found, strict=True):
            if output is not None:
                output.copy_(result)

    return run


def _reference_cost(problem: AttentionProblem | AttentionGradientProblem) -> Cost:
    # Four PyTorch operators a step forward, some twenty with the gradients, on states in double precision.
    forward = problem if isinstance(problem, AttentionProblem) else problem.forward
    state = forward.batch * forward.heads * forward.keys * forward.columns
    factor = 1 if isinstance(problem, AttentionProblem) else 5
    kept = 4 if isinstance(problem, AttentionProblem) else 4 + forward.length
    return Cost(factor * forward.length * (4e-5 + 4e-9 * state), 8 * kept * state)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)
_GRADIENT_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, _prepare_gradient_reference
)
ROWS = (*cpu.ROWS, *triton.ROWS, _REFERENCE)
register(
    "linear_attention_gradient",
    (*cpu.GRADIENT_ROWS, *triton.GRADIENT_ROWS, _GRADIENT_REFERENCE),
    lambda *arguments: AttentionGradientProblem(describe(*arguments)),
)
