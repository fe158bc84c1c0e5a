"""Launches of transforms in three passes over memory, of blocks longer than registers hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import NO_STRIDES, order
from ....tuning.gpu import Work, configuration, cost
from ..arguments import Run
from ..problem import ConvProblem, item_bytes, kept_for
from .arguments import Arguments, bytes_moved, filter_group, gpu_of, in_sector, reaches_far
from .fft import LONGEST, PASSES, factors, fft_precision, kept_bytes, of_filters, of_sectors, row_tables
from .toeplitz import toeplitz_refusals

# Points of a column's transform and its factors. Products of matrices take 16 at least.
_COLUMNS = {16: (16, 1), 32: (32, 1), 64: (64, 1), 256: (16, 16), 512: (16, 32), 1024: (32, 32)}
MOST = max(_COLUMNS) * LONGEST  # points
_SHORTEST_ROW = 256
_LEAST_COLUMNS = 8  # of a program: a sector of 32 bytes of float32
FORM = "triton_fft_passes"  # of kept spectra: (filters, 2, N, R)
_PART_BYTES = 1 << 28  # of complex numbers between the passes: some 60 us of a pass where a launch takes 4


def _unit_circle(angles: Tensor, points: int) -> Tensor:
    """cos and sin of angles in units of a quarter turn divided by the points, exact before they are rounded."""
    radians = (angles % (4 * points)).double() * (math.pi / (2 * points))
    return torch.stack([radians.cos().flatten(), radians.sin().flatten()]).flatten().float()


@lru_cache(maxsize=32)
def _column_tables(columns: int, rest: int, tile: int, device: torch.device) -> Tensor:
    """The matrices of a column's factors with the twiddles between them, and those behind: for each tile of columns,
    (R / C, N), and for each column of a tile, (N, C). The weights exp(i pi n / 2M) are part of them."""
    points, (first, second) = columns * rest, _COLUMNS[columns]

    def of(k: Tensor, n: Tensor, step: int, weight: int) -> Tensor:
        """Of frequency k and sample n, which lies ``weight`` n on in the signal, where k n turns by ``step``."""
        return _unit_circle(-4 * k * n * step + weight * n, points)

    def grid(rows: int, beside: int) -> tuple[Tensor, Tensor]:
        return torch.arange(rows)[:, None], torch.arange(beside)[None, :]

    parts = [of(*grid(first, first), second * rest, second * rest)]
    if second > 1:
        parts.append(of(*grid(first, second), rest, rest))
        parts.append(of(*grid(second, second), first * rest, 0))
    column, k = grid(rest // tile, columns)
    parts.append(of(k, column * tile, 1, 1))
    parts.append(of(*grid(columns, tile), 1, 1))
    return torch.cat(parts).to(device)


@lru_cache(maxsize=32)
def _slots(columns: int, kept: tuple[int, ...], device: torch.device) -> Tensor:
    """The place of each residue among those that are kept, -1 of others."""
    slots = torch.full((columns,), -1, dtype=torch.int32)
    slots[torch.tensor(kept)] = torch.arange(len(kept), dtype=torch.int32)
    return slots.to(device)


def _choices() -> list[int]:
    """Points of transforms that are done in passes."""
    return [1 << bits for bits in range(LONGEST.bit_length(), MOST.bit_length())]


def _factors(columns: int, rest: int) -> int:
    """What a point is multiplied by, in both steps of a transform."""
    return sum(n for n in (*_COLUMNS[columns], *factors(rest)) if n > 1)


def columns_of(points: int) -> int:
    """Of the ways to divide a transform into columns and rows the one with the fewest products."""
    usable = [n for n in _COLUMNS if _SHORTEST_ROW <= points // n <= LONGEST]
    return min(usable, key=lambda n: (_factors(n, points // n), n))


def _points(problem: ConvProblem) -> int:
    """The transform for which the fewest bytes move, 0 where none is long enough."""
    kept = kept_for(FORM, problem)
    if kept is not None:
        return kept.points
    whole = power_of_two(ceil_div(problem.length + problem.taps - 1, 2), 2 * LONGEST)
    usable = [points for points in _choices() if points <= whole and points >= problem.taps]
    if whole in _choices() and whole not in usable:
        usable.append(whole)

    def numbers(points: int) -> int:
        """Complex ones that are read or written between the passes."""
        blocks = ceil_div(problem.length, 2 * points - problem.taps + 1)
        return points * (5 * problem.batch * problem.channels * blocks + 3 * problem.filters)

    return min(usable, key=numbers, default=0)


def _beside(problem: ConvProblem, count: int) -> int:
    """The most of so many that share a sector and leave none over."""
    return max(n for n in range(1, in_sector(problem) + 1) if count % n == 0)


def passes_refusals(problem: ConvProblem) -> list[str]:
    reasons = toeplitz_refusals(problem)
    if problem.h_batch:
        reasons.append("takes no filters of each sequence")
    if not reasons and _points(problem) == 0:
        reasons.append(f"does transforms of up to {MOST} points")
    return reasons


class PassesPlan:
    """N columns and rows of R points, and how many channels are under way at a time."""

    def __init__(self, problem: ConvProblem, planes: int = 1, least: int = _LEAST_COLUMNS) -> None:
        self.problem = problem
        kept = kept_for(FORM, problem)
        part = None if kept is None else kept.part
        self.points = _points(problem)
        self.columns = columns_of(self.points)
        self.rest = self.points // self.columns
        chosen = configuration(gpu_of(problem), "conv.fft.passes")
        self.tile = min(self.rest, max(least, chosen["points"] // self.columns))
        self.tiles = self.rest // self.tile
        most = max(1, self.columns * self.tile // 256)
        self.warps, self.back_warps = min(chosen["warps"], most), min(chosen["back.warps"], most)
        self.row_warps = max(1, min(configuration(gpu_of(problem), "conv.fft")["warps"], self.rest // 256))
        # Residues of frequencies that are kept. What is left of a filter then has no taps that end.
        self.slots = None if part is None else part.first
        self.behind = problem.taps - 1 if part is None else 0
        self.further = 2 * self.points - self.behind
        self.blocks = ceil_div(problem.length, self.further)
        self.rows = problem.batch * self.blocks  # of each channel
        self.group = filter_group(problem)
        # Spectra of filters that meet one row each are made where they are multiplied, and not stored.
        self.is_kept = kept is not None
        self.is_made = self.rows * self.group == 1 and not self.is_kept
        row_bytes = 8 * self.frequencies * planes
        self.channels = max(
            1, min(problem.channels, _PART_BYTES // max(1, row_bytes * self.rows + 8 * self.frequencies))
        )
        # A part of a channel's where even they are too many.
        self.rows_at_once = max(1, min(self.rows, _PART_BYTES // row_bytes))
        self.parts = ceil_div(max(1, problem.channels), self.channels)
        self.precision = fft_precision(problem)
        self.of_filters = of_filters(self.precision)
        self.passes, self.unit = PASSES[self.precision]

    @property
    def kept_rows(self) -> int:
        """Rows of planes: one for each residue that is kept."""
        return self.columns if self.slots is None else len(self.slots)

    @property
    def frequencies(self) -> int:
        """How many lie between the passes."""
        return self.kept_rows * self.rest

    @property
    def sizes(self) -> dict[str, int]:
        """Those of columns, as kernels take them."""
        first, second = _COLUMNS[self.columns]
        return {"NA": first, "NB": second, "R": self.rest, "C": self.tile}

    @property
    def row_sizes(self) -> dict[str, int]:
        """Those of rows."""
        return {"N": self.kept_rows, "R": self.rest, **dict(zip(("N1", "N2", "N3"), factors(self.rest), strict=True))}

    def starts(self) -> list[tuple[int, int]]:
        """The first channels and rows of the parts that are under way one after another."""
        rows = range(0, self.rows, self.rows_at_once)
        return [(channel, row) for channel in range(0, self.problem.channels, self.channels) for row in rows]

    def beside(self, channels: int) -> int:
        """How many channels' programs run side by side, for the sectors that they share."""
        return _beside(self.problem, channels) if order(self.problem.x) == "channel" else 1

    def filters_of(self, first: int, count: int) -> tuple[int, int]:
        """The first filter of some channels, and how many there are."""
        begin = first // self.group
        return begin, (first + count - 1) // self.group - begin + 1

    def columns_work(self, rows: float, samples: float, passes: int) -> Work:
        """Of transforms by columns: bytes of samples on one side, complex numbers on the other."""
        flops = 8.0 * self.points * rows * sum(n for n in _COLUMNS[self.columns] if n > 1) * passes
        programs = self.tiles * rows * self.warps / 4
        shared = of_sectors(self.problem, samples)
        return Work(samples + 8.0 * self.frequencies * rows, flops, self.unit, programs, shared=shared)

    def rows_work(self, rows: float, transforms: int, moves: int, passes: int, more: float = 0.0) -> Work:
        """Of transforms of rows, which read or write all complex numbers some times."""
        flops = 8.0 * self.frequencies * rows * transforms * sum(n for n in factors(self.rest) if n > 1) * passes
        programs = self.kept_rows * rows * self.row_warps / 4
        return Work(8.0 * self.frequencies * rows * moves + more, flops, self.unit, programs)

    def filters_works(self, filters: float, taps: float) -> list[Work]:
        """Of the spectra of filters, or of their columns alone, from so many bytes of taps."""
        columns = self.columns_work(filters, taps, 3)
        return [columns] if self.is_made else [columns, self.rows_work(filters, 1, 2, 3)]

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Those of columns and of rows."""
        if like.is_meta:
            return (like.new_empty(1, dtype=torch.float32),) * 2
        return _column_tables(self.columns, self.rest, self.tile, like.device), row_tables(self.rest, like.device)


class Passes:
    """The launches of a plan on tensors that begin where their first element is."""

    def __init__(self, plan: PassesPlan, like: Tensor, far: bool, kept: Tensor | None = None) -> None:
        from .. import triton_fft_passes

        self.plan, self.far, self.kernels, self.kept = plan, far, triton_fft_passes, kept
        self.of_columns, self.of_rows = plan.tables(like)
        self.slots = self.of_columns if plan.slots is None else _slots(plan.columns, plan.slots, like.device)
        self.like = like
        self._last: tuple[tuple[int, int], Tensor] | None = None

    def memory(self, channels: int, rows: int) -> Tensor:
        """Complex numbers between the passes."""
        return torch.empty(
            channels, rows, 2, self.plan.kept_rows, self.plan.rest, dtype=torch.float32, device=self.like.device
        )

    def columns(
        self, tensors: tuple[Tensor, Tensor, Tensor, Tensor], shape: tuple[int, ...], length: int,
        origin: int, strides: tuple[int, ...], sums: Tensor | None = None, **has: bool,
    ) -> None:  # fmt: skip
        """Of x, its gate and its state to planes; ``shape`` is (channels, rows, first channel, first row)."""
        plan, (channels, rows, *first) = self.plan, shape
        x, pre, state, planes = tensors
        launch(
            self.kernels.columns,
            plan.tiles * channels * rows,
            *(x, pre, state, planes, self.of_columns, x if sums is None else sums, self.slots, plan.beside(channels)),
            *(length, rows, plan.blocks, *first, plan.problem.taps, origin, plan.further, plan.behind),
            *strides,
            **plan.sizes,
            PRECISION=plan.precision,
            **{name: has.get(name, False) for name in ("HAS_PRE", "HAS_STATE", "OF_RESULTS")},
            HAS_SUMS=sums is not None,
            KEPT=plan.kept_rows,
            FAR=self.far,
            num_warps=plan.warps,
        )

    def filters(self, h: Tensor, first: int, count: int) -> Tensor:
        """Spectra of the filters of some channels, or of their columns alone; the last ones again where they serve."""
        if self.kept is not None:
            return self.kept
        wanted = self.plan.filters_of(first, count)
        if self._last is None or self._last[0] != wanted:
            # In the same memory where it has room.
            memory = None if self._last is None or self._last[1].shape[0] < wanted[1] else self._last[1]
            self._last = wanted, self.spectra(h, *wanted, self.memory(wanted[1], 1) if memory is None else memory)
        return self._last[1]

    def spectra(self, h: Tensor, first: int, filters: int, spectrum: Tensor) -> Tensor:
        """Transforms some filters, but their rows where these are made later."""
        plan, problem = self.plan, self.plan.problem
        beside = _beside(problem, filters) if problem.h[1] == 1 and problem.h[0] != 1 else 1
        launch(
            self.kernels.columns,
            plan.tiles * filters,
            *(h, h, h, spectrum, self.of_columns, h, self.slots, beside),
            *(problem.taps, 1, 1, first, 0, 1, 0, 0, 0),
            *(0, *problem.h, *NO_STRIDES, *NO_STRIDES),
            **plan.sizes,
            PRECISION=plan.of_filters,
            **{name: False for name in ("HAS_PRE", "HAS_STATE", "OF_RESULTS", "HAS_SUMS")},
            KEPT=plan.kept_rows,
            FAR=self.far,
            num_warps=plan.warps,
        )
        if not plan.is_made:
            launch(
                self.kernels.filter_rows,
                filters * plan.kept_rows,
                *(spectrum, self.of_rows),
                **plan.row_sizes,
                OF_FILTERS=plan.of_filters,
                num_warps=plan.row_warps,
            )
        return spectrum

    def rows(self, planes: Tensor, result: Tensor, spectrum: Tensor, shape: tuple[int, ...]) -> None:
        """Times the filters' transforms."""
        self._launch_rows(self.kernels.rows, (planes, result, spectrum), shape, shape[0] * shape[1])

    def rows_backward(self, tensors: tuple[Tensor, Tensor, Tensor, Tensor], shape: tuple[int, ...]) -> None:
        """Of planes of u and dz to those of du and dh, by the filters' transforms."""
        from .. import triton_fft_passes_backward

        kernel = triton_fft_passes_backward.rows_backward
        self._launch_rows(kernel, tensors, shape, shape[0], SEVERAL=shape[1] > 1)

    def _launch_rows(
        self, kernel: Any, tensors: tuple[Tensor, ...], shape: tuple[int, ...], count: int, **constants: Any
    ) -> None:
        plan, (channels, rows, first, _) = self.plan, shape
        begin = 0 if self.kept is not None else plan.filters_of(first, channels)[0]
        launch(
            kernel,
            count * plan.kept_rows,
            *(*tensors, self.of_rows, rows, first, plan.group, begin),
            **plan.row_sizes,
            PRECISION=plan.precision,
            OF_FILTERS=plan.of_filters if plan.is_made else None,
            num_warps=plan.row_warps,
            **constants,
        )

    def columns_back(
        self, planes: Tensor, tensors: tuple[Tensor, Tensor, Tensor], shape: tuple[int, ...],
        sizes: tuple[int, int, int], strides: tuple[int, ...], **flags: Any,
    ) -> None:  # fmt: skip
        """To the result, by bias and gate; ``sizes`` are its length, the steps between blocks and before results."""
        plan, (channels, rows, *first), (length, *steps) = self.plan, shape, sizes
        launch(
            self.kernels.columns_back,
            plan.tiles * channels * rows,
            *(
                planes,
                *tensors,
                self.of_columns,
                self.slots,
                plan.beside(channels),
                length,
                rows,
                plan.blocks,
                *first,
                *steps,
            ),
            *strides,
            **plan.sizes,
            PRECISION=plan.precision,
            KEPT=plan.kept_rows,
            FAR=self.far,
            num_warps=plan.back_warps,
            **{name: flags.get(name) for name in ("ACTIVATION", "HAS_BIAS", "HAS_POST")},
        )


def passes_cost(problem: ConvProblem) -> Cost:
    plan = PassesPlan(problem)
    filters = problem.filters / plan.parts
    taps = item_bytes(problem.dtype) * filters * problem.taps
    spectra, made = (one / plan.parts for one in kept_bytes(FORM, problem, plan.frequencies))
    works = plan.filters_works(filters, taps) if made else []
    cuts = max(1, ceil_div(plan.rows, plan.rows_at_once))
    rows = plan.rows * problem.channels / plan.parts / cuts
    samples = (bytes_moved(problem) / problem.turns / plan.parts - taps) / 2 / cuts
    side = plan.columns_work(rows, samples, plan.passes)
    middle = plan.rows_work(rows, 2, 2, plan.passes, spectra)
    if plan.is_made:
        middle = middle._replace(flops=middle.flops + plan.rows_work(filters, 1, 0, 3).flops)
    works += [side, middle, side] * cuts
    memory = 8.0 * plan.frequencies * plan.channels * plan.rows_at_once
    return cost(problem.device, problem.isa, made + memory, *works * (plan.parts * problem.turns))


def passes_spectra(problem: ConvProblem) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The points of the transform that a problem takes, and what makes the filters' spectra for it."""
    plan = PassesPlan(problem)
    plan.is_made = False

    def spectra(h: Tensor) -> Tensor:
        passes = Passes(plan, h, reaches_far(plan.points, problem.h))
        return passes.spectra(h, 0, problem.filters, passes.memory(problem.filters, 1).flatten(0, 1))

    return plan.points, spectra


def prepare_passes(problem: ConvProblem) -> Run:
    plan, arguments = PassesPlan(problem), Arguments(problem)
    (xb, xt, xc), steps, flags = arguments.steps[:3], arguments.unpacked_steps, arguments.flags
    bias, state, pre, post, y = steps[6:8], steps[8:11], steps[11:14], steps[14:17], steps[17:20]
    sizes = (problem.length, plan.further, plan.behind)

    def run(*given: Tensor | None, spectrum: Tensor | None = None) -> None:
        for x, h, of_bias, of_state, of_pre, of_post, of_y in arguments.tensors(given[:7]):
            passes = Passes(plan, x, reaches_far(plan.points, steps), spectrum)
            memory = passes.memory(plan.channels, plan.rows_at_once)
            for first, first_row in plan.starts():
                count = min(plan.channels, problem.channels - first)
                shape = (count, min(plan.rows_at_once, plan.rows - first_row), first, first_row)
                of_h = passes.filters(h, first, count)
                passes.columns(
                    (x, of_pre, of_state, memory), shape, problem.length, problem.origin,
                    (xb, xt, xc, *pre, *state), HAS_PRE=flags["HAS_PRE"], HAS_STATE=flags["HAS_STATE"],
                )  # fmt: skip
                passes.rows(memory, memory, of_h, shape)
                passes.columns_back(memory, (of_bias, of_post, of_y), shape, sizes, (*bias, *post, *y), **flags)

    return run
