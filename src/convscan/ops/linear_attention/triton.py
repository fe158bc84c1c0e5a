"""The Triton kernels of linear attention with decay: what they can run, what they would cost, how they are launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import Chunks, ceil_div, chunks_of, launch, names, power_of_two
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost
from .cpu import Optionals, Run, RunGradient
from .groups import over_groups
from .problem import AttentionGradientProblem, AttentionProblem

DTYPES = ("float32", "bfloat16", "float16")
STEPS = 64  # of a chunk, between states that are stored
_TIME = 32  # of them that are multiplied at once on the way through a sequence
BLOCK = 16  # steps of a block whose decays differ by key
# Of products on tensor cores: of two inputs, of an input on the left or the right of what has all bits of float32, and
# of two of these. See ``_triton.dot``.
_PRECISIONS = {
    "float32": {"BOTH": "three", "RIGHT": "three", "LEFT": "three", "EXACT": "three"},
    "half": {"BOTH": "half", "RIGHT": "right", "LEFT": "left", "EXACT": "three"},
    "hip": {"BOTH": "exact", "RIGHT": "exact", "LEFT": "exact", "EXACT": "exact"},
}


def _refusals(problem: AttentionProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, DTYPES, "multiplies in float32 only, not")


def precisions(dtype: str) -> dict[str, str]:
    """How products are formed, by what is multiplied."""
    if torch.version.hip is not None:
        return _PRECISIONS["hip"]
    return _PRECISIONS["float32" if dtype == "float32" else "half"]


class Plan:
    """Blocks of the keys and values of a state, the chunks of all sequences, and what each kernel does."""

    def __init__(self, problem: AttentionProblem, kernel: str = "attention") -> None:
        gpu = problem.isa if problem.device == "cuda" else "default"
        chosen = configuration(gpu, kernel)
        self.problem, self.warps = problem, chosen["warps"]
        self.keys = power_of_two(problem.keys, 16, chosen["keys"])
        self.values = power_of_two(problem.values, 16, chosen["values"])
        self.key_blocks = max(1, ceil_div(problem.keys, self.keys))
        self.value_blocks = max(1, ceil_div(problem.values, self.values))
        self.chunks = chunks_of(problem.length, STEPS, problem.sequences)
        self.lines = problem.batch * problem.heads
        self.state = self.lines * self.chunks * problem.keys * problem.values
        self.state_sum = self.lines * self.chunks * problem.keys
        self.elements = float(problem.batch * problem.length * problem.heads)
        self.gates = problem.keys if problem.per_key else 1

    @property
    def kept(self) -> float:
        """Bytes of the states at all chunks."""
        return 4.0 * (self.state + self.state_sum * self.problem.sums)

    def work(self, numbers: float, products: float, gates: float, programs: float, **more: float) -> Work:
        """``numbers`` read and written, multiply-adds on tensor cores and other operations for each step and head."""
        exact = torch.version.hip is not None
        passes = 1 if exact else 3 if self.problem.dtype == "float32" else 2
        unit = "float32" if exact else "tf32"
        # What other units do, in operations of the tensor cores, which are eight times as fast.
        core = 2.0 * passes * products + gates * (1 if exact else 8)
        item = getattr(torch, self.problem.dtype).itemsize
        moved = item * numbers * self.elements
        return Work(moved + self.kept, core * self.elements, unit, programs * self.warps / 4, **more)

    def scan_work(self) -> Work:
        problem = self.problem
        blocks = self.key_blocks * self.value_blocks
        numbers = problem.keys + problem.values + self.gates
        # A chunk is loaded, multiplied and added before the next one.
        waits = 3e-6 * ceil_div(problem.length, STEPS)
        programs = self.lines * problem.sequences * blocks
        products = float(problem.keys * problem.values)
        return self.work(numbers, products, 20.0 * self.gates * self.value_blocks, programs, latency=waits)

    def chunk_work(self, numbers: float, products: float, blocks: int) -> Work:
        """Of a kernel in which programs have a chunk and one of so many blocks."""
        problem = self.problem
        # Decays between the steps of a chunk for each block, by key products and decays of a block of steps one by one.
        inside = 3.0 * STEPS + (6.0 * BLOCK * problem.keys + 40.0 * problem.keys if problem.per_key else 0.0)
        pairs = STEPS * (problem.keys + problem.values / blocks)
        return self.work(numbers, products + blocks * pairs, blocks * inside, self.lines * self.chunks * blocks)

    def flags(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        return {
            "STEPS": STEPS,
            "KEYS": self.keys,
            "VALUES": self.values,
            "PER_KEY": self.problem.per_key,
            "num_warps": self.warps,
            "num_stages": 1,
        }


def one_batch(tensor: Tensor | None, leading: int) -> Tensor | None:
    """The leading axes as one; a copy only where they do not merge."""
    return None if tensor is None else tensor.reshape(tensor.shape[:leading].numel(), *tensor.shape[leading:])


def chunks_in(cu_seqlens: Tensor | None, stand_in: Tensor, length: int) -> Chunks:
    """Those of packed sequences; of one there is nothing to know."""
    return Chunks(stand_in, stand_in) if cu_seqlens is None else Chunks.of(cu_seqlens, length, STEPS)


def _with_sequences(states: Optionals, packed: bool) -> list[Tensor | None]:
    """(batch, sequences, heads, ...), also where there is one sequence."""
    return [tensor if tensor is None or packed else tensor.unsqueeze(1) for tensor in states]


def strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    """Of so many axes; zero for those that it does not have."""
    return (0,) * axes if tensor is None else (*tensor.stride(), *(0,) * (axes - tensor.ndim))


def _states(like: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Memory for the states at all chunks, and the sums of keys."""
    numbers = (plan.state, plan.state_sum if plan.problem.sums else 0)
    state, total = (torch.empty(max(1, n), dtype=torch.float32, device=like.device) for n in numbers)
    return state, total


def _scan(
    plan: Plan,
    signals: Optionals,
    initial: Optionals,
    final: Optionals,
    between: tuple[Tensor, Tensor],
    chunks: Chunks,
    scale: float,
    *,
    backwards: bool,
    packed: bool,
) -> None:
    """Carries states from ``initial`` to ``final``, both with an axis of sequences; ``signals`` are k, v, g, w and
    sums, with one batch axis."""
    from . import triton_chunked

    problem = plan.problem
    k, v, g, w, sums = signals
    assert k is not None
    launch(
        triton_chunked.scan,
        plan.lines * problem.sequences * plan.key_blocks * plan.value_blocks,
        *names((*signals, *initial, *final, *between), k),
        chunks.bounds,
        chunks.table,
        *_sizes(plan, scale),
        plan.chunks,
        problem.sequences,
        plan.key_blocks,
        plan.value_blocks,
        *strides(k, 4),
        *strides(v, 4),
        *strides(g, 4),
        *strides(w, 3),
        *strides(sums, 3),
        *strides(initial[0], 5),
        *strides(initial[1], 4),
        *strides(final[0], 5),
        *strides(final[1], 4),
        TIME=_TIME,
        HAS_W=w is not None,
        HAS_START=initial[0] is not None,
        HAS_FINAL=final[0] is not None,
        HAS_SUMS=problem.sums,
        PACKED=packed,
        BACKWARDS=backwards,
        LEFT=precisions(problem.dtype)["LEFT"],
        **plan.flags(),
    )


def outputs_of_chunks(
    plan: Plan,
    signals: Optionals,
    skip: Tensor | None,
    results: Optionals,
    between: tuple[Tensor, Tensor],
    chunks: Chunks,
    scale: float,
    *,
    backwards: bool = False,
    packed: bool,
    precision: dict[str, str] | None = None,
) -> None:
    """``signals`` are q, k, v, g, w, ``results`` y and sums; backwards the gradient of y for v, and that of v for y."""
    from . import triton_chunked

    problem = plan.problem
    q, k, v, g, w = signals
    assert q is not None
    launch(
        triton_chunked.outputs,
        plan.lines * plan.chunks * plan.value_blocks,
        *names((*signals, skip, *results, *between), q),
        chunks.bounds,
        chunks.table,
        *_sizes(plan, scale),
        plan.chunks,
        plan.value_blocks,
        *strides(q, 4),
        *strides(k, 4),
        *strides(v, 4),
        *strides(g, 4),
        *strides(w, 3),
        *strides(skip, 2),
        *strides(results[0], 4),
        *strides(results[1], 3),
        BLOCK=BLOCK,
        HAS_W=w is not None,
        HAS_SKIP=skip is not None,
        HAS_SUMS=problem.sums and not backwards,
        PACKED=packed,
        BACKWARDS=backwards,
        **(precision or precisions(problem.dtype)),
        **plan.flags(),
    )


def gradients_of_chunks(
    plan: Plan,
    signals: Optionals,
    errors: Tensor | None,
    before: tuple[Tensor, Tensor],
    behind: tuple[Tensor, Tensor],
    results: Optionals,
    chunks: Chunks,
    scale: float,
    *,
    packed: bool,
) -> None:
    """``signals`` are q, k, v, g, w and the gradients of y and the sums, ``results`` those of q, k, g and w by head,
    of which those of w, and of g unless it is by key, are in parts for each block of keys."""
    from . import triton_chunked

    problem = plan.problem
    q, k, v, g, w, dy, dsums = signals
    assert q is not None
    launch(
        triton_chunked.gradients,
        plan.lines * plan.chunks * plan.key_blocks,
        *names((*signals, errors, *before, *behind, *results), q),
        chunks.bounds,
        chunks.table,
        *_sizes(plan, scale),
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
        **precisions(problem.dtype),
        **plan.flags(),
    )


def _sizes(plan: Plan, scale: float) -> tuple[float, ...]:
    problem = plan.problem
    in_group = problem.heads // problem.groups if problem.groups else 1
    return scale, problem.length, in_group, problem.heads, problem.keys, problem.values


def _table(problem: AttentionProblem, plan: Plan) -> int:
    return 32 * plan.chunks if problem.sequences > 1 else 0


def _cost(problem: AttentionProblem) -> Cost:
    plan = Plan(problem)
    numbers = 2 * problem.keys + 2 * problem.values + plan.gates
    outputs = plan.chunk_work(numbers, problem.keys * problem.values, plan.value_blocks)
    workspace = plan.kept + _table(problem, plan)
    return cost(problem.device, problem.isa, workspace, plan.scan_work(), outputs)


def _prepare(problem: AttentionProblem) -> Run:
    plan = Plan(problem)

    def run(
        inputs: Optionals, skip: Tensor | None, outputs: Optionals, cu_seqlens: Tensor | None, scale: float
    ) -> None:
        v = inputs[2]
        assert v is not None
        leading, packed = v.ndim - 3, cu_seqlens is not None
        q, k, v, g, w, *initial = (one_batch(tensor, leading) for tensor in inputs)
        y, sums, *final = (one_batch(tensor, leading) for tensor in outputs)
        initial, final = _with_sequences(initial, packed), _with_sequences(final, packed)
        assert v is not None
        chunks = chunks_in(cu_seqlens, v, problem.length)
        between = _states(v, plan)
        _scan(plan, (k, v, g, w, None), initial, final, between, chunks, scale, backwards=False, packed=packed)
        outputs_of_chunks(plan, (q, k, v, g, w), skip, (y, sums), between, chunks, scale, packed=packed)

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_chunked", "triton", _refusals, _cost, _prepare),)


# ---- gradient ----


def _gradient_refusals(problem: AttentionGradientProblem) -> list[str]:
    return _refusals(problem.forward)


def _gradient_plan(forward: AttentionProblem) -> Plan:
    # Three products in place of each take more registers.
    return Plan(forward, "attention.gradient" if forward.dtype == "float32" else "attention.gradient.half")


def sums_of_parts(plan: Plan) -> float:
    """Bytes of the gradients of q and k by head, and of those of g and w by block of keys."""
    by_step = plan.key_blocks * (1 if plan.problem.per_key else 2)
    return 4.0 * plan.elements * (2 * plan.problem.keys + by_step + plan.problem.per_key * plan.problem.keys)


def _gradient_cost(problem: AttentionGradientProblem) -> Cost:
    forward = problem.forward
    plan = _gradient_plan(forward)
    sums = sums_of_parts(plan)
    state = float(forward.keys * forward.values)
    signals = 2 * forward.keys + 2 * forward.values + plan.gates
    of_v = plan.chunk_work(signals, state, plan.value_blocks)
    others = plan.chunk_work(signals, 2 * state, plan.key_blocks)
    others = others._replace(moved=others.moved + plan.kept + sums)
    works = (plan.scan_work(), plan.scan_work(), of_v, others, Work(1.5 * sums))
    return cost(forward.device, forward.isa, 2 * plan.kept + sums + _table(forward, plan), *works)


def _prepare_gradient(problem: AttentionGradientProblem) -> RunGradient:
    forward = problem.forward
    plan = _gradient_plan(forward)

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
        initial, dfinal, dinitial = (_with_sequences(states, packed) for states in (initial, dfinal, dinitial))
        assert q is not None
        assert v is not None
        assert g is not None
        if forward.sums and dsums is None:
            dsums = v.new_zeros(v.shape[:-1], dtype=torch.float32)
        if forward.sums and dfinal[0] is not None and dfinal[1] is None:
            dfinal[1] = dfinal[0].new_zeros(dfinal[0].shape[:-1])
        chunks = chunks_in(cu_seqlens, v, forward.length)
        before, behind = _states(v, plan), _states(v, plan)
        _scan(plan, (k, v, g, w, None), initial, (None, None), before, chunks, scale, backwards=False, packed=packed)
        # With queries for keys and the gradient for values, the state's gradient is a state that time runs back for.
        asked = (q, dy, g, None, dsums)
        _scan(plan, asked, dfinal, dinitial, behind, chunks, scale, backwards=True, packed=packed)
        signals = (q, k, dy, g, w)
        outputs_of_chunks(plan, signals, None, (dv, None), behind, chunks, scale, backwards=True, packed=packed)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=v.device)

        by_key, by_block = (*v.shape[:-1], forward.keys), (plan.key_blocks, *v.shape[:-1])
        dq, dk = empty(*by_key), empty(*by_key)
        dg = empty(*(by_key if forward.per_key else by_block))
        dw = None if w is None else empty(*by_block)
        taken, found = (q, k, v, g, w, dy, dsums), (dq, dk, dg, dw)
        gradients_of_chunks(plan, taken, None, before, behind, found, chunks, scale, packed=packed)
        for result, by_head in ((outputs[0], dq), (outputs[1], dk)):
            assert result is not None
            result.copy_(over_groups(by_head, forward.groups).reshape(result.shape))
        dg = dg if forward.per_key else dg.sum(0)
        for result, total in ((outputs[3], dg), (outputs[4], None if dw is None else dw.sum(0))):
            if result is not None and total is not None:
                result.copy_(total.reshape(result.shape))

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_chunked", "triton", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
