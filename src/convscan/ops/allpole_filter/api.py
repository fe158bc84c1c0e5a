"""allpole_filter: signature, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls, empty_like, run_prepared
from ..._dispatch import Cost, Implementation, register
from ..._errors import message
from ..._layout import dtype_name, fold
from ..._library import below_autograd, define, derivative, is_plain, is_traced, needs_gradient
from . import cpu, reference
from .problem import AllpoleProblem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_calls = Calls("allpole_filter")
_prepared = _calls.prepared


def allpole_filter(x: Tensor, a: Tensor, *, initial_state: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """y[i,n] = x[i,n] + sum_k a_k[i,n] y[i-k,n], 1 <= k <= p.

    A linear recurrence of order p along time in every channel: an all-pole filter, such as that of linear prediction.
    ``scipy.signal.lfilter(b, [1, -a_1, ..., -a_p], x)`` is this after the filter b.

    Args:
        x: (..., L, D) with any number of leading axes, in any memory order: a (..., D, L) tensor seen through
            ``transpose(-1, -2)`` is not copied, and the result has the same order. L and every other size may be 0.
        a: (p, D), p >= 1, a_1 first, for coefficients that are constant in time; or (..., L, p, D) for those that vary,
            or anything that broadcasts to that. Broadcasting costs no memory.
        initial_state: (..., p, D), the outputs before the first one, oldest first; leading axes as x. None for zeros.
        out: memory for the result, with the shape of x; it may be x itself. Not where a gradient is needed.

    Returns:
        y, with the shape and memory order of x.

    dtypes: float32, float64, bfloat16, float16. Different dtypes are promoted as in any PyTorch operator, which copies
    what has to change. Half types are computed in float32, the outputs that are fed back included, and float64 in
    float64.

    Raises:
        ValueError: a shape or device that does not fit, or ``out`` that partly overlaps an input.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        RuntimeError: ``out`` where a gradient is needed.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: p multiply-adds a step. Sequences, channels and batch, run side by side in vectors and threads; one sequence
    alone runs at the latency of its multiply-adds. Differentiable any number of times in both modes; the gradient of
    coefficients that vary is as large as they are, of which the terms of constant ones are summed without being stored.

    Reference: J. Makhoul, Linear Prediction: A Tutorial Review, 1975. The gradients: C.-Y. Yu, G. Fazekas,
    Differentiable Time-Varying Linear Prediction in the Context of End-to-End Analysis-by-Synthesis, 2024.

    >>> import torch, convscan
    >>> x = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    >>> convscan.allpole_filter(x, torch.tensor([[1.0], [1.0]])).flatten().tolist()
    [1.0, 1.0, 2.0, 3.0]
    """
    if not is_traced():
        y = run_prepared(_prepared, False, x, a, initial_state, out)
        if y is not None:
            return y
    dtype = _check(x, a, initial_state)
    if out is not None:
        _checks.output("allpole_filter", out, x, dtype, needs_gradient(x, a, initial_state))
    x, a = x.to(dtype), a.to(dtype)
    state = None if initial_state is None else initial_state.to(dtype)
    if is_plain(x, a, state, out):
        # With a as it came, also where it has fewer axes than x: so the call is remembered and found again.
        y = empty_like(x) if out is None else out
        _run(x, a, state, False, y)
        return y
    # One axis of a for each of x, and that of the order: those of size 1 are constant.
    y = _operator(x, a[(None,) * (x.ndim + 1 - a.ndim)], state, False)
    return y if out is None else out.copy_(y)


def _check(x: Tensor, a: Tensor, initial_state: Tensor | None) -> torch.dtype:
    name = "allpole_filter"
    _checks.signal(name, "x", x)
    _checks.tensor_like(name, "a", a, x)
    full = (*x.shape[:-1], a.shape[-2] if a.ndim > 1 else 1, x.shape[-1])
    sizes = zip(a.shape[::-1], full[::-1], strict=False)
    # No `in`: of symbolic sizes it knows only whether they are one object.
    if a.ndim < 2 or a.ndim > len(full) or a.shape[-2] == 0 or any(size != 1 and size != n for size, n in sizes):
        expectation = f"a must have the shape (p, D), p >= 1, or broadcast to (..., L, p, D), {_broadcast_text(x)}"
        raise ValueError(message(name, expectation, _checks.shape_text(a.shape)))
    if initial_state is not None:
        _checks.tensor_like(name, "initial_state", initial_state, x)
        expected = (*x.shape[:-2], a.shape[-2], x.shape[-1])
        _checks.has_shape(name, "initial_state", initial_state, expected, "(..., p, D)")
    return _checks.common_dtype(name, DTYPES, x=x, a=a, initial_state=initial_state)


def _broadcast_text(x: Tensor) -> str:
    return f"({', '.join(map(str, (*x.shape[:-1], 'p', x.shape[-1])))})"


# ---- problem and call ----


def _problem(x: Tensor, a: Tensor, state: Tensor | None, transposed: bool, y: Tensor) -> AllpoleProblem:
    coefficients = a.expand(*x.shape[:-1], a.shape[-2], x.shape[-1])
    # Without a state, x stands in for it where leading axes fold.
    tensors = (x, coefficients, x if state is None else state, y)
    leads = x.ndim - 2
    leading = fold(x.shape[:-2], [tensor.stride()[:leads] for tensor in tensors])
    steps = [(batch, t.stride(leads), t.stride(-1)) for batch, t in zip(leading.strides, tensors, strict=True)]
    return AllpoleProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=x.shape[-1],
        order=a.shape[-2],
        transposed=transposed,
        x=steps[0],
        a=steps[1],
        a_order=a.stride(-2),
        state=None if state is None else steps[2],
        y=steps[3],
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _describe(
    x: Tensor, a: Tensor, *, initial_state: Tensor | None = None, out: Tensor | None = None
) -> AllpoleProblem:
    """The problem of a call of ``allpole_filter``, for ``explain``."""
    dtype = _check(x, a, initial_state)
    y = torch.empty_like(x, dtype=dtype) if out is None else out
    return _problem(x, a, initial_state, False, y)._replace(dtype=dtype_name(dtype))


def _run(x: Tensor, a: Tensor, state: Tensor | None, transposed: bool, y: Tensor) -> None:
    _calls.run(transposed, x, a, state, y, problem=lambda: _problem(x, a, state, transposed, y), strict=not transposed)


def _kernel(x: Tensor, a: Tensor, state: Tensor | None, transposed: bool) -> Tensor:
    y = empty_like(x)
    _run(x, a, state, transposed, y)
    return y


# ---- derivatives: the filter's matrix is the inverse of one with -a_k below its diagonal; so is its transpose ----


def _lags(y: Tensor, state: Tensor | None, order: int) -> Tensor:
    """y[i-k,n] as (..., L, p, D): the outputs that a_k[i,n] multiplies."""
    past = y.new_zeros((*y.shape[:-2], order, y.shape[-1])) if state is None else state
    windows = torch.cat([past, y], -2).unfold(-2, order, 1)
    return windows[..., : y.shape[-2], :, :].flip(-1).mT


def _leads(y: Tensor, order: int) -> Tensor:
    """y[i+k,n] as (..., L, p, D); zero beyond the end."""
    padded = torch.nn.functional.pad(y, (0, 0, 0, order))
    return padded.unfold(-2, order, 1)[..., 1:, :, :].mT


def _shear(a: Tensor, order: int) -> Tensor:
    """a_k[i+k] as (..., L, p, D), zero beyond the end; of constant coefficients themselves."""
    length = a.shape[-3]
    if length == 1:
        return a
    padded = torch.nn.functional.pad(a, (0, 0, 0, 0, 0, order))
    rows = [padded[..., k : k + length, k - 1, :] for k in range(1, order + 1)]
    return torch.stack(rows, -2)


def _coefficient_gradient(g: Tensor, y: Tensor, state: Tensor | None, a: Tensor) -> Tensor:
    """da_k[i,n] = g[i,n] y[i-k,n], summed where coefficients are constant."""
    order = a.shape[-2]
    if a.shape[-3] == 1:
        # One coefficient after the other: all products at once would take p times the memory of y.
        past = y.new_zeros((*y.shape[:-2], order, y.shape[-1])) if state is None else state
        outputs = torch.cat([past, y], -2)
        lagged = (outputs.narrow(-2, order - k, y.shape[-2]) for k in range(1, order + 1))
        return torch.stack([(g * each).sum(-2, keepdim=True) for each in lagged], -2).sum_to_size(a.shape)
    return (g.unsqueeze(-2) * _lags(y, state, order)).sum_to_size(a.shape)


def _state_gradient(g: Tensor, a: Tensor) -> Tensor:
    """dstate[j,n] = sum_i a_(i+p-j)[i,n] g[i,n], 0 <= i <= j: the outputs that lie that far before the first."""
    order, length = a.shape[-2], g.shape[-2]
    a = a.expand(*g.shape[:-1], order, g.shape[-1])
    columns = []
    for k in range(1, order + 1):
        reached = min(k, length)
        part = a[..., :reached, k - 1, :] * g[..., :reached, :]
        columns.append(torch.nn.functional.pad(part, (0, 0, order - k, k - reached)))
    return torch.stack(columns).sum(0)


class _AllpoleFilter(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, a: Tensor, state: Tensor | None, transposed: bool) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _operator(x, a, state, transposed))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, a, state, ctx.transposed = inputs
        ctx.save_for_backward(a, state, output)
        ctx.save_for_forward(a, state, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 4
        a, state, y = ctx.saved_tensors
        g = _operator(dy, a, None, not ctx.transposed)
        da = dstate = None
        if ctx.needs_input_grad[1]:
            # Of a transpose, outputs and gradients change places.
            da = _coefficient_gradient(y, g, None, a) if ctx.transposed else _coefficient_gradient(g, y, state, a)
        if ctx.needs_input_grad[2]:
            dstate = _state_gradient(g, a)
        return g if ctx.needs_input_grad[0] else None, da, dstate, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, ta: Tensor | None, tstate: Tensor | None, *_: None
    ) -> Tensor | None:
        a, state, y = ctx.saved_tensors
        forcing = torch.zeros_like(y) if tx is None else tx
        order = a.shape[-2]
        if ta is not None:
            terms = _shear(ta, order) * _leads(y, order) if ctx.transposed else ta * _lags(y, state, order)
            forcing = forcing + terms.sum(-2)
        return cast(Tensor, _operator(forcing, a, tstate, ctx.transposed))


# ---- vmap: one more leading axis ----


def _leading_axis(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _vmap(
    info: Any, axes: tuple[int | None, ...], x: Tensor, a: Tensor, state: Tensor | None, transposed: bool
) -> tuple[Tensor, int]:
    size = info.batch_size
    past = None if state is None else _leading_axis(state, axes[2], size)
    coefficients = a.unsqueeze(0) if axes[1] is None else a.movedim(axes[1], 0)
    return _operator(_leading_axis(x, axes[0], size), coefficients, past, transposed), 0


_operator = define(
    "allpole_filter(Tensor x, Tensor a, Tensor? initial_state, bool transposed) -> Tensor",
    _kernel,
    fake=lambda x, a, initial_state, transposed: torch.empty_like(x),
    autograd=derivative(_AllpoleFilter),
    vmap=_vmap,
)


# ---- registry ----


def _prepare_reference(problem: AllpoleProblem) -> cpu.Run:
    def run(x: Tensor, a: Tensor, state: Tensor | None, y: Tensor) -> None:
        y.copy_(reference.allpole_filter(x, a, state, problem.transposed))

    return run


def _reference_cost(problem: AllpoleProblem) -> Cost:
    # Three PyTorch operators for each coefficient of a step, on copies in double precision.
    elements = problem.turns * problem.batch * problem.length * problem.channels
    return Cost(1e-5 * (1 + problem.length * problem.order) + 3e-9 * elements * problem.order, 24 * elements)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)

register("allpole_filter", (*cpu.ROWS, _REFERENCE), _describe)
