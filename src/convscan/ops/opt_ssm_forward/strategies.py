"""The three strategies of arXiv 2409.03377 as plans, what each would cost, and how it stays within its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation, Settings, prepared_cache
from ..fft_conv.execute import Execution, workspace
from ..fft_conv.plan import METHODS, Plan, Step, Term, priced
from ..fft_conv.problem import EinsumProblem
from . import reference
from .problem import SSMProblem

Run = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

# Tensors are planned to fill a third of the memory: glibc's allocator does not find every hole again that an aligned
# tensor has left, which was measured to take up to 2.7 times what the tensors need.
PLANNED_SHARE = 1 / 3
STRATEGIES = {"1": "full_kernel", "2": "projected", "3": "fused"}
X, KERNEL, B, C = Term(1), Term(2), Term(4), Term(8)


def _convolved(signal: Term, kernel: Term, method: str) -> tuple[Step, ...]:
    """The steps from a signal and a kernel, in time, to their convolution, in time."""
    result = signal.inputs | kernel.inputs
    if method != "spectral":
        return (Step(method, (signal, kernel), Term(result)),)
    spectra = Term(signal.inputs, True), Term(kernel.inputs, True)
    return (
        Step("transform", (signal,), spectra[0]),
        Step("transform", (kernel,), spectra[1]),
        Step("spectral", spectra, Term(result, True)),
        Step("invert", (Term(result, True),), Term(result)),
    )


def _full_kernel(problem: SSMProblem, method: str) -> tuple[Step, ...]:
    """sum_n C[o,n] K[l,n] B[n,h] first: one convolution from every input to every output."""
    if problem.is_full:
        return _convolved(X, KERNEL, method)
    mixed, kernel = Term(C.inputs | B.inputs), Term(C.inputs | B.inputs | KERNEL.inputs)
    steps = (Step("contract", (C, B), mixed), Step("contract", (KERNEL, mixed), kernel))
    return steps + _convolved(X, kernel, method)


def _projected(problem: SSMProblem, method: str) -> tuple[Step, ...]:
    """To the states, one convolution for each, to the outputs."""
    states = Term(X.inputs | B.inputs)
    filtered = Term(states.inputs | KERNEL.inputs)
    result = Term(filtered.inputs | C.inputs)
    return (
        Step("contract", (X, B), states),
        *_convolved(states, KERNEL, method),
        Step("contract", (filtered, C), result),
    )


def _fused(problem: SSMProblem, first: str) -> tuple[Step, ...]:
    """All contractions in the frequency domain, of x with B or of the kernel with B and C first: the only transforms
    are those of the inputs, the outputs and the kernels of the states."""
    x, kernel = Term(X.inputs, True), Term(KERNEL.inputs, True)
    result = Term(X.inputs | KERNEL.inputs | B.inputs | C.inputs, True)
    transforms = (Step("transform", (X,), x), Step("transform", (KERNEL,), kernel))
    inverse = Step("invert", (result,), Term(result.inputs))
    if first == "kernel":
        mixed = Term(C.inputs | B.inputs)
        full = Term(KERNEL.inputs | mixed.inputs, True)
        steps = Step("contract", (C, B), mixed), Step("contract", (kernel, mixed), full)
        return (*transforms, *steps, Step("spectral", (x, full), result), inverse)
    states = Term(X.inputs | B.inputs, True)
    filtered = Term(states.inputs | KERNEL.inputs, True)
    return (
        *transforms,
        Step("contract", (x, B), states),
        Step("spectral", (states, kernel), filtered),
        Step("contract", (filtered, C), result),
        inverse,
    )


class Strategy(NamedTuple):
    """Steps for each of several ways, and the axis along which a problem is divided when the batch is not enough."""

    name: str
    steps: Callable[[SSMProblem, str], tuple[Step, ...]]
    ways: tuple[str, ...]
    divided: str


TABLE = (
    Strategy("full_kernel", _full_kernel, METHODS, "o"),
    Strategy("projected", _projected, METHODS, "n"),
    Strategy("fused", _fused, ("signal", "kernel"), "n"),
)


class Division(NamedTuple):
    """A strategy's plan for pieces of ``extent`` along the divided axis; so many ``pieces`` make the whole."""

    problem: EinsumProblem
    plan: Plan
    extent: int
    pieces: int
    workspace: int


_divisions: dict[tuple[SSMProblem, str], Division] = prepared_cache()


def divide(problem: SSMProblem, strategy: Strategy) -> Division:
    """The plan of a strategy, in as few pieces as its memory allows."""
    known = _divisions.get((problem, strategy.name))
    if known is not None:
        return known
    whole = problem.outputs if strategy.divided == "o" else problem.states
    planned = PLANNED_SHARE * problem.budget
    found: list[Division] = []
    extent = whole
    while True:
        einsum = problem.einsum(**{strategy.divided: extent})
        plans = (priced(einsum, strategy.steps(problem, way)) for way in strategy.ways)
        plan = min(plans, key=lambda plan: plan.seconds)
        held = workspace(einsum, plan, planned)
        found.append(Division(einsum, plan, extent, -(-whole // extent), held))
        if held <= planned or extent == 1 or not problem.chunked:
            break
        extent = (extent + 1) // 2
    # Where nothing fits, pieces as large as are not much worse than the leanest.
    enough = max(planned, 1.25 * min(division.workspace for division in found))
    best = next(division for division in found if division.workspace <= enough)
    _divisions[problem, strategy.name] = best
    return best


def _why_not(problem: SSMProblem, strategy: Strategy) -> list[str]:
    if problem.is_full and strategy.name != "full_kernel":
        return ["a full kernel has no states"]
    return []


def _cost(problem: SSMProblem, strategy: Strategy) -> Cost:
    division = divide(problem, strategy)
    plan, pieces = division.plan, division.pieces
    return Cost(pieces * plan.seconds, division.workspace, int(pieces * plan.flops), int(pieces * plan.bytes))


def _prepare(problem: SSMProblem, strategy: Strategy) -> Run:
    division = divide(problem, strategy)
    execution = Execution(division.problem, division.plan, PLANNED_SHARE * problem.budget)
    along = 0 if problem.is_full else problem.layout.index("n")

    def operands(K: Tensor, B_: Tensor | None, C: Tensor | None) -> list[Tensor]:
        return [tensor for tensor in (K, B_, C) if tensor is not None]

    def whole(x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None) -> Tensor:
        return execution.run(x, operands(K, B_, C))

    def in_pieces(x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None) -> Tensor:
        y = torch.empty(problem.batch, problem.length, problem.outputs, dtype=x.dtype, device=x.device)
        total = problem.outputs if strategy.divided == "o" else problem.states
        for start in range(0, total, division.extent):
            count = min(division.extent, total - start)
            if strategy.divided == "n":
                assert B_ is not None
                assert C is not None
                piece = [K.narrow(along, start, count), B_.narrow(0, start, count), C.narrow(1, start, count)]
                execution.store(y, x, piece, add=start > 0)
            elif C is None:
                execution.store(y.narrow(2, start, count), x, [K.narrow(1, start, count)])
            else:
                execution.store(y.narrow(2, start, count), x, operands(K, B_, C.narrow(0, start, count)))
        return y

    return whole if division.pieces == 1 else in_pieces


def _row(strategy: Strategy) -> Implementation:
    return Implementation(
        strategy.name,
        "any",
        lambda problem: _why_not(problem, strategy),
        lambda problem: _cost(problem, strategy),
        lambda problem: _prepare(problem, strategy),
    )


def _reference_cost(problem: SSMProblem) -> Cost:
    # Three float64 operators for every lag.
    products = problem.outputs * (problem.inputs if problem.is_full else problem.states)
    lags = min(problem.taps, problem.length)
    elements = problem.batch * problem.length * (problem.states + problem.inputs + problem.outputs)
    seconds = lags * (3e-5 + 2e-9 * elements + 5e-11 * problem.batch * problem.length * products)
    return Cost(seconds, 8 * 3 * elements)


def _prepare_reference(problem: SSMProblem) -> Run:
    def run(x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None) -> Tensor:
        K = K.mT if problem.layout == "nl" else K
        return reference.opt_ssm_forward(x, K, B_, C).to(x.dtype)

    return run


ROWS: tuple[Implementation, ...] = (
    *(_row(strategy) for strategy in TABLE),
    Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference),
)


def published_rule(problem: SSMProblem) -> str:
    """The strategy that ``auto`` takes: 1, 2 or 3, in whole numbers so that ties are ties."""
    batch, states, inputs, outputs = problem.batch, problem.states, problem.inputs, problem.outputs
    if problem.is_full:
        return "1"
    if (inputs + outputs) * batch * states > (batch + states) * inputs * outputs:
        return "1" if inputs * outputs <= states else "3"
    return "2" if states <= inputs else "3"


def asks(problem: SSMProblem) -> Settings:
    """What ``strategy`` asks of the selection: a row by name, or any that keeps to the memory of one more input."""
    if problem.strategy != "cost":
        return Settings(STRATEGIES[published_rule(problem) if problem.strategy == "auto" else problem.strategy])
    if not problem.chunked:
        return Settings()
    able = [strategy for strategy in TABLE if not _why_not(problem, strategy)]
    return Settings(None, max(problem.budget, min(divide(problem, strategy).workspace for strategy in able)))
