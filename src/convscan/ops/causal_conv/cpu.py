"""The native convolution kernels: what each can run, what it would cost, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ... import _native
from ..._dispatch import Cost, Implementation
from ..._layout import NO_STRIDES, order
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .arguments import Run, without_spectrum
from .problem import ConvProblem, FilterGradientProblem, Kept, compute_bytes, item_bytes, samples_of
from .transforms import span, taps_in_reach, transform_length, units, workspace

REAL = ("float32", "float64", "bfloat16", "float16")


def refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    """Why native kernels cannot run it."""
    return cpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def products(problem: ConvProblem | FilterGradientProblem) -> float:
    """Filter taps that meet a sample inside the signal, or of the state before it, over all rows."""
    sequences, length = span(problem)
    behind = problem.taps - problem.origin  # taps of the current sample and earlier ones
    ahead = min(problem.origin, max(0, length - 1))
    if problem.state is None:
        behind = min(behind, length)
    before = behind * (behind - 1) / 2 if problem.state is None else 0
    inside = behind * length - before + ahead * length - ahead * (ahead + 1) / 2
    return problem.turns * problem.batch * sequences * problem.channels * inside


def seconds_of(
    problem: ConvProblem | FilterGradientProblem, kernel: str, units: float, elements: float, tasks: float
) -> float:
    """``tasks`` is the number of pieces that threads can share."""
    read = (2 + problem.gates) * samples_of(problem) + past_samples(problem) + problem.filters * problem.taps
    moved = item_bytes(problem.dtype) * read
    workers = max(1.0, min(problem.threads, tasks))
    seconds = kernel_seconds(
        problem.isa,
        f"{kernel}.{order(problem.x)}",
        problem.native_dtype,
        units=units,
        elements=elements,
        moved=moved,
        workers=workers,
        threads=problem.threads,
    )
    return problem.turns * seconds if problem.turns > 1 else seconds


def past_samples(problem: ConvProblem | FilterGradientProblem) -> float:
    """Those of the initial states."""
    states = problem.turns * problem.batch * problem.channels * max(1, problem.sequences)
    return states * (problem.taps - 1) if problem.state is not None else 0


# ---- direct, toeplitz, recurrence: work counted in products ----


def _direct_cost(problem: ConvProblem) -> Cost:
    # Small filters keep a few rows of history per thread, larger ones a packed tile and the packed filter.
    workspace = (64 << 10) if problem.taps <= 16 else (1 << 20)
    elements = samples_of(problem) + past_samples(problem)
    seconds = seconds_of(problem, "conv.direct", products(problem), elements, problem.threads)
    return Cost(seconds, workspace * problem.threads)


def _toeplitz_cost(problem: ConvProblem) -> Cost:
    elements = samples_of(problem) + past_samples(problem)
    seconds = seconds_of(problem, "conv.toeplitz", products(problem), elements, problem.threads)
    return Cost(seconds, (1 << 20) * problem.threads)


def _recurrence_refusals(problem: ConvProblem) -> list[str]:
    reasons = refusals(problem)
    if (problem.taps - 1 - problem.origin if problem.transposed else problem.origin) > 0:
        reasons.append("runs forwards in time only")
    return reasons


def _recurrence_cost(problem: ConvProblem) -> Cost:
    # The states take a step of every tap at every sample, also where the signal has not begun; one that is given takes
    # as many of its own.
    steps = problem.length + (problem.taps / 2 if problem.state is not None else 0) * max(1, problem.sequences)
    units = problem.turns * problem.batch * problem.channels * steps * problem.taps
    # A state for each tap is made and left, which takes as long as some four samples.
    made = 4 * problem.turns * problem.batch * problem.channels * max(1, problem.sequences) * problem.taps
    tasks = problem.batch * math.ceil(problem.channels / 16)
    lane_bytes = 64 * problem.taps * (compute_bytes(problem) // 4)
    return Cost(
        seconds_of(problem, "conv.recurrence", units, samples_of(problem) + made, tasks),
        (lane_bytes + 4096) * problem.threads,
    )


# ---- fft ----


def fft_refusals(problem: ConvProblem | FilterGradientProblem, kept: Kept | None = None) -> list[str]:
    """Why transforms cannot run it, with such spectra of its filters."""
    reasons = refusals(problem)
    if kept is not None and kept.form != "fft":
        reasons.append("reads spectra in an order of its own")
    if not reasons and transform_length(problem) == 0:
        reasons.append("no transform is long enough")
    return reasons


def _fft_cost(problem: ConvProblem) -> Cost:
    points = transform_length(problem)
    seconds = seconds_of(problem, "conv.fft", units(problem, points), samples_of(problem), problem.channels)
    return Cost(seconds, workspace(problem, points))


# ---- calls ----


def addresses(offsets: tuple[int, ...], item: int, *tensors: Tensor | None) -> tuple[int, ...]:
    """Where the tensors begin in one turn; 0 for None, for which no offset counts."""
    return tuple(
        0 if tensor is None else tensor.data_ptr() + item * offset
        for offset, tensor in zip(offsets, tensors, strict=True)
    )


def _prepare(kernel: str) -> Callable[[ConvProblem], Run]:
    def prepare_fft(problem: ConvProblem) -> Run:
        if problem.kept is None:
            return prepare_kernel(kernel, problem)
        run = prepare_kernel("fft_kept", problem)

        def run_kept(x: Tensor, h: Tensor, *others: Tensor | None) -> None:
            *before, spectrum, y = others
            run(x, spectrum, *before, y)

        return run_kept

    def prepare_kernel(kernel: str, problem: ConvProblem) -> Run:
        tap_stride, channel_stride = problem.h
        item = item_bytes(problem.dtype)
        # A short sum keeps taps that meet nothing: a sequence shorter than it is then summed as it is where packed.
        first, taps = (0, problem.taps) if kernel == "direct" and problem.taps <= 16 else taps_in_reach(problem)
        origin = problem.origin - first
        state = problem.state or NO_STRIDES
        # Transposing the Toeplitz matrix flips the filter and exchanges past and future; the flip is a stride.
        start = 0 if kernel == "fft_kept" else item * tap_stride * (first + (taps - 1 if problem.transposed else 0))
        call = _native.ConvCall(
            kernel,
            problem.native_dtype,
            problem.batch,
            problem.length,
            problem.channels,
            taps,
            problem.x,
            (problem.h_batch, -tap_stride if problem.transposed else tap_stride, channel_stride),
            problem.y,
            bias_strides=problem.bias or (0, 0),
            state_strides=(state[0], problem.state_sequence, *state[1:]),
            pre_gate_strides=problem.pre_gate or NO_STRIDES,
            post_gate_strides=problem.post_gate or NO_STRIDES,
            filter_group=problem.group,
            origin=taps - 1 - origin if problem.transposed else origin,
            activation=problem.activation or "identity",
            transform_length=transform_length(problem) if kernel in ("fft", "fft_kept") else 0,
            bfloat16_spectra=problem.kept is not None and problem.kept.is_bfloat16,
        )
        if problem.offsets is None and start == 0 and problem.sequences == 0:
            return call

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
            packed = 0 if boundaries is None else boundaries.data_ptr()
            past = None if problem.state is None else state
            for offsets in problem.offsets or ((0,) * 7,):
                a = addresses(offsets, item, x, h, bias, past, pre_gate, post_gate, y)
                call(a[0], a[1] + start, a[2], a[3], a[4], a[5], a[6], boundaries=packed, sequences=problem.sequences)

        return run

    return prepare_fft if kernel == "fft" else without_spectrum(lambda problem: prepare_kernel(kernel, problem))


def prepare_sparse(problem: ConvProblem) -> Callable[[Tensor, Tensor, Tensor], None]:
    """A convolution with spectra of which a part was kept: takes x, the spectra and y."""
    kept = problem.kept
    assert kept is not None
    call = _native.ConvCall(
        "fft_sparse",
        problem.native_dtype,
        problem.batch,
        problem.length,
        problem.channels,
        problem.taps,
        problem.x,
        (0, *problem.h),
        problem.y,
        filter_group=problem.group,
        origin=problem.taps - 1 if problem.transposed else 0,
        transform_length=kept.points,
        bfloat16_spectra=kept.is_bfloat16,
        pattern_offset=kept.pattern_offset,
    )
    item = item_bytes(problem.dtype)
    offsets = problem.offsets or ((0,) * 7,)

    def run(x: Tensor, spectra: Tensor, y: Tensor) -> None:
        for at_x, *_, at_y in offsets:
            call(x.data_ptr() + item * at_x, spectra.data_ptr(), 0, 0, 0, 0, y.data_ptr() + item * at_y)

    return run


ROWS: tuple[Implementation, ...] = (
    Implementation("direct", "cpu", refusals, _direct_cost, _prepare("direct")),
    Implementation("toeplitz", "cpu", refusals, _toeplitz_cost, _prepare("toeplitz")),
    Implementation("fft", "cpu", lambda problem: fft_refusals(problem, problem.kept), _fft_cost, _prepare("fft")),
    Implementation("recurrence", "cpu", _recurrence_refusals, _recurrence_cost, _prepare("recurrence")),
)
