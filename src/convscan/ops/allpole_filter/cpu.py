"""The native kernel of all-pole filters: what it can run, what it would cost, and how it is called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Cost, Implementation
from ..._targets import cpu_refusals
from .problem import AllpoleProblem

DTYPES = ("float32", "float64", "bfloat16", "float16")
Run = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
# Coefficients of one step that the kernel holds in its workspace.
LARGEST_ORDER = 1024
# Of one step of one vector of sequences: waiting for the step before it, and each further term.
_STEP_SECONDS, _TERM_SECONDS = 4e-9, 0.5e-9
_TILE_BYTES = 64 << 10


def _refusals(problem: AllpoleProblem) -> list[str]:
    reasons = cpu_refusals(problem.device, problem.dtype, DTYPES)
    if problem.order > LARGEST_ORDER:
        reasons.append(f"computes filters of up to {LARGEST_ORDER} coefficients")
    return reasons


def _cost(problem: AllpoleProblem) -> Cost:
    # At least four sequences in a vector, whatever the processor: what it is compared with is a loop in Python.
    vectors = -(-problem.batch * problem.channels // 4)
    steps = vectors * problem.length * (_STEP_SECONDS + _TERM_SECONDS * problem.order)
    workers = max(1, min(problem.threads, vectors))
    workspace = problem.threads * (_TILE_BYTES + 64 * 12 * problem.order)
    return Cost(problem.turns * steps / workers, workspace)


def _prepare(problem: AllpoleProblem) -> Run:
    call = _native.AllpoleCall(
        problem.dtype,
        problem.batch,
        problem.length,
        problem.channels,
        problem.order,
        problem.transposed,
        problem.x,
        problem.a,
        problem.a_order,
        problem.state or (0, 0, 0),
        problem.y,
    )
    if problem.offsets is None:
        return call
    item = getattr(torch, problem.dtype).itemsize
    turns = tuple(tuple(item * offset for offset in turn) for turn in problem.offsets)

    def run(x: Tensor, a: Tensor, state: Tensor | None, y: Tensor) -> None:
        at_x, at_a, at_state, at_y = x.data_ptr(), a.data_ptr(), 0 if state is None else state.data_ptr(), y.data_ptr()
        for to_x, to_a, to_state, to_y in turns:
            call(at_x + to_x, at_a + to_a, at_state and at_state + to_state, at_y + to_y)

    return run


ROWS: tuple[Implementation, ...] = (Implementation("sequential", "cpu", _refusals, _cost, _prepare),)
