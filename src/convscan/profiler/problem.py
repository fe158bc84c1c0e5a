"""One workload ready to run: a case, its arguments, and the judgement of an answer.

The answer in float64 comes from the operator's own file in ``operators/``, from the formulas alone, by methods that
none of the implementations under test use. An implementation never sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from convscan._dispatch import Explanation

DIRECTIONS = ("forward", "backward")
# Whole-channel truth is kept for at most this many elements; beyond it, for a sample of channels that includes the
# first and the last, and every channel is still checked at sampled points. Float64 passes over more would take longer
# than the timing.
TRUTH_ELEMENTS = 1 << 22
UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.complex64: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.complex128: 2.0**-53,
    torch.bfloat16: 2.0**-9,
    torch.float16: 2.0**-11,
}


class CaseLike(Protocol):
    """What the profiler reads of a case in ``ops/<op>/cases.py``; one with several memory orders has a ``layout`` too.

    ``dtype`` is that of the arithmetic. Tags: "default" runs in a plain profile, "quick" in a short one, "operator"
    where its operator is asked for, "grid" and "large" where they are.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...


class Answer(NamedTuple):
    """What an operator's truth consists of: a value per output, forward, or per differentiable argument, backward; what
    the tolerance of each scales with, a tensor that broadcasts against the value; and rows of the first output at a few
    times in every channel, where the values are of a sample of channels."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    points: tuple[tuple[int, Tensor], ...] = ()


def _like_x(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (torch.empty_like(inputs["x"], device="meta"),)


@dataclass(frozen=True)
class Operator:
    """All that the profiler knows of an operator. Every operator is one file in ``operators/`` holding ``OPERATOR``.

    ``name`` is that of the public function, ``short`` that on the command line. ``inputs(case, seed)`` makes the
    arguments of ``function`` by name: tensors of any number and shape, settings, None for what a case goes without.
    ``outputs(inputs)`` describes what comes back, on the device "meta": sizes, dtypes and memory orders; by default one
    tensor like x. ``differentiable`` names the arguments that get a gradient, ``takes_out`` says that ``function`` has
    ``out``, and ``explain`` is dispatch's view of a call, None for a function that is composed of several operators.

    ``answer(problem, channels, generator)`` is the truth (``by_formula`` makes one from a formula), on all channels, or
    where it can be ``sampled`` on some of the last axis of the first output; an answer may differ from it by ``bound``
    units of roundoff times its scales. ``shape`` is what reports show, a letter of ``axes`` each, and ``group`` the
    heading under which they summarise it. ``bandwidth`` names the limit of the machine that counts, that of a copy or
    that of a triad. ``directions(case)`` are those in which it makes sense; backward is run where it is asked for, or
    where there is no other. ``signal_cases`` are those for a user's own signal, and ``own_case(shape, taps, dtype,
    layout)`` is one for a user's own shape, None without the taps that it needs. ``kept(inputs)`` are arguments of
    which something is prepared once for all calls, such as a spectrum, None where these have no such thing.
    ``overwrites`` names arguments, tensors or tuples of them, that a call overwrites.
    """

    name: str
    short: str
    cases: Sequence[Any]
    inputs: Callable[[Any, int], dict[str, Any]]
    function: Callable[..., Any]
    differentiable: tuple[str, ...]
    shape: Callable[[Mapping[str, Any]], tuple[int, ...]]
    axes: str
    group: Callable[[Sequence[int]], str]
    answer: Callable[[Problem, Tensor, torch.Generator], Answer]
    bound: float
    bandwidth: str
    explain: Callable[[Mapping[str, Any]], Explanation] | None
    outputs: Callable[[Mapping[str, Any]], tuple[Tensor, ...]] = _like_x
    takes_out: bool = False
    sampled: bool = False
    directions: Callable[[Any], tuple[str, ...]] = lambda case: DIRECTIONS
    own_case: Callable[[tuple[int, int, int], int | None, str, str], Any] | None = None
    signal_cases: Callable[[Tensor, int, str], Sequence[tuple[Any, dict[str, Any]]]] = lambda signal, seed, source: ()
    kept: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    overwrites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A case, a direction and the arguments by name, ``problem["x"]``; in the case's memory order.

    ``cotangents`` are what the backward pass starts from, one per output.
    """

    operator: Operator
    case: CaseLike
    direction: str
    inputs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        argument: Tensor = self.inputs[name]
        return argument

    def size(self, letter: str) -> int:
        """Of the axis that has this letter in reports."""
        return self.shape[self.operator.axes.index(letter)]

    @property
    def op(self) -> str:
        return self.operator.name

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def device(self) -> torch.device:
        """Where the arguments are."""
        first: Tensor = next(value for value in self.inputs.values() if isinstance(value, Tensor))
        return first.device

    @property
    def layout(self) -> str:
        """Memory order, empty where there is only one."""
        layout: str = getattr(self.case, "layout", "")
        return layout

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        dtype: torch.dtype = getattr(torch, self.case.dtype)
        return dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As reports show it."""
        return self.operator.shape(self.inputs)

    @property
    def differentiated(self) -> tuple[str, ...]:
        """Names of the differentiable arguments that this case has."""
        return tuple(name for name in self.operator.differentiable if self.inputs[name] is not None)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The differentiable arguments that this case has, in the operator's order."""
        return tuple(self.inputs[name] for name in self.differentiated)

    @property
    def cotangent(self) -> Tensor:
        """The cotangent of the only output."""
        (one,) = self.cotangents
        return one

    @property
    def expected(self) -> tuple[Tensor, ...]:
        """What an answer must look like: the outputs forward, the gradients of every argument backward."""
        return self.outputs if self.direction == "forward" else self.arguments

    @property
    def output_bytes(self) -> int:
        """Bytes of what a call returns."""
        return sum(t.numel() * t.element_size() for t in self.expected)

    @property
    def elements(self) -> int:
        """Numbers in the outputs: what a time per element refers to."""
        return sum(t.numel() for t in self.outputs)

    @property
    def bytes(self) -> int:
        """Bytes that must move at least once. Backward also reads dL/dy and writes a gradient for every input read."""
        if self.direction == "forward":
            return self.case.bytes
        return 2 * self.case.bytes

    @property
    def flops(self) -> int:
        """Arithmetic of the cheapest known method; forward + backward is about three times the forward alone."""
        return self.case.flops * (1 if self.direction == "forward" else 3)


def make(
    operator: Operator, case: CaseLike, inputs: Mapping[str, Any], direction: str = "forward", seed: int = 0
) -> Problem:
    """The problem of a case and its inputs."""
    outputs = operator.outputs(inputs)
    cotangents = tuple(_cotangent(t, seed + 1 + k) for k, t in enumerate(outputs)) if direction == "backward" else ()
    return Problem(operator, case, direction, inputs, outputs, cotangents)


def _cotangent(output: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    memory = torch.empty_like(output, device="cpu")
    return memory.copy_(torch.randn(output.shape, generator=generator, dtype=output.dtype))


def own(problem: Problem) -> dict[str, Any]:
    """The arguments by name, with a copy of those that a call overwrites."""
    overwritten = {name: problem.inputs[name] for name in problem.operator.overwrites}
    return {**problem.inputs, **tree_map_only(Tensor, torch.clone, overwritten)}


def as_tuple(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a function of one or several outputs returned, as several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


# ---- truth ----


def wide(t: Tensor) -> Tensor:
    """In double precision."""
    return t.to(torch.complex128 if t.dtype.is_complex else torch.float64)


def pick(t: Tensor, channels: Tensor) -> Tensor:
    """These channels, of what has more than them and more than one for all."""
    return t if t.shape[-1] == 1 or t.shape[-1] == len(channels) else t[..., channels]


@dataclass(frozen=True)
class Truth:
    """The float64 answer, a tensor per output, on `channels` (all, or a sample), and what the tolerance scales with."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    channels: Tensor
    sampled: bool
    points: tuple[tuple[int, Tensor], ...]
    norms: tuple[float, ...]


def truth(problem: Problem, seed: int = 0) -> Truth:
    """The answer in float64: the outputs forward; the gradient of every argument backward."""
    generator = torch.Generator().manual_seed(seed + 2)
    first = problem.outputs[0]
    every = first.shape[-1] if first.dim() else 1
    keep = max(2, min(every, TRUTH_ELEMENTS * every // max(1, first.numel())))
    if problem.operator.sampled and keep < every:
        inner = 1 + torch.randperm(every - 2, generator=generator)[: keep - 2]
        channels = torch.cat([torch.tensor([0]), inner.sort().values, torch.tensor([every - 1])])
    else:
        channels = torch.arange(every)
    values, scales, points = problem.operator.answer(problem, channels, generator)
    norms = tuple(float(torch.linalg.vector_norm(v)) for v in values)
    return Truth(values, scales, channels, len(channels) < every, points, norms)


def differentiated(problem: Problem, function: Callable[..., Any]) -> tuple[Tensor, ...]:
    """In double precision: ``function`` of the arguments by name, or its gradients by autograd, in the problem's
    direction."""
    inputs = tree_map_only(
        Tensor, lambda t: wide(t) if t.is_floating_point() or t.is_complex() else t, dict(problem.inputs)
    )
    if problem.direction == "forward":
        with torch.no_grad():
            return as_tuple(function(**inputs))
    leaves = {name: inputs[name].detach().requires_grad_() for name in problem.differentiated}
    y = as_tuple(function(**(inputs | leaves)))
    return torch.autograd.grad(y, tuple(leaves.values()), tuple(wide(g) for g in problem.cotangents))


def by_formula(
    function: Callable[..., Any], growth: Callable[[Problem], float] = lambda problem: 1.0
) -> Callable[[Problem, Tensor, torch.Generator], Answer]:
    """The truth from a formula of PyTorch operations on the arguments by name, in double precision and by autograd.

    Its tolerance scales with the largest value of each result, times ``growth(problem)`` where errors grow with sizes.
    """

    def answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
        values = differentiated(problem, function)
        largest = (v.abs().amax() if v.numel() else v.new_zeros((), dtype=torch.float64) for v in values)
        return Answer(values, tuple(growth(problem) * value for value in largest))

    return answer


@dataclass(frozen=True)
class Error:
    """How far an answer is from the truth, and why it is wrong when it is."""

    relative_rms: float
    max_abs: float
    wrong: str | None


def compare(problem: Problem, answer: Sequence[Tensor], expected: Truth) -> Error:
    """Error of an answer against the truth; `wrong` names the first requirement it misses.

    Wherever a scale is given, ``max|y - ref| <= bound u scale`` with the unit roundoff u of the arithmetic, where
    ``bound`` and scale are the operator's, and in half types 4 u_storage·max|ref| more; and over all, a relative RMS of
    at most 1e-3 (1e-2 in half types).
    """
    if len(answer) != len(expected.values):
        return Error(math.inf, math.inf, f"returned {len(answer)} tensors, expected {len(expected.values)}")
    half = problem.dtype in (torch.bfloat16, torch.float16)
    arithmetic = UNIT_ROUNDOFF[torch.float32 if half else problem.dtype]
    squares = norm = worst = 0.0
    wrong: str | None = None
    if problem.direction == "backward":
        names = [f"d{name}" for name in problem.differentiated]
    else:
        names = ["y"] if len(answer) == 1 else [f"output {k}" for k in range(len(answer))]
    for index, (got, want, scale, like) in enumerate(
        zip(answer, expected.values, expected.scales, problem.expected, strict=True)
    ):
        name = names[index]
        if got.shape != like.shape:
            return Error(math.inf, math.inf, f"{name} has shape {tuple(got.shape)}, expected {tuple(like.shape)}")
        if got.dtype != like.dtype:
            return Error(math.inf, math.inf, f"{name} is {got.dtype}, expected {like.dtype}")
        if got.numel() == 0:
            continue
        answered = pick(got, expected.channels) if expected.sampled else got
        difference = (wide(answered) - want).abs()
        off = _most(difference, scale)
        if not bool(torch.isfinite(off).all()):
            return Error(math.inf, math.inf, f"{name} holds NaN or infinity")
        squares += float(torch.linalg.vector_norm(difference)) ** 2
        norm += expected.norms[index] ** 2
        worst = max(worst, float(off.amax()))
        bound = problem.operator.bound * arithmetic * scale
        if half:
            bound = bound + 4 * UNIT_ROUNDOFF[problem.dtype] * _most(want.abs(), scale)
        excess = off / (bound + 1e-300)
        if wrong is None and bool((excess > 1).any()):
            place = int(excess.argmax())
            where = ""
            if excess.dim() == 1 and excess.numel() > 1:
                where = f" in channel {int(expected.channels[place]) if expected.sampled else place}"
            wrong = f"{name} is off by {float(off.reshape(-1)[place]):.2g}{where}"
    for i, want_row in expected.points:
        row = (wide(answer[0][:, i]) - want_row).abs()
        limit = 1e-3 * float(want_row.abs().amax()) * (10 if half else 1)
        if not bool((row <= limit).all()) and wrong is None:
            wrong = f"y is off by {float(row.nan_to_num(math.inf).amax()):.2g} at time {i}"
    relative = math.sqrt(squares / norm) if norm > 0 else (0.0 if squares == 0 else math.inf)
    if relative > (1e-2 if half else 1e-3) and wrong is None:
        wrong = f"relative RMS error {relative:.2g}"
    return Error(relative, worst, wrong)


def _most(t: Tensor, scale: Tensor) -> Tensor:
    """The largest of t over the axes along which ``scale`` broadcasts against it, in the shape of ``scale``."""
    leading = t.dim() - scale.dim()
    broadcast = [leading + axis for axis, extent in enumerate(scale.shape) if extent == 1]
    axes = (*range(leading), *broadcast)
    return t.amax(axes).reshape(scale.shape) if axes else t
