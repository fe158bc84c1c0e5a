"""Every gradient of a convolution from one operator, where an implementation has them in one pass.

``fused`` is what the derivative of causal_conv asks first. It returns None where nothing runs all of them together, or
where somebody differentiates the gradient: then they are composed of convolutions, one gradient at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..._dispatch import Settings, choose, implementations, register, settings
from ..._library import below_autograd, define, is_recorded, needs_gradient
from . import api, triton
from .api import Operands
from .problem import BackwardProblem

Gradients = tuple[Tensor | None, ...]


class _Given(NamedTuple):
    """The arguments of the operator."""

    dy: Tensor
    x: Tensor
    h: Tensor
    bias: Tensor | None
    state: Tensor | None
    pre_gate: Tensor | None
    post_gate: Tensor | None
    cu_seqlens: Tensor | None
    activation: str | None
    precision: str

    @property
    def operands(self) -> Operands:
        return Operands(*self[1:9], precision=self.precision)  # type: ignore[arg-type]


def _describe(given: _Given, boundaries: list[int] | None) -> BackwardProblem:
    # The result stands where dy does: both have the shape of x.
    now = settings()
    forward = api.problem_of(given.operands, given.dy, boundaries)
    return BackwardProblem(forward, None if now is None else now.forced)


def _asks(problem: BackwardProblem) -> Settings:
    return Settings(problem.forced)


def _is_fixed(*tensors: Tensor | None) -> bool:
    """Whether all sizes and strides are numbers, which selection needs."""
    return all(
        isinstance(n, int) for tensor in tensors if tensor is not None for n in (*tensor.shape, *tensor.stride())
    )


def fused(p: Operands, dy: Tensor) -> Gradients | None:
    """Gradients of x, h, bias, initial_state, pre_gate and post_gate."""
    given = _Given(dy, *p[:8], p.precision)  # type: ignore[arg-type]
    tensors = given[:7]
    if p.transposed or not isinstance(p.origin, int) or p.origin != 0:
        return None
    if not (p.x.is_cuda or settings() is not None) or needs_gradient(*tensors) or not _is_fixed(*tensors):  # type: ignore[arg-type]
        return None
    sequences = 0 if p.cu_seqlens is None else p.cu_seqlens.shape[0] - 1
    bounds = [0] + [p.x.shape[-2]] * sequences if sequences else None
    problem = _describe(given, bounds)
    rows = [row for row in implementations("causal_conv_backward") if not row.why_not(problem)]
    forced = _asks(problem).within(settings()).forced
    if not rows or (forced is not None and forced not in [row.name for row in rows]):
        return None
    with below_autograd():
        results = _operator(*given)
    return tuple(None if of is None else result for of, result in zip(p[:6], results, strict=True))


def _fake(*inputs: Any) -> tuple[Tensor, ...]:
    given = _Given(*inputs)
    x = given.x
    absent = x.new_empty(0)
    dh = torch.empty_like(given.h)
    return (
        triton.like(x),
        dh,
        absent if given.bias is None else torch.empty_like(given.bias),
        absent if given.state is None else x.new_empty(given.state.shape),
        absent if given.pre_gate is None else x.new_empty(given.pre_gate.shape),
        absent if given.post_gate is None else x.new_empty(given.post_gate.shape),
    )


def _kernel(*inputs: Any) -> tuple[Tensor, ...]:
    given = _Given(*inputs)
    length = given.x.shape[-2]
    boundaries, packed = api.packed_boundaries(given.cu_seqlens, length)
    problem = _describe(given, boundaries)
    run = choose("causal_conv_backward", problem, strict=False).prepare(problem)
    dx, dh, dbias, dstate, dpre, dpost = run(*given[:7], packed)
    x, absent = given.x, given.x.new_empty(0)
    return (
        dx,
        api.reduce_filter(dh, given.h),
        absent if given.bias is None else dbias.sum_to_size(given.bias.shape).to(x.dtype),
        absent if given.state is None else dstate,
        absent if given.pre_gate is None else dpre.sum_to_size(given.pre_gate.shape).to(x.dtype),
        absent if given.post_gate is None else dpost.sum_to_size(given.post_gate.shape).to(x.dtype),
    )


def _autograd(*inputs: Any) -> tuple[Tensor, ...]:
    """Composed of differentiable operators where somebody differentiates it."""
    given = _Given(*inputs)
    if is_recorded(*given[:7]):
        gradients = api.composed_gradients(given.operands, given.dy, [one is not None for one in given[1:7]])
        return tuple(given.x.new_empty(0) if one is None else one for one in gradients)
    with below_autograd():
        return cast("tuple[Tensor, ...]", _operator(*inputs))


def _vmap(info: Any, axes: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    calls = [
        _operator(*(one if axis is None else one.select(axis, i) for one, axis in zip(inputs, axes, strict=True)))
        for i in range(info.batch_size)
    ]
    results = tuple(torch.stack(each) for each in zip(*calls, strict=True))
    return results, (0,) * len(results)


_operator = define(
    "causal_conv_backward(Tensor dy, Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, Tensor? pre_gate, "
    "Tensor? post_gate, Tensor? cu_seqlens, str? activation, str precision) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=_autograd,
    vmap=_vmap,
)

register("causal_conv_backward", triton.BACKWARD_ROWS, lambda *given: _describe(_Given(*given), None), _asks)
