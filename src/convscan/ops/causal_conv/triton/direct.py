"""Launches of sums over taps: a tile of outputs whose samples are read anew for each, or the last K in registers."""

from __future__ import annotations

from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, power_of_two
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost
from ..arguments import Run
from ..problem import ConvProblem, FilterGradientProblem, item_bytes, samples_of
from .arguments import Arguments, bytes_moved, gpu_of, packing, refusals, unit

# Filters up to here are unrolled: more taps than registers hold gain nothing from it.
_UNROLLED = 32


def _tile(problem: ConvProblem | FilterGradientProblem) -> tuple[int, int, int]:
    """Steps, channels and warps of a program, no larger than the signal."""
    chosen = configuration(gpu_of(problem), f"conv.direct.{order(problem.x)}")
    channels = power_of_two(problem.channels, 1, chosen["channels"])
    time = power_of_two(problem.length, 1, chosen["time"] * chosen["channels"] // channels)
    return min(time, 1024), channels, chosen["warps"]


def direct_cost(problem: ConvProblem) -> Cost:
    time, channels, _ = _tile(problem)
    programs = problem.turns * problem.batch * ceil_div(problem.length, time) * ceil_div(problem.channels, channels)
    taps = problem.taps
    # A sample of each tap comes from the first-level cache, an instruction for 32 of them: as 4 operations where
    # vectors are loaded, 8 where taps shift their alignment.
    flops = samples_of(problem) * taps * (2 + (4 if order(problem.x) == "channel" else 8))
    workspace = 4 * problem.length if problem.sequences else 0
    return cost(
        problem.device,
        problem.isa,
        workspace,
        *(Work(bytes_moved(problem) / problem.turns, flops / problem.turns, unit(problem), programs),) * problem.turns,
    )


def prepare_direct(problem: ConvProblem) -> Run:
    from .. import triton_direct

    arguments = Arguments(problem)
    time, channels, warps = _tile(problem)
    time_tiles, channel_tiles = ceil_div(problem.length, time), ceil_div(problem.channels, channels)

    def run(*given: Tensor | None) -> None:
        bounds = given[7] if len(given) > 7 else None
        for tensors in arguments.tensors(given[:7]):
            x = tensors[0]
            packed, sequences = packing(bounds, x, problem.length)
            launch(
                triton_direct.tile,
                problem.batch * time_tiles * channel_tiles,
                *tensors,
                packed,
                sequences,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                problem.group,
                time_tiles,
                channel_tiles,
                *arguments.steps,
                K=problem.taps if problem.taps <= _UNROLLED else 0,
                TIME=time,
                CHANNELS=channels,
                PACKED=bounds is not None,
                BACKWARDS=problem.transposed,
                num_warps=warps,
                **arguments.flags,
            )

    return run


def rolling_refusals(problem: ConvProblem) -> list[str]:
    reasons = refusals(problem)
    if problem.taps > _UNROLLED:
        reasons.append(f"keeps up to {_UNROLLED} samples in registers")
    if problem.sequences:
        reasons.append("takes no packed sequences")
    if abs(problem.x[2]) != 1:
        reasons.append("takes contiguous channels only")
    return reasons


class _Rolling:
    """How ``rolling`` cuts a problem up."""

    def __init__(self, problem: ConvProblem | FilterGradientProblem) -> None:
        chosen = configuration(gpu_of(problem), "conv.rolling")
        # Twice the taps and samples of each channel of a thread are in registers.
        most = chosen["channels"] if problem.taps <= 8 and unit(problem) == "float32" else 32 * chosen["warps"]
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 32, most)
        self.warps = min(self.warps, max(1, self.channels // 32))
        self.unroll = chosen["unroll"]
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Longer chunks read less twice, shorter ones occupy the device.
        self.steps = max(chosen["steps"], power_of_two(4 * problem.taps))
        self.chunks = ceil_div(max(1, problem.length), self.steps)
        self.programs = problem.batch * self.chunks * self.channel_tiles


def rolling_cost(problem: ConvProblem) -> Cost:
    plan = _Rolling(problem)
    again = (problem.taps - 1) / plan.steps * item_bytes(problem.dtype) * samples_of(problem)
    flops = 2 * samples_of(problem) * (problem.taps + 4)
    fill = plan.programs * plan.warps / 4  # in programs of four warps
    work = Work(bytes_moved(problem) / problem.turns, flops / problem.turns, unit(problem), fill, again / problem.turns)
    return cost(problem.device, problem.isa, 0, *(work,) * problem.turns)


def prepare_rolling(problem: ConvProblem) -> Run:
    from .. import triton_direct

    arguments = Arguments(problem)
    plan = _Rolling(problem)

    def run(*given: Tensor | None) -> None:
        for tensors in arguments.tensors(given[:7]):
            launch(
                triton_direct.rolling,
                plan.programs,
                *tensors,
                problem.length,
                problem.channels,
                problem.origin,
                problem.group,
                plan.chunks,
                plan.channel_tiles,
                *arguments.unpacked_steps,
                K=problem.taps,
                CHANNELS=plan.channels,
                STEPS=plan.steps,
                UNROLL=plan.unroll,
                num_warps=plan.warps,
                **arguments.flags,
            )

    return run
