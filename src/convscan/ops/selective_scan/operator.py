"""The selective scan and its step as operators of PyTorch: kernel, shape rule, derivative and vmap rule."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..._calls import Calls, empty_like, in_huge_pages
from ..._dispatch import Cost, Implementation, choose
from ..._library import below_autograd, define, derivative
from . import composed, cpu, gradient, reference
from .arguments import SCHEMA, Arguments, compute_dtype, one_step, problem_of, step_projection
from .mapping import mapped, out_of_channels
from .problem import SelectiveProblem

calls = Calls("selective_scan")


def empty_state(u: Tensor, A: Tensor) -> Tensor:
    return torch.empty(*u.shape[:-2], *A.shape, dtype=A.dtype, device=u.device)


def _empty_checkpoints(u: Tensor, A: Tensor) -> Tensor:
    """The states before every tile: (..., tiles times parts of N numbers, D), real."""
    # The tile of the kernels is 64 steps. An axis of tiles by itself would make export think that it stays 1.
    rows = (u.shape[-2] + 63) // 64 * (2 if A.is_complex() else 1) * A.shape[1]
    return u.new_empty((*u.shape[:-2], rows, u.shape[-1]), dtype=compute_dtype(u.dtype))


def run(
    arguments: Arguments, is_softplus: bool, final_state: Tensor | None, checkpoints: Tensor | None, y: Tensor
) -> None:
    calls.run(
        is_softplus,
        *arguments,
        final_state,
        checkpoints,
        y,
        problem=lambda: problem_of(arguments, is_softplus, final_state, checkpoints, y),
        strict=checkpoints is None,  # checkpoints are part of a gradient, which passes over what cannot keep them
    )


def _kernel(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, is_softplus = args
    arguments = Arguments(*tensors)
    y, final_state, checkpoints = empty_like(arguments.u), *_empty_states(arguments)
    run(arguments, is_softplus, final_state, checkpoints, y)
    return y, final_state, checkpoints


def _empty_states(arguments: Arguments) -> tuple[Tensor, Tensor]:
    u, A = arguments.u, arguments.A
    return empty_state(u, A), in_huge_pages(_empty_checkpoints(u, A))


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    arguments = Arguments(*args[:-1])
    u, A = arguments.u, arguments.A
    return torch.empty_like(u), empty_state(u, A), _empty_checkpoints(u, A)


def _step_kernel(state: Tensor, *args: Any) -> Tensor:
    *tensors, is_softplus = args
    following = state.to(tensors[2].dtype)
    arguments = Arguments(*(*tensors, following))
    y = torch.empty_like(arguments.u)
    problem = problem_of(arguments, is_softplus, following, None, y)
    choose("selective_scan", problem).prepare(problem)(*arguments, following, None, y)
    if following is not state:
        state.copy_(following)
    return y


# ---- derivatives ----


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            return cast("tuple[Tensor, Tensor, Tensor]", scan(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.softplus = inputs
        checkpoints = output[2]
        ctx.mark_non_differentiable(checkpoints)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, dfinal, _ = gradients
        *tensors, checkpoints = ctx.saved_tensors
        if dy is None and dfinal is None:
            return (None,) * 10
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        results = gradient.gradient(dy, dfinal, checkpoints, *tensors, ctx.softplus)
        needed = zip(results, ctx.needs_input_grad, strict=False)
        return (*(result if needs else None for result, needs in needed), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None]:
        y, final_state = composed.tangents(Arguments(*ctx.saved_tensors), Arguments(*tangents[:9]), ctx.softplus)
        return y, final_state, None


def _step_autograd(state: Tensor, *args: Any) -> Tensor:
    with below_autograd():
        return cast(Tensor, step(state, *args))


# ---- vmap ----


def _vmap(info: Any, axes: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    y, final_state, checkpoints = scan(*mapped(args[:9], axes[:9], size), args[9])
    results = ((y, -1), (final_state, -2), (checkpoints, -1))
    return tuple(out_of_channels(result, size, channels) for result, channels in results), (0, 0, 0)


def _step_vmap(info: Any, axes: tuple[int | None, ...], state: Tensor, *args: Any) -> tuple[Tensor, int]:
    tensors = (*args[:8], state.to(args[2].dtype))
    (y, following, _), _ = _vmap(info, (*axes[1:9], axes[0], None), *tensors, args[8])
    state.movedim(axes[0] or 0, 0).copy_(following)
    return y, 0


scan = define(
    f"selective_scan({SCHEMA}, Tensor? initial_state, bool delta_softplus) -> (Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=derivative(_SelectiveScan),
    vmap=_vmap,
)
step = define(
    f"selective_scan_step(Tensor(a!) state, {SCHEMA}, bool delta_softplus) -> Tensor",
    _step_kernel,
    fake=lambda state, u, *args: torch.empty_like(u),
    autograd=_step_autograd,
    vmap=_step_vmap,
)


# ---- registry ----


def _prepare_reference(problem: SelectiveProblem) -> cpu.Run:
    def run(*tensors: Tensor | None) -> None:
        *arguments, final_state, checkpoints, y = tensors
        assert y is not None
        if final_state is not None and final_state.ndim > y.ndim:  # rows of a single step
            u, delta, A, B, C, D, z, *rest = cast(Any, arguments)
            projections = (step_projection(P, u) for P in (B, C))
            arguments = [one_step(u), one_step(delta), A, *projections, D, one_step(z), *rest]
            y = one_step(y)
        definition: Any = (*Arguments(*cast(Any, arguments)).canonical(), problem.softplus)
        result, states = reference.selective_scan(*definition)
        y.copy_(result)
        if final_state is not None:
            final_state.copy_(states[-1])
        if checkpoints is not None:
            tiles = [states[t] for t in range(0, problem.length, 64)]
            parts = [torch.view_as_real(h) if problem.complex else h.unsqueeze(-1) for h in tiles]
            checkpoints.copy_(torch.cat([h.movedim(-3, -1).flatten(-3, -2) for h in parts] or [checkpoints], -2))

    return run


def _reference_cost(problem: SelectiveProblem) -> Cost:
    # Eight PyTorch operators a step, on numbers in double precision, of which all states are kept.
    gates, elements = cpu.work(problem)
    seconds = problem.turns * (6e-5 * (1 + problem.length) + 1e-8 * gates)
    return Cost(seconds, int(problem.turns * 8 * (3 * gates + 5 * elements)))


ROWS = (
    *cpu.ROWS,
    Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference),
)
