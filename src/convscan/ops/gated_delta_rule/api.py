"""gated_delta_rule: signatures, checks, registration with PyTorch, derivatives, and steps of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import in_huge_pages, run_prepared
from ..._dispatch import Cost, Implementation, choose, register
from ..._layout import dtype_name
from ..._library import (
    below_autograd,
    define,
    derivative,
    has_tangent,
    is_plain,
    is_recorded,
    is_traced,
    with_leading_axis,
)
from ..._targets import processor
from ..gated_linear_attention.api import default_scale
from ..linear_attention.api import arithmetic
from ..linear_attention.arguments import decays, gate, key_value_state, keys_and_values, shaped, with_time
from ..linear_attention.cpu import Optionals
from ..linear_attention.groups import over_groups, over_heads
from ..linear_attention.step import Settings, Step, state_of, written_and_read
from . import composed, cpu, reference, triton
from .problem import DeltaRuleProblem

_NAME = "gated_delta_rule"
_Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y[t] = scale S[t]^T q[t], S[t] = (I - beta[t] k[t] k[t]^T) diag(exp(g[t])) S[t-1] + beta[t] k[t] v[t]^T.

    Linear attention whose memory is corrected: what the decayed state answers to k[t] moves by beta[t] towards v[t], in
    every head. With g of one number a step it is Gated DeltaNet (Qwen3-Next, OLMo hybrid), with one for each key Kimi
    Delta Attention, with g = 0 the delta rule. ``gated_delta_rule_with_state`` also returns the last state, and
    ``gated_delta_rule_step`` computes one step of generation.

    Args:
        q, k: (..., L, H, K), any number of leading axes, any strides. L and every other size may be 0. Models normalise
            k to length 1: with beta (k k) beyond 2 the memory grows. Fewer heads than those of v are groups, of which
            each serves as many heads in a row.
        v: (..., L, H, V).
        g: logarithms of decays, (..., L, H) by step or (..., L, H, K) by key, at most zero for a memory that fades;
            minus infinity forgets exactly.
        beta: (..., L, H), from 0, which ignores a step, to 1, which replaces the answer, or 2, which reflects it.
        scale: factor of q, by default 1 / sqrt(K).
        initial_state: (..., H, K, V), the state before the first step; None for zeros. With ``cu_seqlens``
            (..., S, H, K, V).
        cu_seqlens: (S+1,) int32 or int64, from 0 to L: the boundaries of S sequences that lie behind one another along
            time, between which nothing passes. They may be empty.

    Returns:
        y, with the shape of v.

    dtypes: float32, float64, bfloat16, float16; those of q, k and v are promoted as in any PyTorch operator. Half types
    are computed in float32, which g, beta and states are converted to.

    Raises:
        ValueError: a shape or device that does not fit, or boundaries that decrease or do not span the time axis.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: some 3 K V multiply-adds a step and head, as dense products over tiles of 16 steps in WY form with the state
    in the cache between them. Nothing but the arguments is kept for the gradient, which takes some eleven such products
    and sqrt(L) / 2 states of workspace a thread. Differentiable any number of times in both modes.

    Reference: S. Yang, J. Kautz, A. Hatamizadeh, Gated Delta Networks: Improving Mamba2 with Delta Rule, 2024.

    >>> import torch, convscan
    >>> q = k = torch.ones(3, 1, 1)
    >>> v = torch.tensor([[[1.0]], [[2.0]], [[4.0]]])
    >>> g, beta = torch.zeros(3, 1), torch.full((3, 1), 0.5)
    >>> convscan.gated_delta_rule(q, k, v, g, beta).flatten().tolist()
    [0.5, 1.25, 2.625]
    """
    return _attend(_NAME, q, k, v, g, beta, scale, initial_state, cu_seqlens)[0]


def gated_delta_rule_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y of ``gated_delta_rule``, and the state behind the last step, the next call's ``initial_state``.

    Returns:
        y, with the shape of v, and the last state, (..., H, K, V), with ``cu_seqlens`` (..., S, H, K, V); float32 where
        v has a half type. Both are differentiable.

    Arguments, dtypes, errors and cost as in ``gated_delta_rule``.

    >>> import torch, convscan
    >>> q = k = v = torch.ones(3, 1, 1)
    >>> convscan.gated_delta_rule_with_state(q, k, v, torch.zeros(3, 1), torch.full((3, 1), 0.5))[1].tolist()
    [[[0.875]]]
    """
    return _attend(f"{_NAME}_with_state", q, k, v, g, beta, scale, initial_state, cu_seqlens)


def gated_delta_rule_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float | None = None
) -> Tensor:
    """y = scale S^T q with S = (I - beta k k^T) diag(exp(g)) S + beta k v^T, which overwrites ``state``.

    One step of generation, what ``gated_delta_rule_with_state`` does to a sequence of one step.

    Args:
        state: (..., H, K, V), of the type of arithmetic (float32 for half types); becomes the next state in place.
        q, k: (..., H, K), or of fewer heads, groups.
        v: (..., H, V).
        g: (..., H) by step or (..., H, K) by key.
        beta: (..., H).
        scale: factor of q, by default 1 / sqrt(K).

    Returns:
        y, with the shape of v.

    Raises:
        RuntimeError: where a gradient is needed.
        ValueError, TypeError: as ``gated_delta_rule``, and a state of another dtype.

    Cost: the state is read and written once, and some 3 µs a call.

    >>> import torch, convscan
    >>> state, one = torch.zeros(1, 1, 1), torch.ones(1, 1)
    >>> convscan.gated_delta_rule_step(state, one, one, one, torch.zeros(1), torch.tensor([0.5])).item(), state.item()
    (0.5, 0.5)
    """
    if not is_traced():
        y = run_prepared(_step.prepared, scale, v, state, q, k, g, beta, None)
        if y is not None:
            return y
    scale = None if scale is None else float(scale)
    return _step.run(scale, *_step_arguments(state, q, k, v, g, beta, scale=scale))


# ---- checks ----


def _check(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> torch.dtype:
    dtype = keys_and_values(name, q, k, v)
    decays(name, g, q, v, constant=False)
    shaped(name, "beta", beta, v, v.shape[:-1], "(..., L, H)")
    key_value_state(name, initial_state, q, v, cu_seqlens)
    return dtype


def _attend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Checks, promotes dtypes and calls the operator that is registered with PyTorch."""
    dtype = _check(name, q, k, v, g, beta, initial_state, cu_seqlens)
    wide = arithmetic(dtype)
    arguments = (
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        g.to(wide),
        beta.to(wide),
        None if initial_state is None else initial_state.to(wide),
        cu_seqlens,
        default_scale(q) if scale is None else float(scale),
    )
    # Past the dispatcher where nothing watches the call.
    call = _kernel if is_plain(*arguments[:7]) else _operator
    return cast("tuple[Tensor, Tensor]", call(*arguments))


# ---- problem and call ----


def _problem(q: Tensor, v: Tensor, g: Tensor, cu_seqlens: Tensor | None, *, is_gradient: bool) -> DeltaRuleProblem:
    return DeltaRuleProblem(
        device=v.device.type,
        dtype=dtype_name(v.dtype),
        batch=v.shape[:-3].numel(),
        length=v.shape[-3],
        groups=q.shape[-2],
        heads=v.shape[-2],
        keys=q.shape[-1],
        values=v.shape[-1],
        sequences=1 if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        per_key=g.ndim == v.ndim,
        is_gradient=is_gradient,
        threads=_native.thread_count(),
        isa=processor(v.device),
    )


def _describe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> DeltaRuleProblem:
    """The problem of a call of ``gated_delta_rule``, for ``explain``."""
    dtype = _check(_NAME, q, k, v, g, beta, initial_state, cu_seqlens)
    return _problem(q, v, g, cu_seqlens, is_gradient=False)._replace(dtype=dtype_name(dtype))


def _state_shape(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    sequences = () if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    return (*v.shape[:-3], *sequences, v.shape[-2], q.shape[-1], v.shape[-1])


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(v), g.new_empty(_state_shape(q, v, cu_seqlens))


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    y, last = _fake(q, k, v, g, beta, state, cu_seqlens, scale)
    problem = _problem(q, v, g, cu_seqlens, is_gradient=False)
    run = choose(_NAME, problem).prepare(problem)
    run((q, k, v, g, beta, state), cu_seqlens, (), (in_huge_pages(y), last), scale)
    return y, last


# ---- derivatives ----


def _gradient_fake(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> _Six:
    dstate = g.new_empty(_state_shape(q, v, cu_seqlens))
    return (
        torch.empty_like(q),
        torch.empty_like(k),
        torch.empty_like(v),
        torch.empty_like(g),
        torch.empty_like(beta),
        dstate,
    )


def _gradient_kernel(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> _Six:
    _, _, dv, dg, dbeta, dstate = _gradient_fake(dy, dlast, q, k, v, g, beta, state, cu_seqlens, scale)
    problem = _problem(q, v, g, cu_seqlens, is_gradient=True)
    run = choose(f"{_NAME}_gradient", problem, strict=False).prepare(problem)
    # Of every head by itself, in the type of arithmetic.
    dq, dk = (g.new_empty((*v.shape[:-1], q.shape[-1])) for _ in range(2))
    run((q, k, v, g, beta, state), cu_seqlens, (dy, dlast), (dq, dk, dv, dg, dbeta, dstate), scale)
    dq, dk = over_groups(dq, q.shape[-2]), over_groups(dk, k.shape[-2])
    return dq.to(q.dtype), dk.to(k.dtype), dv, dg, dbeta, dstate


def _composed_gradient(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> _Six:
    wide = g.dtype
    queries, keys = (over_heads(tensor, v.shape[-2]).to(wide) for tensor in (q, k))
    dq, dk, dv, dg, dbeta, dstate = composed.gradients(
        dy.to(wide), dlast, queries, keys, v.to(wide), g, beta, state, cu_seqlens, scale
    )
    dq, dk = over_groups(dq, q.shape[-2]), over_groups(dk, k.shape[-2])
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg, dbeta, dstate


def _gradient_autograd(*arguments: Any) -> _Six:
    """Native where nobody differentiates the gradient; composed of differentiable operators where someone does."""
    if is_recorded(*(argument for argument in arguments if isinstance(argument, Tensor))):
        return _composed_gradient(*arguments)
    with below_autograd():
        return cast(_Six, _gradient(*arguments))


class _GatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with below_autograd():
            return cast("tuple[Tensor, Tensor]", _operator(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None and dlast is None:
            return (None,) * 8
        tensors = ctx.saved_tensors
        dy = torch.zeros_like(tensors[2]) if dy is None else dy
        results = _gradient(dy, dlast, *tensors, ctx.scale)
        needed = ctx.needs_input_grad[:6]
        return (*(result if need else None for result, need in zip(results, needed, strict=True)), None, None)


_recorded = derivative(_GatedDeltaRule)


def _autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """In forward mode, composed of operators that have it; else recorded for backward."""
    *tensors, cu_seqlens, scale = arguments
    if has_tangent(*tensors):
        q, k, v, g, beta, state = tensors
        queries, keys = (over_heads(tensor, v.shape[-2]).to(g.dtype) for tensor in (q, k))
        y, last = composed.forward(queries, keys, v.to(g.dtype), g, beta, state, cu_seqlens, scale)
        return y.to(v.dtype), last
    return cast("tuple[Tensor, Tensor]", _recorded(*arguments))


# ---- vmap: one more leading axis ----


def _vmap(info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int, ...]]:
    return with_leading_axis(_operator, info.batch_size, axes, arguments, (0,) * 2, 6), (0,) * 2


def _gradient_vmap(info: Any, axes: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int, ...]]:
    return with_leading_axis(_gradient, info.batch_size, axes, arguments, (0,) * 6, 8), (0,) * 6


_operator = define(
    "gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? state, Tensor? cu_seqlens, "
    "float scale) -> (Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=_autograd,
    vmap=_vmap,
)
_gradient = define(
    "gated_delta_rule_gradient(Tensor dy, Tensor? dlast, Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, "
    "Tensor? state, Tensor? cu_seqlens, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradient_kernel,
    fake=_gradient_fake,
    autograd=_gradient_autograd,
    vmap=_gradient_vmap,
)


# ---- one step ----


def _step_arguments(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float | None = None
) -> tuple[Settings, Sequence[Tensor | None]]:
    """Checks the arguments of a step, and puts them into the order and the dtypes of the native call."""
    name = f"{_NAME}_step"
    timed = [with_time(name, argument, tensor) for argument, tensor in (("q", q), ("k", k), ("v", v))]
    for argument, tensor in (("g", g), ("beta", beta)):
        _checks.tensor_like(name, argument, tensor, v, "v")
    g_timed, beta_timed = (gates.unsqueeze(min(gates.ndim, v.ndim - 2)) for gates in (g, beta))
    q_timed, k_timed, v_timed = timed
    dtype = _check(name, q_timed, k_timed, v_timed, g_timed, beta_timed, None, None)
    state_of(name, "state", state, v.to(dtype), (*v.shape[:-1], q.shape[-1], v.shape[-1]), "(..., H, K, V)")
    settings = Settings("delta", default_scale(q) if scale is None else float(scale))
    return settings, (v.to(dtype), state, q.to(dtype), k.to(dtype), gate(g, dtype), gate(beta, dtype))


def _composed_step(
    settings: Settings, v: Tensor, state: Tensor, q: Tensor, k: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    decay = (g if g.ndim == v.ndim else g.unsqueeze(-1)).exp().unsqueeze(-1)
    answer = ((decay * state) * over_heads(k, v.shape[-2]).to(state.dtype).unsqueeze(-1)).sum(-2)
    correction = beta.unsqueeze(-1) * (v.to(state.dtype) - answer)
    y, after = written_and_read(settings.scale, correction, state, q, k, decay.squeeze(-1))
    return y.to(v.dtype), after


_step = Step(
    f"{_NAME}_step",
    "delta",
    "Tensor v, Tensor(a!) state, Tensor q, Tensor k, Tensor g, Tensor beta",
    _composed_step,
    _step_arguments,
    states=(1,),
    queries=2,
)


# ---- registry ----


def _prepare_reference(problem: DeltaRuleProblem) -> cpu.Run:
    def run(
        inputs: Optionals,
        cu_seqlens: Tensor | None,
        gradients: Optionals,
        results: Optionals,
        scale: float,
    ) -> None:
        q, k, v, g, beta = cast("Sequence[Tensor]", inputs[:5])
        q, k, state = over_heads(q, v.shape[-2]), over_heads(k, v.shape[-2]), inputs[5]
        if cu_seqlens is not None:
            _checks.boundaries(_NAME, cu_seqlens, problem.length)
        found: tuple[Tensor, ...]
        if problem.is_gradient:
            dy, dlast = gradients
            assert dy is not None
            found = reference.gradient(dy, dlast, q, k, v, g, beta, scale, state, cu_seqlens)
        else:
            found = reference.gated_delta_rule(q, k, v, g, beta, scale, state, cu_seqlens)
        for result, value in zip(results, found, strict=True):
            assert result is not None
            result.copy_(value)

    return run


def _reference_cost(problem: DeltaRuleProblem) -> Cost:
    # Ten PyTorch operators a step forward, some thirty with the gradients, on states in double precision.
    state = problem.batch * problem.heads * problem.keys * problem.values
    factor, kept = (3, 4 + problem.length) if problem.is_gradient else (1, 4)
    return Cost(factor * (1 + problem.length) * (1e-4 + 1e-8 * state), 8 * kept * state)


def _prepare_composed(problem: DeltaRuleProblem) -> cpu.Run:
    """The gradients in PyTorch's operators, a tile of steps after the other."""

    def run(
        inputs: Optionals,
        cu_seqlens: Tensor | None,
        gradients: Optionals,
        results: Optionals,
        scale: float,
    ) -> None:
        q, k, v, g, beta = cast("Sequence[Tensor]", inputs[:5])
        dy, dlast = gradients
        assert dy is not None
        if cu_seqlens is not None:
            _checks.boundaries(_NAME, cu_seqlens, problem.length)
        queries, keys = (over_heads(tensor, v.shape[-2]).to(g.dtype) for tensor in (q, k))
        signals = (dy.to(g.dtype), dlast, queries, keys, v.to(g.dtype))
        found = composed.gradients(*signals, g, beta, inputs[5], cu_seqlens, scale)
        for result, value in zip(results, found, strict=True):
            assert result is not None
            result.copy_(value)

    return run


def _composed_refusals(problem: DeltaRuleProblem) -> list[str]:
    return [] if problem.is_gradient else ["computes gradients only"]


def _composed_cost(problem: DeltaRuleProblem) -> Cost:
    # Some hundred operators a tile, of which those of decays have a number for each pair of steps and key.
    heads, tiles = problem.batch * problem.heads, problem.sequences + problem.length / composed.STEPS
    state = heads * problem.keys * problem.values
    pairs = heads * composed.STEPS**2 * problem.keys
    workspace = 8 * tiles * (2 * state + 4 * pairs)
    return Cost(tiles * (2e-3 + 1e-8 * (state + 10 * pairs)), int(workspace))


_COMPOSED = Implementation("composed", "any", _composed_refusals, _composed_cost, _prepare_composed)
_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)
register(_NAME, (*cpu.ROWS, *triton.ROWS, _REFERENCE), _describe)
register(f"{_NAME}_gradient", (*cpu.ROWS, *triton.GRADIENT_ROWS, _COMPOSED, _REFERENCE), _describe)
