"""The selective scan and its step as operators of PyTorch: kernel, shape rule, derivative and vmap rule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks
from ..._calls import Calls, empty_like, in_huge_pages
from ..._dispatch import Cost, Implementation, choose
from ..._library import below_autograd, define, derivative, one_by_one
from . import composed, cpu, gradient, reference, triton
from .arguments import ONE_STEP, SEQUENCES, Arguments, compute_dtype, one_step, problem_of, step_projection
from .mapping import mapped, out_of_channels
from .problem import SelectiveProblem

calls = Calls("selective_scan")


def empty_state(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Memory for the last state, of each packed sequence."""
    sequences = () if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    return torch.empty(*u.shape[:-2], *sequences, *A.shape, dtype=A.dtype, device=u.device)


def _empty_checkpoints(u: Tensor, A: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The states before every tile: (..., tiles times parts of N numbers, D), real."""
    # The tile of the kernels is 64 steps; csrc/include/convscan.h says how many there are. An axis of tiles by itself
    # would make export think that it stays 1.
    sequences = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    tiles = (u.shape[-2] + 63) // 64 if sequences == 1 else u.shape[-2] // 64 + sequences
    return u.new_empty(
        (*u.shape[:-2], tiles * (2 if A.is_complex() else 1) * A.shape[1], u.shape[-1]), dtype=compute_dtype(u.dtype)
    )


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
    like = (arguments.u, arguments.A, arguments.cu_seqlens)
    checkpoints = in_huge_pages(_empty_checkpoints(*like))
    # Packed sequences do not use all rows; results are the same in every call nevertheless.
    return empty_state(*like), checkpoints if arguments.cu_seqlens is None else checkpoints.zero_()


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    arguments = Arguments(*args[:-1])
    like = (arguments.u, arguments.A, arguments.cu_seqlens)
    return torch.empty_like(arguments.u), empty_state(*like), _empty_checkpoints(*like)


def _step_kernel(state: Tensor, *args: Any) -> Tensor:
    *tensors, is_softplus = args
    following = state.to(tensors[2].dtype)
    arguments = Arguments(*(*tensors, following))
    y = torch.empty_like(arguments.u)
    problem = problem_of(arguments, is_softplus, following, None, y, in_place=True)
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
            return (None,) * 11
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        results = gradient.gradient(dy, dfinal, checkpoints, *tensors, ctx.softplus)
        needed = zip(results, ctx.needs_input_grad, strict=False)
        return (*(result if needs else None for result, needs in needed), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None]:
        y, final_state = composed.tangents(Arguments(*ctx.saved_tensors), Arguments(*tangents[:10]), ctx.softplus)
        return y, final_state, None


def _step_autograd(state: Tensor, *args: Any) -> Tensor:
    with below_autograd():
        return cast(Tensor, step(state, *args))


# ---- vmap ----


def _vmap(info: Any, axes: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    if axes[9] is not None:
        return one_by_one(scan, size, axes, args, (0, 0, 0)), (0, 0, 0)
    y, final_state, checkpoints = scan(*mapped(args[:9], axes[:9], size), *args[9:])
    results = ((y, -1), (final_state, -2), (checkpoints, -1))
    return tuple(out_of_channels(result, size, channels) for result, channels in results), (0, 0, 0)


def _step_vmap(info: Any, axes: tuple[int | None, ...], state: Tensor, *args: Any) -> tuple[Tensor, int]:
    tensors = (*args[:8], state.to(args[2].dtype))
    (y, following, _), _ = _vmap(info, (*axes[1:9], axes[0], None, None), *tensors, None, args[8])
    state.movedim(axes[0] or 0, 0).copy_(following)
    return y, 0


scan = define(
    f"selective_scan({SEQUENCES}, bool delta_softplus) -> (Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=derivative(_SelectiveScan),
    vmap=_vmap,
)
step = define(
    f"selective_scan_step(Tensor(a!) state, {ONE_STEP}, bool delta_softplus) -> Tensor",
    _step_kernel,
    fake=lambda state, u, *args: torch.empty_like(u),
    autograd=_step_autograd,
    vmap=_step_vmap,
)


# ---- registry ----


def _prepare_reference(problem: SelectiveProblem) -> cpu.Run:
    def run(*tensors: Tensor | None) -> None:
        *given, final_state, checkpoints, y = tensors
        assert y is not None
        if problem.in_place:
            given[8] = final_state
            if y.ndim < cast(Tensor, final_state).ndim:  # rows of a single step
                u, delta, A, B, C, D, z, *rest = cast(Any, given)
                projections = (step_projection(P, u) for P in (B, C))
                given, y = [one_step(u), one_step(delta), A, *projections, D, one_step(z), *rest], one_step(y)
        arguments = Arguments(*cast(Any, given)).canonical()
        bounds = [0, problem.length]
        if arguments.cu_seqlens is not None:
            bounds = _checks.boundaries("selective_scan", arguments.cu_seqlens, problem.length)
        kept: list[Tensor] = []
        for s, (begin, end) in enumerate(pairwise(bounds)):
            steps = slice(begin, end)
            start = arguments.initial_state
            if arguments.cu_seqlens is not None:
                start = None if start is None else start[..., s, :, :]
            definition: Any = (*arguments.during(steps)[:8], start, problem.softplus)
            result, states = reference.selective_scan(*definition)
            y[..., steps, :].copy_(result)
            if final_state is not None:
                (final_state if arguments.cu_seqlens is None else final_state[..., s, :, :]).copy_(states[-1])
            # A sequence's tiles are behind those of all before it, each of which may have one more than whole ones.
            unused = begin // 64 + s - len(kept)
            kept += [states[-1]] * unused + states[:-1:64]
        if checkpoints is not None and kept:
            parts = [torch.view_as_real(h) if problem.complex else h.unsqueeze(-1) for h in kept]
            rows = torch.cat([h.movedim(-3, -1).flatten(-3, -2) for h in parts], -2)
            checkpoints[..., : rows.shape[-2], :].copy_(rows)

    return run


def _reference_cost(problem: SelectiveProblem) -> Cost:
    # Eight PyTorch operators a step, on numbers in double precision, of which all states are kept.
    gates, elements = cpu.work(problem)
    seconds = problem.turns * (6e-5 * (1 + problem.length) + 1e-8 * gates)
    return Cost(seconds, int(problem.turns * 8 * (3 * gates + 5 * elements)))


ROWS = (
    *cpu.ROWS,
    *triton.ROWS,
    Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference),
)
