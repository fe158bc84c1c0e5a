"""The Triton kernels of linear attention with decay: what they can run, what they would cost, how they are launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import Chunks, ceil_div, chunks_of, launch, names, power_of_two
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost, peaks, seconds
from .cpu import Optionals, Run, RunGradient
from .groups import over_groups
from .problem import AttentionGradientProblem, AttentionProblem

DTYPES = ("float32", "bfloat16", "float16")
STEPS = 64  # of a chunk
WHOLE = 0  # for a segment: a sequence, however long
_SEGMENTS = (WHOLE, STEPS, 2 * STEPS, 4 * STEPS, 8 * STEPS, 16 * STEPS)
_TIME = 32  # steps that a state takes up at once
_WINDOW, _NUMBERS = 8, 512  # segments and numbers of a state that a program carries at a time
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


def _configuration(problem: AttentionProblem, kernel: str) -> Mapping[str, int]:
    return configuration(problem.isa if problem.device == "cuda" else "default", kernel)


def _kernel(problem: AttentionProblem, name: str) -> str:
    """Configurations are of a kernel and the type that it multiplies: three products of float32 take more registers."""
    return name if problem.dtype == "float32" else name + ".half"


def _predicted(problem: AttentionProblem) -> str:
    """The device that times are predicted for."""
    return problem.isa if problem.device == "cuda" else "NVIDIA A100"


class Plan:
    """Blocks of the keys and values of a state, where sequences are cut, and what each kernel does.

    ``segment`` is the number of steps between states that are stored: STEPS, or more where programs walk over the
    chunks of a segment with all keys of a block of values in registers, or WHOLE sequences.
    """

    def __init__(self, problem: AttentionProblem, kernel: str = "attention", segment: int | None = None) -> None:
        chosen = _configuration(problem, kernel)
        self.problem, self.warps, self.segment = problem, chosen["warps"], STEPS if segment is None else segment
        self.processors = peaks(_predicted(problem))["processors"]
        self.whole, self.carried = self.segment == WHOLE, self.segment != STEPS
        self.steps = chosen["steps"] if self.carried else STEPS
        self.keys = power_of_two(problem.keys, 16, chosen["keys"])
        # With sums a state has a column of them, in memory where what lies behind is as aligned as before.
        columns = problem.values + problem.sums
        self.columns = problem.values + 16 * problem.sums
        most = chosen["values"]
        if self.carried:
            most = max(16, min(most, _carried(problem, kernel) // power_of_two(problem.keys, 16)))
        self.values = power_of_two(columns, 16, most)
        self.key_blocks = max(1, ceil_div(problem.keys, self.keys))
        self.value_blocks = max(1, ceil_div(columns, self.values))
        self.parts = self.key_blocks if self.carried else 1
        self.chunks = 0 if self.whole else chunks_of(problem.length, self.segment, problem.sequences)
        self.lines = problem.batch * problem.heads
        self.state = self.lines * self.chunks * problem.keys * self.columns
        self.elements = float(problem.batch * problem.length * problem.heads)
        self.gates = problem.keys if problem.per_key else 1

    @property
    def kept(self) -> float:
        """Bytes of the states at all segments."""
        return 4.0 * self.state

    @property
    def programs(self) -> int:
        """Parts of all sequences that programs have, by head."""
        return self.lines * (self.problem.sequences if self.whole else self.chunks)

    def work(
        self,
        numbers: float,
        products: float,
        gates: float,
        programs: float,
        *,
        keyed: float = 0.0,
        blocks: int = 1,
        latency: float = 0.0,
    ) -> Work:
        """``numbers`` read and written, multiply-adds on tensor cores and other operations for each step and head;
        ``keyed`` numbers are a group's, which as many ``blocks`` of all its heads read again."""
        exact, problem = torch.version.hip is not None, self.problem
        unit = "float32" if exact else "tf32"
        # What other units do, in operations of the tensor cores, which are eight times as fast.
        core = 2.0 * self.passes * products + gates * (1 if exact else 8)
        item = getattr(torch, problem.dtype).itemsize
        once = keyed * problem.groups / max(1, problem.heads)
        moved, again = item * (numbers - keyed + once) * self.elements, item * (keyed * blocks - once) * self.elements
        programs *= self.warps / 4
        return Work(moved + self.kept, core * self.elements, unit, programs, latency=latency, shared=again)

    @property
    def passes(self) -> float:
        """Products of tensor cores that one of a signal with what has all bits of float32 takes."""
        return 1.0 if torch.version.hip is not None else 3.0 if self.problem.dtype == "float32" else 2.0

    @property
    def near(self) -> float:
        """Multiply-adds as much as q[t]^T k[s] for all pairs of a chunk, for each step and key: of half types one
        product at twice the rate."""
        return self.steps * (1.0 if self.problem.dtype == "float32" or torch.version.hip is not None else 0.25)

    def scan_work(self) -> Work:
        """Of a kernel that goes through sequences and stores the state before every chunk."""
        problem = self.problem
        blocks = self.key_blocks * self.value_blocks
        numbers = problem.keys + problem.values + self.gates
        # A chunk is loaded, multiplied and added before the next one.
        waits = 3e-6 * ceil_div(problem.length, STEPS)
        programs = self.lines * problem.sequences * blocks
        products = float(problem.keys * problem.values)
        return self.work(numbers, products, 20.0 * self.gates * self.value_blocks, programs, latency=waits)

    def states_work(self) -> list[Work]:
        """Of what all segments add to the state, and of carrying it over them."""
        problem = self.problem
        if self.whole:
            return []
        numbers = problem.keys + problem.values + self.gates
        products = float(problem.keys * problem.values)
        programs = self.programs * self.value_blocks * (self.key_blocks // self.parts)
        gates = 20.0 * self.gates * self.value_blocks
        waits = self._latency(programs) / 2  # there is nothing but one product
        carried = self.lines * problem.sequences * ceil_div(problem.keys * self.columns, _NUMBERS)
        steps = 1e-6 * ceil_div(ceil_div(problem.length, self.segment), _WINDOW)
        return [
            self.work(numbers, products, gates, programs, keyed=problem.keys, blocks=self.value_blocks, latency=waits),
            Work(2 * self.kept, 2.0 * self.state, "float32", carried, latency=steps),
        ]

    def _latency(self, programs: int) -> float:
        """Seconds that programs take at least that load a chunk, multiply and add before the next one: of four warps,
        the registers of a multiprocessor hold two."""
        chunks = ceil_div(self.problem.length if self.whole else self.segment, self.steps)
        together = max(1, 8 // self.warps) * self.processors
        each = 1e-6 + 2e-6 * self.steps / STEPS
        return each * chunks * max(1, ceil_div(programs, together)) if self.carried else 0.0

    @property
    def pairs(self) -> float:
        """Bytes of a number for each step and step of its chunk."""
        return 4.0 * STEPS * self.elements

    @property
    def sums(self) -> float:
        """Bytes of the gradients of q and k by head, and of those of g and w by block of keys."""
        by_step = self.key_blocks * (1 if self.problem.per_key else 2)
        return 4.0 * self.elements * (2 * self.problem.keys + by_step + self.problem.per_key * self.problem.keys)

    @property
    def table(self) -> float:
        """Bytes of the chunks of packed sequences."""
        return 32.0 * self.chunks if self.problem.sequences > 1 else 0.0

    def chunk_work(
        self, numbers: float, products: float, gates: float, blocks: int, moved: float, keyed: float = 0.0
    ) -> Work:
        """Of a kernel in which programs have a chunk and one of so many blocks, with other bytes that it moves."""
        programs = self.lines * chunks_of(self.problem.length, STEPS, self.problem.sequences) * blocks
        work = self.work(numbers, products, gates, programs, keyed=keyed, blocks=blocks)
        return work._replace(moved=work.moved - self.kept + moved)

    def pairs_work(self) -> Work:
        """Of ``pairs``: products between blocks of steps, and of four halves of a block."""
        keys = self.problem.keys
        # Sums and exponentials up to the later block by each of four, and of the halves of a block.
        gates = 10.0 * (STEPS / BLOCK + 8) * keys
        return self.chunk_work(2 * keys + self.gates, (STEPS + 4.0 * BLOCK) * keys, gates, STEPS // BLOCK, self.pairs)

    def outputs_work(self, numbers: float) -> Work:
        """Of ``outputs``, whose programs have a segment and a block of values, and for each block form products of q
        and k again, or decays by key."""
        keys, values, blocks = self.problem.keys, self.problem.values, self.value_blocks
        products, gates = float((1 + self.carried) * keys * values + self.steps * values), 3.0 * STEPS * blocks
        if self.problem.per_key:
            gates = 10.0 * keys * blocks
        else:
            products += blocks * self.near * keys
        programs = self.programs * blocks
        latency, keyed = self._latency(programs), (1 if self.problem.per_key else 2) * keys
        work = self.work(numbers, products, gates, programs, keyed=keyed, blocks=blocks, latency=latency)
        return work._replace(moved=work.moved + self.problem.per_key * self.pairs)

    def gradient_works(self, numbers: float, errors: int) -> list[Work]:
        """Of ``gradients``, of errors or by key of ``pair_gradients`` before, and of the sums over heads and blocks of
        keys."""
        keys, values, by_key = self.problem.keys, self.problem.values, self.problem.per_key
        has_pairs, of_errors = by_key or errors > 0, 4.0 * errors * values * self.elements
        matrices = has_pairs * (1 + errors) * self.pairs
        of_pairs = self.chunk_work(2 * values, (1.0 + errors) * STEPS * values, STEPS, 1, matrices + 2 * of_errors)
        if by_key:
            # Of queries and of keys, between blocks and of four halves of a block.
            products, gates = (1 + errors) * 2 * (STEPS + 4.0 * BLOCK) * keys, 300.0 * keys
        else:
            products, gates = (
                (1 + errors) * (2 * STEPS + self.near) * keys,
                3.0 * STEPS * self.key_blocks * (1 + errors),
            )
            products += 0 if has_pairs else self.near * values * self.key_blocks
        products += (2 + errors) * keys * values
        moved = 2 * self.kept + self.sums + matrices + 2 * of_errors
        others = self.chunk_work(numbers, products, gates, self.key_blocks, moved, 2.0 * keys)
        return [*([of_pairs] if has_pairs else []), others, Work(1.5 * self.sums)]

    def flags(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        return {
            "STEPS": self.steps,
            "KEYS": self.keys,
            "VALUES": self.values,
            "PER_KEY": self.problem.per_key,
            "num_warps": self.warps,
            "num_stages": 1,
        }


def one_batch(tensor: Tensor | None, leading: int) -> Tensor | None:
    """The leading axes as one; a copy only where they do not merge."""
    return None if tensor is None else tensor.reshape(tensor.shape[:leading].numel(), *tensor.shape[leading:])


def chunks_in(cu_seqlens: Tensor | None, stand_in: Tensor, length: int, steps: int = 0) -> Chunks:
    """Those of packed sequences, of STEPS or as many; of one sequence there is nothing to know."""
    return Chunks(stand_in, stand_in) if cu_seqlens is None else Chunks.of(cu_seqlens, length, steps or STEPS)


def _with_sequences(states: Optionals, packed: bool) -> list[Tensor | None]:
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


def _between(
    plan: Plan, signals: Optionals, ends: Ends, chunks: Chunks, scale: float, *, backwards: bool, packed: bool
) -> Tensor:
    """The states before all segments, backwards those behind them; ``signals`` are k, v, g, w and sums, with one batch
    axis. Nothing where segments are whole sequences."""
    from . import triton_chunked

    problem = plan.problem
    k, v, g, w, sums = signals
    assert k is not None
    between = torch.empty(max(1, plan.state), dtype=torch.float32, device=k.device)
    if plan.whole:
        return between
    decays = between.new_empty(max(1, plan.lines * plan.chunks * plan.gates))
    precision = precisions(problem.dtype)
    launch(
        triton_chunked.states,
        plan.programs * (plan.key_blocks // plan.parts) * plan.value_blocks,
        *names((*signals, between), k),
        decays,
        chunks.table,
        *_sizes(plan, scale),
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
        TIME=_TIME,
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
    blocks = ceil_div(problem.keys * plan.columns, _NUMBERS)
    launch(
        triton_chunked.carry,
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
        WINDOW=_WINDOW,
        NUMBERS=_NUMBERS,
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
    from . import triton_chunked

    problem = plan.problem
    in_group = problem.heads // problem.groups if problem.groups else 1
    launch(
        triton_chunked.pairs,
        plan.lines * plan.chunks * (STEPS // BLOCK),
        *(q, k, g, p, chunks.table),
        *(problem.length, in_group, problem.heads, problem.keys, plan.chunks),
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
    from . import triton_chunked

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
        *_sizes(plan, scale),
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
        TIME=min(_TIME, plan.steps),
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
    from . import triton_chunked

    problem = plan.problem
    q, k, v, g, w, dy, dsums = signals
    assert q is not None
    precision = precisions(problem.dtype)
    if pairs[0] is not None:
        launch(
            triton_chunked.pair_gradients,
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
        triton_chunked.gradients,
        plan.lines * plan.chunks * plan.key_blocks,
        *names((*signals, errors, *pairs, before, behind, *results), q),
        chunks.bounds,
        chunks.table,
        *_sizes(plan, scale),
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


def _sizes(plan: Plan, scale: float) -> tuple[float, ...]:
    problem = plan.problem
    in_group = problem.heads // problem.groups if problem.groups else 1
    return scale, problem.length, in_group, problem.heads, problem.keys, problem.values


def _carried(problem: AttentionProblem, kernel: str) -> int:
    """Numbers of a state that a program carries over chunks. Decays by key take all registers there are: with a state
    in them too, 128 to 800 bytes of a thread's would spill."""
    return 0 if problem.per_key else _configuration(problem, kernel)["summed" if problem.sums else "numbers"]


def _segments(problem: AttentionProblem, kernel: str) -> list[int]:
    """Those that programs can have: of a state all keys, for the fewest values that tensor cores multiply."""
    walks = 16 * power_of_two(problem.keys, 16) <= _carried(problem, kernel) and problem.length > 0
    return [segment for segment in _SEGMENTS if segment == STEPS or (walks and segment < problem.length)]


def _works(plan: Plan) -> list[Work]:
    problem = plan.problem
    outputs = plan.outputs_work(2 * problem.keys + 2 * problem.values + plan.gates)
    return [*plan.states_work(), *([plan.pairs_work()] if problem.per_key else []), outputs]


def _plan(problem: AttentionProblem) -> Plan:
    """With the segments that are predicted to be fastest."""
    kernel = "attention.by_key" if problem.per_key else _kernel(problem, "attention")
    plans = [Plan(problem, kernel, segment) for segment in _segments(problem, kernel)]
    return min(plans, key=lambda plan: seconds(_predicted(problem), *_works(plan)))


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
        ends = Ends(*_with_sequences(initial, packed), *_with_sequences(final, packed))
        assert v is not None
        chunks = chunks_in(cu_seqlens, v, problem.length, plan.segment)
        between = _between(plan, (k, v, g, w, None), ends, chunks, scale, backwards=False, packed=packed)
        p = None
        if problem.per_key:
            assert q is not None
            assert k is not None
            assert g is not None
            p = empty_pairs(plan, v)
            pairs_of_steps(plan, q, k, g, p, chunks, packed=packed)
        outputs_of_chunks(plan, (q, k, v, g, w), p, skip, (y, sums), between, chunks, scale, ends=ends, packed=packed)

    return run


ROWS: tuple[Implementation, ...] = (Implementation("triton_chunked", "triton", _refusals, _cost, _prepare),)


# ---- gradient ----


def _gradient_refusals(problem: AttentionGradientProblem) -> list[str]:
    return _refusals(problem.forward)


class _Walk(Plan):
    """Of gradients of keys and queries by programs that walk over chunks with a block of keys and all values."""

    def __init__(self, forward: AttentionProblem, segment: int) -> None:
        super().__init__(forward, _kernel(forward, "attention.walk"), segment)
        chosen = _configuration(forward, _kernel(forward, "attention.walk"))
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
    kernel, at_once = _kernel(forward, "attention"), _kernel(forward, "attention.gradient")
    # Sums of keys would be one more value of the state.
    numbers = _configuration(forward, _kernel(forward, "attention.walk"))["numbers"]
    walks = not forward.sums and 16 * power_of_two(forward.values, 16) <= numbers
    plans: list[tuple[Plan, _Walk | None]] = [
        (Plan(forward, at_once), None)
        if segment == STEPS
        else (Plan(forward, kernel, segment), _Walk(forward, segment))
        for segment in (_segments(forward, kernel) if walks else (STEPS,))
    ]
    return min(plans, key=lambda pair: seconds(_predicted(forward), *_gradient_works(*pair)))


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
        initial, dfinal, dinitial = (_with_sequences(states, packed) for states in (initial, dfinal, dinitial))
        assert q is not None
        assert v is not None
        assert g is not None
        if forward.sums and dsums is None:
            dsums = v.new_zeros(v.shape[:-1], dtype=torch.float32)
        if forward.sums and dfinal[0] is not None and dfinal[1] is None:
            dfinal[1] = dfinal[0].new_zeros(dfinal[0].shape[:-1])
        chunks = chunks_in(cu_seqlens, v, forward.length, plan.segment)
        forward_ends, ends = Ends(initial[0], initial[1]), Ends(*dfinal, *dinitial)
        before = _between(plan, (k, v, g, w, None), forward_ends, chunks, scale, backwards=False, packed=packed)
        # With queries for keys and the gradient for values, the state's gradient is a state that time runs back for.
        asked = (q, dy, g, None, dsums)
        behind = _between(plan, asked, ends, chunks, scale, backwards=True, packed=packed)
        signals, at_ends, pairs = (q, k, dy, g, w), Ends(ends.start), None
        if forward.per_key:
            assert k is not None
            pairs = empty_pairs(plan, v)
            pairs_of_steps(plan, q, k, g, pairs, chunks, packed=packed)
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
    from . import triton_walked

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
    sizes = (*_sizes(walk, scale), walk.chunks, problem.sequences, problem.batch, walk.places, walk.key_blocks)
    of_signals = (*strides(q, 4), *strides(k, 4), *strides(v, 4), *strides(g, 3), *strides(w, 3), *strides(dy, 4))
    flags = {
        "SEGMENT": walk.segment or STEPS,
        "WHOLE": walk.whole,
        "PARTS": walk.value_blocks,
        "TIME": min(_TIME, walk.steps),
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
