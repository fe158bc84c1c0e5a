"""The ways to convolve: what each would cost, by which plan, and how it runs. They run wherever PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..._dispatch import Cost, Implementation
from . import reference
from .execute import Execution, workspace
from .plan import METHODS, cheapest
from .problem import EinsumProblem

Run = Callable[[Tensor, Sequence[Tensor]], Tensor]


def _row(method: str) -> Implementation:
    def cost(problem: EinsumProblem) -> Cost:
        plan = cheapest(problem, method)
        return Cost(plan.seconds, workspace(problem, plan), int(plan.flops), int(plan.bytes))

    def prepare(problem: EinsumProblem) -> Run:
        return Execution(problem, cheapest(problem, method)).run

    return Implementation(method, "any", lambda problem: [], cost, prepare)


def _reference_cost(problem: EinsumProblem) -> Cost:
    # A float64 einsum over all axes for every lag.
    products = float(problem.length * min(problem.taps, problem.length))
    for _, size in problem.sizes:
        products *= size
    return Cost(1e-4 * problem.taps + 1e-9 * products, 8 * int(products / max(1, problem.taps)))


def _prepare_reference(problem: EinsumProblem) -> Run:
    def run(x: Tensor, args: Sequence[Tensor]) -> Tensor:
        return reference.fft_conv(problem.equation.text, x, args).to(x.dtype)

    return run


ROWS: tuple[Implementation, ...] = (
    *(_row(method) for method in METHODS),
    Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference),
)
