"""Every gradient of a convolution from one operator, where an implementation has them in one pass.

``fused`` is what the derivative of causal_conv asks first. It returns None where nothing runs all of them together, or
where somebody differentiates the gradient: then they are composed of convolutions, one gradient at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Implementation, Settings, choose, implementations, prepared_cache, register, settings
from ..._library import below_autograd, define, is_plain, is_recorded, needs_gradient, one_by_one
from . import cpu_gradient, triton
from .arguments import Operands, kept_of, memory_like, packed_boundaries, problem_of
from .composed import composed_gradients, reduce_filter
from .problem import BackwardProblem

Gradients = tuple[Tensor | None, ...]
_NAME = "causal_conv_backward"
_prepared: dict[Any, cpu_gradient.RunBackward | None] = prepared_cache()


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
    spectrum: Tensor | None
    activation: str | None
    origin: int
    precision: str
    needs: Sequence[bool]  # which of the gradients of x, h, bias, state and gates

    @property
    def operands(self) -> Operands:
        return Operands(
            *self[1:8],  # type: ignore[arg-type]
            activation=self.activation,
            origin=self.origin,
            precision=self.precision,
            spectrum=self.spectrum,
        )


def _describe(given: _Given, boundaries: list[int] | None) -> BackwardProblem:
    # The result stands where dy does: both have the shape of x.
    now = settings()
    forward = problem_of(given.operands, given.dy, boundaries, kept_of(given.spectrum))
    return BackwardProblem(forward, None if now is None else now.forced, tuple(given.needs))


def _asks(problem: BackwardProblem) -> Settings:
    return Settings(problem.forced)


def _is_fixed(*tensors: Tensor | None) -> bool:
    """Whether all sizes and strides are numbers, which selection needs."""
    return all(
        isinstance(n, int) for tensor in tensors if tensor is not None for n in (*tensor.shape, *tensor.stride())
    )


def _may_fuse(p: Operands, needs: Sequence[bool]) -> bool:
    if p.transposed or not isinstance(p.origin, int):
        return False
    if p.x.is_cuda:
        return True
    if not p.x.is_cpu:
        return settings() is not None
    # One gradient is one operator already, and each has a rule of its own for what a function transform maps over.
    return needs[0] and needs[1] and not torch._C._are_functorch_transforms_active()


def fused(p: Operands, dy: Tensor, needs: Sequence[bool]) -> Gradients | None:
    """Gradients of x, h, bias, initial_state, pre_gate and post_gate, of which some are needed."""
    if not _may_fuse(p, needs):
        return None
    rest = (p.spectrum, p.activation, p.origin, p.precision, tuple(bool(one) for one in needs[:6]))
    given = _Given(dy, *p[:7], *rest)  # type: ignore[arg-type]
    if is_plain(*given[:9]):  # type: ignore[arg-type]
        return _run_plain(given)
    tensors = given[:7]
    if needs_gradient(*tensors) or not _is_fixed(*tensors):  # type: ignore[arg-type]
        return None
    sequences = 0 if p.cu_seqlens is None else p.cu_seqlens.shape[0] - 1
    bounds = [0] + [p.x.shape[-2]] * sequences if sequences else None
    if not _has_one(_describe(given, bounds)):
        return None
    with below_autograd():
        results = _operator(*given)
    return tuple(
        result if needed and of is not None else None for needed, of, result in zip(needs, p[:6], results, strict=False)
    )


def _has_one(problem: BackwardProblem) -> bool:
    """Whether something runs all of them together, and nothing else is asked for."""
    able = [row.name for row in implementations(_NAME) if not row.why_not(problem)]
    return able != [_COMPOSED.name] and (problem.forced is None or problem.forced in able)


def _chosen(given: _Given) -> tuple[Implementation, BackwardProblem, Tensor | None]:
    """The implementation, its problem, and the boundaries of packed sequences."""
    boundaries, packed = packed_boundaries(given.cu_seqlens, given.x.shape[-2])
    problem = _describe(given, boundaries)
    return choose(_NAME, problem, strict=False), problem, packed


def _run_plain(given: _Given) -> Gradients | None:
    """Past PyTorch's dispatcher, prepared once; None where gradients are faster one after the other."""
    key = None
    if given.cu_seqlens is None:
        key = _native.call_key(given[9:], *given[:7], given.spectrum)
    if key in _prepared:
        run, packed = _prepared[key], None
    else:
        row, problem, packed = _chosen(given)
        run = row.prepare(problem) if row is not _COMPOSED and _has_one(problem) else None
        if key is not None:
            _prepared[key] = run
    return None if run is None else _as_given(given, run(*given[:7], packed, given.spectrum))


def _as_given(given: _Given, gradients: Gradients) -> Gradients:
    """In the shape and dtype of what each is the gradient of; None for those that are not there."""
    dx, dh, *others = gradients
    shaped = (
        None if of is None or one is None else one.sum_to_size(of.shape).to(given.x.dtype)
        for of, one in zip(given[3:7], others, strict=True)
    )
    return dx, None if dh is None else reduce_filter(dh, given.h), *shaped


def _fake(*inputs: Any) -> tuple[Tensor, ...]:
    given = _Given(*inputs)
    x = given.x
    absent = x.new_empty(0)
    dh = torch.empty_like(given.h)
    return (
        memory_like(x),
        dh,
        absent if given.bias is None else torch.empty_like(given.bias),
        absent if given.state is None else x.new_empty(given.state.shape),
        absent if given.pre_gate is None else x.new_empty(given.pre_gate.shape),
        absent if given.post_gate is None else x.new_empty(given.post_gate.shape),
    )


def _kernel(*inputs: Any) -> tuple[Tensor, ...]:
    given = _Given(*inputs)
    row, problem, packed = _chosen(given)
    gradients = _as_given(given, row.prepare(problem)(*given[:7], packed, given.spectrum))
    return tuple(given.x.new_empty(0) if one is None else one for one in gradients)


def _autograd(*inputs: Any) -> tuple[Tensor, ...]:
    """Composed of differentiable operators where somebody differentiates it."""
    given = _Given(*inputs)
    if is_recorded(*given[:7]):
        gradients = composed_gradients(given.operands, given.dy, [one is not None for one in given[1:7]])
        return tuple(given.x.new_empty(0) if one is None else one for one in gradients)
    with below_autograd():
        return cast("tuple[Tensor, ...]", _operator(*inputs))


def _vmap(info: Any, axes: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return one_by_one(_operator, info.batch_size, axes, inputs, (0,) * 6), (0,) * 6


_operator = define(
    "causal_conv_backward(Tensor dy, Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, Tensor? pre_gate, "
    "Tensor? post_gate, Tensor? cu_seqlens, Tensor? spectrum, str? activation, SymInt origin, str precision, "
    "bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=_autograd,
    vmap=_vmap,
)


def _prepare_composed(problem: BackwardProblem) -> cpu_gradient.RunBackward:
    one = problem.forward

    def run(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, *given, packed, spectrum = tensors
        rest = {"activation": one.activation, "origin": one.origin, "precision": one.precision, "spectrum": spectrum}
        operands = Operands(*given, packed, **rest)  # type: ignore[arg-type, call-arg]
        return composed_gradients(operands, cast(Tensor, dy), problem.needs)

    return run


_COMPOSED = Implementation(
    "composed",
    "any",
    lambda problem: [],
    cpu_gradient.composed_cost,
    _prepare_composed,
)
ROWS = (*cpu_gradient.BACKWARD_ROWS, *triton.BACKWARD_ROWS, _COMPOSED)

register(_NAME, ROWS, lambda *given: _describe(_Given(*given), None), _asks)
