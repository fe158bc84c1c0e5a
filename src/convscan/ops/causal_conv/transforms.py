"""Convolutions by FFT on the CPU: which transform, how many of them, and the memory that they take.

One complex transform of M points does a real linear convolution of 2 M (csrc/fft/transform.h).
"""

from __future__ import annotations

import math
from functools import lru_cache

from ... import _native
from .problem import ConvProblem, FilterGradientProblem, compute_bytes, item_bytes, kept_for

PANEL_BYTES = 2176 << 10  # kPanelBytes of csrc/conv/fft_parts.h
_LINE, _MOST_LINES = 16, 4  # kChunk, kMostLines
_SPLIT_POINTS, _CACHE_BYTES = 16384, 16 << 20  # kSplitPoints of csrc/conv/fft.cpp, kCacheBytes of fft_parts.h

Problem = ConvProblem | FilterGradientProblem


def span(problem: Problem) -> tuple[int, int]:
    """How many sequences an element of the batch has, and of how many steps, on average."""
    sequences = max(1, problem.sequences)
    return sequences, math.ceil(problem.length / sequences)


def blocks(length: int, taps: int, points: int) -> int:
    """Blocks of overlap-save: each transform of M complex points gives 2 M - (K - 1) new outputs."""
    return 1 if 2 * points >= length + taps - 1 else math.ceil(length / (2 * points - taps + 1))


def units(problem: Problem, points: int) -> float:
    """M log2 M, added up over all transforms."""
    sequences, length = span(problem)
    taps = min(problem.taps, problem.origin + length)
    if sequences > 1 and isinstance(problem, ConvProblem):  # each has the transform it needs, and one of the filter
        points = min(points, _native.fft_length(max(1, (length + taps) // 2), problem.native_dtype))
    transform = points * math.log2(max(2, points))
    batches = problem.turns * problem.batch * sequences
    filters = problem.filters * (batches if sequences > 1 or _has_own_filters(problem) else problem.turns)
    filters = 0 if kept_for("fft", problem) else filters
    return transform * (2 * batches * problem.channels * blocks(length, taps, points) + filters)


def _has_own_filters(problem: Problem) -> bool:
    return (problem.h_batch if isinstance(problem, ConvProblem) else problem.per_batch) != 0


def taps_in_reach(problem: Problem) -> tuple[int, int]:
    """The first tap that can meet a sample, and how many do: others are beyond the signal where there is no initial
    state. Their gradient is still written."""
    if problem.state is not None or isinstance(problem, FilterGradientProblem) or problem.kept is not None:
        return 0, problem.taps
    length = max(1, problem.longest or problem.length)
    first = max(0, problem.origin - (length - 1))
    return first, min(problem.taps, problem.origin + length) - first


def _lengths(length: int, taps: int, native_dtype: str) -> list[int]:
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
def transform_length(problem: Problem) -> int:
    """The transform with the least work."""
    kept = kept_for("fft", problem)
    if kept is not None:
        return kept.points
    length = problem.longest or problem.length
    lengths = _lengths(length, taps_in_reach(problem)[1], problem.native_dtype)
    return min(lengths, key=lambda points: units(problem, points))


def kept_transform_length(length: int, taps: int, native_dtype: str) -> int:
    """The transform with the least work for signals of that length where that of the filter does not count."""
    lengths = _lengths(length, taps, native_dtype)
    return min(lengths, key=lambda points: points * math.log2(max(2, points)) * blocks(length, taps, points))


# ---- memory, as the kernels carve it up ----


def _outputs(problem: Problem, points: int) -> int:
    """The outputs of a block of time."""
    length, taps = problem.longest or problem.length, taps_in_reach(problem)[1]
    return length if 2 * points >= length + taps - 1 else (2 * points - taps + 1) // _LINE * _LINE


def _round_up(n: int) -> int:
    return -(-n // _LINE) * _LINE


def width(channels: int, threads: int, tasks: int, channel_bytes: int) -> int:
    """Channels of a panel, of which each takes that much."""
    if channels < _LINE * tasks:
        return max(1, math.ceil(channels / tasks))
    each = channels // (2 * threads) // _LINE
    return _LINE * max(1, min(_MOST_LINES, PANEL_BYTES // (channel_bytes * _LINE), each))


def _splits_rows(problem: ConvProblem, points: int, transform: int) -> bool:
    """Whether all threads work on the same row; never where the kernel does not."""
    threads, adjacent = problem.threads, problem.x[2] == 1 and problem.y[2] == 1 and problem.channels > 4
    sparse = problem.kept is not None and problem.kept.pattern_offset > 0
    if threads == 1 or _outputs(problem, points) < problem.length or adjacent or sparse or problem.sequences > 1:
        return False
    # Blocks of the first step, of vectors as long as there are: with shorter ones there are no fewer.
    units = points // (256 if compute_bytes(problem) == 4 else 64)
    shared = 4 if units % 4 == 0 else 2
    rows = problem.batch * problem.channels
    if rows < min(threads, shared):
        return points >= _SPLIT_POINTS
    leaves_some = rows < 4 * threads and rows % threads != 0
    return threads <= shared and ((leaves_some and points >= _SPLIT_POINTS) or 4 * transform > _CACHE_BYTES)


def workspace(problem: ConvProblem, points: int) -> int:
    """Of a convolution."""
    compute, item = compute_bytes(problem), item_bytes(problem.dtype)
    transform, outputs = 2 * points * compute, _outputs(problem, points)
    taps, makes_spectra = taps_in_reach(problem)[1], problem.kept is None
    history = compute * (taps - 1) if outputs < problem.length or problem.state is not None else 0
    if _splits_rows(problem, points, transform):
        return (1 + makes_spectra) * transform + 2 * history + (4 << 10)
    shares_lines = problem.x[2] == 1 and problem.y[2] == 1 and problem.length >= _LINE
    copies_taps = makes_spectra and problem.h[1] == 1 and problem.h[0] != 1 and problem.group == 1 and taps > 1
    panel = (_round_up(min(outputs + problem.origin, problem.length)) + _LINE) * (compute if problem.gates else item)
    batch = problem.batch * max(1, problem.sequences)
    keeps = makes_spectra and batch * blocks(problem.longest or problem.length, taps, points) > 1
    rows, spectra = 1, 1 if makes_spectra else 0
    if shares_lines:
        tasks = math.ceil(problem.threads / max(1, batch))
        rows = width(problem.channels, problem.threads, tasks, panel + (transform if keeps else 0))
        spectra = rows if keeps else spectra
    copies = min(rows if shares_lines else _LINE, _LINE) * item * (_round_up(taps) + _LINE) if copies_taps else 0
    per_thread = (1 + spectra) * transform + (rows * panel if shares_lines else 0) + copies + (rows + 1) * history
    return problem.threads * (per_thread + (4 << 10))


def gradient_workspace(
    problem: FilterGradientProblem, points: int, spectra: ConvProblem | None, keeps_row: bool = False
) -> int:
    """Of gradients; with that of x where ``spectra`` is its problem, and rows in between where ``keeps_row``."""
    compute, item = compute_bytes(problem), item_bytes(problem.dtype)
    transform, outputs, taps = 2 * points * compute, _outputs(problem, points), problem.taps
    is_single = problem.batch * max(1, problem.sequences) == 1 and outputs >= problem.length
    lags = taps - 1 if outputs < (problem.longest or problem.length) or problem.state is not None else 0
    signal, gradient = (compute * (_round_up(lags + outputs) + _LINE) for _ in range(2))
    makes_spectra = spectra is not None and spectra.kept is None
    kept = (0 if is_single else transform) + (transform if makes_spectra and (not is_single or keeps_row) else 0)
    shares_lines = problem.x[2] == 1 and problem.dz[2] == 1 and problem.length >= _LINE and problem.channels > 1
    rows = width(problem.channels, problem.threads, problem.threads, signal + gradient + kept) if shares_lines else 1
    panels = rows * (signal + gradient + kept) if shares_lines else 2 * transform + gradient
    filters = rows * compute * _round_up(taps) + min(rows, _LINE) * item * (_round_up(taps) + _LINE)
    per_thread = 3 * transform + panels + (filters if shares_lines else 0) + (rows + 1) * compute * lags
    return problem.threads * (per_thread + (4 << 10))
