"""linear_recurrence: signature, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls, empty_like, run_prepared
from ..._dispatch import Cost, Implementation, choose, register
from ..._errors import message
from ..._layout import Triple, dtype_name, fold
from ..._library import below_autograd, define, derivative, is_plain, is_recorded, is_traced, needs_gradient
from ..._targets import processor
from . import cpu, reference, triton
from .problem import ScanGradientProblem, ScanProblem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)

_calls = Calls("linear_recurrence")
_prepared = _calls.prepared


def linear_recurrence(
    x: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    *,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """y[i,n] = a[i,n] y[i-1,n] + x[i,n], starting from y[-1,n] = y_init[n].

    A first-order linear recurrence (scan) along time in every channel. With ``reverse`` it runs from the end:
    y[i,n] = a[i,n] y[i+1,n] + x[i,n], starting from y[L,n] = y_init[n].

    Args:
        x: (..., L, D) with any number of leading axes, in any memory order: a (..., D, L) tensor seen through
            ``transpose(-1, -2)`` is not copied, and the result has the same order. L and every other size may be 0.
        y_init: (..., D), leading axes as x, or None for zeros; (..., S, D) for S packed sequences, one state for each.
        a: (..., L, D) or anything that broadcasts to the shape of x: (D,) for coefficients that are constant in time.
            Broadcasting costs no memory.
        reverse: run from the end to the start.
        cu_seqlens: (S+1,) int32 or int64, from 0 to L: the boundaries of S sequences that lie behind one another along
            time. Sequence s has the steps cu_seqlens[s] <= i < cu_seqlens[s+1], starts from its own y_init and knows
            nothing of the others. It may be empty.
        out: memory for the result, with the shape of x; it may be x itself. Not where a gradient is needed.

    Returns:
        y, with the shape and memory order of x.

    dtypes: float32, float64, bfloat16, float16, complex64, complex128. Different dtypes are promoted as in any PyTorch
    operator (real x and complex a give complex y), which copies what has to change. Half types are computed in
    float32, float64 and complex128 in double precision.

    Raises:
        ValueError: a shape or device that does not fit, boundaries that decrease or do not span the time axis, or
            ``out`` that partly overlaps an input.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        RuntimeError: ``out`` where a gradient is needed.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: O(L) per channel, limited by memory: 12 bytes a step in float32. Differentiable any number of times in both
    modes; nothing but the inputs and y is kept for it.

    Reference: G. E. Blelloch, Prefix Sums and Their Applications, 1990.

    >>> import torch, convscan
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> convscan.linear_recurrence(x, None, torch.tensor([0.5])).flatten().tolist()
    [1.0, 2.5, 4.25]
    >>> packed = torch.tensor([0, 1, 3])  # two sequences, of one step and of two
    >>> convscan.linear_recurrence(x, None, torch.tensor([0.5]), cu_seqlens=packed).flatten().tolist()
    [1.0, 2.0, 4.0]
    """
    if not is_traced():
        y = run_prepared(_prepared, reverse, x, y_init, a, cu_seqlens, out)
        if y is not None:
            return y
    return _checked(x, y_init, a, cu_seqlens, reverse, out)


def _checked(
    x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, reverse: bool, out: Tensor | None
) -> Tensor:
    """Checks, promotes dtypes and calls the operator that is registered with PyTorch."""
    dtype = _check(x, y_init, a, cu_seqlens)
    if out is not None:
        _checks.output("linear_recurrence", out, x, dtype, needs_gradient(x, y_init, a))
    x, a = x.to(dtype), a.to(dtype)
    y_init = None if y_init is None else y_init.to(dtype)
    if is_plain(x, y_init, a, cu_seqlens, out):
        # With a as it came, also where it has fewer axes than x: so the call is remembered and found again.
        y = empty_like(x) if out is None else out
        _run(x, y_init, a, cu_seqlens, bool(reverse), y)
        return y
    # One axis of a for each of x: those of size 1 are constant.
    a = a if a.ndim == x.ndim else a[(None,) * (x.ndim - a.ndim)]
    y = _operator(x, y_init, a, cu_seqlens, bool(reverse))
    return y if out is None else out.copy_(y)


def _check(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None) -> torch.dtype:
    name = "linear_recurrence"
    _checks.signal(name, "x", x)
    _checks.tensor_like(name, "a", a, x)
    sizes = zip(a.shape[::-1], x.shape[::-1], strict=False)
    # No `in`: of symbolic sizes it knows only whether they are one object.
    if a.ndim > x.ndim or any(size != 1 and size != full for size, full in sizes):
        expectation = f"a must broadcast to the shape of x, {_checks.shape_text(x.shape)}"
        raise ValueError(message(name, expectation, _checks.shape_text(a.shape)))
    if y_init is not None:
        _checks.tensor_like(name, "y_init", y_init, x)
        if cu_seqlens is None:
            _checks.has_shape(name, "y_init", y_init, (*x.shape[:-2], x.shape[-1]), "(..., D)")
    if cu_seqlens is not None:
        sequences = _checks.packed(name, cu_seqlens, x)
        if y_init is not None:
            expected = (*x.shape[:-2], sequences, x.shape[-1])
            _checks.has_shape(name, "y_init", y_init, expected, "(..., S, D)")
    return _checks.common_dtype(name, DTYPES, x=x, y_init=y_init, a=a)


# ---- problem and call ----


def _sequences(cu_seqlens: Tensor | None) -> int | None:
    return None if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _per_sequence(y_init: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """y_init with an axis of sequences, also where there is one."""
    return y_init if y_init is None or cu_seqlens is not None else y_init.unsqueeze(-2)


def _problem(
    x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, reverse: bool, y: Tensor
) -> ScanProblem:
    coefficients = a.expand(x.shape)
    start = _per_sequence(y_init, cu_seqlens)
    # Without an initial value, x stands in for it where leading axes fold.
    starts = x.stride()[:-2] if start is None else start.stride()[:-2]
    leads = [x.stride()[:-2], starts, coefficients.stride()[:-2], y.stride()[:-2]]
    leading = fold(x.shape[:-2], leads)
    batch = leading.strides

    def triple(at: int, tensor: Tensor) -> Triple:
        return (batch[at], tensor.stride(-2), tensor.stride(-1))

    return ScanProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=x.shape[-1],
        reverse=reverse,
        x=triple(0, x),
        a=triple(2, coefficients),
        y_init=None if start is None else triple(1, start),
        y=triple(3, y),
        sequences=_sequences(cu_seqlens),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(x.device),
    )


def _describe(
    x: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    *,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    out: Tensor | None = None,
) -> ScanProblem:
    """The problem of a call of ``linear_recurrence``, for ``explain``."""
    dtype = _check(x, y_init, a, cu_seqlens)
    y = torch.empty_like(x, dtype=dtype) if out is None else out
    return _problem(x, y_init, a, cu_seqlens, bool(reverse), y)._replace(dtype=dtype_name(dtype))


def _run(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, reverse: bool, y: Tensor) -> None:
    # The values of cu_seqlens are read at every call: nothing that is prepared depends on them.
    problem = partial(_problem, x, y_init, a, cu_seqlens, reverse, y)
    _calls.run(reverse, x, y_init, a, cu_seqlens, y, problem=problem)


def _kernel(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    y = empty_like(x)
    _run(x, y_init, a, cu_seqlens, reverse, y)
    return y


# ---- derivatives ----


class _Edges(NamedTuple):
    """Of packed sequences, in the order of the recurrence: which steps are first and last, (L, 1); the sequence of each
    step, (L,); each sequence's first step, (S,), and whether it has any, (S, 1)."""

    first: Tensor
    last: Tensor
    sequence: Tensor
    start: Tensor
    has_steps: Tensor


def _edges(cu_seqlens: Tensor, length: int, reverse: bool) -> _Edges:
    steps = torch.arange(length, device=cu_seqlens.device)
    bounds = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(bounds, steps, right=True) - 1
    begins, ends = bounds[:-1], bounds[1:] - 1
    is_begin, is_end = (steps == begins[sequence])[:, None], (steps == ends[sequence])[:, None]
    start = (ends if reverse else begins).clamp(0, length - 1)
    return _Edges(
        is_end if reverse else is_begin, is_begin if reverse else is_end, sequence, start, (begins <= ends)[:, None]
    )


def _previous(y: Tensor, y_init: Tensor | None, cu_seqlens: Tensor | None, reverse: bool) -> Tensor:
    """y[i-1], or y[i+1] with ``reverse``; y_init where there is none."""
    if cu_seqlens is not None:
        edges = _edges(cu_seqlens, y.shape[-2], reverse)
        initial = y.new_zeros(()) if y_init is None else y_init.index_select(-2, edges.sequence)
        return torch.where(edges.first, initial, _previous(y, None, None, reverse))
    start = torch.zeros_like(y[..., :1, :]) if y_init is None else y_init.unsqueeze(-2)
    if reverse:
        return torch.cat([y, start], -2)[..., 1:, :]
    return torch.cat([start, y], -2)[..., : y.shape[-2], :]


def _next_coefficient(a: Tensor, cu_seqlens: Tensor | None, length: int, reverse: bool) -> Tensor:
    """a[i+1], or a[i-1] with ``reverse``; what it multiplies beyond the ends is zero."""
    if a.shape[-2] != length or length <= 1:
        return a
    if cu_seqlens is not None:
        # Zero instead of the next sequence's, which may be no number.
        shifted = _next_coefficient(a, None, length, reverse)
        return torch.where(_edges(cu_seqlens, length, reverse).last, a.new_zeros(()), shifted)
    edge = a[..., :1, :] if reverse else a[..., -1:, :]
    return torch.cat([edge, a[..., :-1, :]] if reverse else [a[..., 1:, :], edge], -2)


def _sum_to(tensor: Tensor, a: Tensor) -> Tensor:
    return tensor.sum_to_size(a.shape) if tensor.shape != a.shape else tensor


def _composed_gradient(
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    needs_a: bool,
    needs_y_init: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The fused gradient in differentiable operators."""
    length = y.shape[-2]
    dx = cast(
        Tensor,
        _operator(dy, None, _next_coefficient(a, cu_seqlens, length, reverse).conj(), cu_seqlens, not reverse),
    )
    da = dy_init = dy.new_empty(0)
    if needs_a:
        da = _sum_to(dx * _previous(y, y_init, cu_seqlens, reverse).conj(), a)
    if needs_y_init and cu_seqlens is not None:
        if length == 0:
            return dx, da, y.new_zeros(_start_shape(y, cu_seqlens))
        edges = _edges(cu_seqlens, length, reverse)
        passed = (a.expand(y.shape).conj().index_select(-2, edges.start)) * dx.index_select(-2, edges.start)
        dy_init = torch.where(edges.has_steps, passed, passed.new_zeros(()))
    elif needs_y_init:
        first = slice(-1, None) if reverse else slice(None, 1)
        dy_init = (a.expand(y.shape)[..., first, :].conj() * dx[..., first, :]).sum(-2)
    return dx, da, dy_init


def _start_shape(y: Tensor, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    """The shape of an initial state."""
    sequences = () if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    return (*y.shape[:-2], *sequences, y.shape[-1])


def _gradient_autograd(
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    needs_a: bool,
    needs_y_init: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused where nobody differentiates the gradient; composed of differentiable operators where someone does."""
    arguments = (dy, y_init, a, y, cu_seqlens, reverse, needs_a, needs_y_init)
    if is_recorded(dy, y_init, a, y):
        return _composed_gradient(*arguments)
    with below_autograd():
        return cast("tuple[Tensor, Tensor, Tensor]", _gradient(*arguments))


def _describe_gradient(
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    dx: Tensor,
    da: Tensor | None,
    dy_init: Tensor | None,
) -> ScanGradientProblem:
    # Tensors that are not there stand in as views of others, of which only the offsets fold.
    full_a = a.expand(y.shape)
    full_da = full_a if da is None else da.expand(y.shape)
    start, passed = _per_sequence(y_init, cu_seqlens), _per_sequence(dy_init, cu_seqlens)
    absent = y.new_empty(()).expand(*y.shape[:-2], 1, y.shape[-1])
    first, last = (absent if start is None else start), (absent if passed is None else passed)
    tensors = (full_a, first, y, dy, dx, full_da, last)
    leading = fold(y.shape[:-2], [tensor.stride()[: y.ndim - 2] for tensor in tensors])
    batch = leading.strides

    def triple(at: int) -> Triple:
        return (batch[at], tensors[at].stride(-2), tensors[at].stride(-1))

    forward = ScanProblem(
        device=y.device.type,
        dtype=dtype_name(y.dtype),
        batch=leading.batch,
        length=y.shape[-2],
        channels=y.shape[-1],
        reverse=reverse,
        x=triple(2),
        a=triple(0),
        y_init=None if start is None else triple(1),
        y=triple(2),
        sequences=_sequences(cu_seqlens),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(y.device),
    )
    return ScanGradientProblem(
        forward=forward,
        dy=triple(3),
        dx=triple(4),
        da=None if da is None else triple(5),
        dy_init=None if passed is None else triple(6),
        offsets=leading.offsets,
    )


def _gradient_kernel(
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    needs_a: bool,
    needs_y_init: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = empty_like(y)
    da = empty_like(a) if needs_a else None
    dy_init = y.new_empty(_start_shape(y, cu_seqlens)) if needs_y_init else None
    problem = _describe_gradient(dy, y_init, a, y, cu_seqlens, reverse, dx, da, dy_init)
    partial = da
    if da is not None and problem.offsets is not None and a.shape[:-2] != y.shape[:-2]:
        # Several turns of the loop over leading axes share a coefficient: one gradient each, summed afterwards.
        partial = torch.empty(*y.shape[:-2], *a.shape[-2:], dtype=a.dtype, device=a.device)
        problem = _describe_gradient(dy, y_init, a, y, cu_seqlens, reverse, dx, partial, dy_init)
    run = choose("linear_recurrence_gradient", problem, strict=False).prepare(problem)
    run(a.expand(y.shape), y_init, y, cu_seqlens, dy, dx, partial, dy_init)
    if da is not None and partial is not None and partial is not da:
        da.copy_(_sum_to(partial, a))
    return dx, dy.new_empty(0) if da is None else da, dy.new_empty(0) if dy_init is None else dy_init


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, reverse: bool
    ) -> Tensor:
        with below_autograd():
            return cast(Tensor, _operator(x, y_init, a, cu_seqlens, reverse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, y_init, a, cu_seqlens, ctx.reverse = inputs
        ctx.save_for_backward(y_init, a, output, cu_seqlens)
        ctx.save_for_forward(y_init, a, output, cu_seqlens)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 5
        y_init, a, y, cu_seqlens = ctx.saved_tensors
        needs_x, needs_y_init, needs_a = ctx.needs_input_grad[:3]
        dx, da, dy_init = _gradient(dy, y_init, a, y, cu_seqlens, ctx.reverse, needs_a, needs_y_init)
        return dx if needs_x else None, dy_init if needs_y_init else None, da if needs_a else None, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, ty_init: Tensor | None, ta: Tensor | None, *_: None
    ) -> Tensor | None:
        y_init, a, y, cu_seqlens = ctx.saved_tensors
        forcing = torch.zeros_like(y) if tx is None else tx
        if ta is not None:
            forcing = forcing + ta * _previous(y, y_init, cu_seqlens, ctx.reverse)
        return cast(Tensor, _operator(forcing, ty_init, a, cu_seqlens, ctx.reverse))


# ---- vmap: one more leading axis ----


def _each(size: int, axes: tuple[int | None, ...], arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The mapped calls one by one: what boundaries that differ between them come to."""
    for i in range(size):
        yield tuple(each if axis is None else each.select(axis, i) for each, axis in zip(arguments, axes, strict=True))


def _leading_axis(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _vmap(
    info: Any,
    axes: tuple[int | None, ...],
    x: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, int]:
    size = info.batch_size
    if axes[3] is not None:
        return torch.stack([_operator(*call) for call in _each(size, axes, (x, y_init, a, cu_seqlens, reverse))]), 0
    start = None if y_init is None else _leading_axis(y_init, axes[1], size)
    coefficients = a.unsqueeze(0) if axes[2] is None else a.movedim(axes[2], 0)
    return _operator(_leading_axis(x, axes[0], size), start, coefficients, cu_seqlens, reverse), 0


def _gradient_vmap(
    info: Any,
    axes: tuple[int | None, ...],
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    needs_a: bool,
    needs_y_init: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int | None, int | None]]:
    size = info.batch_size
    out_axes = (0, 0 if needs_a else None, 0 if needs_y_init else None)
    if axes[4] is not None:
        calls = _each(size, axes, (dy, y_init, a, y, cu_seqlens, reverse, needs_a, needs_y_init))
        results = zip(*(_gradient(*call) for call in calls), strict=True)
        dx, da, dy_init = (
            each[0] if axis is None else torch.stack(each) for each, axis in zip(results, out_axes, strict=True)
        )
        return (dx, da, dy_init), out_axes
    start = None if y_init is None else _leading_axis(y_init, axes[1], size)
    # a is spread over the mapped axis even where all share it, for da is asked for each mapped call by itself.
    dx, da, dy_init = _gradient(
        _leading_axis(dy, axes[0], size),
        start,
        _leading_axis(a, axes[2], size),
        _leading_axis(y, axes[3], size),
        cu_seqlens,
        reverse,
        needs_a,
        needs_y_init,
    )
    return (dx, da, dy_init), out_axes


def _gradient_fake(
    dy: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    y: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    needs_a: bool,
    needs_y_init: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    da = torch.empty_like(a) if needs_a else dy.new_empty(0)
    dy_init = y.new_empty(_start_shape(y, cu_seqlens)) if needs_y_init else dy.new_empty(0)
    return torch.empty_like(y), da, dy_init


_operator = define(
    "linear_recurrence(Tensor x, Tensor? y_init, Tensor a, Tensor? cu_seqlens, bool reverse) -> Tensor",
    _kernel,
    fake=lambda x, y_init, a, cu_seqlens, reverse: torch.empty_like(x),
    autograd=derivative(_LinearRecurrence),
    vmap=_vmap,
)
_gradient = define(
    "linear_recurrence_gradient(Tensor dy, Tensor? y_init, Tensor a, Tensor y, Tensor? cu_seqlens, bool reverse, "
    "bool needs_a, bool needs_y_init) -> (Tensor, Tensor, Tensor)",
    _gradient_kernel,
    fake=_gradient_fake,
    autograd=_gradient_autograd,
    vmap=_gradient_vmap,
)


# ---- registry ----


def _check_boundaries(cu_seqlens: Tensor | None, problem: ScanProblem) -> None:
    if cu_seqlens is not None:
        _checks.boundaries("linear_recurrence", cu_seqlens, problem.length)


def _prepare_reference(problem: ScanProblem) -> cpu.Run:
    def run(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, y: Tensor) -> None:
        _check_boundaries(cu_seqlens, problem)
        y.copy_(reference.linear_recurrence(x, y_init, a, problem.reverse, cu_seqlens))

    return run


def _prepare_gradient_reference(problem: ScanGradientProblem) -> cpu.RunGradient:
    def run(
        a: Tensor,
        y_init: Tensor | None,
        y: Tensor,
        cu_seqlens: Tensor | None,
        dy: Tensor,
        dx: Tensor,
        da: Tensor | None,
        dy_init: Tensor | None,
    ) -> None:
        _check_boundaries(cu_seqlens, problem.forward)
        results = reference.gradient(dy, y_init, a, y, problem.forward.reverse, cu_seqlens)
        dx.copy_(results[0])
        if da is not None:
            da.copy_(results[1].sum_to_size(da.shape))
        if dy_init is not None:
            dy_init.copy_(results[2])

    return run


def _reference_cost(problem: ScanProblem | ScanGradientProblem) -> Cost:
    # Three PyTorch operators a time step, on copies in double precision.
    forward = problem if isinstance(problem, ScanProblem) else problem.forward
    elements = forward.turns * forward.batch * forward.length * forward.channels
    wide = 16 if forward.dtype.startswith("complex") else 8
    return Cost(2e-5 * (1 + forward.length) + 3e-9 * elements, 3 * wide * elements)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)
_GRADIENT_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, _prepare_gradient_reference
)

register("linear_recurrence", (*cpu.ROWS, *triton.ROWS, _REFERENCE), _describe)
register(
    "linear_recurrence_gradient", (*cpu.GRADIENT_ROWS, *triton.GRADIENT_ROWS, _GRADIENT_REFERENCE), _describe_gradient
)
