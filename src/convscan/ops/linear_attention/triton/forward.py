"""Linear attention on a GPU: what it would cost, and its launches in their order."""

from __future__ import annotations

from torch import Tensor

from ...._dispatch import Cost, Implementation
from ....tuning.gpu import Work, cost, seconds
from ..cpu import Optionals, Run
from ..problem import AttentionProblem
from .launches import (
    Ends,
    chunks_in,
    one_batch,
    outputs_of_chunks,
    pairs_by_key,
    states_between,
    with_sequences,
)
from .plan import Plan, kernel_of, predicted, refusals, segments


def _works(plan: Plan) -> list[Work]:
    problem = plan.problem
    outputs = plan.outputs_work(2 * problem.keys + 2 * problem.values + plan.gates)
    return [*plan.states_work(), *([plan.pairs_work()] if problem.per_key else []), outputs]


def _plan(problem: AttentionProblem) -> Plan:
    """With the segments that are predicted to be fastest."""
    kernel = "attention.by_key" if problem.per_key else kernel_of(problem, "attention")
    plans = [Plan(problem, kernel, segment) for segment in segments(problem, kernel)]
    return min(plans, key=lambda plan: seconds(predicted(problem), *_works(plan)))


def _cost(problem: AttentionProblem) -> Cost:
    plan = _plan(problem)
    workspace = plan.kept + 4 * plan.lines * plan.chunks * plan.gates + plan.table + problem.per_key * plan.pairs
    return cost(problem.device, problem.isa, workspace, *_works(plan))


def _prepare(problem: AttentionProblem) -> Run:
    plan = _plan(problem)

    def run(
        inputs: Optionals, skip: Tensor | None, outputs: Optionals, cu_seqlens: Tensor | None, scale: float
    ) -> None:
        v = inputs[2]
        assert v is not None
        leading, packed = v.ndim - 3, cu_seqlens is not None
        q, k, v, g, w, *initial = (one_batch(tensor, leading) for tensor in inputs)
        y, sums, *final = (one_batch(tensor, leading) for tensor in outputs)
        ends = Ends(*with_sequences(initial, packed), *with_sequences(final, packed))
        assert v is not None
        chunks = chunks_in(cu_seqlens, v, problem.length, plan.segment)
        between = states_between(plan, (k, v, g, w, None), ends, chunks, scale, backwards=False, packed=packed)
        signals = (q, k, v, g, w)
        p = pairs_by_key(plan, signals, chunks, packed=packed)
        outputs_of_chunks(plan, signals, p, skip, (y, sums), between, chunks, scale, ends=ends, packed=packed)

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_chunked", "triton", refusals, _cost, _prepare),)
