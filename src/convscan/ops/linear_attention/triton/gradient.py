"""Its gradient: of all chunks at once, or by programs that walk over them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...._dispatch import Cost, Implementation
from ...._gpu import Chunks, ceil_div, chunks_of, launch, names, power_of_two
from ....tuning.gpu import Work, cost, seconds
from ..cpu import Optionals, RunGradient
from ..groups import over_groups
from ..problem import AttentionGradientProblem, AttentionProblem
from .launches import (
    Ends,
    chunks_in,
    gradients_of_chunks,
    one_batch,
    outputs_of_chunks,
    pairs_by_key,
    sizes_of,
    states_between,
    strides,
    with_sequences,
)
from .plan import STEPS, TIME, Plan, configured, kernel_of, precisions, predicted, refusals, segments


def _gradient_refusals(problem: AttentionGradientProblem) -> list[str]:
    return refusals(problem.forward)


class _Walk(Plan):
    """Of gradients of keys and queries by programs that walk over chunks with a block of keys and all values."""

    def __init__(self, forward: AttentionProblem, segment: int) -> None:
        super().__init__(forward, kernel_of(forward, "attention.walk"), segment)
        chosen = configured(forward, kernel_of(forward, "attention.walk"))
        most = chosen["numbers"] // power_of_two(forward.values, 16)
        self.keys = power_of_two(forward.keys, 16, max(16, min(chosen["keys"], most)))
        self.values = power_of_two(forward.values, 16, chosen["values"])
        self.key_blocks = max(1, ceil_div(forward.keys, self.keys))
        self.value_blocks = max(1, ceil_div(forward.values, self.values))
        # Where every chunk has a place, of packed sequences too.
        self.places = chunks_of(forward.length, self.steps, forward.sequences)

    def side(self, pairs: float, results: float) -> Work:
        """Of the kernel of keys or of queries: ``pairs`` of products of those, besides those of values."""
        problem = self.problem
        products = 2.0 * problem.keys * problem.values + self.key_blocks * self.near * problem.values
        products += self.steps * problem.keys + pairs * self.near * problem.keys
        numbers, programs = 2 * problem.keys + 2 * problem.values + 1, self.programs * self.key_blocks
        gates, latency = self.key_blocks * 3.0 * STEPS, self._latency(programs)
        keyed, blocks = 2.0 * problem.keys, self.key_blocks
        found = self.work(numbers, products, gates, programs, keyed=keyed, blocks=blocks, latency=latency)
        return found._replace(moved=found.moved + 4.0 * self.elements * results)


def _gradient_plan(forward: AttentionProblem) -> tuple[Plan, _Walk | None]:
    """Of the states and the gradient of v, and of those of the keys and queries if they walk over chunks too."""
    kernel, at_once = kernel_of(forward, "attention"), kernel_of(forward, "attention.gradient")
    # Sums of keys would be one more value of the state.
    numbers = configured(forward, kernel_of(forward, "attention.walk"))["numbers"]
    walks = not forward.sums and 16 * power_of_two(forward.values, 16) <= numbers
    plans: list[tuple[Plan, _Walk | None]] = [
        (Plan(forward, at_once), None)
        if segment == STEPS
        else (Plan(forward, kernel, segment), _Walk(forward, segment))
        for segment in (segments(forward, kernel) if walks else (STEPS,))
    ]
    return min(plans, key=lambda pair: seconds(predicted(forward), *_gradient_works(*pair)))


def _gradient_works(plan: Plan, walk: _Walk | None) -> list[Work]:
    forward = plan.problem
    signals = 2 * forward.keys + 2 * forward.values + plan.gates
    before = [*2 * plan.states_work(), *([plan.pairs_work()] if forward.per_key else []), plan.outputs_work(signals)]
    if walk is None:
        return [*before, *plan.gradient_works(signals, 0)]
    results = forward.keys + 2 * walk.key_blocks
    return [*before, walk.side(0.0, results), walk.side(1.0, results), Work(1.5 * walk.sums)]


def _gradient_cost(problem: AttentionGradientProblem) -> Cost:
    forward = problem.forward
    plan, walk = _gradient_plan(forward)
    workspace = 2 * plan.kept + forward.per_key * plan.pairs + (walk or plan).sums + (walk or plan).table
    return cost(forward.device, forward.isa, workspace, *_gradient_works(plan, walk))


def _prepare_gradient(problem: AttentionGradientProblem) -> RunGradient:
    forward = problem.forward
    plan, walk = _gradient_plan(forward)
    key_blocks = (walk or plan).key_blocks

    def run(
        inputs: Optionals,
        gradients: Optionals,
        outputs: Optionals,
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> None:
        v = inputs[2]
        assert v is not None
        leading, packed = v.ndim - 3, cu_seqlens is not None
        q, k, v, g, w, *initial = (one_batch(tensor, leading) for tensor in inputs)
        dy, dsums, *dfinal = (one_batch(tensor, leading) for tensor in gradients)
        dv, *dinitial = (one_batch(outputs[at], leading) for at in (2, 5, 6))
        initial, dfinal, dinitial = (with_sequences(states, packed) for states in (initial, dfinal, dinitial))
        assert q is not None
        assert v is not None
        assert g is not None
        if forward.sums and dsums is None:
            dsums = v.new_zeros(v.shape[:-1], dtype=torch.float32)
        if forward.sums and dfinal[0] is not None and dfinal[1] is None:
            dfinal[1] = dfinal[0].new_zeros(dfinal[0].shape[:-1])
        chunks = chunks_in(cu_seqlens, v, forward.length, plan.segment)
        forward_ends, ends = Ends(initial[0], initial[1]), Ends(*dfinal, *dinitial)
        before = states_between(plan, (k, v, g, w, None), forward_ends, chunks, scale, backwards=False, packed=packed)
        # With queries for keys and the gradient for values, the state's gradient is a state that time runs back for.
        asked = (q, dy, g, None, dsums)
        behind = states_between(plan, asked, ends, chunks, scale, backwards=True, packed=packed)
        signals, at_ends = (q, k, dy, g, w), Ends(ends.start)
        pairs = pairs_by_key(plan, (q, k, v, g), chunks, packed=packed)
        outputs_of_chunks(
            plan, signals, pairs, None, (dv, None), behind, chunks, scale, ends=at_ends, backwards=True, packed=packed
        )

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=v.device)

        by_key, by_block = (*v.shape[:-1], forward.keys), (key_blocks, *v.shape[:-1])
        dq, dk = empty(*by_key), empty(*by_key)
        dg = empty(*(by_key if forward.per_key else by_block))
        dw = None if w is None else empty(*by_block)
        taken, found = (q, k, v, g, w, dy), (dq, dk, dg, dw)
        if walk is None:
            given, of_pairs = (*taken, dsums), (pairs, None)
            gradients_of_chunks(plan, given, None, of_pairs, before, behind, found, chunks, scale, packed=packed)
        else:
            states = (before, behind, initial[0], dfinal[0], dinitial[0])
            _walked_gradients(walk, taken, states, found, chunks, scale, packed=packed)
        for result, by_head in ((outputs[0], dq), (outputs[1], dk)):
            assert result is not None
            result.copy_(over_groups(by_head, forward.groups).reshape(result.shape))
        dg = dg if forward.per_key else dg.sum(0)
        for result, total in ((outputs[3], dg), (outputs[4], None if dw is None else dw.sum(0))):
            if result is not None and total is not None:
                result.copy_(total.reshape(result.shape))

    return run


def _walked_gradients(
    walk: _Walk,
    signals: Optionals,
    states: Optionals,
    results: Optionals,
    chunks: Chunks,
    scale: float,
    *,
    packed: bool,
) -> None:
    """``signals`` are q, k, v, g, w and the gradient of y, ``states`` those before and behind segments, the initial
    one, the gradient of the final one and where that of the initial one goes, ``results`` as of all chunks at once."""
    from .. import triton_walked

    problem = walk.problem
    q, k, v, g, w, dy = signals
    before, behind, start, dfinal, dinitial = states
    dq, dk, dg, dw = results
    assert q is not None
    assert dg is not None
    if not walk.whole:  # known between segments
        start = dfinal = dinitial = None
    products = dg.new_empty(walk.key_blocks * walk.programs)
    largest = dg.new_empty(walk.key_blocks * walk.lines * walk.places)
    sizes = (*sizes_of(walk, scale), walk.chunks, problem.sequences, problem.batch, walk.places, walk.key_blocks)
    of_signals = (*strides(q, 4), *strides(k, 4), *strides(v, 4), *strides(g, 3), *strides(w, 3), *strides(dy, 4))
    flags = {
        "SEGMENT": walk.segment or STEPS,
        "WHOLE": walk.whole,
        "PARTS": walk.value_blocks,
        "TIME": min(TIME, walk.steps),
        "HAS_W": w is not None,
        "HAS_START": start is not None,
        "PACKED": packed,
        **precisions(problem.dtype),
        **{name: flag for name, flag in walk.flags().items() if name != "PER_KEY"},
    }
    launch(
        triton_walked.of_keys,
        walk.programs * walk.key_blocks,
        *names((*signals, before, behind, start, dfinal, dinitial, dk, dg, dw, products, largest), q),
        chunks.bounds,
        chunks.table,
        *sizes,
        *of_signals,
        *strides(start, 5),
        *strides(dfinal, 5),
        *strides(dinitial, 5),
        HAS_DFINAL=dfinal is not None,
        HAS_DINITIAL=dinitial is not None,
        **flags,
    )
    launch(
        triton_walked.of_queries,
        walk.programs * walk.key_blocks,
        *names((*signals, before, start, dq, dg, products, largest), q),
        chunks.bounds,
        chunks.table,
        *sizes,
        *of_signals,
        *strides(start, 5),
        **flags,
    )


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_chunked", "triton", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
