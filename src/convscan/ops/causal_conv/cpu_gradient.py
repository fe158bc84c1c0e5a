"""The native gradients of a convolution: of its filter, and all of them in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ... import _native
from ..._calls import in_huge_pages
from ..._dispatch import Cost, Implementation, choose
from ..._layout import NO_STRIDES, Triple, order
from ...tuning import gpu
from ...tuning.table import constants
from .cpu import addresses, fft_refusals, products, refusals, seconds_of
from .problem import (
    BackwardProblem,
    ConvProblem,
    FilterGradientProblem,
    compute_bytes,
    item_bytes,
    samples_of,
)
from .transforms import blocks, gradient_workspace, transform_length, units

# ---- the gradient of the filter ----

RunGradient = Callable[..., None]  # of x, dz, state, x_gate, dz_gate, dh and, where sequences are packed, boundaries


def _prepare_gradient(kernel: str) -> Callable[[FilterGradientProblem], RunGradient]:
    def prepare(problem: FilterGradientProblem) -> RunGradient:
        state = problem.state or NO_STRIDES
        call = _native.FilterGradientCall(
            kernel,
            problem.native_dtype,
            problem.batch,
            problem.length,
            problem.channels,
            problem.taps,
            problem.x,
            problem.dz,
            (state[0], problem.state_sequence, *state[1:]),
            (problem.per_batch, *problem.dh),
            x_gate_strides=problem.x_gate or NO_STRIDES,
            dz_gate_strides=problem.dz_gate or NO_STRIDES,
            origin=problem.origin,
            transform_length=transform_length(problem) if kernel == "fft" else 0,
        )
        item = item_bytes(problem.dtype)

        def run(
            x: Tensor,
            dz: Tensor,
            state: Tensor | None,
            x_gate: Tensor | None,
            dz_gate: Tensor | None,
            dh: Tensor,
            boundaries: Tensor | None = None,
        ) -> None:
            packed = 0 if boundaries is None else boundaries.data_ptr()
            past = None if problem.state is None else state
            total = dh
            for turn, (*offsets, at_dh) in enumerate(problem.offsets or ((0,) * 6,)):
                if turn == 1 and problem.sums_turns:
                    total = torch.empty_like(dh)
                a = addresses(tuple(offsets), item, x, dz, past, x_gate, dz_gate)
                to = total.data_ptr() + dh.itemsize * at_dh
                call(a[0], a[1], a[2], a[3], a[4], to, boundaries=packed, sequences=problem.sequences)
                if turn > 0 and problem.sums_turns:
                    dh += total

        return run

    return prepare


def _gradient_direct_cost(problem: FilterGradientProblem) -> Cost:
    seconds = seconds_of(problem, "gradient.direct", products(problem), samples_of(problem), problem.threads)
    return Cost(seconds, (1 << 20) * problem.threads)


def _gradient_fft_cost(problem: FilterGradientProblem) -> Cost:
    points = transform_length(problem)
    seconds = seconds_of(problem, "gradient.fft", units(problem, points), samples_of(problem), problem.channels)
    return Cost(seconds, gradient_workspace(problem, points, None))


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("direct", "cpu", refusals, _gradient_direct_cost, _prepare_gradient("direct")),
    Implementation("fft", "cpu", fft_refusals, _gradient_fft_cost, _prepare_gradient("fft")),
)


# ---- every gradient in one pass ----

# Of dy, x, h, bias, state, pre_gate, post_gate, boundaries and the kept spectra: the gradients of x, h, bias, state and
# gates, None for those that nobody needs.
RunBackward = Callable[..., tuple[Tensor | None, ...]]
_MOST_TAPS = 256  # of the sums, whose windows are in the caches


def _filter_problem(problem: BackwardProblem) -> FilterGradientProblem:
    """The gradient of the filter alone."""
    one = problem.forward
    taps_first = one.h[0] == 1 and one.h[1] != 1
    return FilterGradientProblem(
        device=one.device,
        dtype=one.dtype,
        batch=one.batch,
        length=one.length,
        channels=one.channels,
        taps=one.taps,
        x=one.x,
        dz=one.y,
        state=one.state,
        offsets=None,
        dh=(1, one.taps) if taps_first else (one.channels, 1),
        threads=one.threads,
        isa=one.isa,
        precision=one.precision,
        origin=one.origin,
        x_gate=one.pre_gate,
        dz_gate=one.post_gate,
        sequences=one.sequences,
        longest=one.longest,
        state_sequence=one.state_sequence,
    )


def _is_shared(gate: Triple | None, one: ConvProblem) -> bool:
    sizes = (one.batch, one.length, one.channels)
    return gate is not None and any(step == 0 and size > 1 for step, size in zip(gate, sizes, strict=True))


def _backward_points(problem: BackwardProblem) -> int:
    kept = problem.forward.kept
    return kept.points if kept is not None else transform_length(_filter_problem(problem))


def _backward_refusals(problem: BackwardProblem) -> list[str]:
    """What keeps any of these kernels from running it."""
    one, reasons = problem.forward, []
    if one.batch * one.length * one.channels == 0:
        reasons.append("has nothing to add up")
    if one.offsets is not None:
        reasons.append("takes leading axes that merge into one")
    if one.h_batch != 0 or (one.bias is not None and one.bias[0] != 0):
        reasons.append("adds gradients of filters and bias up over the batch")
    if item_bytes(one.dtype) == 2 and (_is_shared(one.pre_gate, one) or _is_shared(one.post_gate, one)):
        reasons.append("rounds gradients of gates before they are added up")
    return reasons


def _direct_backward_refusals(problem: BackwardProblem) -> list[str]:
    one, reasons = problem.forward, refusals(_filter_problem(problem))
    if reasons:
        return reasons
    if one.taps > _MOST_TAPS:
        reasons.append(f"keeps windows of up to {_MOST_TAPS} taps")
    if one.kept is not None:
        reasons.append("reads the filter, not its spectrum")
    return reasons + _backward_refusals(problem)


def _fft_backward_refusals(problem: BackwardProblem) -> list[str]:
    one, reasons = problem.forward, fft_refusals(_filter_problem(problem), problem.forward.kept)
    if reasons:
        return reasons
    if one.state is None and one.taps > (one.longest or one.length):
        reasons.append("takes no taps that meet no sample")
    return reasons + _backward_refusals(problem)


def _needs_z(problem: BackwardProblem) -> bool:
    return problem.forward.activation is not None or problem.needs[5]


def _direct_backward_cost(problem: BackwardProblem) -> Cost:
    one = _filter_problem(problem)
    each = 3 if _needs_z(problem) else 2
    seconds = seconds_of(one, "gradient.direct", each * products(one), each * samples_of(one), problem.forward.threads)
    # A tile of windows and sums for each thread, and the sums of sixteen tasks.
    row = 64 * (compute_bytes(one) // 4)
    return Cost(seconds, max(384 << 10, (8 * one.taps + 128) * row) * (one.threads + 4))


def _fft_backward_cost(problem: BackwardProblem) -> Cost:
    one, points = problem.forward, _backward_points(problem)
    needs_z = _needs_z(problem)
    rows = one.batch * max(1, one.sequences) * one.channels * blocks(one.longest or one.length, one.taps, points)
    # A panel of z, of which dz is made, lies between two transforms of u.
    makes_panel = one.activation is not None and order(one.x) == "channel"
    each = 3 + (2 if makes_panel else 1 if needs_z else 0)
    transforms = rows * each + one.channels * (1 if one.kept else 2)
    elements = (2 + 2 * one.gates + (1 if needs_z else 0)) * samples_of(one)  # each gate, and its gradient
    work = transforms * points * math.log2(max(2, points))
    seconds = seconds_of(one, "conv.fft", work, elements, one.channels)
    return Cost(seconds, gradient_workspace(_filter_problem(problem), points, one, makes_panel))


def _prepare_backward(kernel: str, problem: BackwardProblem) -> RunBackward:
    one, needs, of_filter = problem.forward, problem.needs, _filter_problem(problem)
    kept, state = one.kept, one.state or NO_STRIDES
    filter_call = _native.FilterGradientCall(
        kernel,
        one.native_dtype,
        one.batch,
        one.length,
        one.channels,
        one.taps,
        one.x,
        one.y,
        (state[0], one.state_sequence, *state[1:]),
        (0, *of_filter.dh),
        x_gate_strides=one.pre_gate or NO_STRIDES,
        dz_gate_strides=one.post_gate or NO_STRIDES,
        origin=one.origin,
        transform_length=_backward_points(problem) if kernel == "fft" else 0,
    )
    is_time = order(one.x) == "time"
    like_x = (one.length * one.channels, 1, one.length) if is_time else (one.length * one.channels, one.channels, 1)
    sequences, steps = max(1, one.sequences), (one.taps - 1) * one.channels
    call = _native.ConvGradientCall(
        filter_call,
        one.h,
        like_x,
        kept is not None,
        kept is not None and kept.is_bfloat16,
        filter_group=one.group,
        bias_stride=one.bias[1] if one.bias else 1,
        activation=one.activation or "identity",
        dpre_gate_strides=like_x,
        dpost_gate_strides=like_x,
        dstate_strides=(sequences * steps, steps, one.channels, 1),
    )
    sums = torch.float64 if one.native_dtype in ("float64", "wide_float32") else torch.float32

    def memory(x: Tensor, is_needed: bool) -> Tensor | None:
        if not is_needed:
            return None
        *leading, length, channels = x.shape
        return in_huge_pages(x.new_empty(*leading, channels, length).mT if is_time else x.new_empty(x.shape))

    def run(
        dy: Tensor,
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        packed: Tensor | None,
        spectrum: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        dx, dpre = memory(x, needs[0]), memory(x, needs[4] and pre_gate is not None)
        dpost = memory(x, needs[5] and post_gate is not None)
        dh = dbias = dstate = None
        if needs[1]:
            shape, is_flat = (one.taps, one.channels), of_filter.dh[1] == 1
            dh = in_huge_pages(x.new_empty(shape if is_flat else shape[::-1], dtype=sums))
            dh = dh if is_flat else dh.mT
        if needs[2] and bias is not None:
            dbias = x.new_empty(one.channels, dtype=sums)
        if needs[3] and state is not None:
            dstate = x.new_empty(state.shape)
        past = state if one.state is not None else None
        of_past = dstate if past is not None else None
        filters = h if spectrum is None else spectrum
        tensors = (x, filters, dy, dx, dh, past, pre_gate, post_gate, bias, of_past, dpre, dpost, dbias)
        threads, boundaries = 0, 0 if packed is None else packed.data_ptr()
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        call(*[*addresses, threads, boundaries, one.sequences])
        return dx, dh, dbias, dstate, dpre, dpost

    return run


BACKWARD_ROWS: tuple[Implementation, ...] = (
    Implementation(
        "direct", "cpu", _direct_backward_refusals, _direct_backward_cost, partial(_prepare_backward, "direct")
    ),
    Implementation("fft", "cpu", _fft_backward_refusals, _fft_backward_cost, partial(_prepare_backward, "fft")),
)


def composed_cost(problem: BackwardProblem) -> Cost:
    """The same gradients from one convolution after the other, and products of them, which have their own memory."""
    one, needs = problem.forward, problem.needs
    needs_z = _needs_z(problem)
    back = one._replace(
        x=one.y,
        y=one.x,
        bias=None,
        state=None,
        activation=None,
        transposed=not one.transposed,
        pre_gate=one.post_gate,
        post_gate=None if needs[4] else one.pre_gate,
    )
    parts = [
        choose("causal_conv_filter_gradient", _filter_problem(problem), strict=False).cost(_filter_problem(problem))
    ]
    parts.append(choose("causal_conv", back, strict=False).cost(back))
    if needs_z:
        again = one._replace(post_gate=None, activation=None)
        parts.append(choose("causal_conv", again, strict=False).cost(again))
    # Passes over memory: of the activation, z, each gate and the bias.
    products_of = (one.activation is not None) + needs[5] + needs[4]
    moved = item_bytes(one.dtype) * samples_of(one)
    if one.device == "cpu":
        # Fresh memory past the caches costs faults too.
        each = 4e-11 if moved < constants(one.isa)["cache.bytes"] else 1.1e-10
        in_passes = (3 * products_of + needs[2]) * moved * each
    else:
        in_passes = gpu.seconds(one.isa, *[gpu.Work(3 * moved)] * products_of, *[gpu.Work(moved)] * needs[2])
    seconds = sum(part.seconds for part in parts) + in_passes
    temporaries = (one.activation is not None) + needs_z + needs[4]
    return Cost(seconds, max(part.workspace_bytes for part in parts) + int(temporaries * moved))
