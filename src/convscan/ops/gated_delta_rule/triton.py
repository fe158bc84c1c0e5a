"""The Triton kernels of the gated delta rule: what they can run, what they would cost, how they are launched."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import Chunks, launch, names
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, cost
from ..linear_attention.cpu import Optionals
from ..linear_attention.problem import AttentionProblem
from ..linear_attention.triton.launches import (
    chunks_in,
    empty_pairs,
    gradients_of_chunks,
    one_batch,
    outputs_of_chunks,
    pairs_of_steps,
    strides,
    with_sequences,
)
from ..linear_attention.triton.plan import BLOCK, DTYPES, STEPS, Plan, precisions
from .cpu import Run
from .problem import DeltaRuleProblem


def _refusals(problem: DeltaRuleProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, DTYPES, "multiplies in float32 only, not")


def _plan(problem: DeltaRuleProblem, kernel: str = "delta") -> Plan:
    """That of linear attention on errors in place of values."""
    fields = {name: getattr(problem, name) for name in AttentionProblem._fields if name != "sums"}
    return Plan(AttentionProblem(**fields, sums=False), kernel)


# ---- cost ----


def _errors(plan: Plan) -> float:
    """Bytes of the errors, and of what they have of the state."""
    return 4.0 * plan.elements * (plan.problem.keys + plan.problem.values)


def _solutions(plan: Plan, directions: int) -> list[Work]:
    """What is made before and while sequences are gone through: forward, and for the gradient back too."""
    problem = plan.problem
    keys, values = problem.keys, problem.values
    matrices, errors = directions * plan.pairs, directions * _errors(plan)
    # 16 rows of 64 numbers for each step, then four products of all pairs, and one for the gradient.
    products = (3 + directions) * STEPS**2 + (0 if problem.per_key else directions * STEPS * keys)
    inverted = plan.chunk_work(directions * keys + plan.gates, products, 4.0 * BLOCK * STEPS, 1, matrices)
    products, gates, parts = directions * STEPS * (keys + values), 20.0 * plan.gates * directions, 2 * directions
    solved = plan.chunk_work(directions * (keys + values), products, gates, parts, 2 * matrices + errors)
    scan = plan.scan_work()
    programs = plan.lines * problem.sequences * plan.value_blocks * plan.warps / 4
    scan = scan._replace(moved=scan.moved + 2 * _errors(plan), flops=2 * scan.flops, programs=programs)
    # The state passes through memory twice a chunk.
    scan = scan._replace(latency=2 * scan.latency, again=2 * plan.kept)
    return [*[plan.pairs_work()] * (2 * problem.per_key), inverted, solved, *[scan] * directions]


def _cost(problem: DeltaRuleProblem) -> Cost:
    plan = _plan(problem)
    read = plan.outputs_work(2 * problem.keys + plan.gates + problem.values)
    read = read._replace(moved=read.moved + 4.0 * plan.elements * problem.values)
    workspace = plan.kept + _errors(plan) + (1 + problem.per_key) * plan.pairs + plan.table
    return cost(problem.device, problem.isa, workspace, *_solutions(plan, 1), read)


def _gradient_cost(problem: DeltaRuleProblem) -> Cost:
    plan, of_chunks = _plan(problem), _gradient_plan(problem)
    works = (*_solutions(plan, 2), *of_chunks.gradient_works(2 * problem.keys + plan.gates + problem.values, 1))
    parts = of_chunks.sums - 8.0 * plan.elements * problem.keys  # those of q and k are results
    workspace = 2 * (plan.kept + _errors(plan) + plan.pairs) + parts + plan.table
    return cost(problem.device, problem.isa, workspace, *works)


# ---- launches ----


class _Given(NamedTuple):
    """Arguments with one batch axis, states with an axis of sequences, and what kernels hand on in memory."""

    plan: Plan
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    start: Tensor | None
    dy: Tensor | None
    dlast: Tensor | None
    results: Optionals
    chunks: Chunks
    scale: float
    packed: bool

    @staticmethod
    def of(
        plan: Plan,
        inputs: Optionals,
        cu_seqlens: Tensor | None,
        gradients: Optionals,
        results: Optionals,
        scale: float,
    ) -> _Given:
        of_v = inputs[2]
        assert of_v is not None
        leading, packed = of_v.ndim - 3, cu_seqlens is not None
        q, k, v, g, beta, start = (one_batch(tensor, leading) for tensor in inputs)
        dy, dlast = (one_batch(tensor, leading) for tensor in gradients or (None, None))
        *signals, last = (one_batch(tensor, leading) for tensor in results)
        assert q is not None
        assert k is not None
        assert v is not None
        assert g is not None
        assert beta is not None
        start, dlast, last = with_sequences((start, dlast, last), packed)
        chunks = chunks_in(cu_seqlens, v, plan.problem.length)
        return _Given(plan, q, k, v, g, beta, start, dy, dlast, (*signals, last), chunks, scale, packed)

    def copy_back(self, results: Optionals) -> None:
        """Those whose leading axes do not merge, which kernels have written as copies."""
        for result, found in zip(results, self.results, strict=True):
            if result is not None and found is not None and found.data_ptr() != result.data_ptr():
                result.copy_(found.reshape(result.shape))

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.v.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        problem = self.plan.problem
        return problem.length, self.plan.in_group, problem.heads, problem.keys, problem.values

    def solve(self, inverse: Tensor, answers: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Of all chunks x0 and W, and b0 and W' where gradients are asked for. Forward, ``answers`` is P by key."""
        from . import triton_delta

        plan, gradient = self.plan, self.dy is not None
        precision = precisions(plan.problem.dtype)
        length, in_group, heads, keys, _ = self.sizes
        by_value, by_key = self.v.shape, (*self.v.shape[:-1], keys)
        x, w = self.empty(*by_value), self.empty(*by_key)
        b, wb = (self.empty(*by_value), self.empty(*by_key)) if gradient else (x, w)
        flags = {"PACKED": self.packed, "GRADIENT": gradient, "EXACT": precision["EXACT"]}
        if plan.problem.per_key:
            for q, p in ((self.q, answers), (self.k, inverse)):
                pairs_of_steps(plan, q, self.k, self.g, p, self.chunks, packed=self.packed)
        launch(
            triton_delta.invert,
            plan.lines * plan.chunks,
            *(self.q, self.k, self.g, self.beta, inverse, answers, self.chunks.table, self.scale),
            *(length, in_group, heads, keys, plan.chunks),
            *strides(self.q, 4),
            *strides(self.k, 4),
            *strides(self.g, 4)[:3],
            *strides(self.beta, 3),
            BLOCK=BLOCK,
            BOTH=precision["BOTH"],
            **flags,
            **{name: flag for name, flag in plan.flags().items() if name != "VALUES"},
        )
        parts = 4 if gradient else 2
        launch(
            triton_delta.solve,
            plan.lines * plan.chunks * parts,
            *names((self.k, self.v, self.g, self.beta, self.dy, inverse, answers, x, w, b, wb), self.k),
            self.chunks.table,
            *self.sizes,
            plan.chunks,
            parts,
            *strides(self.k, 4),
            *strides(self.v, 4),
            *strides(self.g, 4),
            *strides(self.beta, 3),
            *strides(self.dy, 4),
            LEFT=precision["LEFT"],
            **flags,
            **plan.flags(),
        )
        return (x, w), (b, wb)

    def scan(self, solved: tuple[Tensor, Tensor], *, backwards: bool = False) -> Tensor:
        """Completes x or b, and carries the state or its gradient; those between chunks, as linear attention has
        them."""
        from . import triton_delta

        plan, precision = self.plan, precisions(self.plan.problem.dtype)
        between = self.empty(max(1, plan.state))
        start, final = (self.dlast if backwards else self.start), self.results[-1]
        dv = self.results[2] if backwards else None
        launch(
            triton_delta.scan,
            plan.lines * plan.problem.sequences * plan.value_blocks,
            *names((self.q, self.k, self.g, self.beta, self.dy, *solved, dv, start, final, between), self.k),
            self.chunks.bounds,
            self.scale,
            *self.sizes,
            plan.chunks,
            plan.problem.sequences,
            plan.value_blocks,
            *strides(self.q, 4),
            *strides(self.k, 4),
            *strides(self.g, 4),
            *strides(self.beta, 3),
            *strides(self.dy, 4),
            *strides(dv, 4),
            *strides(start, 5),
            *strides(final, 5),
            HAS_START=start is not None,
            HAS_FINAL=final is not None,
            PACKED=self.packed,
            BACKWARDS=backwards,
            LEFT=precision["LEFT"],
            EXACT=precision["EXACT"],
            **plan.flags(),
        )
        return between


def _prepare(problem: DeltaRuleProblem) -> Run:
    plan = _plan(problem)
    exact = {**precisions(problem.dtype), "LEFT": precisions(problem.dtype)["EXACT"]}  # errors have all bits

    def run(
        inputs: Optionals, cu_seqlens: Tensor | None, gradients: Optionals, results: Optionals, scale: float
    ) -> None:
        given = _Given.of(plan, inputs, cu_seqlens, gradients, results, scale)
        inverse = empty_pairs(plan, given.v)
        p = torch.empty_like(inverse) if problem.per_key else inverse
        solved, _ = given.solve(inverse, p)
        states = given.scan(solved)
        signals = (given.q, given.k, solved[0], given.g, given.beta)
        y = (given.results[0], None)
        outputs_of_chunks(plan, signals, p, None, y, states, given.chunks, scale, packed=given.packed, precision=exact)
        given.copy_back(results)

    return run


def _gradient_plan(problem: DeltaRuleProblem) -> Plan:
    # Decays by key go through 16 rows at a time, which leaves room for more keys.
    return _plan(problem, "delta.gradient.by_key" if problem.per_key else "delta.gradient")


def _prepare_gradient(problem: DeltaRuleProblem) -> Run:
    plan, of_chunks = _plan(problem), _gradient_plan(problem)

    def run(
        inputs: Optionals, cu_seqlens: Tensor | None, gradients: Optionals, results: Optionals, scale: float
    ) -> None:
        given = _Given.of(plan, inputs, cu_seqlens, gradients, results, scale)
        pairs = empty_pairs(plan, given.v), empty_pairs(plan, given.v)
        (x, w), (b, wb) = given.solve(*pairs)
        # What the state ends as is not asked for.
        before = given._replace(results=(None,)).scan((x, w))
        behind = given.scan((b, wb), backwards=True)
        dq, dk, _, dg, dbeta, _ = results
        assert dg is not None
        assert dbeta is not None
        by_block = (of_chunks.key_blocks, *given.v.shape[:-1])
        parts = given.empty(*(given.g.shape if problem.per_key else by_block)), given.empty(*by_block)
        signals = (given.q, given.k, x, given.g, given.beta, given.dy, None)
        found = (dq, dk, *parts)
        gradients_of_chunks(
            of_chunks, signals, b, pairs, before, behind, found, given.chunks, scale, packed=given.packed
        )
        dg.copy_((parts[0] if problem.per_key else parts[0].sum(0)).reshape(dg.shape))
        dbeta.copy_(parts[1].sum(0).reshape(dbeta.shape))
        given.copy_back((None, None, results[2], None, None, results[5]))

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_wy", "triton", _refusals, _cost, _prepare),)
GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_wy", "triton", _refusals, _gradient_cost, _prepare_gradient),
)
