"""Launches of the kernels of linear attention, of which those of the gated delta rule are made too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...._gpu import Chunks, ceil_div, launch, names
from ..cpu import Optionals
from .plan import BLOCK, NUMBERS, STEPS, TIME, WINDOW, Plan, precisions


def one_batch(tensor: Tensor | None, leading: int) -> Tensor | None:
    """The leading axes as one; a copy only where they do not merge."""
    return None if tensor is None else tensor.reshape(tensor.shape[:leading].numel(), *tensor.shape[leading:])


def chunks_in(cu_seqlens: Tensor | None, stand_in: Tensor, length: int, steps: int = 0) -> Chunks:
    """Those of packed sequences, of STEPS or as many; of one sequence there is nothing to know."""
    return Chunks(stand_in, stand_in) if cu_seqlens is None else Chunks.of(cu_seqlens, length, steps or STEPS)


def with_sequences(states: Optionals, packed: bool) -> list[Tensor | None]:
    """(batch, sequences, heads, ...), also where there is one sequence."""
    return [tensor if tensor is None or packed else tensor.unsqueeze(1) for tensor in states]


def strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    """Of so many axes; zero for those that it does not have."""
    return (0,) * axes if tensor is None else (*tensor.stride(), *(0,) * (axes - tensor.ndim))


class Ends(NamedTuple):
    """The states of all sequences at the ends of time, with an axis of sequences, and the sums of their keys."""

    start: Tensor | None = None
    start_sum: Tensor | None = None
    final: Tensor | None = None
    final_sum: Tensor | None = None

    def strides(self) -> tuple[int, ...]:
        return tuple(step for tensor, axes in zip(self, (5, 4, 5, 4), strict=True) for step in strides(tensor, axes))

    def flags(self) -> dict[str, bool]:
        return {"HAS_START": self.start is not None, "HAS_FINAL": self.final is not None}


def states_between(
    plan: Plan, signals: Optionals, ends: Ends, chunks: Chunks, scale: float, *, backwards: bool, packed: bool
) -> Tensor:
    """The states before all segments, backwards those behind them; ``signals`` are k, v, g, w and sums, with one batch
    axis. Nothing where segments are whole sequences."""
    from .. import triton_states

    problem = plan.problem
    k, v, g, w, sums = signals
    assert k is not None
    between = torch.empty(max(1, plan.state), dtype=torch.float32, device=k.device)
    if plan.whole:
        return between
    decays = between.new_empty(max(1, plan.lines * plan.chunks * plan.gates))
    precision = precisions(problem.dtype)
    launch(
        triton_states.states,
        plan.programs * (plan.key_blocks // plan.parts) * plan.value_blocks,
        *names((*signals, between), k),
        decays,
        chunks.table,
        *sizes_of(plan, scale),
        plan.columns,
        plan.chunks,
        plan.key_blocks // plan.parts,
        plan.value_blocks,
        *strides(k, 4),
        *strides(v, 4),
        *strides(g, 4),
        *strides(w, 3),
        *strides(sums, 3),
        PARTS=plan.parts,
        SEGMENT=plan.segment,
        TIME=TIME,
        KEYS=plan.keys,
        VALUES=plan.values,
        PER_KEY=problem.per_key,
        HAS_W=w is not None,
        HAS_SUMS=problem.sums,
        PACKED=packed,
        BACKWARDS=backwards,
        RIGHT=precision["RIGHT"],
        LEFT=precision["LEFT"],
        EXACT=precision["EXACT"],
        num_warps=plan.warps,
        num_stages=1,
    )
    blocks = ceil_div(problem.keys * plan.columns, NUMBERS)
    launch(
        triton_states.carry,
        plan.lines * problem.sequences * blocks,
        between,
        decays,
        *names(ends, k),
        chunks.bounds,
        problem.length,
        problem.heads,
        problem.keys,
        problem.values,
        plan.columns,
        plan.chunks,
        problem.sequences,
        blocks,
        *ends.strides(),
        SEGMENT=plan.segment,
        WINDOW=WINDOW,
        NUMBERS=NUMBERS,
        PER_KEY=problem.per_key,
        HAS_SUMS=problem.sums,
        PACKED=packed,
        BACKWARDS=backwards,
        num_warps=4,
        **ends.flags(),
    )
    return between


def pairs_of_steps(plan: Plan, q: Tensor, k: Tensor, g: Tensor, p: Tensor, chunks: Chunks, *, packed: bool) -> None:
    """Products of q and k between the steps of each chunk, with decays by key."""
    from .. import triton_chunked

    problem = plan.problem
    launch(
        triton_chunked.pairs,
        plan.lines * plan.chunks * (STEPS // BLOCK),
        *(q, k, g, p, chunks.table),
        *(problem.length, plan.in_group, problem.heads, problem.keys, plan.chunks),
        *strides(q, 4),
        *strides(k, 4),
        *strides(g, 4),
        BLOCK=BLOCK,
        PACKED=packed,
        EXACT=precisions(problem.dtype)["EXACT"],
        **{name: flag for name, flag in plan.flags().items() if name not in ("VALUES", "PER_KEY")},
    )


def empty_pairs(plan: Plan, like: Tensor) -> Tensor:
    """Memory for a number of each step and step of its chunk."""
    problem = plan.problem
    shape = (problem.batch, problem.length, problem.heads, STEPS)
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def pairs_by_key(plan: Plan, signals: Optionals, chunks: Chunks, *, packed: bool) -> Tensor | None:
    """These products of the first of ``signals`` q, k, v and g, where decays are by key."""
    if not plan.problem.per_key:
        return None
    q, k, v, g = signals[:4]
    assert q is not None
    assert k is not None
    assert v is not None
    assert g is not None
    pairs = empty_pairs(plan, v)
    pairs_of_steps(plan, q, k, g, pairs, chunks, packed=packed)
    return pairs


def outputs_of_chunks(
    plan: Plan,
    signals: Optionals,
    p: Tensor | None,
    skip: Tensor | None,
    results: Optionals,
    between: Tensor,
    chunks: Chunks,
    scale: float,
    *,
    ends: Ends | None = None,
    backwards: bool = False,
    packed: bool,
    precision: dict[str, str] | None = None,
) -> None:
    """``signals`` are q, k, v, g, w, ``p`` by key the products of q and k, ``results`` y and sums; backwards the
    gradient of y for v, and that of v for y. Where segments are whole sequences, the states at their ``ends``
    instead of those ``between``."""
    from .. import triton_chunked

    problem = plan.problem
    q, k, v, g, w = signals
    assert q is not None
    ends = Ends() if ends is None or not plan.whole else ends
    launch(
        triton_chunked.outputs,
        plan.programs * plan.value_blocks,
        *names((*signals, p, skip, *results, between, *ends), q),
        chunks.bounds,
        chunks.table,
        *sizes_of(plan, scale),
        plan.columns,
        plan.chunks,
        problem.sequences,
        plan.value_blocks,
        *strides(q, 4),
        *strides(k, 4),
        *strides(v, 4),
        *strides(g, 4),
        *strides(w, 3),
        *strides(skip, 2),
        *strides(results[0], 4),
        *strides(results[1], 3),
        *ends.strides(),
        SEGMENT=STEPS if plan.whole else plan.segment,
        WHOLE=plan.whole,
        CARRIED=plan.parts if plan.carried else 0,
        TIME=min(TIME, plan.steps),
        HAS_W=w is not None,
        HAS_SKIP=skip is not None,
        HAS_SUMS=problem.sums and not backwards,
        PACKED=packed,
        BACKWARDS=backwards,
        **ends.flags(),
        **(precision or precisions(problem.dtype)),
        **plan.flags(),
    )


def gradients_of_chunks(
    plan: Plan,
    signals: Optionals,
    errors: Tensor | None,
    pairs: Optionals,
    before: Tensor,
    behind: Tensor,
    results: Optionals,
    chunks: Chunks,
    scale: float,
    *,
    packed: bool,
) -> None:
    """``signals`` are q, k, v, g, w and the gradients of y and the sums, ``results`` those of q, k, g and w by head,
    of which those of w, and of g unless it is by key, are in parts for each block of keys. ``pairs`` is memory for the
    gradients of products between the steps of a chunk, by key of queries and keys, of errors of keys too."""
    from .. import triton_gradients

    problem = plan.problem
    q, k, v, g, w, dy, dsums = signals
    assert q is not None
    precision = precisions(problem.dtype)
    if pairs[0] is not None:
        launch(
            triton_gradients.pair_gradients,
            plan.lines * plan.chunks,
            *names((v, dy, dsums, errors, *pairs), q),
            chunks.table,
            *(scale, problem.length, problem.heads, problem.values, plan.chunks),
            *strides(v, 4),
            *strides(dy, 4),
            *strides(dsums, 3),
            HAS_SUMS=problem.sums,
            HAS_ERRORS=errors is not None,
            PACKED=packed,
            BOTH=precision["BOTH"],
            EXACT=precision["EXACT"],
            **{name: flag for name, flag in plan.flags().items() if name not in ("KEYS", "PER_KEY")},
        )
    launch(
        triton_gradients.gradients,
        plan.lines * plan.chunks * plan.key_blocks,
        *names((*signals, errors, *pairs, before, behind, *results), q),
        chunks.bounds,
        chunks.table,
        *sizes_of(plan, scale),
        plan.columns,
        plan.chunks,
        problem.batch,
        plan.key_blocks,
        *strides(q, 4),
        *strides(k, 4),
        *strides(v, 4),
        *strides(g, 4),
        *strides(w, 3),
        *strides(dy, 4),
        *strides(dsums, 3),
        BLOCK=BLOCK,
        HAS_W=w is not None,
        HAS_SUMS=problem.sums,
        HAS_ERRORS=errors is not None,
        PACKED=packed,
        **precision,
        **plan.flags(),
    )


def sizes_of(plan: Plan, scale: float) -> tuple[float, ...]:
    problem = plan.problem
    return scale, problem.length, plan.in_group, problem.heads, problem.keys, problem.values
