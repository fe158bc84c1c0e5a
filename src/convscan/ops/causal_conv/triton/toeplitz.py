"""Launches of products with Toeplitz blocks on tensor cores: convolutions, and the gradient of filters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost, seconds
from ..arguments import Run
from ..problem import ConvProblem, FilterGradientProblem, item_bytes, samples_of
from .arguments import (
    Arguments,
    GradientArguments,
    bytes_moved,
    channels_together,
    filter_gradient,
    gpu_of,
    refusals,
    triton_dtype,
    unit,
)


def toeplitz_refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = refusals(problem)
    if unit(problem) == "float64":
        reasons.append("multiplies in float32 only")
    if problem.sequences:
        reasons.append("takes no packed sequences")
    return reasons


def _precision(problem: ConvProblem | FilterGradientProblem, is_gated: bool) -> str:
    """How products are formed so that they are as exact as float32's: see ``_triton.dot``."""
    if torch.version.hip is not None:
        return "exact"
    if problem.dtype == "float32":
        return "three"
    # A product of two half numbers has 22 bits at most, which two halves of 11 hold.
    return "left" if is_gated else "half"


# Tensor-core passes of each way, and the unit that they run on.
_PASSES = {"exact": (1, "float32"), "three": (3, "tf32"), "left": (2, "tf32"), "half": (1, "half")}


class ToeplitzPlan:
    """Rows of N steps, and how many of them a program multiplies."""

    def __init__(self, problem: ConvProblem) -> None:
        chosen = configuration(gpu_of(problem), "conv.toeplitz")
        self.n, self.warps, self.stages = chosen["n"], chosen["warps"], chosen["stages"]
        self.rows = power_of_two(ceil_div(max(1, problem.length), self.n), 16, chosen["rows"])
        self.row_tiles = ceil_div(problem.length, self.n * self.rows)
        self.channels = channels_together(problem, problem.batch * self.row_tiles, self.warps)
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        self.programs = problem.batch * self.row_tiles * self.channel_tiles
        self.matrices = ceil_div(problem.taps - 1, self.n) + 1


def toeplitz_cost(problem: ConvProblem) -> Cost:
    plan = ToeplitzPlan(problem)
    passes, core = _PASSES[_precision(problem, problem.pre_gate is not None)]
    flops = 2.0 * passes * samples_of(problem) * plan.matrices * plan.n
    # Besides, a sample and a number of a block from the first-level cache for each matrix, strided ones in 8 turns.
    loads = samples_of(problem) * plan.matrices * (1 + plan.n / plan.rows) * (8 if order(problem.x) == "channel" else 1)
    work = Work(bytes_moved(problem), flops, core, plan.programs)
    caches = Work(0.0, 4 * loads, "float32", plan.programs)
    gpu = problem.isa if problem.device == "cuda" else "NVIDIA A100"
    work = work._replace(latency=seconds(gpu, caches))
    return cost(problem.device, problem.isa, 0, *(work,) * problem.turns)


def prepare_toeplitz(problem: ConvProblem) -> Run:
    from .. import triton_toeplitz

    arguments, plan = Arguments(problem), ToeplitzPlan(problem)

    def run(*given: Tensor | None) -> None:
        for tensors in arguments.tensors(given[:7]):
            launch(
                triton_toeplitz.products,
                plan.programs,
                *tensors,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                problem.group,
                plan.row_tiles,
                plan.channel_tiles,
                *arguments.unpacked_steps,
                ROWS=plan.rows,
                N=plan.n,
                CHANNELS=plan.channels,
                PRECISION=_precision(problem, problem.pre_gate is not None),
                HALF=triton_dtype(problem),
                num_warps=plan.warps,
                num_stages=plan.stages,
                **arguments.flags,
            )

    return run


class _CorrelationPlan:
    """How ``correlations`` cuts a problem up."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(gpu_of(problem), "conv.toeplitz.gradient")
        self.n, self.warps = chosen["n"], chosen["warps"]
        self.diagonals = configuration(gpu_of(problem), "conv.toeplitz.diagonals")
        rows = ceil_div(max(1, problem.length), self.n)
        self.rows = power_of_two(rows, 16, chosen["rows"])
        self.matrices = ceil_div(problem.taps - 1, self.n) + 1
        # Sums of chunks are added afterwards: as few as fill a device.
        programs = problem.batch * problem.channels * self.matrices
        self.chunks = max(1, min(ceil_div(rows, self.rows), ceil_div(1024, max(1, programs))))
        self.steps = self.rows * ceil_div(ceil_div(rows, self.chunks), self.rows)
        self.blocks = (self.chunks, problem.batch, problem.channels, self.matrices, self.n, self.n)
        self.programs = problem.batch * self.chunks * problem.channels

    @property
    def numbers(self) -> int:
        """Of all blocks."""
        return math.prod(self.blocks)


def correlation_cost(problem: FilterGradientProblem) -> Cost:
    plan = _CorrelationPlan(problem)
    passes, core = _PASSES["exact" if torch.version.hip else "three"]
    samples = samples_of(problem) / problem.turns
    moved = item_bytes(problem.dtype) * (2 + problem.gates) * samples
    # Memory of contiguous channels is read in sectors of which one number counts.
    shared = moved * (plan.matrices - 1) + (7 * moved if order(problem.x) == "channel" else 0)
    flops = 2.0 * passes * samples * plan.matrices * plan.n
    works = (
        Work(moved + 4 * plan.numbers, flops, core, plan.programs * plan.matrices, shared=shared),
        Work(8.0 * plan.numbers, plan.numbers),
        Work(4.0 * plan.numbers / plan.chunks, plan.numbers),
    )
    return cost(problem.device, problem.isa, 8 * plan.numbers, *works * problem.turns)


def prepare_correlation(problem: FilterGradientProblem) -> Run:
    from .. import triton_toeplitz

    plan = _CorrelationPlan(problem)
    arguments = GradientArguments(problem)

    def begin(x: Tensor, boundaries: Tensor | None) -> Callable[[list[Tensor]], Tensor]:
        blocks = torch.empty(plan.blocks, dtype=torch.float32, device=x.device)
        size = (problem.batch, problem.taps, problem.channels)
        gradients = torch.empty(size, dtype=torch.float32, device=x.device)

        def parts(tensors: list[Tensor]) -> Tensor:
            launch(
                triton_toeplitz.correlations,
                plan.programs * plan.matrices,
                *tensors,
                blocks,
                problem.length,
                problem.channels,
                problem.batch,
                problem.taps,
                problem.origin,
                plan.chunks,
                plan.matrices,
                plan.steps,
                *arguments.unpacked_steps,
                ROWS=plan.rows,
                N=plan.n,
                PRECISION="exact" if torch.version.hip else "three",
                num_warps=plan.warps,
                **arguments.flags,
            )
            summed = blocks.sum(0) if plan.chunks > 1 else blocks
            launch(
                triton_toeplitz.diagonals,
                problem.batch * problem.channels * ceil_div(problem.taps, plan.diagonals["taps"]),
                summed,
                gradients,
                problem.taps,
                problem.channels,
                plan.matrices,
                N=plan.n,
                TAPS=plan.diagonals["taps"],
                num_warps=plan.diagonals["warps"],
            )
            return gradients

        return parts

    return filter_gradient(problem, begin)
