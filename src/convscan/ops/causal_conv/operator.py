"""A convolution and its gradients as operators of PyTorch: kernels, shape rules, derivatives, implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._calls import Calls, empty_like, in_huge_pages
from ..._dispatch import Cost, Implementation, choose, register
from ..._library import define, derivative
from . import cpu, cpu_gradient, derivatives, mapping, reference, torch_fft, triton
from .arguments import (
    Operands,
    Run,
    empty_filter_gradient,
    filter_gradient_problem,
    kept_of,
    packed_boundaries,
    problem_of,
    without_spectrum,
)
from .problem import ConvProblem, FilterGradientProblem, samples_of

calls = Calls("causal_conv")
_filter_gradient_calls = Calls("causal_conv_filter_gradient")


def run(operands: Operands, y: Tensor) -> None:
    """Into y, by the implementation that is chosen."""
    strict, spectrum = not operands.transposed, operands.spectrum
    if operands.cu_seqlens is None:
        kept = kept_of(spectrum)
        calls.run(
            operands.variant,
            *operands.tensors,
            y,
            problem=lambda: problem_of(operands, y, kept=kept),
            strict=strict,
        )
        return
    # Boundaries are values, which no prepared call may depend on.
    boundaries, packed = packed_boundaries(operands.cu_seqlens, y.shape[-2])
    problem = problem_of(operands, y, boundaries)
    choose("causal_conv", problem, strict=strict).prepare(problem)(*operands.floats, y, packed)


def _kernel(*operands: Any) -> Tensor:
    y = empty_like(operands[0])
    run(Operands(*operands), y)
    return y


def _filter_gradient_kernel(
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    taps: int,
    origin: int,
    per_batch: bool,
    precision: str,
) -> Tensor:
    shape = (x, dz, state, x_gate, dz_gate, cu_seqlens, taps, origin, per_batch, precision)
    dh = in_huge_pages(empty_filter_gradient(*shape))
    if cu_seqlens is None:
        _filter_gradient_calls.run(
            (origin, precision),
            *(x, dz, state, x_gate, dz_gate, dh),
            problem=lambda: filter_gradient_problem(x, dz, state, x_gate, dz_gate, dh, origin, None, precision),
            strict=False,
        )
        return dh
    boundaries, packed = packed_boundaries(cu_seqlens, x.shape[-2])
    problem = filter_gradient_problem(x, dz, state, x_gate, dz_gate, dh, origin, boundaries, precision)
    run = choose("causal_conv_filter_gradient", problem, strict=False).prepare(problem)
    run(x, dz, state, x_gate, dz_gate, dh, packed)
    return dh


conv = define(
    "causal_conv(Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, Tensor? pre_gate, Tensor? post_gate, "
    "Tensor? cu_seqlens, str? activation, SymInt origin, bool transposed, str precision, Tensor? spectrum) -> Tensor",
    _kernel,
    fake=lambda x, *others: torch.empty_like(x),
    autograd=derivative(derivatives.CausalConv),
    vmap=mapping.conv_vmap,
)
define(
    "causal_conv_filter_gradient(Tensor x, Tensor dz, Tensor? initial_state, Tensor? x_gate, Tensor? dz_gate, "
    "Tensor? cu_seqlens, SymInt taps, SymInt origin, bool per_batch, str precision) -> Tensor",
    _filter_gradient_kernel,
    fake=empty_filter_gradient,
    autograd=derivative(derivatives.FilterGradient),
    vmap=mapping.filter_gradient_vmap,
)


# ---- registry ----


def _prepare_reference(problem: ConvProblem) -> Run:
    def run(
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        y: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        y.copy_(
            reference.causal_conv(
                x,
                h,
                bias,
                problem.activation,
                state,
                problem.transposed,
                pre_gate=pre_gate,
                post_gate=post_gate,
                boundaries=None if boundaries is None else boundaries.tolist(),
                origin=problem.origin,
            )
        )

    return run


def _prepare_gradient_reference(problem: FilterGradientProblem) -> cpu_gradient.RunGradient:
    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        dh.copy_(
            reference.filter_gradient(
                x,
                dz,
                state,
                problem.taps,
                x_gate=x_gate,
                dz_gate=dz_gate,
                boundaries=None if boundaries is None else boundaries.tolist(),
                origin=problem.origin,
                per_batch=dh.ndim > 2,
            )
        )

    return run


def _reference_cost(problem: ConvProblem | FilterGradientProblem) -> Cost:
    # A PyTorch operator per tap on float64 copies of the signals: three passes of 8 bytes an element each.
    elements = samples_of(problem)
    taps = problem.taps if problem.state is not None else min(problem.taps, problem.origin + max(1, problem.length))
    return Cost(2e-5 * (1 + taps * max(1, problem.sequences)) + 3e-9 * elements * taps, int(8 * 3 * elements))


_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, without_spectrum(_prepare_reference)
)
_GRADIENT_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, _prepare_gradient_reference
)

ROWS = (*cpu.ROWS, *triton.ROWS, *torch_fft.ROWS, _REFERENCE)

register(
    "causal_conv_filter_gradient",
    (*cpu_gradient.GRADIENT_ROWS, *triton.GRADIENT_ROWS, *torch_fft.GRADIENT_ROWS, _GRADIENT_REFERENCE),
    filter_gradient_problem,
)
