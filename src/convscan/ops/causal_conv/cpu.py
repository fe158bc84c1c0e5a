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
# Of x, h, bias, state, pre_gate, post_gate, the kept spectra where there are some, y and, where sequences are packed,
# boundaries.
Run = Callable[..., None]


def _bytes(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _compute_bytes(problem: ConvProblem | FilterGradientProblem) -> int:
    return 8 if problem.native_dtype in ("float64", "wide_float32") else 4


def _refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def _span(problem: ConvProblem | FilterGradientProblem) -> tuple[int, int]:
    """How many sequences an element of the batch has, and of how many steps, on average."""
    sequences = max(1, problem.sequences)
    return sequences, math.ceil(problem.length / sequences)


def _products(problem: ConvProblem | FilterGradientProblem) -> float:
    """Filter taps that meet a sample inside the signal, over all rows."""
    sequences, length = _span(problem)
    behind = min(problem.taps - problem.origin, length)  # taps of the current sample and earlier ones
    ahead = min(problem.origin, max(0, length - 1))
    inside = behind * length - behind * (behind - 1) / 2 + ahead * length - ahead * (ahead + 1) / 2
    return problem.turns * problem.batch * sequences * problem.channels * inside


def _seconds(
    problem: ConvProblem | FilterGradientProblem, kernel: str, units: float, elements: float, tasks: float
) -> float:
    """``tasks`` is the number of pieces that threads can share."""
    samples = problem.turns * problem.batch * problem.channels * problem.length
    moved = _bytes(problem.dtype) * ((2 + problem.gates) * samples + problem.filters * problem.taps)
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
    if (problem.taps - 1 - problem.origin if problem.transposed else problem.origin) > 0:
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
    sequences, length = _span(problem)
    taps = min(problem.taps, problem.origin + length)
    if sequences > 1 and isinstance(problem, ConvProblem):  # each has the transform it needs, and one of the filter
        points = min(points, _native.fft_length(max(1, (length + taps) // 2), problem.native_dtype))
    transform = points * math.log2(max(2, points))
    batches = problem.turns * problem.batch * sequences
    blocks = _blocks(length, taps, points)
    filters = problem.filters * (batches if sequences > 1 or _has_own_filters(problem) else problem.turns)
    filters = 0 if _kept(problem) else filters
    return transform * (2 * batches * problem.channels * blocks + filters)


def _kept(problem: ConvProblem | FilterGradientProblem) -> Kept | None:
    return problem.kept if isinstance(problem, ConvProblem) else None


def _has_own_filters(problem: ConvProblem | FilterGradientProblem) -> bool:
    return (problem.h_batch if isinstance(problem, ConvProblem) else problem.per_batch) != 0


def _taps_in_reach(problem: ConvProblem | FilterGradientProblem) -> tuple[int, int]:
    """The first tap that can meet a sample, and how many do: others are beyond the signal where there is no initial
    state. Their gradient is still written."""
    if problem.state is not None or isinstance(problem, FilterGradientProblem) or problem.kept is not None:
        return 0, problem.taps
    length = max(1, problem.longest or problem.length)
    first = max(0, problem.origin - (length - 1))
    return first, min(problem.taps, problem.origin + length) - first


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
    length = problem.longest or problem.length
    lengths = _transform_lengths(length, _taps_in_reach(problem)[1], problem.native_dtype)
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
    blocks = _blocks(problem.longest or problem.length, _taps_in_reach(problem)[1], points)
    shared = problem.batch * max(1, problem.sequences) * blocks > 1 and problem.kept is None
    kept = 2.13 * item * points if shared else 0
    channel = int(samples * (item if problem.gates else _bytes(problem.dtype)) + kept)
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


def _addresses(offsets: tuple[int, ...], item: int, *tensors: Tensor | None) -> tuple[int, ...]:
    """Where the tensors begin in one turn; 0 for None, for which no offset counts."""
    return tuple(
        0 if tensor is None else tensor.data_ptr() + item * offset
        for offset, tensor in zip(offsets, tensors, strict=True)
    )


_NO_STRIDES = (0, 0, 0)


def with_spectrum(run: Run) -> Run:
    """A function that does not read spectra, where there are some."""

    def run_kept(*tensors: Tensor | None) -> None:
        run(*tensors[:6], *tensors[7:])

    return run_kept


def _prepare(kernel: str) -> Callable[[ConvProblem], Run]:
    def prepare(problem: ConvProblem) -> Run:
        if problem.kept is None:
            return prepare_kernel(kernel, problem)
        if kernel != "fft":
            return with_spectrum(prepare_kernel(kernel, problem))
        run = prepare_kernel("fft_kept", problem)

        def run_kept(x: Tensor, h: Tensor, *others: Tensor | None) -> None:
            *before, spectrum, y = others
            run(x, spectrum, *before, y)

        return run_kept

    def prepare_kernel(kernel: str, problem: ConvProblem) -> Run:
        tap_stride, channel_stride = problem.h
        item = _bytes(problem.dtype)
        first, taps = _taps_in_reach(problem)
        origin = problem.origin - first
        state = problem.state or _NO_STRIDES
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
            pre_gate_strides=problem.pre_gate or _NO_STRIDES,
            post_gate_strides=problem.post_gate or _NO_STRIDES,
            filter_group=problem.group,
            origin=taps - 1 - origin if problem.transposed else origin,
            activation=problem.activation or "identity",
            transform_length=_transform_length(problem) if kernel in ("fft", "fft_kept") else 0,
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
                a = _addresses(offsets, item, x, h, bias, past, pre_gate, post_gate, y)
                call(a[0], a[1] + start, a[2], a[3], a[4], a[5], a[6], boundaries=packed, sequences=problem.sequences)

        return run

    return prepare


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
    item = _bytes(problem.dtype)
    offsets = problem.offsets or ((0, 0, 0),)

    def run(x: Tensor, spectra: Tensor, y: Tensor) -> None:
        for at_x, _, at_y in offsets:
            call(x.data_ptr() + item * at_x, spectra.data_ptr(), 0, 0, 0, 0, y.data_ptr() + item * at_y)

    return run


ROWS: tuple[Implementation, ...] = (
    Implementation("direct", "cpu", _refusals, _direct_cost, _prepare("direct")),
    Implementation("toeplitz", "cpu", _refusals, _toeplitz_cost, _prepare("toeplitz")),
    Implementation("fft", "cpu", _fft_refusals, _fft_cost, _prepare("fft")),
    Implementation("recurrence", "cpu", _recurrence_refusals, _recurrence_cost, _prepare("recurrence")),
)


# ---- the gradient of the filter ----

RunGradient = Callable[..., None]  # of x, dz, state, x_gate, dz_gate, dh and, where sequences are packed, boundaries


def _prepare_gradient(kernel: str) -> Callable[[FilterGradientProblem], RunGradient]:
    def prepare(problem: FilterGradientProblem) -> RunGradient:
        state = problem.state or _NO_STRIDES
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
            x_gate_strides=problem.x_gate or _NO_STRIDES,
            dz_gate_strides=problem.dz_gate or _NO_STRIDES,
            origin=problem.origin,
            transform_length=_transform_length(problem) if kernel == "fft" else 0,
        )
        item = _bytes(problem.dtype)

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
                a = _addresses(tuple(offsets), item, x, dz, past, x_gate, dz_gate)
                to = total.data_ptr() + dh.itemsize * at_dh
                call(a[0], a[1], a[2], a[3], a[4], to, boundaries=packed, sequences=problem.sequences)
                if turn > 0 and problem.sums_turns:
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
    steps = problem.length + 15 * max(1, problem.sequences)
    tiles = 2 * min(8 << 20, 16 * problem.batch * steps * _bytes(problem.dtype))
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
    state = one.state or _NO_STRIDES
    filter_call = _native.FilterGradientCall(
        "fft",
        one.native_dtype,
        one.batch,
        one.length,
        one.channels,
        one.taps,
        one.x,
        one.dz,
        (state[0], 0, *state[1:]),
        (0, *one.dh),
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
        filters, past = h if spectrum is None else spectrum, None if one.state is None else state
        total = dh
        for turn, (at_x, at_dz, at_state, at_dx) in enumerate(offsets):
            if turn == 1:
                total = torch.empty_like(dh)
            a = _addresses((at_x, at_dz, at_state, at_dx), item, x, dz, past, dx)
            call(a[0], filters.data_ptr(), a[1], a[2], a[3], total.data_ptr())
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
        run_dx(dz, h, None, None, None, None, *((dx,) if spectrum is None else (spectrum, dx)))
        run_dh(x, dz, state, None, None, dh)

    return run


BOTH_ROWS: tuple[Implementation, ...] = (
    Implementation("fft", "cpu", _both_refusals, _both_cost, _prepare_both),
    Implementation("separate", "any", lambda problem: [], _separate_cost, _prepare_separate),
)
