"""How linear attention is cut up on a GPU: blocks of a state, segments of sequences, and what each kernel does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...._gpu import ceil_div, chunks_of, power_of_two
from ...._targets import gpu_refusals
from ....tuning.gpu import Work, configuration, peaks
from ..problem import AttentionProblem

DTYPES = ("float32", "bfloat16", "float16")
STEPS = 64  # of a chunk
WHOLE = 0  # for a segment: a sequence, however long
_SEGMENTS = (WHOLE, STEPS, 2 * STEPS, 4 * STEPS, 8 * STEPS, 16 * STEPS)
TIME = 32  # steps that a state takes up at once
WINDOW, NUMBERS = 8, 512  # segments and numbers of a state that a program carries at a time
BLOCK = 16  # steps of a block whose decays differ by key
# Of products on tensor cores: of two inputs, of an input on the left or the right of what has all bits of float32, and
# of two of these. See ``_triton.dot``.
_PRECISIONS = {
    "float32": {"BOTH": "three", "RIGHT": "three", "LEFT": "three", "EXACT": "three"},
    "half": {"BOTH": "half", "RIGHT": "right", "LEFT": "left", "EXACT": "three"},
    "hip": {"BOTH": "exact", "RIGHT": "exact", "LEFT": "exact", "EXACT": "exact"},
}


def refusals(problem: AttentionProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, DTYPES, "multiplies in float32 only, not")


def precisions(dtype: str) -> dict[str, str]:
    """How products are formed, by what is multiplied."""
    if torch.version.hip is not None:
        return _PRECISIONS["hip"]
    return _PRECISIONS["float32" if dtype == "float32" else "half"]


def configured(problem: AttentionProblem, kernel: str) -> Mapping[str, int]:
    return configuration(problem.isa if problem.device == "cuda" else "default", kernel)


def kernel_of(problem: AttentionProblem, name: str) -> str:
    """Configurations are of a kernel and the type that it multiplies: three products of float32 take more registers."""
    return name if problem.dtype == "float32" else name + ".half"


def predicted(problem: AttentionProblem) -> str:
    """The device that times are predicted for."""
    return problem.isa if problem.device == "cuda" else "NVIDIA A100"


class Plan:
    """Blocks of the keys and values of a state, where sequences are cut, and what each kernel does.

    ``segment`` is the number of steps between states that are stored: STEPS, or more where programs walk over the
    chunks of a segment with all keys of a block of values in registers, or WHOLE sequences.
    """

    def __init__(self, problem: AttentionProblem, kernel: str = "attention", segment: int | None = None) -> None:
        chosen = configured(problem, kernel)
        self.problem, self.warps, self.segment = problem, chosen["warps"], STEPS if segment is None else segment
        self.processors = peaks(predicted(problem))["processors"]
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
    def in_group(self) -> int:
        """Heads that share queries and keys."""
        return self.problem.heads // self.problem.groups if self.problem.groups else 1

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
        carried = self.lines * problem.sequences * ceil_div(problem.keys * self.columns, NUMBERS)
        steps = 1e-6 * ceil_div(ceil_div(problem.length, self.segment), WINDOW)
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


def _carried(problem: AttentionProblem, kernel: str) -> int:
    """Numbers of a state that a program carries over chunks. Decays by key take all registers there are: with a state
    in them too, 128 to 800 bytes of a thread's would spill."""
    return 0 if problem.per_key else configured(problem, kernel)["summed" if problem.sums else "numbers"]


def segments(problem: AttentionProblem, kernel: str) -> list[int]:
    """Those that programs can have: of a state all keys, for the fewest values that tensor cores multiply."""
    walks = 16 * power_of_two(problem.keys, 16) <= _carried(problem, kernel) and problem.length > 0
    return [segment for segment in _SEGMENTS if segment == STEPS or (walks and segment < problem.length)]
