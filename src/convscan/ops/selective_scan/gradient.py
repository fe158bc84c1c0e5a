"""The gradients of the selective scan as an operator of PyTorch, from the states that the forward scan kept."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ..._calls import empty_like
from ..._dispatch import Cost, Implementation, choose, register
from ..._library import below_autograd, define, is_recorded, one_by_one
from . import composed, cpu, triton
from .arguments import SEQUENCES, Arguments, problem_of
from .composed import Gradients
from .mapping import CHANNEL_AXES, into_channels, mapped, out_of_channels
from .problem import SelectiveGradientProblem


def _gradient_autograd(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> Gradients:
    """Fused where nobody differentiates the gradient; composed of differentiable operators where someone does."""
    *tensors, is_softplus = args
    if is_recorded(dy, dfinal, *tensors):
        return composed.gradients(dy, dfinal, Arguments(*tensors), is_softplus)
    with below_autograd():
        return cast(Gradients, gradient(dy, dfinal, checkpoints, *args))


def _one_batch(tensor: Tensor | None, leads: int) -> Tensor | None:
    """The leading axes as one; a copy only where they do not merge."""
    return None if tensor is None else tensor.reshape(math.prod(tensor.shape[:leads]), *tensor.shape[leads:])


def _describe_gradient(
    dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, arguments: Arguments, is_softplus: bool
) -> SelectiveGradientProblem:
    """Of arguments with one leading axis."""
    u, delta, z = arguments.u, arguments.delta, arguments.z
    forward = problem_of(arguments, is_softplus, None, checkpoints, torch.empty_like(u, device="meta"))

    def triple(tensor: Tensor) -> tuple[int, int, int]:
        return cast("tuple[int, int, int]", tensor.stride())

    def states(tensor: Tensor) -> tuple[int, int, int, int]:
        packed = arguments.cu_seqlens is not None
        return (tensor.stride(0), tensor.stride(-2), tensor.stride(-1), tensor.stride(1) if packed else 0)

    def like(tensor: Tensor) -> tuple[int, int, int]:
        return triple(torch.empty_like(tensor, device="meta"))

    # Sums for 32 tasks, of at least 64 channels: more would cost more memory than they save time. Kernels for GPUs add
    # up their own.
    in_group = forward.channels // forward.groups
    wanted = max(1, 32 // max(1, forward.batch * forward.groups))
    shard = max(64, -(-in_group // (16 * wanted)) * 16)
    return SelectiveGradientProblem(
        forward=forward,
        dy=triple(dy),
        dfinal_state=None if dfinal is None else states(dfinal),
        du=like(u),
        ddelta=like(delta),
        dz=None if z is None else like(z),
        shard_channels=shard if forward.device == "cpu" else max(1, in_group),
    )


def _partial_sums(problem: SelectiveGradientProblem, projection: Tensor, make: Any) -> Tensor:
    """Memory for what shards, or batch entries, have for B or C."""
    if projection.ndim == 2:
        return cast(Tensor, make((problem.forward.batch, *projection.shape), dtype=projection.dtype))
    return cast(Tensor, make((problem.shards, *projection.shape), dtype=projection.dtype))


def _gradient_kernel(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> Gradients:
    *tensors, is_softplus = args
    given = Arguments(*tensors)
    leads = given.u.ndim - 2
    fold_axes = [leads if at in (0, 1, 6, 8) or (at in (3, 4) and tensors[at].ndim > 2) else None for at in range(9)]
    batched: Any = [t if axes is None else _one_batch(t, axes) for t, axes in zip(tensors, fold_axes, strict=False)]
    arguments = Arguments(*batched)._replace(cu_seqlens=given.cu_seqlens)
    outer: Any = [_one_batch(tensor, leads) for tensor in (dy, dfinal, checkpoints)]
    dy, dfinal, checkpoints = outer
    problem = _describe_gradient(dy, dfinal, checkpoints, arguments, is_softplus)
    u, delta, A, B, C, D, z, delta_bias, initial_state, _ = arguments
    # Without a single element, nothing writes the sums.
    make = u.new_empty if u.numel() else u.new_zeros
    batch = u.shape[0]

    def per_batch(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else make((batch, *tensor.shape), dtype=tensor.dtype)

    du, ddelta, dz = empty_like(u), empty_like(delta), None if z is None else empty_like(z)
    dinitial = None if initial_state is None else make(tuple(initial_state.shape), dtype=A.dtype)
    da, dd, dbias = per_batch(A), per_batch(D), per_batch(delta_bias)
    db, dc = _partial_sums(problem, B, make), _partial_sums(problem, C, make)
    run = choose("selective_scan_gradient", problem, strict=False).prepare(problem)
    run(*arguments, None, checkpoints, None, dy, dfinal, du, ddelta, da, db, dc, dd, dz, dbias, dinitial)

    def total(parts: Tensor | None, like: Tensor | None) -> Tensor:
        if parts is None or like is None:
            return u.new_empty(0)
        return (parts[0] if parts.shape[0] == 1 else parts.sum(0)).reshape(like.shape)

    return (
        du.reshape(given.u.shape),
        ddelta.reshape(given.delta.shape),
        total(da, A),
        total(db, given.B),
        total(dc, given.C),
        total(dd, D),
        u.new_empty(0) if dz is None else dz.reshape(given.u.shape),
        total(dbias, delta_bias),
        u.new_empty(0) if dinitial is None else dinitial.reshape(tensors[8].shape),
    )


def _gradient_fake(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> Gradients:
    u = args[0]
    return cast(
        Gradients,
        tuple(
            u.new_empty(0)
            if tensor is None
            else torch.empty_like(tensor)
            if at in (0, 1, 6)
            else tensor.new_empty(tensor.shape)
            for at, tensor in enumerate(args[:9])
        ),
    )


def _gradient_vmap(
    info: Any, axes: tuple[int | None, ...], dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size = info.batch_size
    there = tuple(0 if tensor is not None else None for tensor in args[:9])
    if axes[12] is not None:
        return one_by_one(gradient, size, axes, (dy, dfinal, checkpoints, *args), there), there
    outer = (
        into_channels(dy, axes[0], size, -1),
        into_channels(dfinal, axes[1], size, -2),
        into_channels(checkpoints, axes[2], size, -1),
    )
    results = gradient(*outer, *mapped(args[:9], axes[3:12], size), *args[9:])
    return (
        tuple(
            result if given is None else out_of_channels(result, size, channels)
            for result, channels, given in zip(results, CHANNEL_AXES, there, strict=True)
        ),
        there,
    )


gradient = define(
    f"selective_scan_gradient(Tensor dy, Tensor? dfinal, Tensor checkpoints, {SEQUENCES}, "
    f"bool delta_softplus) -> ({', '.join(['Tensor'] * 9)})",
    _gradient_kernel,
    fake=_gradient_fake,
    autograd=_gradient_autograd,
    vmap=_gradient_vmap,
)


# ---- registry ----


def _prepare_composed(problem: SelectiveGradientProblem) -> cpu.Run:
    """The gradient in PyTorch's operators and linear_recurrence, in memory for every state."""

    def run(*tensors: Any) -> None:
        arguments = Arguments(*tensors[:10])
        dy, dfinal, *results = tensors[13:]
        gradients = composed.gradients(dy, dfinal, arguments, problem.forward.softplus)
        for result, gradient, argument in zip(results, gradients, arguments, strict=False):
            if result is None or argument is None:
                continue
            if argument.shape == result.shape:
                result.copy_(gradient)
            else:  # sums of parts, of which this is one
                result.zero_()
                result[0] = gradient

    return run


def _composed_cost(problem: SelectiveGradientProblem) -> Cost:
    gates, _ = cpu.work(problem.forward)
    return Cost(1e-4 + 4e-8 * gates, int(12 * cpu.part_bytes(problem.forward) * gates))


_COMPOSED = Implementation("composed", "any", lambda problem: [], _composed_cost, _prepare_composed)

register("selective_scan_gradient", (*cpu.GRADIENT_ROWS, *triton.GRADIENT_ROWS, _COMPOSED), _describe_gradient)
