"""The Triton kernel of the recurrence and its gradient: what it can run, what it would cost, how it is launched."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import apart, as_pairs, at, ceil_div, launch, power_of_two, sequence_of
from ..._layout import NO_STRIDES, Triple, order
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost
from . import cpu
from .problem import ScanGradientProblem, ScanProblem

# Seconds from writing a word to its reading by another program: two ways to the second-level cache of Hopper and what
# lies between them, an estimate.
_HANDED_ON = 1.5e-6
_LARGEST_TILE = 4096  # steps: more leave nothing to run beside it


def _refusals(problem: ScanProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, cpu.DTYPES)


def _is_complex(problem: ScanProblem) -> bool:
    return problem.dtype.startswith("complex")


def _is_double(problem: ScanProblem) -> bool:
    return problem.dtype in ("float64", "complex128")


def _item(problem: ScanProblem) -> int:
    return int(getattr(torch, problem.dtype).itemsize)


class _Plan:
    """Tiles of a problem: as wide as memory wants it, some 128 bytes, and as long as registers allow without spilling
    (128 to 152 a thread on Hopper), for states to be handed on rarely."""

    def __init__(self, problem: ScanProblem) -> None:
        along = "time" if order(problem.x) == "time" else "channel"
        gpu = problem.isa if problem.device == "cuda" else "default"
        chosen = configuration(gpu, f"scan.{along}")
        self.warps = chosen["warps"]
        self.window = chosen["window"]  # tiles that a program looks back over by itself
        numbers = chosen["numbers"] // ((2 if _is_complex(problem) else 1) * (2 if _is_double(problem) else 1))
        self.channels = power_of_two(problem.channels, 1, chosen["channels"])
        self.time = power_of_two(problem.length, 1, min(_LARGEST_TILE, max(1, numbers // self.channels)))
        self.tiles = ceil_div(problem.length, self.time)
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        self.programs = problem.batch * self.tiles * self.channel_tiles
        planes = (2 if _is_complex(problem) else 1) * (2 if _is_double(problem) else 1)
        groups = self.tiles // self.window
        self.words = (self.tiles + groups, problem.batch, planes, problem.channels) if self.tiles > 1 else (0, 0, 0, 0)

    @property
    def workspace(self) -> int:
        return 8 * math.prod(self.words)


def _work(problem: ScanProblem, plan: _Plan, arrays: float) -> list[Work]:
    samples = float(problem.batch * problem.length * problem.channels)
    words = 8.0 * math.prod(plan.words)
    # Published once, read by half a window while the cache still has them; a pass before sets them.
    moved, shared = _item(problem) * arrays * samples + 2 * words, words * plan.window / 2
    joins = 4 * (math.log2(32) if order(problem.x) == "time" else 1) + 4
    flops = samples * joins * (4 if _is_complex(problem) else 1)
    unit = "float64" if _is_double(problem) else "float32"
    # A state goes from group to group through the second-level cache.
    waits = _HANDED_ON * (plan.tiles // plan.window)
    scans = [Work(moved, flops, unit, plan.programs * plan.warps / 4, latency=waits, shared=shared)]
    return ([Work(words)] if words else []) + scans


def _cost(problem: ScanProblem) -> Cost:
    plan = _Plan(problem)
    arrays = 2 if problem.a[1] == 0 else 3
    workspace = plan.workspace + (4 * problem.length if problem.sequences is not None else 0)
    return cost(problem.device, problem.isa, workspace, *_work(problem, plan, arrays) * problem.turns)


def _mirrored(strides: Triple, length: int, reverse: bool) -> tuple[Triple, int]:
    if not reverse:
        return strides, 0
    return (strides[0], -strides[1], strides[2]), (length - 1) * strides[1]


def _wide(problem: ScanProblem) -> Any:
    import triton.language as tl

    return tl.float64 if _is_double(problem) else tl.float32


def _launch(
    problem: ScanProblem,
    plan: _Plan,
    backwards: bool,
    signals: list[tuple[Tensor | None, Triple | None, int]],
    starts: list[tuple[Tensor | None, Triple | None, int]],
    cu_seqlens: Tensor | None,
    gradient: bool,
) -> None:
    """``signals`` are x, a, y and, with ``gradient``, the result and da, run in one direction; ``starts`` are y_init
    and its gradient. Each with its strides and the offset of its turn."""
    from . import triton_scan

    pair = 2 if _is_complex(problem) else 1
    x = signals[0][0]
    assert x is not None
    pointers: list[Tensor] = []
    steps: list[tuple[int, ...]] = []
    for tensor, strides, offset in signals:
        along, end = _mirrored(strides or NO_STRIDES, problem.length, backwards)
        pointers.append(as_pairs(x) if tensor is None else at(as_pairs(tensor), pair * (offset + end)))
        steps.append(tuple(pair * n for n in along))
    for tensor, strides, offset in starts:
        pointers.append(as_pairs(x) if tensor is None or strides is None else at(as_pairs(tensor), pair * offset))
        steps.append(tuple(pair * n for n in strides or NO_STRIDES))
    of_x, of_a, of_y, of_result, of_da, of_start, of_dstart = range(7)
    words = torch.full(plan.words, -1, dtype=torch.int64, device=x.device)
    packed = x if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()
    launch(
        triton_scan.scan,
        plan.programs,
        *(pointers[i] for i in (of_x, of_a, of_start, of_y, of_result, of_da, of_dstart)),
        words,
        packed if cu_seqlens is not None else words,
        words if cu_seqlens is None else sequence_of(packed, problem.length),
        problem.length,
        problem.channels,
        problem.batch,
        plan.tiles,
        plan.channel_tiles,
        *(n for i in (of_x, of_a, of_start, of_y, of_result, of_da, of_dstart) for n in steps[i]),
        TIME=plan.time,
        CHANNELS=plan.channels,
        WINDOW=plan.window,
        COMPLEX=_is_complex(problem),
        HAS_START=starts[0][0] is not None and starts[0][1] is not None,
        PACKED=cu_seqlens is not None,
        BACKWARDS=backwards,
        GRADIENT=gradient,
        HAS_DA=signals[4][0] is not None,
        HAS_DSTART=starts[1][0] is not None,
        SINGLE=plan.tiles == 1,
        WIDE=_wide(problem),
        num_warps=plan.warps,
    )


def _prepare(problem: ScanProblem) -> cpu.Run:
    plan = _Plan(problem)

    def run(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, y: Tensor) -> None:
        # Programs read their own tile of x before they write it, but others may read that of a where it broadcasts.
        a = a if a.shape == y.shape else apart(a, y)
        a = a.expand(y.shape)
        for at_x, at_start, at_a, at_y in problem.offsets or ((0,) * 4,):
            signals = [
                (x, problem.x, at_x),
                (a, problem.a, at_a),
                (y, problem.y, at_y),
                (None, None, 0),
                (None, None, 0),
            ]
            starts = [(y_init, problem.y_init, at_start), (None, None, 0)]
            _launch(problem, plan, problem.reverse, signals, starts, cu_seqlens, False)

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_scan", "triton", _refusals, _cost, _prepare),)


# ---- gradient ----


def _gradient_refusals(problem: ScanGradientProblem) -> list[str]:
    return _refusals(problem.forward)


def _summed(problem: ScanGradientProblem) -> bool:
    """Whether several samples share a coefficient, so that its gradient is a sum."""
    forward = problem.forward
    sizes = (forward.batch, forward.length, forward.channels)
    return problem.da is not None and any(n > 1 and step == 0 for n, step in zip(sizes, problem.da, strict=True))


def _gradient_cost(problem: ScanGradientProblem) -> Cost:
    forward = problem.forward
    plan = _Plan(forward)
    arrays = 2.0 + (forward.a[1] != 0) + (0 if problem.da is None else 2)
    samples = forward.batch * forward.length * forward.channels
    wide = 16 if forward.dtype == "complex128" else 8 if forward.dtype in ("complex64", "float64") else 4
    temporary = wide * samples if _summed(problem) else 0
    works = _work(forward, plan, arrays)
    works += [Work(2.0 * temporary, samples)] if temporary else []
    return cost(forward.device, forward.isa, plan.workspace + temporary, *works * forward.turns)


def _prepare_gradient(problem: ScanGradientProblem) -> cpu.RunGradient:
    forward = problem.forward
    plan, summed = _Plan(forward), _summed(problem)
    size = (forward.batch, forward.length, forward.channels)
    kind = {"float16": torch.float32, "bfloat16": torch.float32}.get(forward.dtype, getattr(torch, forward.dtype))
    dense = (size[1] * size[2], 1, size[1]) if order(forward.x) == "time" else (size[1] * size[2], size[2], 1)

    def run(
        a: Tensor,
        y_init: Tensor | None,
        y: Tensor,
        cu_seqlens: Tensor | None,
        dy: Tensor,
        dx: Tensor,
        da: Tensor | None,
        dy_init: Tensor | None,
    ) -> None:
        if cu_seqlens is not None and dy_init is not None:
            dy_init.zero_()  # of sequences without steps
        if dy_init is not None and forward.length == 0:
            dy_init.zero_()
        for at_a, at_start, at_y, at_dy, at_dx, at_da, at_last in problem.offsets or ((0,) * 7,):
            # What is summed is not rounded before.
            full = torch.empty_strided(size, dense, dtype=kind, device=y.device) if summed else da
            signals = [
                (dy, problem.dy, at_dy),
                (a, forward.a, at_a),
                (dx, problem.dx, at_dx),
                (y, forward.y, at_y),
                (full, dense if summed else problem.da, 0 if summed else at_da),
            ]
            starts = [(y_init, forward.y_init, at_start), (dy_init, problem.dy_init, at_last)]
            _launch(forward, plan, not forward.reverse, signals, starts, cu_seqlens, True)
            if summed and da is not None and problem.da is not None and full is not None:
                kept = tuple(1 if step == 0 else n for n, step in zip(size, problem.da, strict=True))
                da.as_strided(kept, problem.da, da.storage_offset() + at_da).copy_(full.sum_to_size(kept))

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_scan", "triton", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
