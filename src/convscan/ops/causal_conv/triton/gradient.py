"""Launches of the gradient of filters as a sum over time, for filters of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import at, ceil_div, launch, names, power_of_two, sequence_of
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost
from ..problem import FilterGradientProblem
from .arguments import NO_STRIDES, Run, bytes_of, gpu_of, samples_of, unit, wide

# Taps of which one program sums up the gradient.
_GRADIENT_TAPS = 4


class _GradientPlan:
    """How ``filter_gradient_tile`` cuts a problem up: partial sums of chunks of time."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(gpu_of(problem), f"conv.direct.{order(problem.x)}")
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 1, chosen["channels"])
        self.taps = power_of_two(problem.taps, 1, _GRADIENT_TAPS)
        tile = 16 * 32 * self.warps // (2 if unit(problem) == "float64" else 1) // self.taps
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
    item = 8 if unit(problem) == "float64" else 4
    groups = ceil_div(problem.taps, plan.taps)
    moved = bytes_of(problem) * (2 + problem.gates) * samples_of(problem) / problem.turns
    flops = samples_of(problem) * problem.taps * (2 + (4 if order(problem.x) == "channel" else 8)) / problem.turns
    partial = plan.numbers * item
    works = (
        Work(moved, flops, unit(problem), plan.programs * groups, moved * (groups - 1) / 2),
        Work(2 * partial, plan.numbers, unit(problem)),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def prepare_gradient(problem: FilterGradientProblem) -> Run:
    from .. import triton_direct

    plan = _GradientPlan(problem)
    state = problem.state or NO_STRIDES
    gates = (*(problem.x_gate or NO_STRIDES), *(problem.dz_gate or NO_STRIDES))
    strides = (*problem.x, *problem.dz, state[0], problem.state_sequence, *state[1:], *gates)
    kind = torch.float64 if unit(problem) == "float64" else torch.float32

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        given = [x, dz, state, x_gate, dz_gate]
        packed = x if boundaries is None else boundaries.to(x.device)
        sequences = x if boundaries is None else sequence_of(packed, problem.length)
        partial = torch.empty(plan.partial, dtype=kind, device=x.device)
        if problem.length == 0 or problem.batch == 0:
            dh.zero_()
            return
        for turn, offsets in enumerate(problem.offsets or ((0,) * 6,)):
            tensors = [
                at(stand_in, 0 if tensor is None else offset)
                for tensor, stand_in, offset in zip(given, names(given, x), offsets, strict=False)
            ]
            launch(
                triton_direct.filter_gradient_tile,
                (plan.programs, ceil_div(problem.taps, plan.taps)),
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
                *strides,
                TIME=plan.time,
                CHANNELS=plan.channels,
                K=plan.taps,
                HAS_STATE=problem.state is not None,
                HAS_PRE=problem.x_gate is not None,
                HAS_POST=problem.dz_gate is not None,
                PACKED=boundaries is not None,
                WIDE=wide(problem),
                num_warps=plan.warps,
            )
            # In an order that is always the same.
            if problem.sums_turns:
                total = partial.sum((0, 1))
                dh.copy_(total) if turn == 0 else dh.add_(total)
            else:
                size = (problem.batch, problem.taps, problem.channels)
                strides_of_dh = (problem.per_batch, *problem.dh)
                dh.as_strided(size, strides_of_dh, dh.storage_offset() + offsets[5]).copy_(partial.sum(0))

    return run
