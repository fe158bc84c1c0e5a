"""cauchy: signature, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import in_huge_pages
from ..._dispatch import Cost, Implementation, choose, register
from ..._errors import message
from ..._layout import broadcast, dtype_name, fold
from ..._library import below_autograd, define, derivative
from . import cpu, reference
from .problem import CauchyProblem

DTYPES = (torch.complex64, torch.complex128, torch.float32, torch.float64)


def cauchy(v: Tensor, z: Tensor, poles: Tensor, *, conjugate_pairs: bool = False) -> Tensor:
    """k[..., w] = sum_n v[..., n] / (z[..., w] - poles[..., n]).

    The product with a Cauchy matrix, which is never stored: the generating function of a state-space layer is made of
    such products. With ``conjugate_pairs``, one number of each pair is given, and the conjugates of v and poles add
    their terms.

    Args:
        v: (..., N), complex or real.
        z: (..., W), complex or real, the points.
        poles: (..., N), complex or real. Leading axes of all three broadcast. Those that v has alone cost less, for
            they share the reciprocals.
        conjugate_pairs: add sum_n conj(v[..., n]) / (z[..., w] - conj(poles[..., n])).

    Returns:
        k: (..., W), complex.

    dtypes: complex64, complex128; float32 and float64 are promoted to them. A point on a pole gives what a division by
    zero does.

    Raises:
        ValueError: shapes that do not broadcast, or devices that differ.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: one division for each pole and point, and four multiply-adds more for each right hand side; 64 KiB of
    workspace a thread. Differentiable any number of times in both modes: the derivatives are Cauchy products again.

    Reference: A. Gu, K. Goel, C. Ré, Efficiently Modeling Long Sequences with Structured State Spaces, 2021, section 3.

    >>> import torch, convscan
    >>> convscan.cauchy(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]), torch.tensor([1.0, -2.0])).real.tolist()
    [1.25, 0.699999988079071]
    """
    dtype = _check(v, z, poles)
    v, z, poles = v.to(dtype), z.to(dtype), poles.to(dtype)
    if conjugate_pairs:
        v, poles = torch.cat([v, v.conj()], -1), torch.cat([poles, poles.conj()], -1)
    return cast(Tensor, _operator(v, z, poles, 1))


def _check(v: Tensor, z: Tensor, poles: Tensor) -> torch.dtype:
    """The complex dtype to compute in."""
    function = "cauchy"
    for argument, tensor in (("v", v), ("z", z), ("poles", poles)):
        _checks.tensor_like(function, argument, tensor, tensor if argument == "v" else v)
        if tensor.ndim == 0:
            remedy = f"Use {argument}[None]"
            raise ValueError(message(function, f"{argument} must have at least one axis", "()", remedy))
    dtype = _checks.common_dtype(function, DTYPES, v=v, z=z, poles=poles)
    if v.shape[-1] != poles.shape[-1]:
        raise ValueError(message(function, f"poles must have as many terms as v, {v.shape[-1]}", poles.shape[-1]))
    try:
        broadcast(v.shape[:-1], z.shape[:-1], poles.shape[:-1])
    except RuntimeError:
        got = ", ".join(_checks.shape_text(tensor.shape) for tensor in (v, z, poles))
        raise ValueError(message(function, "the leading axes of v, z and poles must broadcast", got)) from None
    return torch.promote_types(dtype, torch.complex64)


# ---- problem and call ----


def _problem(v: Tensor, z: Tensor, poles: Tensor, k: Tensor, power: int) -> CauchyProblem:
    leads = k.shape[:-1]
    tensors = [tensor.expand(*leads, tensor.shape[-1]) for tensor in (v, poles, z)] + [k]
    # The largest axis along which points and poles are the same shares reciprocals.
    shared = [axis for axis in range(len(leads)) if tensors[1].stride(axis) == 0 == tensors[2].stride(axis)]
    side = max(shared, key=lambda axis: leads[axis], default=None)
    strides = [[s for axis, s in enumerate(tensor.stride()[:-1]) if axis != side] for tensor in tensors]
    leading = fold([size for axis, size in enumerate(leads) if axis != side], strides)
    rows = leading.strides
    return CauchyProblem(
        device=v.device.type,
        dtype=dtype_name(v.dtype),
        sides=1 if side is None else leads[side],
        rows=leading.batch,
        terms=v.shape[-1],
        points=z.shape[-1],
        power=power,
        v=(0 if side is None else tensors[0].stride(side), rows[0], v.stride(-1)),
        poles=(rows[1], poles.stride(-1)),
        z=(rows[2], z.stride(-1)),
        k=(0 if side is None else k.stride(side), rows[3]),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _describe(v: Tensor, z: Tensor, poles: Tensor, *, conjugate_pairs: bool = False) -> CauchyProblem:
    """The problem of a call of ``cauchy``, for ``explain``."""
    dtype = _check(v, z, poles)
    if conjugate_pairs:
        v, poles = torch.cat([v, v], -1), torch.cat([poles, poles], -1)
    k = _fake(v, z, poles, 1)
    return _problem(v, z, poles, k, 1)._replace(dtype=dtype_name(dtype))


def _kernel(v: Tensor, z: Tensor, poles: Tensor, power: int) -> Tensor:
    k = in_huge_pages(_fake(v, z, poles, power))
    problem = _problem(v, z, poles, k, power)
    choose("cauchy", problem).prepare(problem)(v, poles, z, k)
    return k


def _fake(v: Tensor, z: Tensor, poles: Tensor, power: int) -> Tensor:
    leads = broadcast(v.shape[:-1], z.shape[:-1], poles.shape[:-1])
    return torch.empty(*leads, z.shape[-1], dtype=v.dtype, device=v.device)


# ---- derivatives: the transpose exchanges points and poles, a derivative raises the power ----


def _transposed(dk: Tensor, z: Tensor, poles: Tensor, power: int) -> Tensor:
    """sum_w dk[..., w] conj(1 / (z[..., w] - poles[..., n])^power)."""
    k = _operator(dk.conj(), poles, z, power)
    return cast(Tensor, (k if power % 2 == 0 else -k).conj())


class _Cauchy(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, z: Tensor, poles: Tensor, power: int) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _operator(v, z, poles, power))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        v, z, poles, ctx.power = inputs
        ctx.save_for_backward(v, z, poles)
        ctx.save_for_forward(v, z, poles)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dk: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dk is None:
            return (None,) * 4
        v, z, poles = ctx.saved_tensors
        dv = dz = dpoles = None
        if ctx.needs_input_grad[0]:
            dv = _transposed(dk, z, poles, ctx.power).sum_to_size(v.shape)
        if ctx.needs_input_grad[1]:
            dz = (dk * (-ctx.power * _operator(v, z, poles, ctx.power + 1)).conj()).sum_to_size(z.shape)
        if ctx.needs_input_grad[2]:
            dpoles = (ctx.power * v.conj() * _transposed(dk, z, poles, ctx.power + 1)).sum_to_size(poles.shape)
        return dv, dz, dpoles, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tv: Tensor | None, tz: Tensor | None, tpoles: Tensor | None, *_: None
    ) -> Tensor | None:
        v, z, poles = ctx.saved_tensors
        terms = [] if tv is None else [_operator(tv, z, poles, ctx.power)]
        if tz is not None:
            terms.append(-ctx.power * tz * _operator(v, z, poles, ctx.power + 1))
        if tpoles is not None:
            terms.append(_operator(ctx.power * v * tpoles, z, poles, ctx.power + 1))
        return sum(terms[1:], terms[0]) if terms else None


def _vmap(
    info: Any, axes: tuple[int | None, ...], v: Tensor, z: Tensor, poles: Tensor, power: int
) -> tuple[Tensor, int]:
    tensors = (v, z, poles)
    ndim = max(tensor.ndim - (axis is not None) for tensor, axis in zip(tensors, axes, strict=False))

    def front(tensor: Tensor, axis: int | None) -> Tensor:
        tensor = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        return tensor[(slice(None), *(None,) * (ndim + 1 - tensor.ndim))]

    return _operator(*map(front, tensors, axes), power), 0


_operator = define(
    "cauchy(Tensor v, Tensor z, Tensor poles, int power) -> Tensor",
    _kernel,
    fake=_fake,
    autograd=derivative(_Cauchy),
    vmap=_vmap,
)


# ---- registry ----


def _prepare_reference(problem: CauchyProblem) -> cpu.Run:
    def run(v: Tensor, poles: Tensor, z: Tensor, k: Tensor) -> None:
        k.copy_(reference.cauchy(v, z, poles, problem.power))

    return run


def _reference_cost(problem: CauchyProblem) -> Cost:
    # Four PyTorch operators a term, on numbers in double precision.
    results = problem.turns * problem.sides * problem.rows * problem.points
    return Cost(2e-5 * (1 + problem.terms) + 1e-8 * results * problem.terms, 5 * 16 * results)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)

register("cauchy", (*cpu.ROWS, _REFERENCE), _describe)
