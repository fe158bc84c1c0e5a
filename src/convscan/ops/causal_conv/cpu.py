"""The native convolution kernels: what each can run, what it would cost, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Cost, Implementation, choose
from ..._layout import order
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .problem import ConvProblem, FilterGradientProblem, GradientProblem, Kept

REAL = ("float32", "float64", "bfloat16", "float16")
_PANEL_BYTES = 1280 << 10  # kPanelBytes of csrc/conv/fft.cpp
Run = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor], None]
RunKept = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor], None]


def _bytes(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _compute_bytes(problem: ConvProblem | FilterGradientProblem) -> int:
    return 8 if problem.native_dtype in ("float64", "wide_float32") else 4


def _refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def _products(problem: ConvProblem | FilterGradientProblem) -> float:
    """Filter taps that meet a sample inside the signal, over all rows."""
    taps = min(problem.taps, problem.length)
    inside = taps * problem.length - taps * (taps - 1) / 2
    return problem.turns * problem.batch * problem.channels * inside


def _seconds(
    problem: ConvProblem | FilterGradientProblem, kernel: str, units: float, elements: float, tasks: float
) -> float:
    """``tasks`` is the number of pieces that threads can share."""
    samples = problem.turns * problem.batch * problem.channels * problem.length
    moved = _bytes(problem.dtype) * (2 * samples + problem.channels * problem.taps)
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


def _samples(problem: ConvProblem | FilterGradientProblem) -> float:
    return problem.turns * problem.batch * problem.channels * problem.length


# ---- direct, toeplitz, recurrence: work counted in products ----


def _direct_cost(problem: ConvProblem) -> Cost:
    # Small filters keep a few rows of history per thread, larger ones a packed tile and the packed filter.
    workspace = (64 << 10) if problem.taps <= 16 else (1 << 20)
    seconds = _seconds(problem, "conv.direct", _products(problem), _samples(problem), problem.threads)
    return Cost(seconds, workspace * problem.threads)


def _toeplitz_cost(problem: ConvProblem) -> Cost:
    seconds = _seconds(problem, "conv.toeplitz", _products(problem), _samples(problem), problem.threads)
    return Cost(seconds, (1 << 20) * problem.threads)


def _recurrence_refusals(problem: ConvProblem) -> list[str]:
    reasons = _refusals(problem)
    if problem.transposed:
        reasons.append("runs forwards in time only")
    return reasons


def _recurrence_cost(problem: ConvProblem) -> Cost:
    # The states take a step of every tap at every sample, also where the signal has not begun.
    units = _samples(problem) * problem.taps
    tasks = problem.batch * math.ceil(problem.channels / 16)
    lane_bytes = 64 * problem.taps * (_compute_bytes(problem) // 4)
    return Cost(
        _seconds(problem, "conv.recurrence", units, _samples(problem), tasks),
        (lane_bytes + 4096) * problem.threads,
    )


# ---- fft: one complex transform of M points does a real linear convolution of 2 M ----


def _blocks(length: int, taps: int, points: int) -> int:
    """Blocks of overlap-save: each transform of M complex points gives 2 M - (K - 1) new outputs."""
    return 1 if 2 * points >= length + taps - 1 else math.ceil(length / (2 * points - taps + 1))


def _fft_units(problem: ConvProblem | FilterGradientProblem, points: int) -> float:
    transform = points * math.log2(max(2, points))
    rows = problem.turns * problem.batch * problem.channels
    blocks = _blocks(problem.length, min(problem.taps, problem.length), points)
    filters = 0 if _kept(problem) else problem.channels * problem.turns
    return transform * (2 * rows * blocks + filters)


def _kept(problem: ConvProblem | FilterGradientProblem) -> Kept | None:
    return problem.kept if isinstance(problem, ConvProblem) else None


def _taps_in_reach(problem: ConvProblem | FilterGradientProblem) -> int:
    """Taps beyond the length of the signal meet nothing without an initial state; their gradient is still written."""
    if problem.state is not None or isinstance(problem, FilterGradientProblem) or problem.kept is not None:
        return problem.taps
    return max(1, min(problem.taps, problem.length))


def _transform_lengths(length: int, taps: int, native_dtype: str) -> list[int]:
    """Transforms to choose from: one block, or overlap-save with blocks of a few filter lengths."""
    whole = _native.fft_length(max(1, (length + taps) // 2), native_dtype)
    candidates = {whole}
    for factor in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32):
        # The history of a block must lie in the block before it: at least as many points as taps, and some to round.
        points = _native.fft_length(max(256, int(factor * taps) + 16), native_dtype)
        if 0 < points < whole:
            candidates.add(points)
    return sorted(candidates)


@lru_cache(maxsize=4096)
def _transform_length(problem: ConvProblem | FilterGradientProblem) -> int:
    """The transform with the least work."""
    kept = _kept(problem)
    if kept is not None:
        return kept.points
    lengths = _transform_lengths(problem.length, _taps_in_reach(problem), problem.native_dtype)
    return min(lengths, key=lambda points: _fft_units(problem, points))


def kept_transform_length(length: int, taps: int, native_dtype: str) -> int:
    """The transform with the least work for signals of that length where that of the filter does not count."""
    lengths = _transform_lengths(length, taps, native_dtype)
    return min(lengths, key=lambda points: points * math.log2(max(2, points)) * _blocks(length, taps, points))


def _fft_refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = _refusals(problem)
    if not reasons and _transform_length(problem) == 0:
        reasons.append("no transform is long enough")
    return reasons


def _panel_bytes(problem: ConvProblem, points: int) -> int:
    """Rows of up to 64 adjacent channels, transposed, with their spectra where blocks or sequences share them."""
    if problem.x[2] != 1 or problem.y[2] != 1:
        return 0
    item, samples = _compute_bytes(problem), min(problem.length, 2 * points) + 32
    blocks = _blocks(problem.length, _taps_in_reach(problem), points)
    kept = 2.13 * item * points if problem.batch * blocks > 1 and problem.kept is None else 0
    channel = int(samples * _bytes(problem.dtype) + kept)
    width = 16 * min(4, _PANEL_BYTES // (16 * channel), problem.channels // 16)
    return width * (channel + item * problem.taps)


def _fft_workspace(problem: ConvProblem, points: int) -> int:
    # Per thread: the data and the filter's spectrum, complex and padded; two blocks of history; 16 filters copied.
    item = _compute_bytes(problem)
    spectra = 2.125 if problem.kept is None else 0
    copies = 16 * _bytes(problem.dtype) * problem.taps if problem.kept is None else 0
    per_thread = item * ((2.125 + spectra) * points + 2 * problem.taps) + copies + (64 << 10)
    return int(problem.threads * (per_thread + _panel_bytes(problem, points)))


def _fft_cost(problem: ConvProblem) -> Cost:
    points = _transform_length(problem)
    seconds = _seconds(problem, "conv.fft", _fft_units(problem, points), _samples(problem), problem.channels)
    return Cost(seconds, _fft_workspace(problem, points))


# ---- calls ----


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def with_spectrum(run: Run) -> RunKept:
    """A function that does not read spectra, where there are some."""

    def run_kept(x: Tensor, h: Tensor, bias: Tensor | None, state: Tensor | None, spectrum: Tensor, y: Tensor) -> None:
        run(x, h, bias, state, y)

    return run_kept


def _prepare(kernel: str) -> Callable[[ConvProblem], Run | RunKept]:
    def prepare(problem: ConvProblem) -> Run | RunKept:
        if problem.kept is None:
            return prepare_kernel(kernel, problem)
        if kernel != "fft":
            return with_spectrum(prepare_kernel(kernel, problem))
        run = prepare_kernel("fft_kept", problem)

        def run_kept(
            x: Tensor, h: Tensor, bias: Tensor | None, state: Tensor | None, spectrum: Tensor, y: Tensor
        ) -> None:
            run(x, spectrum, bias, state, y)

        return run_kept

    def prepare_kernel(kernel: str, problem: ConvProblem) -> Run:
        tap_stride, channel_stride = problem.h
        item, taps = _bytes(problem.dtype), _taps_in_reach(problem)
        # Transposing the Toeplitz matrix flips the filter and reads K - 1 samples ahead; the flip is a stride.
        flip = item * (taps - 1) * tap_stride if problem.transposed and kernel != "fft_kept" else 0
        call = _native.ConvCall(
            kernel,
            problem.native_dtype,
            problem.batch,
            problem.length,
            problem.channels,
            taps,
            problem.x,
            (-tap_stride if problem.transposed else tap_stride, channel_stride),
            problem.y,
            bias_stride=problem.bias or 0,
            state_strides=problem.state or (0, 0, 0),
            origin=taps - 1 if problem.transposed else 0,
            activation=problem.activation or "identity",
            transform_length=_transform_length(problem) if kernel in ("fft", "fft_kept") else 0,
            bfloat16_spectra=problem.kept is not None and problem.kept.is_bfloat16,
        )
        if problem.offsets is None and not problem.transposed:
            return call
        offsets = tuple((item * x, item * state, item * y) for x, state, y in problem.offsets or ((0, 0, 0),))

        def run(x: Tensor, h: Tensor, bias: Tensor | None, state: Tensor | None, y: Tensor) -> None:
            addresses = (x.data_ptr(), h.data_ptr() + flip, _address(bias), _address(state), y.data_ptr())
            for at_x, at_state, at_y in offsets:
                past = addresses[3] and addresses[3] + at_state
                call(addresses[0] + at_x, addresses[1], addresses[2], past, addresses[4] + at_y)

        return run

    return prepare


ROWS: tuple[Implementation, ...] = (
    Implementation("direct", "cpu", _refusals, _direct_cost, _prepare("direct")),
    Implementation("toeplitz", "cpu", _refusals, _toeplitz_cost, _prepare("toeplitz")),
    Implementation("fft", "cpu", _fft_refusals, _fft_cost, _prepare("fft")),
    Implementation("recurrence", "cpu", _recurrence_refusals, _recurrence_cost, _prepare("recurrence")),
)


# ---- the gradient of the filter ----

RunGradient = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]


def _prepare_gradient(kernel: str) -> Callable[[FilterGradientProblem], RunGradient]:
    def prepare(problem: FilterGradientProblem) -> RunGradient:
        call = _native.FilterGradientCall(
            kernel,
            problem.native_dtype,
            problem.batch,
            problem.length,
            problem.channels,
            problem.taps,
            problem.x,
            problem.dz,
            problem.state or (0, 0, 0),
            problem.dh,
            transform_length=_transform_length(problem) if kernel == "fft" else 0,
        )
        item = _bytes(problem.dtype)
        offsets = problem.offsets or ((0, 0, 0),)

        def run(x: Tensor, dz: Tensor, state: Tensor | None, dh: Tensor) -> None:
            addresses = (x.data_ptr(), dz.data_ptr(), _address(state))
            total = dh
            for turn, (at_x, at_dz, at_state) in enumerate(offsets):
                if turn == 1:
                    total = torch.empty_like(dh)
                past = addresses[2] and addresses[2] + item * at_state
                call(addresses[0] + item * at_x, addresses[1] + item * at_dz, past, total.data_ptr())
                if turn > 0:
                    dh += total

        return run

    return prepare


def _gradient_direct_cost(problem: FilterGradientProblem) -> Cost:
    seconds = _seconds(problem, "gradient.direct", _products(problem), _samples(problem), problem.threads)
    return Cost(seconds, (1 << 20) * problem.threads)


def _gradient_fft_cost(problem: FilterGradientProblem) -> Cost:
    points = _transform_length(problem)
    seconds = _seconds(problem, "gradient.fft", _fft_units(problem, points), _samples(problem), problem.channels)
    # Three transforms, the gradient of 16 channels, and 16 channels of both inputs where they are small enough.
    per_thread = _compute_bytes(problem) * (6.4 * points + 17 * problem.taps) + (64 << 10)
    tiles = 2 * min(8 << 20, 16 * problem.batch * problem.length * _bytes(problem.dtype))
    return Cost(seconds, int(problem.threads * (per_thread + tiles)))


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("direct", "cpu", _refusals, _gradient_direct_cost, _prepare_gradient("direct")),
    Implementation("fft", "cpu", _fft_refusals, _gradient_fft_cost, _prepare_gradient("fft")),
)


# ---- both gradients in one pass ----

RunGradients = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor], None]


def _both_transform_length(problem: GradientProblem) -> int:
    kept = problem.transposed.kept
    return kept.points if kept is not None else _transform_length(problem.filter)


def _both_refusals(problem: GradientProblem) -> list[str]:
    one, reasons = problem.filter, _fft_refusals(problem.filter)
    if reasons:
        return reasons
    if one.batch == 0 or one.length == 0:
        reasons.append("has nothing to transform")
    elif one.state is None and one.taps > one.length:
        reasons.append("takes no taps that meet no sample")
    elif one.state is not None and _blocks(one.length, one.taps, _both_transform_length(problem)) > 1:
        reasons.append("takes an initial state in a single block only")
    return reasons


def _both_cost(problem: GradientProblem) -> Cost:
    one, kept, points = problem.filter, problem.transposed.kept, _both_transform_length(problem)
    rows = one.turns * one.batch * one.channels
    transforms = 3 * rows * _blocks(one.length, one.taps, points) + one.channels * one.turns * (1 if kept else 2)
    seconds = _seconds(
        one, "conv.fft", transforms * points * math.log2(max(2, points)), 2 * _samples(one), one.channels
    )
    # Three transforms, a fourth for a filter's own, the gradient and the taps of 16 channels, and their x in tiles.
    item = _compute_bytes(one)
    per_thread = (
        item * ((6.4 if kept else 8.5) * points + 17 * one.taps) + 16 * _bytes(one.dtype) * one.taps + (64 << 10)
    )
    tiles = min(4 << 20, 16 * one.batch * one.length * _bytes(one.dtype))
    return Cost(seconds, int(one.threads * (per_thread + tiles)))


def _prepare_both(problem: GradientProblem) -> RunGradients:
    one, kept = problem.filter, problem.transposed.kept
    filter_call = _native.FilterGradientCall(
        "fft",
        one.native_dtype,
        one.batch,
        one.length,
        one.channels,
        one.taps,
        one.x,
        one.dz,
        one.state or (0, 0, 0),
        one.dh,
        transform_length=_both_transform_length(problem),
    )
    is_bfloat16 = kept is not None and kept.is_bfloat16
    h, dx_strides = problem.transposed.h, problem.transposed.y
    call = _native.ConvGradientCall(filter_call, h, dx_strides, kept is not None, is_bfloat16)
    item = _bytes(one.dtype)
    offsets = problem.offsets or ((0, 0, 0, 0),)

    def run(
        x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, spectrum: Tensor | None, dx: Tensor, dh: Tensor
    ) -> None:
        filters, past = _address(h if spectrum is None else spectrum), _address(state)
        total = dh
        for turn, (at_x, at_dz, at_state, at_dx) in enumerate(offsets):
            if turn == 1:
                total = torch.empty_like(dh)
            call(
                x.data_ptr() + item * at_x,
                filters,
                dz.data_ptr() + item * at_dz,
                past and past + item * at_state,
                dx.data_ptr() + item * at_dx,
                total.data_ptr(),
            )
            if turn > 0:
                dh += total

    return run


def _separate(problem: GradientProblem) -> tuple[Implementation, Implementation]:
    return (
        choose("causal_conv", problem.transposed, strict=False),
        choose("causal_conv_filter_gradient", problem.filter, strict=False),
    )


def _separate_cost(problem: GradientProblem) -> Cost:
    dx, dh = (row.cost(one) for row, one in zip(_separate(problem), (problem.transposed, problem.filter), strict=True))
    return Cost(dx.seconds + dh.seconds, max(dx.workspace_bytes, dh.workspace_bytes))


def _prepare_separate(problem: GradientProblem) -> RunGradients:
    dx_row, dh_row = _separate(problem)
    run_dx, run_dh = dx_row.prepare(problem.transposed), dh_row.prepare(problem.filter)

    def run(
        x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, spectrum: Tensor | None, dx: Tensor, dh: Tensor
    ) -> None:
        run_dx(dz, h, None, None, dx) if spectrum is None else run_dx(dz, h, None, None, spectrum, dx)
        run_dh(x, dz, state, dh)

    return run


BOTH_ROWS: tuple[Implementation, ...] = (
    Implementation("fft", "cpu", _both_refusals, _both_cost, _prepare_both),
    Implementation("separate", "any", lambda problem: [], _separate_cost, _prepare_separate),
)
