"""vandermonde and its adjoint: signatures, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls, in_huge_pages
from ..._dispatch import Cost, Implementation, register
from ..._errors import message
from ..._layout import broadcast, dtype_name, fold
from ..._library import below_autograd, define, derivative
from . import cpu, reference
from .problem import PowersProblem

DTYPES = (torch.complex64, torch.complex128, torch.float32, torch.float64)
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_calls, _adjoint_calls = Calls("vandermonde"), Calls("vandermonde_adjoint")
_COMPLEX = {dtype: torch.promote_types(dtype, torch.complex64) for dtype in DTYPES}


def vandermonde(c: Tensor, a: Tensor, length: int) -> Tensor:
    """y[..., l] = Re sum_n c[..., n] a[..., n]^l, 0 <= l < length.

    The convolution kernel of a diagonal state-space layer: c is C times B, a the discretised state coefficient. The
    matrix of powers is never stored. For conjugate pairs, of which one number each is given, use 2 c.

    Args:
        c: (..., N), complex or real.
        a: (..., N), complex or real, of any magnitude; zero included, with a^0 = 1. Leading axes broadcast against c.
            The operator takes a and not its logarithm: a power is then a product, which costs less than an exponential,
            has no branch, and is exact at zero. a may be complex128 beside a complex64 c, which costs nothing: near
            the unit circle the rounding of a alone would turn a^l by l times 2^-24.
        length: number of steps, may be 0.

    Returns:
        y: (..., length), real, of the precision of c.

    dtypes: complex64, complex128; float32 and float64 are promoted to them.

    Accuracy: powers are computed in double precision and rounded once, so that the error of a float32 result does not
    grow with l; that of a float64 result grows as l times 2^-53, as with any repeated product.

    Raises:
        ValueError: shapes that do not broadcast, devices that differ, or a negative length.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: two multiply-adds for each term and step, and about 2 sqrt(length) complex products a term; less than 1 MiB of
    workspace a thread. Differentiable any number of times in both modes, at the same cost and in the same memory.

    Reference: A. Gu, A. Gupta, K. Goel, C. Ré, On the Parameterization and Initialization of Diagonal State Space
    Models, 2022, section 3.3.

    >>> import torch, convscan
    >>> convscan.vandermonde(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), 4).tolist()
    [3.0, 0.5, 0.25, 0.125]
    """
    _check("vandermonde", "c", c, a)
    if length < 0:
        raise ValueError(message("vandermonde", "length must not be negative", length))
    return cast(Tensor, _vandermonde(c.to(_COMPLEX[c.dtype]), a.to(_COMPLEX[a.dtype]), length, 0))


def vandermonde_adjoint(g: Tensor, a: Tensor) -> Tensor:
    """w[..., n] = sum_l g[..., l] a[..., n]^l.

    The transpose of ``vandermonde``. With g the reversed input of a diagonal state-space layer, w is its last state.

    Args:
        g: (..., L), real, in any memory order.
        a: (..., N), complex or real; leading axes broadcast against g.

    Returns:
        w: (..., N), complex, of the precision of g.

    dtypes, errors, cost and derivatives as in ``vandermonde``.

    >>> import torch
    >>> from convscan.ops.vandermonde.api import vandermonde_adjoint
    >>> vandermonde_adjoint(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5])).real.tolist()
    [3.0]
    """
    _check("vandermonde_adjoint", "g", g, a)
    if g.is_complex():
        raise TypeError(message("vandermonde_adjoint", "g must be real", dtype_name(g.dtype), "Pass its parts"))
    return cast(Tensor, _adjoint(g, a.to(_COMPLEX[a.dtype]), 0))


def _check(function: str, name: str, left: Tensor, a: Tensor) -> None:
    for argument, tensor in ((name, left), ("a", a)):
        _checks.tensor_like(function, argument, tensor, tensor if argument == name else left)
        if tensor.ndim == 0:
            expectation = f"{argument} must have at least one axis"
            raise ValueError(message(function, expectation, "()", f"Use {argument}[None]"))
    _checks.common_dtype(function, DTYPES, **{name: left, "a": a})
    if function == "vandermonde" and left.shape[-1] != a.shape[-1]:
        expectation = f"a must have as many terms as c, {left.shape[-1]}"
        raise ValueError(message(function, expectation, a.shape[-1]))
    try:
        broadcast(left.shape[:-1], a.shape[:-1])
    except RuntimeError:
        expectation = f"the leading axes of a must broadcast against those of {name}, {tuple(left.shape[:-1])}"
        raise ValueError(message(function, expectation, _checks.shape_text(a.shape[:-1]))) from None


# ---- problem and call ----


def _problem(left: Tensor, a: Tensor, out: Tensor, order: int, adjoint: bool) -> PowersProblem:
    leads = out.shape[:-1]
    left, a = left.expand(*leads, left.shape[-1]), a.expand(*leads, a.shape[-1])
    leading = fold(leads, [tensor.stride()[:-1] for tensor in (left, a, out)])
    return PowersProblem(
        device=a.device.type,
        dtype=dtype_name(_COMPLEX[left.dtype]),
        a_dtype=dtype_name(_COMPLEX[a.dtype]),
        rows=leading.batch,
        terms=a.shape[-1],
        length=(left if adjoint else out).shape[-1],
        order=order,
        adjoint=adjoint,
        left=(leading.strides[0], left.stride(-1)),
        a=(leading.strides[1], a.stride(-1)),
        out=leading.strides[2],
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _leads(left: Tensor, a: Tensor) -> tuple[int, ...]:
    return broadcast(left.shape[:-1], a.shape[:-1])


def _describe(c: Tensor, a: Tensor, length: int) -> PowersProblem:
    """The problem of a call of ``vandermonde``, for ``explain``."""
    _check("vandermonde", "c", c, a)
    return _problem(c, a, torch.empty(*_leads(c, a), length, device=c.device), 0, False)


def _describe_adjoint(g: Tensor, a: Tensor) -> PowersProblem:
    """The problem of a call of ``vandermonde_adjoint``, for ``explain``."""
    _check("vandermonde_adjoint", "g", g, a)
    return _problem(g, a, torch.empty(*_leads(g, a), a.shape[-1], device=g.device), 0, True)


def _kernel(c: Tensor, a: Tensor, length: int, order: int) -> Tensor:
    y = in_huge_pages(_fake(c, a, length, order))
    _calls.run(order, c, a, y, problem=lambda: _problem(c, a, y, order, False))
    return y


def _adjoint_kernel(g: Tensor, a: Tensor, order: int) -> Tensor:
    w = _adjoint_fake(g, a, order)
    _adjoint_calls.run(order, g, a, w, problem=lambda: _problem(g, a, w, order, True), strict=False)
    return w


def _fake(c: Tensor, a: Tensor, length: int, order: int) -> Tensor:
    return torch.empty(*_leads(c, a), length, dtype=_REAL[c.dtype], device=a.device)


def _adjoint_fake(g: Tensor, a: Tensor, order: int) -> Tensor:
    return torch.empty(*_leads(g, a), a.shape[-1], dtype=_COMPLEX[g.dtype], device=a.device)


# ---- derivatives: those of a power are powers again, with a factor, which ``order`` counts ----


class _Vandermonde(torch.autograd.Function):
    @staticmethod
    def forward(c: Tensor, a: Tensor, length: int, order: int) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _vandermonde(c, a, length, order))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        c, a, ctx.length, ctx.order = inputs
        ctx.save_for_backward(c, a)
        ctx.save_for_forward(c, a)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 4
        c, a = ctx.saved_tensors
        dc = da = None
        if ctx.needs_input_grad[0]:
            dc = _adjoint(dy, a, ctx.order).conj().sum_to_size(c.shape)
        if ctx.needs_input_grad[1]:
            da = (c * _adjoint(dy, a, ctx.order + 1)).conj().sum_to_size(a.shape).to(a.dtype)
        return dc, da, None, None

    @staticmethod
    def jvp(ctx: Any, tc: Tensor | None, ta: Tensor | None, *_: None) -> Tensor | None:  # type: ignore[override]
        c, a = ctx.saved_tensors
        terms = [] if tc is None else [_vandermonde(tc, a, ctx.length, ctx.order)]
        if ta is not None:
            terms.append(_vandermonde((c * ta).to(c.dtype), a, ctx.length, ctx.order + 1))
        return sum(terms[1:], terms[0]) if terms else None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(g: Tensor, a: Tensor, order: int) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _adjoint(g, a, order))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, a, ctx.order = inputs
        ctx.save_for_backward(g, a)
        ctx.save_for_forward(g, a)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dw: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dw is None:
            return (None,) * 3
        g, a = ctx.saved_tensors
        dg = da = None
        if ctx.needs_input_grad[0]:
            dg = _vandermonde(dw.conj(), a, g.shape[-1], ctx.order).sum_to_size(g.shape)
        if ctx.needs_input_grad[1]:
            da = (dw * _adjoint(g, a, ctx.order + 1).conj()).sum_to_size(a.shape).to(a.dtype)
        return dg, da, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor | None, ta: Tensor | None, *_: None) -> Tensor | None:  # type: ignore[override]
        g, a = ctx.saved_tensors
        terms = [] if tg is None else [_adjoint(tg, a, ctx.order)]
        if ta is not None:
            terms.append((ta * _adjoint(g, a, ctx.order + 1)).to(_COMPLEX[g.dtype]))
        return sum(terms[1:], terms[0]) if terms else None


# ---- vmap: one more leading axis ----


def _aligned(tensors: tuple[Tensor, Tensor], axes: tuple[int | None, ...]) -> tuple[Tensor, Tensor]:
    """Both with the mapped axis in front and the same number of axes behind it."""
    ndim = max(tensor.ndim - (axis is not None) for tensor, axis in zip(tensors, axes, strict=False))

    def front(tensor: Tensor, axis: int | None) -> Tensor:
        tensor = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        return tensor[(slice(None), *(None,) * (ndim + 1 - tensor.ndim))]

    return front(tensors[0], axes[0]), front(tensors[1], axes[1])


def _vmap(info: Any, axes: tuple[int | None, ...], c: Tensor, a: Tensor, length: int, order: int) -> tuple[Tensor, int]:
    c, a = _aligned((c, a), axes)
    return _vandermonde(c, a, length, order), 0


def _adjoint_vmap(info: Any, axes: tuple[int | None, ...], g: Tensor, a: Tensor, order: int) -> tuple[Tensor, int]:
    g, a = _aligned((g, a), axes)
    return _adjoint(g, a, order), 0


_vandermonde = define(
    "vandermonde(Tensor c, Tensor a, SymInt length, int order) -> Tensor",
    _kernel,
    fake=_fake,
    autograd=derivative(_Vandermonde),
    vmap=_vmap,
)
_adjoint = define(
    "vandermonde_adjoint(Tensor g, Tensor a, int order) -> Tensor",
    _adjoint_kernel,
    fake=_adjoint_fake,
    autograd=derivative(_Adjoint),
    vmap=_adjoint_vmap,
)


# ---- registry ----


def _prepare_reference(problem: PowersProblem) -> cpu.Run:
    def run(left: Tensor, a: Tensor, out: Tensor) -> None:
        if problem.adjoint:
            out.copy_(reference.adjoint(left, a, problem.order))
        else:
            out.copy_(reference.vandermonde(left, a, problem.length, problem.order))

    return run


def _reference_cost(problem: PowersProblem) -> Cost:
    # Four PyTorch operators a step, on numbers in double precision.
    terms = problem.turns * problem.rows * problem.terms
    return Cost(2e-5 * (1 + problem.length) + 1e-8 * terms * problem.length, 5 * 16 * terms)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)

register("vandermonde", (*cpu.ROWS, _REFERENCE), _describe)
register("vandermonde_adjoint", (*cpu.ROWS, _REFERENCE), _describe_adjoint)
