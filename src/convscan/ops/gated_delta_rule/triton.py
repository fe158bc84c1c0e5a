"""The Triton kernels of the gated delta rule: what they can run, what they would cost, how they are launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import launch, names
from ..._targets import gpu_refusals
from ...tuning.gpu import cost
from ..linear_attention.cpu import Optionals
from ..linear_attention.problem import AttentionProblem
from ..linear_attention.triton import DTYPES, STEPS, Plan, chunks_in, one_batch, outputs_of_chunks, precisions, strides
from .cpu import Run
from .problem import DeltaRuleProblem


def _refusals(problem: DeltaRuleProblem) -> list[str]:
    reasons = gpu_refusals(problem.device, problem.dtype, DTYPES, "multiplies in float32 only, not")
    reasons += ["takes decays by step, not by key"] if problem.per_key else []
    return [*reasons, "computes no gradients"] if problem.is_gradient else reasons


def _plan(problem: DeltaRuleProblem) -> Plan:
    """That of linear attention on corrections in place of values."""
    fields = {name: getattr(problem, name) for name in AttentionProblem._fields if name != "sums"}
    return Plan(AttentionProblem(**fields, sums=False), "delta")


def _cost(problem: DeltaRuleProblem) -> Cost:
    plan = _plan(problem)
    state = float(problem.keys * problem.values)
    corrections = 4.0 * plan.elements * (problem.keys + problem.values)
    signals = problem.keys + problem.values + 2
    # The inverse takes a multiply-add for each of 64 rows and step.
    solved = plan.chunk_work(signals, 2.0 * STEPS * problem.keys + STEPS * problem.values, 1)
    solved = solved._replace(
        moved=solved.moved - plan.kept + corrections, flops=solved.flops + 16.0 * STEPS**2 * plan.elements
    )
    scan = plan.scan_work()
    programs = plan.lines * problem.sequences * plan.value_blocks * plan.warps / 4
    scan = scan._replace(moved=scan.moved + 2 * corrections, flops=2 * scan.flops, programs=programs)
    scan = scan._replace(latency=2 * scan.latency, again=2 * plan.kept)
    read = plan.chunk_work(2 * problem.keys + problem.values, state, plan.value_blocks)
    read = read._replace(moved=read.moved + corrections)
    table = 32 * plan.chunks if problem.sequences > 1 else 0
    return cost(problem.device, problem.isa, plan.kept + corrections + table, solved, scan, read)


def _prepare(problem: DeltaRuleProblem) -> Run:
    from . import triton_delta

    plan = _plan(problem)
    exact = {**precisions(problem.dtype), "LEFT": precisions(problem.dtype)["EXACT"]}  # corrections have all bits
    in_group = problem.heads // problem.groups if problem.groups else 1
    sizes = (problem.length, in_group, problem.heads, problem.keys, problem.values, plan.chunks)
    blocks: dict[str, Any] = {"STEPS": STEPS, "KEYS": plan.keys, "VALUES": plan.values, "num_warps": plan.warps}
    blocks["num_stages"] = 1

    def run(
        inputs: Optionals, cu_seqlens: Tensor | None, gradients: Optionals, results: Optionals, scale: float
    ) -> None:
        given = inputs[2]
        assert given is not None
        leading, packed = given.ndim - 3, cu_seqlens is not None
        q, k, v, g, beta, start = (one_batch(tensor, leading) for tensor in inputs)
        y, final = (one_batch(tensor, leading) for tensor in results)
        assert k is not None
        assert v is not None
        assert final is not None
        if not packed:
            start, final = None if start is None else start.unsqueeze(1), final.unsqueeze(1)
        chunks = chunks_in(cu_seqlens, v, problem.length)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=k.device)

        u, w = empty(*v.shape), empty(*v.shape[:-1], problem.keys)
        between = empty(max(1, plan.state))
        launch(
            triton_delta.solve,
            plan.lines * plan.chunks,
            *names((k, v, g, beta, u, w), k),
            chunks.table,
            *sizes,
            *strides(k, 4),
            *strides(v, 4),
            *strides(g, 3),
            *strides(beta, 3),
            PACKED=packed,
            BOTH=exact["BOTH"],
            LEFT=precisions(problem.dtype)["LEFT"],
            **blocks,
        )
        launch(
            triton_delta.scan,
            plan.lines * problem.sequences * plan.value_blocks,
            *names((k, g, u, w, start, final, between), k),
            chunks.bounds,
            *sizes,
            problem.sequences,
            plan.value_blocks,
            *strides(k, 4),
            *strides(g, 3),
            *strides(start, 5),
            *strides(final, 5),
            HAS_START=start is not None,
            PACKED=packed,
            EXACT=exact["EXACT"],
            **blocks,
        )
        states = (between, between)
        outputs_of_chunks(
            plan, (q, k, u, g, None), None, (y, None), states, chunks, scale, packed=packed, precision=exact
        )

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_wy", "triton", _refusals, _cost, _prepare),)
