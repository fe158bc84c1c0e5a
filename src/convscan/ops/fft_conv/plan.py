"""In which order to contract, transform and convolve: the cheapest plan for an equation, by a shortest-path search.

A term is a set of inputs that have been contracted into one tensor, in the time or in the frequency domain. From the
inputs as given, every step merges two terms or takes one into the other domain, until one term in the time domain is
left. There are few such states: Dijkstra's algorithm visits the ones worth visiting. What a step costs is predicted
from its sizes with the constants of the tuning table.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch

from ... import _native
from ..._dispatch import prepared_cache, select
from ...tuning.table import constants, kernel_seconds
from ..causal_conv.problem import ConvProblem
from .equation import TIME, Equation
from .problem import EinsumProblem

METHODS = ("channelwise", "direct", "spectral")


class Term(NamedTuple):
    """Inputs contracted with each other (a bit each, x the lowest), in the time or in the frequency domain."""

    inputs: int
    spectral: bool = False


class Step(NamedTuple):
    """What happens to one or two terms, and the term that comes of it.

    ``kind``: ``contract`` (at least one of the two has no l), ``transform``, ``invert``, or how the signal and the
    kernel are convolved: ``channelwise``, ``direct`` or ``spectral``.
    """

    kind: str
    sources: tuple[Term, ...]
    result: Term


class Work(NamedTuple):
    """What a step costs: seconds, additions and multiplications, bytes read and written, bytes it needs on its way."""

    seconds: float
    flops: float
    bytes: float
    scratch: float


class Plan(NamedTuple):
    """Steps in their order, and what they cost together."""

    steps: tuple[Step, ...]
    seconds: float
    flops: float
    bytes: float


_plans: dict[tuple[EinsumProblem, str], Plan] = prepared_cache()


class Axes(NamedTuple):
    """How the axes of two terms meet: only in the first, in both and in the result, in both and summed, only in the
    second."""

    rest: str
    joint: str
    summed: str
    new: str

    @property
    def result(self) -> str:
        return self.rest + self.joint + self.new


@lru_cache(maxsize=4096)
def axes(equation: Equation, inputs: int) -> str:
    """The axes but l of contracted inputs: those that the output or an input outside still needs, in order of
    appearance."""
    outside = equation.output + "".join(t for place, t in enumerate(equation.terms) if not inputs >> place & 1)
    within = "".join(t for place, t in enumerate(equation.terms) if inputs >> place & 1)
    return "".join(axis for axis in dict.fromkeys(within) if axis in outside and axis != TIME)


@lru_cache(maxsize=4096)
def meet(equation: Equation, first: int, second: int) -> Axes:
    """How the axes of two terms meet when they are contracted."""
    left, right, kept = (axes(equation, inputs) for inputs in (first, second, first | second))
    # What the result no longer needs is summed; an axis of one term alone would have been summed before.
    return Axes(
        "".join(axis for axis in left if axis not in right),
        "".join(axis for axis in left if axis in right and axis in kept),
        "".join(axis for axis in left if axis in right and axis not in kept),
        "".join(axis for axis in right if axis not in left),
    )


def has_signal(term: Term) -> bool:
    """Whether x is among the inputs of a term."""
    return bool(term.inputs & 1)


def has_kernel(equation: Equation, term: Term) -> bool:
    """Whether the kernel is among the inputs of a term."""
    return bool(term.inputs >> (equation.kernel + 1) & 1)


@lru_cache(maxsize=256)
def transform_length(samples: int, dtype: str) -> int:
    """Points of a real transform that holds this many samples, with small prime factors."""
    half = (samples + 1) // 2
    # Below the native engine's shortest transform, a power of two.
    return 2 * _native.fft_length(half, dtype) if half > 128 else 1 << max(1, (samples - 1).bit_length())


def points(problem: EinsumProblem) -> int:
    """Points of the transforms: nothing wraps, however long the kernel."""
    return transform_length(problem.length + min(problem.taps, problem.length) - 1, problem.compute)


class Costs:
    """The cost of every kind of step of one problem."""

    def __init__(self, problem: EinsumProblem) -> None:
        self.problem = problem
        self.equation = problem.equation
        self.sizes = dict(problem.sizes)
        self.item = getattr(torch, problem.compute).itemsize
        self.overhead = constants(problem.isa)["einsum.call"]
        self.taps = min(problem.taps, problem.length)

    def count(self, letters: str) -> float:
        """Entries of the given axes together."""
        return math.prod(self.sizes[axis] for axis in letters)

    def length(self, term: Term) -> float:
        """Numbers along l, real ones, that a term has."""
        if term.spectral:
            return points(self.problem) + 2
        if has_signal(term):
            return self.problem.length
        return self.taps if has_kernel(self.equation, term) else 1

    def elements(self, term: Term) -> float:
        """Real numbers in a term."""
        return self.count(axes(self.equation, term.inputs)) * self.length(term)

    def _seconds(self, kernel: str, units: float, elements: float) -> float:
        return self.overhead + kernel_seconds(
            self.problem.isa,
            f"einsum.{kernel}",
            self.problem.compute,
            units=units,
            elements=elements,
            moved=self.item * elements,
            workers=self.problem.threads,
            threads=self.problem.threads,
        )

    def work(self, step: Step) -> Work:
        """The cost of a step."""
        moved = sum(self.elements(term) for term in (*step.sources, step.result))
        if step.kind in ("transform", "invert"):
            n = points(self.problem)
            rows = self.count(axes(self.equation, step.result.inputs))
            flops = 2.5 * rows * n * math.log2(n)
            # The samples are copied into rows of n points on the way in, or cut from them on the way out.
            seconds = self._seconds("fft", rows * n * math.log2(n), moved + rows * n)
            return Work(seconds, flops, self.item * (moved + rows * n), self.item * rows * n)
        first, second = step.sources
        parts = meet(self.equation, first.inputs, second.inputs)
        if step.kind == "contract":
            products = self.count(parts.result + parts.summed) * self.length(step.result)
            units = products if parts.summed else 0.0
            return Work(self._seconds("matmul", units, moved), 2 * products, self.item * moved, 0.0)
        if step.kind == "spectral":
            return self._spectral(parts, moved, self.elements(first) + self.elements(step.result))
        if step.kind == "direct":
            products = self.count(parts.result + parts.summed) * self.taps * self.problem.length
            # Vectors are filled with channels: with few of them a product takes as long as with twelve.
            units = products * max(1.0, 12 / self.count(parts.summed))
            padded = self.count(parts.rest + parts.joint + parts.summed) * (self.problem.length + self.taps)
            return Work(
                self._seconds("direct", units, moved + padded),
                2 * products,
                self.item * (moved + padded),
                self.item * padded,
            )
        return self._channelwise(parts, moved)

    def _spectral(self, parts: Axes, moved: float, transposed: float) -> Work:
        frequencies = points(self.problem) / 2 + 1
        products = self.count(parts.result + parts.summed) * frequencies
        if by_products(parts, self.sizes):
            return Work(self._seconds("product", products, moved), 8 * products, self.item * moved, 0.0)
        # A matrix product for every frequency: four real products each, and a transposition there and back.
        return Work(self._seconds("matmul", 4 * products, 3 * moved), 8 * products, 3 * self.item * moved,
                    self.item * transposed)  # fmt: skip

    def _channelwise(self, parts: Axes, moved: float) -> Work:
        channels = parts.joint + parts.summed + parts.new
        conv = self.convolution(parts)
        cost = select("causal_conv", conv).cost(conv)
        rows = self.count(parts.rest + channels)
        whole = rows * self.problem.length
        n = max(2.0, (self.problem.length + self.taps) / 2)
        spectral = (2 * rows + self.count(channels)) * 5 * n * math.log2(n)
        flops = min(spectral, 2.0 * whole * self.taps)
        seconds = cost.seconds + self.overhead
        # The signal written out for each of the kernel's own axes, and the terms of a sum.
        passes, arrays = 2 * bool(parts.new) + bool(parts.summed), bool(parts.new) + bool(parts.summed)
        if passes:
            seconds += self._seconds("matmul", 0.0, passes * whole)
        return Work(seconds, flops, self.item * (moved + passes * whole),
                    arrays * self.item * whole + cost.workspace_bytes)  # fmt: skip

    def convolution(self, parts: Axes) -> ConvProblem:
        """The call of ``causal_conv`` that a channelwise step makes: time contiguous, the kernel's axes as channels."""
        problem = self.problem
        channels = int(self.count(parts.joint + parts.summed + parts.new))
        batch = int(self.count(parts.rest))
        if not channels > 1 and parts.rest:
            # One kernel for all: the last axis of the signal serves as channels.
            channels = self.sizes[parts.rest[-1]]
            batch = int(self.count(parts.rest[:-1]))
        row = (channels * problem.length, 1, problem.length)
        return ConvProblem(
            device=problem.device,
            dtype=problem.compute,
            batch=batch,
            length=problem.length,
            channels=channels,
            taps=self.taps,
            x=row,
            h=(1, self.taps),
            y=row,
            bias=None,
            state=None,
            activation=None,
            transposed=False,
            offsets=None,
            threads=problem.threads,
            isa=problem.isa,
        )


def by_products(parts: Axes, sizes: dict[str, int]) -> bool:
    """Whether spectra are multiplied one summed entry at a time; else by a matrix product for every frequency.

    A matrix product does six times as many products a second, but transposes all three spectra, which costs as much
    as some 16 products an entry.
    """
    if not parts.summed:
        return True

    def count(letters: str) -> int:
        return math.prod(sizes[axis] for axis in letters)

    products = count(parts.result + parts.summed)
    return products <= 16 * (count(parts.rest + parts.joint + parts.summed) + count(parts.result))


def _moves(equation: Equation, terms: frozenset[Term], method: str) -> Iterator[Step]:
    ordered = sorted(terms)
    for term in ordered:
        signal, kernel = has_signal(term), has_kernel(equation, term)
        if signal and kernel and term.spectral:
            yield Step("invert", (term,), Term(term.inputs))
        elif signal != kernel and not term.spectral and method == "spectral":
            yield Step("transform", (term,), Term(term.inputs, True))
    for first in ordered:
        for second in ordered:
            merged = first.inputs | second.inputs
            if has_signal(first) and has_kernel(equation, second) and first != second:
                if first.spectral and second.spectral:
                    yield Step("spectral", (first, second), Term(merged, True))
                elif not first.spectral and not second.spectral and method != "spectral":
                    yield Step(method, (first, second), Term(merged))
            elif first != second and not (has_signal(second) or has_kernel(equation, second)):
                timed = has_signal(first) or has_kernel(equation, first)
                if timed or first < second:
                    yield Step("contract", (first, second), Term(merged, first.spectral))


def cheapest(problem: EinsumProblem, method: str) -> Plan:
    """The plan with the least predicted time that convolves by the given method."""
    plan = _plans.get((problem, method))
    if plan is None:
        plan = _plans[problem, method] = _search(problem, method)
    return plan


def _search(problem: EinsumProblem, method: str) -> Plan:
    costs, equation = Costs(problem), problem.equation
    start = frozenset(Term(1 << place) for place in range(len(equation.terms)))
    goal = frozenset({Term((1 << len(equation.terms)) - 1)})
    best: dict[frozenset[Term], float] = {start: 0.0}
    came: dict[frozenset[Term], tuple[frozenset[Term], Step]] = {}
    queue: list[tuple[float, int, frozenset[Term]]] = [(0.0, 0, start)]
    pushed = 0
    while queue:
        seconds, _, terms = heapq.heappop(queue)
        if terms == goal:
            break
        if seconds > best[terms]:
            continue
        for step in _moves(equation, terms, method):
            following = terms.difference(step.sources) | {step.result}
            total = seconds + costs.work(step).seconds
            if total < best.get(following, math.inf):
                pushed += 1
                best[following] = total
                came[following] = (terms, step)
                heapq.heappush(queue, (total, pushed, following))
    steps: list[Step] = []
    at = goal
    while at != start:
        at, step = came[at]
        steps.append(step)
    return priced(problem, tuple(reversed(steps)))


def priced(problem: EinsumProblem, steps: tuple[Step, ...]) -> Plan:
    """A plan with what its steps cost together."""
    costs = Costs(problem)
    works = [costs.work(step) for step in steps]
    return Plan(steps, sum(w.seconds for w in works), sum(w.flops for w in works), sum(w.bytes for w in works))
