"""Launches of transforms of blocks in registers on tensor cores: convolutions, and the gradient of filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost
from ..arguments import Run
from ..problem import ConvProblem, FilterGradientProblem, Part, item_bytes, kept_for, samples_of
from .arguments import (
    Arguments,
    GradientArguments,
    bytes_moved,
    channels_together,
    filter_gradient,
    filter_group,
    gpu_of,
    in_sector,
    reaches_far,
)
from .toeplitz import toeplitz_refusals

FORM = "triton_fft"  # of kept spectra: (filters, 2, points), real parts, then imaginary ones
_SHORTEST, LONGEST = 256, 4096  # complex points of a transform: two factors of 16, and what registers hold


def factors(points: int) -> tuple[int, int, int]:
    """Of a power of two, each at least 16: three where they fit, for less to multiply."""
    if points == 4096:
        return 16, 16, 16
    first = 1 << ((points.bit_length() - 1) // 2)
    return first, points // first, 1


def whole(points: int) -> Part:
    """All frequencies."""
    first, second, third = factors(points)
    return Part(tuple(range(first)), tuple(range(third if third > 1 else second)))


@lru_cache(maxsize=32)
def _tables(points: int, device: torch.device, is_weighted: bool = True, part: Part | None = None) -> Tensor:
    """For each factor N of ``triton_fft`` its matrix (N, N) and, but for the last, its twiddles (N, points / N), each
    as real and imaginary parts; of a part of the frequencies with the rows of its digits, and the columns that are left
    by them. Angles are exact before they are rounded."""
    sizes = [n for n in factors(points) if n > 1]
    parts: list[Tensor] = []
    left, before = points, 1
    first, last = part or whole(points)
    digits = [first, *(tuple(range(n)) for n in sizes[1:-1]), last]
    for index, (n, rows) in enumerate(zip(sizes, digits, strict=True)):
        k, rest = torch.tensor(rows)[:, None], left // n
        columns = torch.arange(rest * before)[None, :] // before
        # In units of a quarter turn divided by the points, modulo a whole one.
        matrix = -4 * k * torch.arange(n)[None, :] * (points // n)
        twiddles = -4 * k * columns * (points // left)
        if index == 0 and is_weighted:  # the weights exp(i pi j / 2 M), j = n1 (M / N1) + n'
            matrix = matrix + torch.arange(n)[None, :] * rest
            twiddles = twiddles + columns
        for table in (matrix, twiddles) if index + 1 < len(sizes) else (matrix,):
            angle = (table % (4 * points)).double() * (math.pi / (2 * points))
            parts += [angle.cos().flatten(), angle.sin().flatten()]
        left, before = rest, before * len(rows)
    return torch.cat(parts).float().to(device)


def row_tables(points: int, device: torch.device) -> Tensor:
    """The same of a transform without weights."""
    return _tables(points, device, False)


def _fft_points(problem: ConvProblem | FilterGradientProblem) -> int:
    """The transform with the least work: one block, or several that overlap by the taps."""
    kept = kept_for(FORM, problem)
    if kept is not None:
        return kept.points
    whole = power_of_two(ceil_div(problem.length + problem.taps - 1, 2), _SHORTEST)
    candidates = [m for m in (256, 512, 1024, 2048, 4096) if m <= whole and 2 * m >= 2 * problem.taps]
    if whole <= LONGEST and 2 * whole > problem.taps - 1:
        candidates.append(whole)

    def work(points: int) -> float:
        return points * sum(factors(points)) * ceil_div(problem.length, 2 * points - problem.taps + 1)

    return min(candidates, key=work, default=0)


def fft_refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = toeplitz_refusals(problem)
    if not reasons and _fft_points(problem) == 0:
        reasons.append(f"holds transforms of up to {LONGEST} points in registers")
    return reasons


def fft_precision(problem: ConvProblem | FilterGradientProblem) -> str:
    """11 bits between steps are enough for bfloat16, of which results keep 8; for float16 they were 5 times off.

    AMD's tensor cores before those of the MI300 take small numbers of float16 for zero."""
    if torch.version.hip is not None and not problem.isa.startswith("AMD Instinct MI3"):
        return "exact"
    return "nearest" if problem.dtype == "bfloat16" else "halves"


def of_filters(precision: str) -> str:
    """What filters are transformed in, once for all of a batch."""
    return "exact" if precision == "exact" else "halves"


# Products for each of a transform, and the unit that makes them.
PASSES = {"exact": (1, "float32"), "nearest": (1, "half"), "halves": (3, "half")}


class FftPlan:
    """Blocks of a problem."""

    def __init__(self, problem: ConvProblem | FilterGradientProblem) -> None:
        self.points = _fft_points(problem)
        self.factors = factors(self.points)
        self.warps = max(1, min(configuration(gpu_of(problem), "conv.fft")["warps"], self.points // 256))
        self.blocks = ceil_div(problem.length, 2 * self.points - problem.taps + 1)
        # Of one block that nothing comes before, the first sample may be the first of the transform: then all of a
        # signal of up to half its samples are real parts, and so is the result.
        kept = kept_for(FORM, problem)
        state, origin = problem.state, problem.origin
        self.is_first = isinstance(problem, ConvProblem) and self.blocks == 1 and state is None and origin == 0
        self.is_real = self.is_first and problem.length <= self.points
        self.part = None if kept is None else kept.part
        if self.part is not None:
            # A tile of eight columns is the least that a warp multiplies: what is left of them is for fewer warps.
            self.warps = min(self.warps, max(4, self.frequencies // 128))
        self.channels = channels_together(problem, problem.batch * self.blocks, self.warps)
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        self.programs = problem.batch * self.blocks * self.channel_tiles
        self.precision = fft_precision(problem)
        self.passes, self.unit = PASSES[self.precision]

    @property
    def constants(self) -> dict[str, int]:
        """The factors, as kernels take them."""
        return dict(zip(("N1", "N2", "N3"), self.factors, strict=True))

    @property
    def digits(self) -> dict[str, int]:
        """How many digits of the first and of the last step are computed."""
        first, last = self.part or whole(self.points)
        return {"FIRST": len(first), "LAST": len(last)}

    def flops(self, *, is_real: bool) -> float:
        """Of one transform by products of matrices, of which 16 rows are the least; with real samples the first step
        has half of them."""
        digits, done = self.digits, 1
        sizes, total = [n for n in self.factors if n > 1], 0.0
        for index, n in enumerate(sizes):
            rows = digits["FIRST"] if index == 0 else digits["LAST"] if index + 1 == len(sizes) else n
            columns = done * math.prod(sizes[index + 1 :])
            total += (4.0 if index == 0 and is_real else 8.0) * max(16, rows) * n * columns
            done *= rows
        return total * self.passes

    @property
    def frequencies(self) -> int:
        """How many frequencies are computed."""
        return math.prod(self.digits.values()) * (self.factors[1] if self.factors[2] > 1 else 1)

    def tables(self, like: Tensor) -> Tensor:
        """Matrices and twiddles on the device of a tensor."""
        if like.is_meta:
            return like.new_empty(1, dtype=torch.float32)
        return _tables(self.points, like.device, True, self.part)

    def spectra(self, problem: ConvProblem, h: Tensor) -> Tensor:
        """Transforms the filters."""
        from .. import triton_fft

        filters = problem.filters * (problem.batch if problem.h_batch else 1)
        spectrum = torch.empty(filters, 2, self.frequencies, dtype=torch.float32, device=h.device)
        launch(
            triton_fft.spectra,
            filters,
            h,
            self.tables(h),
            spectrum,
            problem.taps,
            problem.filters,
            problem.h_batch,
            *problem.h,
            IS_REAL=problem.taps <= self.points,
            PRECISION=of_filters(self.precision),
            num_warps=self.warps,
            **self.constants,
            **self.digits,
        )
        return spectrum


def fft_spectra(problem: ConvProblem) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The points of the transform that a problem takes, and what makes the filters' spectra for it."""
    plan = FftPlan(problem)
    return plan.points, lambda h: plan.spectra(problem, h)


def kept_bytes(form: str, problem: ConvProblem, points: int) -> tuple[float, float]:
    """Bytes of the filters' spectra, and how many of these a call makes itself."""
    kept = kept_for(form, problem)
    filters = problem.filters * (problem.batch if problem.h_batch else 1)
    if kept is None:
        return 8.0 * points * filters, 8.0 * points * filters
    return (4.0 if kept.is_bfloat16 else 8.0) * points * filters, 0.0


def of_sectors(problem: ConvProblem | FilterGradientProblem, moved: float) -> float:
    """Bytes that come from the cache where channels lie side by side: a sector for each of its channels."""
    return (in_sector(problem) - 1.0) * moved if order(problem.x) == "channel" else 0.0


def fft_cost(problem: ConvProblem) -> Cost:
    plan = FftPlan(problem)
    filters = problem.filters * (problem.batch if problem.h_batch else 1)
    spectra, made = kept_bytes(FORM, problem, plan.frequencies)
    transform = plan.flops(is_real=plan.is_real)
    overlap = item_bytes(problem.dtype) * problem.batch * problem.channels * (problem.taps - 1) * (plan.blocks - 1)
    taps = item_bytes(problem.dtype) * filters * problem.taps
    of_filters = Work(made + taps, filters * plan.flops(is_real=problem.taps <= plan.points), plan.unit, filters)
    works = (
        *((of_filters,) if made else ()),
        Work(
            bytes_moved(problem) / problem.turns + spectra,
            2 * transform * problem.batch * plan.blocks * problem.channels,
            plan.unit,
            plan.programs * plan.warps / 4,
            overlap,
            shared=of_sectors(problem, bytes_moved(problem) / problem.turns),
        ),
    )
    return cost(problem.device, problem.isa, made, *works * problem.turns)


def prepare_fft(problem: ConvProblem) -> Run:
    from .. import triton_fft

    arguments, plan = Arguments(problem), FftPlan(problem)
    filters = problem.filters

    def run(*given: Tensor | None, spectrum: Tensor | None = None) -> None:
        for tensors in arguments.tensors(given[:7]):
            x, h, *others = tensors
            tables = plan.tables(x)
            steps = arguments.unpacked_steps
            launch(
                triton_fft.convolution,
                plan.programs,
                x,
                plan.spectra(problem, h) if spectrum is None else spectrum,
                *others,
                tables,
                problem.length,
                problem.channels,
                1 if plan.is_first else problem.taps,
                problem.origin,
                filter_group(problem),
                filters if problem.h_batch else 0,
                plan.blocks,
                plan.channel_tiles,
                *steps[:3],
                *steps[6:],
                IS_REAL=plan.is_real,
                CHANNELS=plan.channels,
                PRECISION=plan.precision,
                num_warps=plan.warps,
                FAR=reaches_far(plan.points, steps),
                **plan.constants,
                **plan.digits,
                **arguments.flags,
            )

    return run


class _FftGradientPlan(FftPlan):
    """As many programs of a channel as fill a device, each for some elements of the batch."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        super().__init__(problem)
        parts = (
            problem.batch if problem.per_batch or not problem.sums_turns else ceil_div(512, max(1, problem.channels))
        )
        self.each = ceil_div(max(1, problem.batch), max(1, min(parts, problem.batch)))
        self.parts = ceil_div(max(1, problem.batch), self.each)
        self.programs = self.parts * problem.channels


def fft_gradient_cost(problem: FilterGradientProblem) -> Cost:
    plan = _FftGradientPlan(problem)
    transforms = 2 * problem.batch * plan.blocks * problem.channels + plan.programs
    moved = item_bytes(problem.dtype) * (2 + problem.gates) * samples_of(problem) / problem.turns
    partial = 4.0 * plan.programs * problem.taps
    flops = transforms * plan.flops(is_real=False)
    works = (
        Work(moved + partial, flops, plan.unit, plan.programs * plan.warps / 4, shared=of_sectors(problem, moved)),
        Work(partial + 4.0 * problem.channels * problem.taps),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def prepare_fft_gradient(problem: FilterGradientProblem) -> Run:
    from .. import triton_fft

    plan = _FftGradientPlan(problem)
    arguments = GradientArguments(problem)
    steps = arguments.unpacked_steps

    def begin(x: Tensor, boundaries: Tensor | None) -> Callable[[list[Tensor]], Tensor]:
        partial = torch.empty(plan.parts, problem.channels, problem.taps, dtype=torch.float32, device=x.device)
        tables = plan.tables(x)

        def parts(tensors: list[Tensor]) -> Tensor:
            launch(
                triton_fft.filter_gradient,
                plan.programs,
                *tensors,
                partial,
                tables,
                problem.length,
                problem.channels,
                problem.batch,
                plan.each,
                problem.taps,
                problem.origin,
                plan.blocks,
                *steps,
                PRECISION=plan.precision,
                num_warps=plan.warps,
                FAR=reaches_far(plan.points, steps),
                **plan.constants,
                **arguments.flags,
            )
            return partial.mT

        return parts

    return filter_gradient(problem, begin)
