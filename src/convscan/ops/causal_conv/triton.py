"""The Triton kernels of the convolution: what each can run, what it would cost, and how it is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import apart, at, ceil_div, launch, names, power_of_two
from ..._layout import Triple, order
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost
from .problem import ConvProblem, FilterGradientProblem

REAL = ("float32", "float64", "bfloat16", "float16")
Run = Callable[..., None]
_NO_STRIDES = (0, 0, 0)
# Filters up to here are unrolled: more taps than registers hold gain nothing from it.
_UNROLLED = 32
# Taps of which one program sums up the gradient.
_GRADIENT_TAPS = 4


def _refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def _gpu(problem: ConvProblem | FilterGradientProblem) -> str:
    return problem.isa if problem.device == "cuda" else "default"


def _item(problem: ConvProblem | FilterGradientProblem) -> int:
    return int(getattr(torch, problem.dtype).itemsize)


def _wide(problem: ConvProblem | FilterGradientProblem) -> Any:
    """The type that is computed in."""
    import triton.language as tl

    return tl.float64 if problem.native_dtype in ("float64", "wide_float32") else tl.float32


def _unit(problem: ConvProblem | FilterGradientProblem) -> str:
    return "float64" if problem.native_dtype in ("float64", "wide_float32") else "float32"


def _samples(problem: ConvProblem | FilterGradientProblem) -> float:
    return float(problem.turns * problem.batch * problem.channels * problem.length)


def _moved(problem: ConvProblem | FilterGradientProblem) -> float:
    """Bytes to read and write at least."""
    return _item(problem) * ((2 + problem.gates) * _samples(problem) + problem.filters * problem.taps)


def sequence_of(bounds: Tensor, length: int) -> Tensor:
    """The sequence of each step, without waiting for the device."""
    steps = torch.arange(length, device=bounds.device, dtype=bounds.dtype)
    return (torch.searchsorted(bounds, steps, right=True) - 1).clamp_(0, bounds.shape[0] - 2).to(torch.int32)


def _mirrored(strides: Triple | None, length: int) -> tuple[Triple, int]:
    """Strides of a signal that is read from its end, and the offset of the end."""
    if strides is None:
        return _NO_STRIDES, 0
    return (strides[0], -strides[1], strides[2]), (length - 1) * strides[1]


class _Arguments:
    """A convolution as kernels take it: always y[t] = sum_k h[k] u[t + origin - k], time running backwards where the
    problem is transposed."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.signals = [problem.x, problem.pre_gate, problem.post_gate, problem.y]
        self.strides = [strides or _NO_STRIDES for strides in self.signals]
        self.starts = [0, 0, 0, 0]
        if problem.transposed:
            ends = [_mirrored(strides, problem.length) for strides in self.signals]
            self.strides, self.starts = [strides for strides, _ in ends], [start for _, start in ends]
        self.flags: dict[str, Any] = {
            "ACTIVATION": problem.activation,
            "HAS_BIAS": problem.bias is not None,
            "HAS_STATE": problem.state is not None,
            "HAS_PRE": problem.pre_gate is not None,
            "HAS_POST": problem.post_gate is not None,
            "WIDE": _wide(problem),
        }

    def tensors(self, given: tuple[Tensor | None, ...]) -> list[list[Tensor]]:
        """x, h, bias, state, pre_gate, post_gate, y as they begin in each turn of the loop over leading axes."""
        x, y = given[0], given[-1]
        assert x is not None
        assert y is not None
        if self.problem.taps > 1 or self.problem.origin > 0:
            # Programs run in any order: what they share with others must stay until all have read it.
            x, pre = apart(x, y), None if given[4] is None else apart(given[4], y)
            given = (x, *given[1:4], pre, *given[5:])
        present = names([*given[:6], y], x)
        first = [self.starts[0], 0, 0, 0, *self.starts[1:]]
        turns = self.problem.offsets or ((0,) * 7,)
        return [
            [
                at(tensor, offset + start) if original is not None else tensor
                for tensor, original, offset, start in zip(present, [*given[:6], y], turn, first, strict=True)
            ]
            for turn in turns
        ]

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides of h, bias and state, then of the gates and y; those of x come first."""
        p = self.problem
        state = p.state or _NO_STRIDES
        x, pre, post, y = self.strides
        past = (state[0], p.state_sequence, *state[1:])
        return (*x, p.h_batch, *p.h, *(p.bias or (0, 0)), *past, *pre, *post, *y)


# ---- direct: a tile of outputs, the samples of each tap read anew ----


def _tile(problem: ConvProblem | FilterGradientProblem) -> tuple[int, int, int]:
    """Steps, channels and warps of a program, no larger than the signal."""
    chosen = configuration(_gpu(problem), f"conv.direct.{order(problem.x)}")
    channels = power_of_two(problem.channels, 1, chosen["channels"])
    time = power_of_two(problem.length, 1, chosen["time"] * chosen["channels"] // channels)
    return min(time, 1024), channels, chosen["warps"]


def _direct_cost(problem: ConvProblem) -> Cost:
    time, channels, _ = _tile(problem)
    programs = problem.turns * problem.batch * ceil_div(problem.length, time) * ceil_div(problem.channels, channels)
    taps = problem.taps
    # A sample of each tap comes from the first-level cache, an instruction for 32 of them: as 4 operations where
    # vectors are loaded, 8 where taps shift their alignment.
    flops = _samples(problem) * taps * (2 + (4 if order(problem.x) == "channel" else 8))
    workspace = 4 * problem.length if problem.sequences else 0
    return cost(
        problem.device,
        problem.isa,
        workspace,
        *(Work(_moved(problem) / problem.turns, flops / problem.turns, _unit(problem), programs),) * problem.turns,
    )


def _prepare_direct(problem: ConvProblem) -> Run:
    from . import triton_direct

    arguments = _Arguments(problem)
    time, channels, warps = _tile(problem)
    time_tiles, channel_tiles = ceil_div(problem.length, time), ceil_div(problem.channels, channels)

    def run(*given: Tensor | None) -> None:
        bounds = given[7] if len(given) > 7 else None
        for tensors in arguments.tensors(given[:7]):
            x = tensors[0]
            packed = x if bounds is None else bounds.to(x.device)
            sequences = x if bounds is None else sequence_of(packed, problem.length)
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


# ---- rolling: the last K samples in registers ----


def _rolling_refusals(problem: ConvProblem) -> list[str]:
    reasons = _refusals(problem)
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
        chosen = configuration(_gpu(problem), "conv.rolling")
        # Twice the taps and samples of each channel of a thread are in registers.
        most = chosen["channels"] if problem.taps <= 8 and _unit(problem) == "float32" else 32 * chosen["warps"]
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 32, most)
        self.warps = min(self.warps, max(1, self.channels // 32))
        self.unroll = chosen["unroll"]
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Longer chunks read less twice, shorter ones occupy the device.
        self.steps = max(chosen["steps"], power_of_two(4 * problem.taps))
        self.chunks = ceil_div(max(1, problem.length), self.steps)
        self.programs = problem.batch * self.chunks * self.channel_tiles


def _rolling_cost(problem: ConvProblem) -> Cost:
    plan = _Rolling(problem)
    again = (problem.taps - 1) / plan.steps * _item(problem) * _samples(problem)
    flops = 2 * _samples(problem) * (problem.taps + 4)
    fill = plan.programs * plan.warps / 4  # in programs of four warps
    work = Work(_moved(problem) / problem.turns, flops / problem.turns, _unit(problem), fill, again / problem.turns)
    return cost(problem.device, problem.isa, 0, *(work,) * problem.turns)


def _prepare_rolling(problem: ConvProblem) -> Run:
    from . import triton_direct

    arguments = _Arguments(problem)
    plan = _Rolling(problem)
    x, h, bias, state = (arguments.steps[a:b] for a, b in ((0, 3), (3, 6), (6, 8), (8, 12)))
    strides = (*x, *h, *bias, state[0], *state[2:], *arguments.steps[12:])

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
                *strides,
                K=problem.taps,
                CHANNELS=plan.channels,
                STEPS=plan.steps,
                UNROLL=plan.unroll,
                num_warps=plan.warps,
                **arguments.flags,
            )

    return run


def _reads_no_spectrum(prepare: Callable[[ConvProblem], Run]) -> Callable[[ConvProblem], Run]:
    def prepared(problem: ConvProblem) -> Run:
        run = prepare(problem)
        if problem.kept is None:
            return run
        return lambda *tensors: run(*tensors[:6], *tensors[7:])

    return prepared


ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", _refusals, _direct_cost, _reads_no_spectrum(_prepare_direct)),
    Implementation("triton_rolling", "triton", _rolling_refusals, _rolling_cost, _reads_no_spectrum(_prepare_rolling)),
)


# ---- gradient of the filter ----


class _GradientPlan:
    """How ``filter_gradient_tile`` cuts a problem up: partial sums of chunks of time."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(_gpu(problem), f"conv.direct.{order(problem.x)}")
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 1, chosen["channels"])
        self.taps = power_of_two(problem.taps, 1, _GRADIENT_TAPS)
        tile = 16 * 32 * self.warps // (2 if _unit(problem) == "float64" else 1) // self.taps
        self.time = power_of_two(problem.length, 1, max(1, tile // self.channels))
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Enough programs to fill a device, and no more partial sums than that takes.
        rows = problem.batch * self.channel_tiles * ceil_div(problem.taps, self.taps)
        self.chunks = max(1, min(ceil_div(problem.length, 4 * self.time), ceil_div(2048, max(1, rows))))
        self.steps = self.time * ceil_div(ceil_div(problem.length, self.chunks), self.time)
        self.programs = problem.batch * self.chunks * self.channel_tiles
        self.partial = (self.chunks, problem.batch, problem.taps, problem.channels)

    @property
    def partial_bytes(self) -> int:
        size = 1
        for n in self.partial:
            size *= n
        return size


def _gradient_cost(problem: FilterGradientProblem) -> Cost:
    plan = _GradientPlan(problem)
    item = 8 if _unit(problem) == "float64" else 4
    groups = ceil_div(problem.taps, plan.taps)
    moved = _item(problem) * (2 + problem.gates) * _samples(problem) / problem.turns
    flops = _samples(problem) * problem.taps * (2 + (4 if order(problem.x) == "channel" else 8)) / problem.turns
    partial = plan.partial_bytes * item
    works = (
        Work(moved, flops, _unit(problem), plan.programs * groups, moved * (groups - 1) / 2),
        Work(2 * partial, plan.partial_bytes, _unit(problem)),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def _prepare_gradient(problem: FilterGradientProblem) -> Run:
    from . import triton_direct

    plan = _GradientPlan(problem)
    state = problem.state or _NO_STRIDES
    gates = (*(problem.x_gate or _NO_STRIDES), *(problem.dz_gate or _NO_STRIDES))
    strides = (*problem.x, *problem.dz, state[0], problem.state_sequence, *state[1:], *gates)
    kind = torch.float64 if _unit(problem) == "float64" else torch.float32

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
                WIDE=_wide(problem),
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


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", _refusals, _gradient_cost, _prepare_gradient),
)

__all__ = ["GRADIENT_ROWS", "ROWS"]
