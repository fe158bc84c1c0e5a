"""The native kernels of both products with powers: what they can run, what it would cost, and how they are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Cost, Implementation
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .problem import PowersProblem

DTYPES = ("complex64", "complex128")
Run = Callable[[Tensor, Tensor, Tensor], None]


def _refusals(problem: PowersProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _work(problem: PowersProblem) -> tuple[float, float]:
    """Terms of the sums of one call, and the powers computed for them: about the square root of the steps, twice."""
    terms = problem.rows * problem.terms
    return terms * problem.length, 2 * terms * problem.length**0.5


def _cost(problem: PowersProblem) -> Cost:
    item = getattr(torch, problem.dtype).itemsize
    units, elements = _work(problem)
    seconds = problem.turns * kernel_seconds(
        problem.isa,
        "vandermonde.factored",
        problem.dtype,
        units=units,
        elements=elements,
        moved=item / 2 * problem.rows * problem.length,
        workers=max(1, min(problem.threads, problem.rows)),
        threads=problem.threads,
    )
    # Tables of at most 128 steps, 192 rows and 64 terms, and a little beside them.
    return Cost(seconds, problem.threads * (item * 64 * (128 + 192) + (32 << 10)))


def _prepare(problem: PowersProblem) -> Run:
    call = _native.vandermonde_adjoint if problem.adjoint else _native.vandermonde
    item, a_item = getattr(torch, problem.dtype).itemsize, getattr(torch, problem.a_dtype).itemsize
    # Bytes between elements of (g, a, w) or (c, a, y): g and y are real.
    items = (item // 2, a_item, item) if problem.adjoint else (item, a_item, item // 2)
    offsets = problem.offsets or ((0, 0, 0),)

    def run(left: Tensor, a: Tensor, out: Tensor) -> None:
        for turn in offsets:
            call(
                problem.dtype,
                problem.a_dtype,
                problem.rows,
                problem.terms,
                problem.length,
                problem.order,
                problem.left,
                problem.a,
                problem.out,
                *(
                    tensor.data_ptr() + item * offset
                    for tensor, item, offset in zip((left, a, out), items, turn, strict=True)
                ),
            )

    return run


ROWS: tuple[Implementation, ...] = (Implementation("factored", "cpu", _refusals, _cost, _prepare),)
