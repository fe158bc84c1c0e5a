"""The native Cauchy kernel: what it can run, what it would cost, and how it is called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Cost, Implementation
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .problem import CauchyProblem

DTYPES = ("complex64", "complex128")
Run = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def _refusals(problem: CauchyProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _work(problem: CauchyProblem) -> tuple[float, float]:
    """Terms of the sums of one call, and results. A reciprocal costs about as much as two right hand sides with it."""
    points = problem.rows * problem.points
    return points * problem.terms * (2 + problem.sides) / 3, float(points * problem.sides)


def _cost(problem: CauchyProblem) -> Cost:
    units, elements = _work(problem)
    seconds = problem.turns * kernel_seconds(
        problem.isa,
        "cauchy.direct",
        problem.dtype,
        units=units,
        elements=elements,
        moved=getattr(torch, problem.dtype).itemsize * elements,
        workers=max(1, min(problem.threads, problem.rows * -(-problem.points // 256))),
        threads=problem.threads,
    )
    return Cost(seconds, problem.threads * (64 << 10))


def _prepare(problem: CauchyProblem) -> Run:
    item = getattr(torch, problem.dtype).itemsize
    offsets = problem.offsets or ((0, 0, 0, 0),)

    def run(v: Tensor, poles: Tensor, z: Tensor, k: Tensor) -> None:
        for turn in offsets:
            _native.cauchy(
                problem.dtype,
                problem.sides,
                problem.rows,
                problem.terms,
                problem.points,
                problem.power,
                problem.v,
                problem.poles,
                problem.z,
                problem.k,
                *(t.data_ptr() + item * offset for t, offset in zip((v, poles, z, k), turn, strict=True)),
            )

    return run


ROWS: tuple[Implementation, ...] = (Implementation("direct", "cpu", _refusals, _cost, _prepare),)
