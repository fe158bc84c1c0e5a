"""Launches of transforms in three passes over memory, of blocks longer than registers hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import NO_STRIDES
from ....tuning.gpu import Work, configuration, cost
from ..arguments import Run
from ..problem import ConvProblem, item_bytes, kept_for
from .arguments import Arguments, bytes_moved, gpu_of
from .fft import LONGEST, factors, fft_flops, fft_precision, kept_bytes, of_sectors, row_tables
from .toeplitz import toeplitz_refusals

# Points of a column's transform: products of matrices take 16 at least, and a tile of more fills shared memory.
_FEWEST, _MOST = 16, 64
FORM = "triton_fft_passes"  # of kept spectra: (filters, 2, N, R)
_PART_BYTES = 1 << 30  # of complex numbers between the passes


@lru_cache(maxsize=32)
def _column_tables(columns: int, rest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix (2, N, N) of a column's transform and its twiddles (2, N, R), with the weights exp(i pi n / 2M)."""
    points, k = columns * rest, torch.arange(columns)[:, None]
    # In units of a quarter turn divided by the points, modulo a whole one.
    matrix = -4 * k * torch.arange(columns)[None, :] * rest + torch.arange(columns)[None, :] * rest
    twiddles = (1 - 4 * k) * torch.arange(rest)[None, :]
    angles = [(table % (4 * points)).double() * (math.pi / (2 * points)) for table in (matrix, twiddles)]
    first, second = (torch.stack([angle.cos(), angle.sin()]).float().to(device) for angle in angles)
    return first, second


def _choices() -> list[int]:
    """Points of transforms that are done in passes."""
    longest = _MOST * LONGEST
    return [1 << bits for bits in range(longest.bit_length()) if LONGEST < 1 << bits <= longest]


def _points(problem: ConvProblem) -> int:
    """The transform with the least work, 0 where none is long enough."""
    kept = kept_for(FORM, problem)
    if kept is not None:
        return kept.points
    whole = power_of_two(ceil_div(problem.length + problem.taps - 1, 2), 2 * LONGEST)
    usable = [points for points in _choices() if points <= whole and points >= problem.taps]
    if whole in _choices() and whole not in usable:
        usable.append(whole)
    return min(usable, key=lambda n: n * ceil_div(problem.length, 2 * n - problem.taps + 1), default=0)


def passes_refusals(problem: ConvProblem) -> list[str]:
    reasons = toeplitz_refusals(problem)
    if problem.h_batch:
        reasons.append("takes no filters of each sequence")
    if not reasons and _points(problem) == 0:
        reasons.append(f"does transforms of up to {_MOST * LONGEST} points")
    return reasons


class _Plan:
    """N columns and rows of R points, and how many channels are under way at a time."""

    def __init__(self, problem: ConvProblem) -> None:
        self.points = _points(problem)
        self.columns = max(_FEWEST, self.points // LONGEST)
        self.rest = self.points // self.columns
        self.factors = factors(self.rest)
        chosen = configuration(gpu_of(problem), "conv.fft.passes")
        self.tile = min(chosen["columns"], self.rest)
        self.warps = chosen["warps"]
        self.row_warps = max(1, min(configuration(gpu_of(problem), "conv.fft")["warps"], self.rest // 256))
        self.blocks = ceil_div(problem.length, 2 * self.points - problem.taps + 1)
        self.rows = problem.batch * self.blocks  # of each channel
        self.channels = max(1, min(problem.channels, _PART_BYTES // max(1, 8 * self.points * self.rows)))
        kind = fft_precision(problem)
        self.passes, self.unit = (1, "float32") if kind == "exact" else (3 if kind == "three" else 1, "tf32")

    @property
    def workspace(self) -> float:
        """Bytes between the passes."""
        return 8.0 * self.points * self.rows * self.channels


def passes_cost(problem: ConvProblem) -> Cost:
    plan = _Plan(problem)
    rows, filters = plan.rows * problem.channels, problem.filters
    complex_bytes = 8.0 * plan.points * rows
    spectra, made = kept_bytes(FORM, problem, plan.points)
    per_column = 8.0 * plan.points * plan.columns * plan.passes
    per_row = fft_flops(plan.rest, plan.passes) * plan.columns
    signal = bytes_moved(problem) / problem.turns
    shared = of_sectors(problem, signal)
    parts = max(1, ceil_div(problem.channels, plan.channels))
    taps = item_bytes(problem.dtype) * filters * problem.taps
    once = (
        Work(taps + made, filters * per_column, plan.unit, filters * plan.columns),
        Work(2 * made, filters * per_row, plan.unit, filters * plan.columns),
    )
    each = (
        Work((signal / 2 + complex_bytes) / parts, rows * per_column / parts, plan.unit, shared=shared / 2 / parts),
        Work((2 * complex_bytes + spectra) / parts, 2 * rows * per_row / parts, plan.unit),
        Work((signal / 2 + complex_bytes) / parts, rows * per_column / parts, plan.unit, shared=shared / 2 / parts),
    )
    works = (*(once if made else ()), *each * parts)
    return cost(problem.device, problem.isa, made + plan.workspace, *works * problem.turns)


def prepare_passes(problem: ConvProblem) -> Run:
    return _prepare(problem)[1]


def passes_spectra(problem: ConvProblem) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The points of the transform that a problem takes, and what makes the filters' spectra for it."""
    return _points(problem), _prepare(problem)[0]


def _prepare(problem: ConvProblem) -> tuple[Callable[[Tensor], Tensor], Run]:
    """What makes the filters' spectra, and what convolves."""
    from .. import triton_fft_passes as kernels

    plan, arguments = _Plan(problem), Arguments(problem)
    (xb, xt, xc), steps = arguments.steps[:3], arguments.unpacked_steps
    bias, state, pre, post, y = steps[6:8], steps[8:11], steps[11:14], steps[14:17], steps[17:20]
    sizes = {"N": plan.columns, "R": plan.rest}
    row_sizes = {**sizes, **dict(zip(("N1", "N2", "N3"), plan.factors, strict=True))}
    precise = "exact" if torch.version.hip else "three"
    further, behind = 2 * plan.points - problem.taps + 1, problem.taps - 1
    far = 2 * plan.points * max(1, *(abs(step) for step in steps)) >= 1 << 31
    group = problem.group if problem.h[1] or problem.filters > 1 else problem.channels
    tiles, flags = plan.rest // plan.tile, arguments.flags

    def columns(
        x: Tensor, planes: Tensor, length: int, shape: tuple[int, int, int, int], strides: tuple[int, ...],
        given: tuple[Tensor, Tensor], reach: tuple[int, int, int], precision: str, **has: bool,
    ) -> None:  # fmt: skip
        channels, batch, blocks, first = shape
        matrix, twiddles = tables_of(x)
        launch(
            kernels.columns,
            tiles * channels * batch * blocks,
            *(x, *given, planes, matrix, twiddles),
            *(length, batch, blocks, first, problem.taps, problem.origin if reach[2] else 0, *reach[:2]),
            *strides,
            **sizes,
            COLUMNS=plan.tile,
            PRECISION=precision,
            FAR=far,
            num_warps=plan.warps,
            **has,
        )

    def tables_of(like: Tensor) -> tuple[Tensor, Tensor]:
        if like.is_meta:
            absent = like.new_empty(1, dtype=torch.float32)
            return absent, absent
        return _column_tables(plan.columns, plan.rest, like.device)

    def rows(planes: Tensor, spectrum: Tensor, count: int, each: int, first: int, precision: str) -> None:
        tables = planes if planes.is_meta else row_tables(plan.rest, planes.device)
        launch(
            kernels.rows,
            count * plan.columns,
            *(planes, spectrum, tables, each, first, group),
            **row_sizes,
            PRECISION=precision,
            IS_FILTER=spectrum is planes,
            num_warps=plan.row_warps,
        )

    def transformed(h: Tensor) -> Tensor:
        """The filters' spectra."""
        filters = problem.filters
        spectrum = torch.empty(filters, 2, plan.columns, plan.rest, dtype=torch.float32, device=h.device)
        strides = (0, *problem.h, *NO_STRIDES, *NO_STRIDES)
        shape, no_reach = (filters, 1, 1, 0), (0, 0, 0)
        columns(h, spectrum, problem.taps, shape, strides, (h, h), no_reach, precise, HAS_PRE=False, HAS_STATE=False)
        rows(spectrum, spectrum, filters, 1, 0, precise)
        return spectrum

    def run(*given: Tensor | None, spectrum: Tensor | None = None) -> None:
        precision = fft_precision(problem)
        for tensors in arguments.tensors(given[:7]):
            x, h, of_bias, of_state, of_pre, of_post, of_y = tensors
            of_h = transformed(h) if spectrum is None else spectrum
            memory = torch.empty(plan.channels, plan.rows, 2, plan.points, dtype=torch.float32, device=x.device)
            matrix, twiddles = tables_of(x)
            for first in range(0, problem.channels, plan.channels):
                count = min(plan.channels, problem.channels - first)
                shape = (count, problem.batch, plan.blocks, first)
                columns(
                    x, memory, problem.length, shape, (xb, xt, xc, *pre, *state), (of_pre, of_state),
                    (further, behind, 1), precision, HAS_PRE=flags["HAS_PRE"], HAS_STATE=flags["HAS_STATE"],
                )  # fmt: skip
                rows(memory, of_h, count * plan.rows, plan.rows, first, precision)
                launch(
                    kernels.columns_back,
                    tiles * count * plan.rows,
                    *(memory, of_bias, of_post, of_y, matrix, twiddles),
                    *(problem.length, problem.batch, plan.blocks, first, further, behind),
                    *(*bias, *post, *y),
                    **sizes,
                    COLUMNS=plan.tile,
                    PRECISION=precision,
                    ACTIVATION=problem.activation,
                    HAS_BIAS=flags["HAS_BIAS"],
                    HAS_POST=flags["HAS_POST"],
                    FAR=far,
                    num_warps=plan.warps,
                )

    return transformed, run
