"""One workload ready to run: a case, its arguments, and the judgement of an answer.

The answer in float64 comes from the operator's own file in ``operators/``, from the formulas alone, by methods that
none of the implementations under test use. An implementation never sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

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
    """What the profiler reads of a case in ``ops/<op>/cases.py``."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...


class Answer(NamedTuple):
    """What an operator's truth consists of: a value per output, what the tolerance scales with (per channel), and rows
    at a few times in every channel, where the values are of a sample of channels."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    points: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class Operator:
    """All that the profiler knows of an operator. Every operator is one file in ``operators/`` holding ``OPERATOR``.

    ``name`` is that of the public function, ``short`` that on the command line. ``inputs(case, seed)`` makes the
    arguments by name; x is one of them, (B, L, D). ``differentiable`` names those that ``call(problem, *arguments)``
    gets in this order, with ``out`` where it ``takes_out``; ``explain`` is dispatch's view of that call.
    ``answer(problem, channels, generator)`` is the truth, on all channels of the output or, where it can be
    ``sampled``, on some of them; an answer may differ from it by ``bound`` units of roundoff times its scales.
    ``shape`` is what reports show, a letter of ``axes`` each, and ``group`` the heading under which they summarise it.
    ``bandwidth`` names the limit of the machine that counts, that of a copy or that of a triad. ``signal_cases`` are
    those for a user's own signal, and ``own_case(shape, taps, dtype, layout)`` is one for a user's own shape, None
    without the taps that it needs.
    """

    name: str
    short: str
    cases: Sequence[Any]
    inputs: Callable[[Any, int], dict[str, Any]]
    differentiable: tuple[str, ...]
    shape: Callable[[Problem], tuple[int, ...]]
    axes: str
    group: Callable[[Sequence[int]], str]
    answer: Callable[[Problem, Tensor, torch.Generator], Answer]
    bound: float
    bandwidth: str
    call: Callable[..., Tensor]
    explain: Callable[[Problem], Explanation]
    takes_out: bool = False
    sampled: bool = False
    own_case: Callable[[tuple[int, int, int], int | None, str, str], Any] | None = None
    output_channels: Callable[[Mapping[str, Any]], int] = lambda inputs: int(inputs["x"].shape[-1])
    signal_cases: Callable[[Tensor, int, str], Sequence[tuple[Any, dict[str, Any]]]] = lambda signal, seed, source: ()


@dataclass(frozen=True)
class Problem:
    """A case, a direction and the arguments by name; x and all like it are (B, L, D) in the case's memory order.

    ``cotangent`` is what the backward pass starts from.
    """

    operator: Operator
    case: CaseLike
    direction: str
    inputs: Mapping[str, Any]
    cotangent: Tensor | None = None

    @property
    def op(self) -> str:
        return self.operator.name

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def layout(self) -> str:
        return self.case.layout

    @property
    def x(self) -> Tensor:
        x: Tensor = self.inputs["x"]
        return x

    @property
    def state(self) -> Tensor | None:
        state: Tensor | None = self.inputs.get("initial_state")
        return state

    @property
    def activation(self) -> str | None:
        name: str | None = self.inputs.get("activation")
        return name

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def length(self) -> int:
        return self.x.shape[1]

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.operator.output_channels(self.inputs)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.length, self.channels)

    @property
    def taps(self) -> int:
        return self.filter.shape[0] if "h" in self.inputs else 0

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        """As reports show it."""
        return self.operator.shape(self)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The differentiable arguments in the operator's order."""
        return tuple(self.inputs[name] for name in self.operator.differentiable)

    @property
    def filter(self) -> Tensor:
        h: Tensor = self.inputs["h"]
        return h

    @property
    def coefficients(self) -> Tensor:
        a: Tensor = self.inputs["a"]
        return a

    @property
    def initial(self) -> Tensor:
        start: Tensor = self.inputs["y_init"]
        return start

    @property
    def gradient_of_output(self) -> Tensor:
        assert self.cotangent is not None
        return self.cotangent

    @property
    def output_bytes(self) -> int:
        """Bytes of what a call returns: y forward; the gradients of every argument backward."""
        if self.direction == "forward":
            return math.prod(self.output_shape) * self.x.element_size()
        return sum(t.numel() * t.element_size() for t in self.arguments)

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

    def time_last(self, t: Tensor) -> Tensor:
        """`t` as a contiguous (B, D, L): the same memory when the case is time contiguous, a copy otherwise."""
        return t.transpose(-1, -2).contiguous()

    def activate(self, y: Tensor) -> Tensor:
        """The case's activation, in place where no gradient is needed, for rivals that have none of their own."""
        if self.activation is None:
            return y
        if self.activation == "silu":
            activated: Tensor = torch.nn.functional.silu(y, inplace=not y.requires_grad)
            return activated
        return torch.nn.functional.gelu(y)


def make(
    operator: Operator, case: CaseLike, inputs: Mapping[str, Any], direction: str = "forward", seed: int = 0
) -> Problem:
    """The problem of a case and its inputs."""
    problem = Problem(operator, case, direction, inputs)
    return replace(problem, cotangent=_cotangent(problem, seed)) if direction == "backward" else problem


def _cotangent(problem: Problem, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    x, shape = problem.x, problem.output_shape
    memory = torch.empty_like(x) if x.shape == shape else x.new_empty(shape)
    return memory.copy_(torch.randn(shape, generator=generator, dtype=x.dtype))


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
    points: tuple[tuple[int, Tensor], ...]
    norms: tuple[float, ...]


def truth(problem: Problem, seed: int = 0) -> Truth:
    """The answer in float64: y forward; the gradient of every argument backward."""
    generator = torch.Generator().manual_seed(seed + 2)
    every = problem.channels
    keep = max(2, min(every, TRUTH_ELEMENTS // max(1, problem.batch * problem.length)))
    if not problem.operator.sampled:
        keep = every
    if keep < every:
        inner = 1 + torch.randperm(every - 2, generator=generator)[: keep - 2]
        channels = torch.cat([torch.tensor([0]), inner.sort().values, torch.tensor([every - 1])])
    else:
        channels = torch.arange(every)
    values, scales, points = problem.operator.answer(problem, channels, generator)
    norms = tuple(float(torch.linalg.vector_norm(v)) for v in values)
    return Truth(values, scales, channels, points, norms)


def differentiated(problem: Problem, function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """In double precision: ``function`` of the arguments, or its gradients by autograd, in the problem's direction."""
    arguments = [wide(t) for t in problem.arguments]
    if problem.direction == "forward":
        with torch.no_grad():
            return (function(*arguments),)
    leaves = [t.detach().requires_grad_() for t in arguments]
    return torch.autograd.grad(function(*leaves), leaves, wide(problem.gradient_of_output))


@dataclass(frozen=True)
class Error:
    """How far an answer is from the truth, and why it is wrong when it is."""

    relative_rms: float
    max_abs: float
    wrong: str | None


def compare(problem: Problem, answer: Sequence[Tensor], expected: Truth) -> Error:
    """Error of an answer against the truth; `wrong` names the first requirement it misses.

    Per channel, ``max|y - ref| <= bound u scale`` with the unit roundoff u of the arithmetic, where ``bound`` and scale
    are the operator's, and in half types 4 u_storage·max|ref| more; and over all, a relative RMS of at most 1e-3 (1e-2
    in half types).
    """
    if len(answer) != len(expected.values):
        return Error(math.inf, math.inf, f"returned {len(answer)} tensors, expected {len(expected.values)}")
    half = problem.dtype in (torch.bfloat16, torch.float16)
    arithmetic = UNIT_ROUNDOFF[torch.float32 if half else problem.dtype]
    squares = norm = worst = 0.0
    wrong: str | None = None
    names = [f"d{name}" for name in problem.operator.differentiable]
    for index, (got, want, scale) in enumerate(zip(answer, expected.values, expected.scales, strict=True)):
        name = "y" if problem.direction == "forward" else names[index]
        full = problem.output_shape if problem.direction == "forward" else problem.arguments[index].shape
        if got.shape != full:
            return Error(math.inf, math.inf, f"{name} has shape {tuple(got.shape)}, expected {tuple(full)}")
        if got.dtype != problem.dtype:
            return Error(math.inf, math.inf, f"{name} is {got.dtype}, expected {problem.dtype}")
        if got.numel() == 0:
            continue
        answered = pick(got, expected.channels) if len(expected.channels) < problem.channels else got
        difference = (wide(answered) - want).abs()
        per_channel = difference.amax(tuple(range(difference.dim() - 1)))
        if not bool(torch.isfinite(per_channel).all()):
            return Error(math.inf, math.inf, f"{name} holds NaN or infinity")
        squares += float(torch.linalg.vector_norm(difference)) ** 2
        norm += expected.norms[index] ** 2
        worst = max(worst, float(per_channel.amax()))
        bound = problem.operator.bound * arithmetic * scale
        if half:
            bound = bound + 4 * UNIT_ROUNDOFF[problem.dtype] * want.abs().reshape(-1, want.shape[-1]).amax(0)
        over = per_channel > bound + 1e-300
        if bool(over.any()) and wrong is None:
            n = int((per_channel / (bound + 1e-300)).argmax())
            wrong = f"{name} is off by {float(per_channel[n]):.2g} in channel {int(expected.channels[n])}"
    for i, want_row in expected.points:
        row = (wide(answer[0][:, i]) - want_row).abs()
        limit = 1e-3 * float(want_row.abs().amax()) * (10 if half else 1)
        if not bool((row <= limit).all()) and wrong is None:
            wrong = f"y is off by {float(row.nan_to_num(math.inf).amax()):.2g} at time {i}"
    relative = math.sqrt(squares / norm) if norm > 0 else (0.0 if squares == 0 else math.inf)
    if relative > (1e-2 if half else 1e-3) and wrong is None:
        wrong = f"relative RMS error {relative:.2g}"
    return Error(relative, worst, wrong)
