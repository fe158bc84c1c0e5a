"""The native kernels of linear attention with decay: what they can run, what it would cost, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import Cost, Implementation
from ..._layout import fold
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .problem import AttentionGradientProblem, AttentionProblem

DTYPES = ("float32", "float64", "bfloat16", "float16")
Optionals = Sequence[Tensor | None]
# (q, k, v, g, w, initial S, initial n), skip, (y, sums, final S, final n), cu_seqlens, the factor of q.
Run = Callable[[Optionals, Tensor | None, Optionals, Tensor | None, float], None]
# The same inputs, then the gradients of the outputs, then the results for the inputs.
RunGradient = Callable[[Optionals, Optionals, Optionals, Tensor | None, float], None]
Described = tuple[int, tuple[int, ...]] | None


def _refusals(problem: AttentionProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _steps(problem: AttentionProblem) -> int:
    """Steps of a tile of time; csrc/chunk/tile.h."""
    return 16 if problem.per_key else 64


def heads_together(problem: AttentionProblem) -> int:
    """Heads of a group whose gradients of q and k one task sums: by the sizes alone, for the sake of the same sums."""
    tasks = problem.batch * problem.sequences * problem.heads
    return 1 if problem.per_key or tasks < 16 else min(4, problem.heads // max(1, problem.groups))


def work(problem: AttentionProblem, products: float = 2) -> tuple[float, float]:
    """Multiply-adds with ``products`` products of the size of a state, and numbers to load and store."""
    elements = problem.batch * problem.length * problem.heads
    steps = _steps(problem)
    pairs = steps * problem.keys if problem.per_key else steps * problem.keys / 8
    units = elements * (products * problem.keys * problem.columns + pairs + steps / 2 * problem.columns)
    return units, elements * (problem.keys + problem.columns)


def _seconds(problem: AttentionProblem, products: float, kernel: str) -> float:
    units, elements = work(problem, products)
    item = getattr(torch, problem.dtype).itemsize
    return kernel_seconds(
        problem.isa,
        kernel,
        problem.dtype,
        units=units,
        elements=elements,
        moved=item * problem.batch * problem.length * problem.heads * 2 * problem.values,
        workers=max(1, min(problem.threads, problem.batch * problem.sequences * problem.heads)),
        threads=problem.threads,
    )


def _row(size: int) -> int:
    return -(-size // 16) * 16


def _cost(problem: AttentionProblem) -> Cost:
    keys, values, steps = _row(problem.keys), _row(problem.columns), _steps(problem)
    item = max(4, getattr(torch, problem.dtype).itemsize)
    tiles = steps * (8 * keys + 3 * values + 3 * steps) + 4 * keys * values
    return Cost(_seconds(problem, 2, "attention.chunked"), problem.threads * item * tiles)


def _gradient_cost(problem: AttentionGradientProblem) -> Cost:
    forward = problem.forward
    keys, values, steps = _row(forward.keys), _row(forward.columns), _steps(forward)
    item = max(4, getattr(torch, forward.dtype).itemsize)
    span = (forward.length / steps) ** 0.5 + 2
    states = heads_together(forward) * (2 * span + 1) + 1
    tiles = steps * (14 * keys + 7 * values + 6 * steps) + states * keys * values
    return Cost(_seconds(forward, 7, "attention.chunked"), int(forward.threads * item * tiles))


def _sizes(problem: AttentionProblem, batch: int) -> tuple[int, ...]:
    return (
        batch,
        problem.length,
        problem.groups,
        problem.heads,
        problem.keys,
        problem.values,
        problem.sequences,
    )


def turns_of(leading: int, tensors: Sequence[Tensor | None]) -> tuple[int, Iterator[list[Described]]]:
    """The batch axis that ``leading`` axes of all tensors merge into, and the tensors as (address, strides) for every
    call that the others take."""
    present = [tensor for tensor in tensors if tensor is not None]
    folded = fold(present[0].shape[:leading], [tensor.stride()[:leading] for tensor in present])

    def turns() -> Iterator[list[Described]]:
        for offsets in folded.offsets or ((0,) * len(present),):
            described = iter(
                (tensor.data_ptr() + tensor.itemsize * offset, (batch, *tensor.stride()[leading:]))
                for tensor, batch, offset in zip(present, folded.strides, offsets, strict=True)
            )
            yield [None if tensor is None else next(described) for tensor in tensors]

    return folded.batch, turns()


def with_sequences(states: Optionals, packed: bool) -> list[Tensor | None]:
    """States and sums of keys with an axis of sequences, also where there is one sequence."""
    axes = (-4, -3)
    return [
        tensor if tensor is None or packed else tensor.unsqueeze(axis)
        for tensor, axis in zip(states, axes, strict=True)
    ]


def _prepare(problem: AttentionProblem) -> Run:
    def run(
        inputs: Sequence[Tensor | None],
        skip: Tensor | None,
        outputs: Sequence[Tensor | None],
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> None:
        packed = cu_seqlens is not None
        q, k, v, g, w, *initial = inputs
        y, sums, *final = outputs
        assert v is not None
        tensors = [q, k, v, g, w, *with_sequences(initial, packed)]
        tensors += [y, sums, *with_sequences(final, packed)]
        batch, turns = turns_of(v.ndim - 3, tensors)
        shared = None if skip is None else (skip.data_ptr(), skip.stride())
        with _checks.read_boundaries("linear attention", cu_seqlens, problem.length) as boundaries:
            at = 0 if boundaries is None else boundaries.data_ptr()
            for turn in turns:
                inputs_of_turn = (*turn[:5], shared, *turn[5:7])
                _native.attention(
                    problem.dtype, _sizes(problem, batch), at, scale, problem.per_key, inputs_of_turn, tuple(turn[7:])
                )

    return run


def _prepare_gradient(problem: AttentionGradientProblem) -> RunGradient:
    forward = problem.forward

    def run(
        inputs: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> None:
        packed = cu_seqlens is not None
        q, k, v, g, w, *initial = inputs
        dy, dsums, *dfinal = gradients
        dq, dk, dv, dg, dw, *dinitial = outputs
        assert v is not None
        assert dq is not None
        assert dk is not None
        tensors = [q, k, v, g, w, *with_sequences(initial, packed)]
        tensors += [dy, dsums, *with_sequences(dfinal, packed)]
        block = heads_together(forward)
        # dq and dk have one sum for each block of heads, whose axis the kernel wants behind the others.
        tensors += [dq.movedim(0, -1), dk.movedim(0, -1), dv, dg, dw, *with_sequences(dinitial, packed)]
        batch, turns = turns_of(v.ndim - 3, tensors)
        with _checks.read_boundaries("linear attention", cu_seqlens, forward.length) as boundaries:
            at = 0 if boundaries is None else boundaries.data_ptr()
            for turn in turns:
                _native.attention_gradient(
                    forward.dtype,
                    _sizes(forward, batch),
                    at,
                    scale,
                    forward.per_key,
                    (*turn[:5], None, *turn[5:7]),
                    block,
                    forward.sums,
                    tuple(turn[7:11]),
                    tuple(turn[11:]),
                )

    return run


ROWS: tuple[Implementation, ...] = (Implementation("chunked", "cpu", _refusals, _cost, _prepare),)
GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("chunked", "cpu", lambda problem: _refusals(problem.forward), _gradient_cost, _prepare_gradient),
)
