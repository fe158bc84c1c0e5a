"""linear_recurrence_step: y = a y_before + x, with the state that it overwrites."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks
from ..._calls import Calls, run_prepared
from ..._dispatch import Cost, Implementation, register
from ..._errors import message
from ..._gpu import as_pairs, at, ceil_div, launch
from ..._layout import dtype_name, fold
from ..._library import define_step, is_plain, is_traced, refuse_gradient
from ..._targets import gpu_refusals, processor
from ...tuning.gpu import Work, cost, step_tile
from .api import DTYPES

RunStep = Callable[..., None]
Pair = tuple[int, int]


class StepProblem(NamedTuple):
    """y[b,n] = a[b,n] state[b,n] + x[b,n]. Strides are (batch, channel), 0 where a is constant. ``offsets`` are those
    of (x, a, state, y) for every turn of a loop over leading axes that do not merge into the batch."""

    device: str
    isa: str
    dtype: str
    state_dtype: str
    batch: int
    channels: int
    strides: tuple[Pair, Pair, Pair, Pair]
    offsets: tuple[tuple[int, ...], ...] | None

    def __str__(self) -> str:
        return f"B={self.batch} D={self.channels} {self.dtype}, {self.isa}"


def _problem(x: Tensor, a: Tensor, state: Tensor, y: Tensor) -> StepProblem:
    tensors = (x, a.expand(x.shape), state, y)
    leading = fold(x.shape[:-1], [tensor.stride()[:-1] for tensor in tensors])
    steps = tuple((batch, tensor.stride(-1)) for batch, tensor in zip(leading.strides, tensors, strict=True))
    return StepProblem(
        device=x.device.type,
        isa=processor(x.device),
        dtype=dtype_name(x.dtype),
        state_dtype=dtype_name(state.dtype),
        batch=leading.batch,
        channels=x.shape[-1],
        strides=cast("tuple[Pair, Pair, Pair, Pair]", steps),
        offsets=leading.offsets,
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _composed(x: Tensor, state: Tensor, a: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    y = torch.addcmul(_wide(x), _wide(a), _wide(state).to(_wide(x).dtype))
    return y.to(x.dtype), (y.to(state.dtype),)


def _prepare_composed(problem: StepProblem) -> RunStep:
    def run(x: Tensor, a: Tensor, state: Tensor, y: Tensor) -> None:
        if problem.dtype == problem.state_dtype and x.dtype == _wide(x).dtype:
            torch.addcmul(x, a, state, out=y)
            state.copy_(y)
            return
        result, (after,) = _composed(x, state, a)
        state.copy_(after)
        y.copy_(result)

    return run


def _bytes(problem: StepProblem) -> float:
    item, of_state = (getattr(torch, name).itemsize for name in (problem.dtype, problem.state_dtype))
    return float(problem.batch * problem.channels * (3 * item + 2 * of_state))


def _composed_cost(problem: StepProblem) -> Cost:
    if problem.device == "cpu":
        return Cost(3e-6 + 2e-10 * _bytes(problem), 0)
    return cost(problem.device, problem.isa, 0, Work(_bytes(problem)), Work(_bytes(problem)))


def _refusals(problem: StepProblem) -> list[str]:
    reasons = gpu_refusals(problem.device, problem.dtype, tuple(map(dtype_name, DTYPES)))
    if problem.dtype.startswith("complex") and problem.state_dtype != problem.dtype:
        reasons.append("takes complex states in the dtype of x")
    return reasons


def _cost(problem: StepProblem) -> Cost:
    channels, warps = step_tile(problem.device, problem.isa, problem.channels)
    programs = problem.batch * ceil_div(problem.channels, channels) * warps / 4
    work = Work(_bytes(problem), 2.0 * problem.batch * problem.channels, programs=programs)
    return cost(problem.device, problem.isa, 0, *(work,) * len(problem.offsets or ((),)))


def _prepare(problem: StepProblem) -> RunStep:
    import triton.language as tl

    from . import triton_step

    channels, warps = step_tile(problem.device, problem.isa, problem.channels)
    tiles, planes = ceil_div(problem.channels, channels), 2 if problem.dtype.startswith("complex") else 1
    steps = tuple(planes * step for pair in problem.strides for step in pair)
    turns = problem.offsets or ((0, 0, 0, 0),)

    def run(x: Tensor, a: Tensor, state: Tensor, y: Tensor) -> None:
        given = [as_pairs(tensor) for tensor in (x, a, state, y)]
        for turn in turns:
            launch(
                triton_step.step,
                problem.batch * tiles,
                *(at(tensor, planes * offset) for tensor, offset in zip(given, turn, strict=True)),
                problem.channels,
                tiles,
                *steps,
                CHANNELS=channels,
                COMPLEX=planes == 2,
                WIDE=tl.float64 if problem.dtype in ("float64", "complex128") else tl.float32,
                num_warps=warps,
            )

    return run


ROWS = (
    Implementation("composed", "any", lambda problem: [], _composed_cost, _prepare_composed),
    Implementation("triton_step", "triton", _refusals, _cost, _prepare),
)
_calls = Calls("linear_recurrence_step")
_prepared = _calls.prepared


def _kernel(x: Tensor, state: Tensor, a: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _calls.run(None, x, a, state, y, problem=lambda: _problem(x, a, state, y))
    return y


_operator = define_step(
    "linear_recurrence_step(Tensor x, Tensor(a!) state, Tensor a) -> Tensor", _kernel, composed=_composed, states=(1,)
)


def linear_recurrence_step(state: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """y = a state + x after which state := y: a step of ``linear_recurrence``.

    For generation: ``state`` is overwritten, in place.

    Args:
        state: (..., D), the y before. Any dtype that holds the result's numbers, real or complex as they are; float32
            loses nothing between steps of half types.
        x: (..., D).
        a: (..., D), or anything that broadcasts to the shape of x.

    Returns:
        y, (..., D), in the dtype that x and a promote to.

    dtypes: those of ``linear_recurrence``.

    Raises:
        ValueError, TypeError: as ``linear_recurrence``.
        RuntimeError: where a gradient would be needed.

    Cost: reads each once, writes two. On a GPU it is one kernel, which can be captured in a CUDA graph.

    Reference: G. E. Blelloch, Prefix Sums and Their Applications, 1990.

    >>> import torch, convscan
    >>> state = torch.tensor([2.0])
    >>> convscan.linear_recurrence_step(state, torch.tensor([3.0]), torch.tensor([0.5])).tolist(), state.tolist()
    ([4.0], [4.0])
    """
    if not is_traced():
        y = run_prepared(_prepared, None, x, a, state, None)
        if y is not None:
            return y
    dtype = _check(state, x, a)
    refuse_gradient("linear_recurrence_step", state, x, a)
    x, a = x.to(dtype), a.to(dtype)
    if is_plain(x, a, state):
        return _kernel(x, state, a)
    return cast(Tensor, _operator(x, state, a))


def _check(state: Tensor, x: Tensor, a: Tensor) -> torch.dtype:
    name = "linear_recurrence_step"
    _checks.tensor_like(name, "x", x, x)
    if x.ndim < 1:
        raise ValueError(message(name, "x must have the shape (..., D)", _checks.shape_text(x.shape)))
    _checks.tensor_like(name, "a", a, x)
    _checks.broadcasts(name, "a", a, x)
    _checks.tensor_like(name, "state", state, x)
    _checks.has_shape(name, "state", state, x.shape, "(..., D)")
    dtype = _checks.common_dtype(name, DTYPES, x=x, a=a)
    if state.dtype not in DTYPES or state.is_complex() != dtype.is_complex:
        kind = "complex" if dtype.is_complex else "real"
        raise TypeError(message(name, f"state must be {kind}, as x and a are", dtype_name(state.dtype)))
    return dtype


def _describe(state: Tensor, x: Tensor, a: Tensor) -> StepProblem:
    dtype = _check(state, x, a)
    x, a = x.to(dtype), a.to(dtype)
    return _problem(x, a, state, torch.empty_like(x))


register("linear_recurrence_step", ROWS, _describe)
