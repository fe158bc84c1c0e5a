"""The native kernels of the gated delta rule: what they can run, what it would cost, and how they are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import Cost, Implementation
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from ..linear_attention.cpu import Optionals, turns_of
from .problem import DeltaRuleProblem

DTYPES = ("float32", "float64", "bfloat16", "float16")
# Steps of a tile of time; csrc/chunk/delta.h.
STEPS = 16
# (q, k, v, g, beta, initial state) and the boundaries, the gradients of (y, last state), results, the factor of q. The
# results of the forward pass are (y, last state), of the gradient one for each input; those of q and k are of every
# head by itself, in the type of arithmetic.
Run = Callable[[Optionals, Tensor | None, Optionals, Optionals, float], None]


def _refusals(problem: DeltaRuleProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _row(size: int) -> int:
    return -(-size // 16) * 16


def work(problem: DeltaRuleProblem) -> tuple[float, float]:
    """Multiply-adds, and numbers to load and store."""
    elements = problem.batch * problem.length * problem.heads
    products = (11 if problem.is_gradient else 3) * problem.keys * problem.values
    inside = STEPS * ((4 if problem.is_gradient else 1) * problem.keys + 2 * problem.values)
    return elements * (products + inside), elements * (problem.keys + problem.values)


def _cost(problem: DeltaRuleProblem) -> Cost:
    units, elements = work(problem)
    seconds = kernel_seconds(
        problem.isa,
        "delta.chunked",
        problem.dtype,
        units=units,
        elements=elements,
        moved=getattr(torch, problem.dtype).itemsize * 2 * elements,
        workers=max(1, min(problem.threads, problem.batch * problem.sequences * problem.heads)),
        threads=problem.threads,
    )
    keys, values, item = _row(problem.keys), _row(problem.values), max(4, getattr(torch, problem.dtype).itemsize)
    # Checkpoints are a square root of the tiles apart.
    states = 2 * ((problem.length / STEPS) ** 0.5 + 2) + 1 if problem.is_gradient else 1
    tiles = STEPS * (17 * keys + 10 * values + 6 * STEPS) + values * max(keys, STEPS)
    return Cost(seconds, int(problem.threads * item * (tiles + states * keys * values)))


def _prepare(problem: DeltaRuleProblem) -> Run:
    def run(
        inputs: Optionals, cu_seqlens: Tensor | None, gradients: Optionals, results: Optionals, scale: float
    ) -> None:
        v = inputs[2]
        assert v is not None

        def with_sequences(state: Tensor | None) -> Tensor | None:
            return state if state is None or cu_seqlens is not None else state.unsqueeze(-4)

        tensors = [*inputs[:5], with_sequences(inputs[5])]
        if problem.is_gradient:
            tensors += [gradients[0], with_sequences(gradients[1]), *results[:5], with_sequences(results[5])]
        else:
            tensors += [results[0], with_sequences(results[1])]
        batch, turns = turns_of(v.ndim - 3, tensors)
        sizes = (batch, problem.length, problem.groups, problem.heads, problem.keys, problem.values, problem.sequences)
        with _checks.read_boundaries("gated_delta_rule", cu_seqlens, problem.length) as boundaries:
            at = 0 if boundaries is None else boundaries.data_ptr()
            for turn in turns:
                common = (problem.dtype, sizes, at, scale, problem.per_key, tuple(turn[:6]))
                if problem.is_gradient:
                    _native.delta_rule_gradient(*common, tuple(turn[6:8]), tuple(turn[8:]))
                else:
                    _native.delta_rule(*common, tuple(turn[6:]))

    return run


ROWS: tuple[Implementation, ...] = (Implementation("chunked", "cpu", _refusals, _cost, _prepare),)
