"""The native recurrence kernels: what each can run, what it would cost, and how it is called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import Cost, Implementation
from ..._layout import order
from ..._targets import cpu_refusals
from ...tuning.table import constants, kernel_seconds
from .problem import ScanGradientProblem, ScanProblem

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")
Run = Callable[[Tensor, Tensor | None, Tensor, Tensor | None, Tensor], None]
RunGradient = Callable[
    [Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None], None
]


def _refusals(problem: ScanProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _seconds(problem: ScanProblem, kernel: str, tasks: float, arrays: float, memory_order: str = "") -> float:
    samples = problem.turns * problem.batch * problem.channels * problem.length
    item = getattr(torch, problem.dtype).itemsize
    moved = item * arrays * samples / problem.turns
    return problem.turns * kernel_seconds(
        problem.isa,
        f"{kernel}.{memory_order or order(problem.x)}",
        problem.dtype,
        # The inner loop's constant is what an element costs more where the arrays do not fit the cache.
        units=samples / problem.turns if moved >= constants(problem.isa)["cache.bytes"] else 0.0,
        elements=samples / problem.turns,
        moved=moved,
        workers=max(1.0, min(problem.threads, tasks)),
        threads=problem.threads,
    )


def _arrays(problem: ScanProblem) -> float:
    """Signals to move: x, y, and a where it varies in time."""
    return 2 if problem.a[1] == 0 else 3


# What a step takes that waits for the one before it, however few channels there are: a multiply-add's latency.
_STEP_SECONDS = 1.1e-9
# A row costs the scan along time as much as this many steps before the first one.
_SHORT_ROW = 64
# Bytes of a vector: of few channels several steps share one.
_VECTOR_BYTES = {"avx512": 64, "avx2": 32}


def most_interleaved(isa: str, dtype: str) -> int:
    """Channels of which two steps fit a vector."""
    return int(_VECTOR_BYTES.get(isa, 16) // (2 * max(4, getattr(torch, dtype).itemsize)))


def _runs_along_time(problem: ScanProblem) -> bool:
    """Whether steps are neighbours in memory, of a channel or of so few that a vector holds several of all of them."""
    steps = problem.x[1]
    if problem.y[1] != steps or problem.a[1] not in (steps, 0):
        return False
    are_rows = problem.channels == 1 or all(strides[2] == 1 for strides in (problem.x, problem.a, problem.y))
    is_interleaved = abs(steps) == problem.channels <= most_interleaved(problem.isa, problem.dtype) and are_rows
    return abs(steps) == 1 or is_interleaved


def _parallel_refusals(problem: ScanProblem) -> list[str]:
    reasons = _refusals(problem)
    if not reasons and not _runs_along_time(problem):
        few = most_interleaved(problem.isa, problem.dtype)
        of_a_step = f", or those of a step's {few} channels or fewer" if few > 1 else ""
        reasons.append(f"runs along time: the steps of a channel{of_a_step} must be neighbours in memory")
    return reasons


def _sequential_seconds(problem: ScanProblem, tasks: float) -> float:
    waiting = problem.turns * problem.batch * problem.length * _STEP_SECONDS / max(1.0, min(problem.threads, tasks))
    return max(waiting, _seconds(problem, "scan.sequential", tasks, _arrays(problem)))


def _parallel_seconds(problem: ScanProblem, tasks: float) -> float:
    # One channel lies along time in every memory order.
    memory_order = "time" if problem.channels == 1 else ""
    seconds = _seconds(problem, "scan.parallel", tasks, _arrays(problem), memory_order)
    return seconds * (1 + _SHORT_ROW * (problem.sequences or 1) / max(1, problem.length))


def _sequential_cost(problem: ScanProblem) -> Cost:
    # Rows are independent, and vectors hold 16 of them.
    tasks = problem.batch * -(-problem.channels // 16)
    return Cost(_sequential_seconds(problem, tasks), (64 << 10) * problem.threads)


def _parallel_cost(problem: ScanProblem) -> Cost:
    return Cost(_parallel_seconds(problem, problem.batch * -(-problem.channels // 8)), (64 << 10) * problem.threads)


def _tiled_cost(problem: ScanProblem) -> Cost:
    # Tiles of the scan along time where that runs, else of the sequential one, and a little of every tile twice: how
    # much depends on the coefficients, which are not known here.
    tasks = problem.batch * problem.threads if problem.length >= 1 << 14 else problem.batch
    seconds = (_sequential_seconds if _parallel_refusals(problem) else _parallel_seconds)(problem, tasks)
    return Cost(1.05 * seconds, (64 << 10) * problem.threads)


def _forward_call(kernel: str, problem: ScanProblem) -> _native.ScanCall:
    return _native.ScanCall(
        kernel,
        problem.dtype,
        problem.batch,
        problem.length,
        problem.channels,
        problem.reverse,
        problem.x,
        problem.a,
        problem.y_init or (0, 0, 0),
        problem.y,
        problem.sequences or 0,
    )


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _prepare(kernel: str) -> Callable[[ScanProblem], Run]:
    def prepare(problem: ScanProblem) -> Run:
        call = _forward_call(kernel, problem)
        if problem.offsets is None and problem.sequences is None:
            return call
        item = getattr(torch, problem.dtype).itemsize
        offsets = tuple(tuple(item * offset for offset in turn) for turn in problem.offsets or ((0,) * 4,))

        def run(x: Tensor, y_init: Tensor | None, a: Tensor, cu_seqlens: Tensor | None, y: Tensor) -> None:
            with _checks.read_boundaries("linear_recurrence", cu_seqlens, problem.length) as boundaries:
                at, *base = _addresses(boundaries, x, y_init, a, y)
                for at_x, at_start, at_a, at_y in offsets:
                    call(base[0] + at_x, base[2] + at_a, base[1] and base[1] + at_start, at, base[3] + at_y)

        return run

    return prepare


ROWS: tuple[Implementation, ...] = (
    Implementation("sequential", "cpu", _refusals, _sequential_cost, _prepare("sequential")),
    Implementation("tiled", "cpu", _refusals, _tiled_cost, _prepare("tiled")),
    Implementation("parallel", "cpu", _parallel_refusals, _parallel_cost, _prepare("parallel")),
)


# ---- gradient ----


def _gradient_refusals(problem: ScanGradientProblem) -> list[str]:
    return _refusals(problem.forward)


def _gradient_cost(problem: ScanGradientProblem) -> Cost:
    forward = problem.forward
    tasks = forward.batch * -(-forward.channels // 16)
    arrays = 3.0 if forward.a[1] == 0 or problem.da is None else 5.0
    return Cost(_seconds(forward, "scan.sequential", tasks, arrays), (160 << 10) * forward.threads)


def _prepare_gradient(problem: ScanGradientProblem) -> RunGradient:
    call = _native.ScanGradientCall(
        _forward_call("sequential", problem.forward),
        problem.dy,
        problem.dx,
        problem.da or (0, 0, 0),
        problem.dy_init or (0, 0, 0),
    )
    item = getattr(torch, problem.forward.dtype).itemsize
    offsets = problem.offsets or ((0,) * 7,)

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
        with _checks.read_boundaries("linear_recurrence", cu_seqlens, problem.forward.length) as boundaries:
            at, *base = _addresses(boundaries, a, y_init, y, dy, dx, da, dy_init)
            for turn in offsets:
                turned = [start and start + item * offset for start, offset in zip(base, turn, strict=True)]
                call(turned[0], turned[1], at, *turned[2:])

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("sequential", "cpu", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
