"""Launches of the gradient of filters as a sum over time, for filters of any length."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost
from ..arguments import Run
from ..problem import FilterGradientProblem, compute_bytes, item_bytes, samples_of
from .arguments import GradientArguments, filter_gradient, gpu_of, packing, unit, wide


class _GradientPlan:
    """How ``filter_gradient_tile`` cuts a problem up: partial sums of chunks of time."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(gpu_of(problem), f"conv.gradient.{order(problem.x)}")
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 1, chosen["channels"])
        self.taps = power_of_two(problem.taps, 1, chosen["taps"])
        tile = chosen["numbers"] // (2 if unit(problem) == "float64" else 1) // self.taps
        self.time = power_of_two(problem.length, 1, max(1, tile // self.channels))
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Enough programs to fill a device, and no more partial sums than that takes.
        rows = problem.batch * self.channel_tiles * ceil_div(problem.taps, self.taps)
        self.chunks = max(1, min(ceil_div(problem.length, 4 * self.time), ceil_div(2048, max(1, rows))))
        self.steps = self.time * ceil_div(ceil_div(problem.length, self.chunks), self.time)
        self.programs = problem.batch * self.chunks * self.channel_tiles
        self.partial = (self.chunks, problem.batch, problem.taps, problem.channels)

    @property
    def numbers(self) -> int:
        return math.prod(self.partial)


def gradient_cost(problem: FilterGradientProblem) -> Cost:
    plan = _GradientPlan(problem)
    item = compute_bytes(problem)
    groups = ceil_div(problem.taps, plan.taps)
    moved = item_bytes(problem.dtype) * (2 + problem.gates) * samples_of(problem) / problem.turns
    flops = samples_of(problem) * problem.taps * (2 + (4 if order(problem.x) == "channel" else 8)) / problem.turns
    partial = plan.numbers * item
    works = (
        Work(moved, flops, unit(problem), plan.programs * groups, shared=moved * (groups - 1) / 2),
        Work(2 * partial, plan.numbers, unit(problem)),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def prepare_gradient(problem: FilterGradientProblem) -> Run:
    from .. import triton_direct

    plan = _GradientPlan(problem)
    arguments = GradientArguments(problem)
    kind = torch.float64 if unit(problem) == "float64" else torch.float32

    def begin(x: Tensor, boundaries: Tensor | None) -> Callable[[list[Tensor]], Tensor]:
        packed, sequences = packing(boundaries, x, problem.length)
        partial = torch.empty(plan.partial, dtype=kind, device=x.device)

        def parts(tensors: list[Tensor]) -> Tensor:
            launch(
                triton_direct.filter_gradient_tile,
                plan.programs * ceil_div(problem.taps, plan.taps),
                *tensors,
                partial,
                packed,
                sequences,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                plan.chunks,
                plan.channel_tiles,
                plan.steps,
                *arguments.steps,
                TIME=plan.time,
                CHANNELS=plan.channels,
                K=plan.taps,
                PACKED=boundaries is not None,
                WIDE=wide(problem),
                num_warps=plan.warps,
                **arguments.flags,
            )
            return partial.flatten(0, 1) if problem.sums_turns else partial.sum(0)

        return parts

    return filter_gradient(problem, begin)
