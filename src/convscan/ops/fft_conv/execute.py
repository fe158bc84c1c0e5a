"""Runs a plan with PyTorch's operators and causal_conv.

Every tensor of a plan has its l last, or the frequencies in its place; which axes come before it is carried along as
letters. What does not depend on x is computed once. Where nobody records the operations, the rest is computed for a few
entries of a batch axis at a time, which bounds the memory by what stays in the caches; where somebody does, at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..causal_conv.api import causal_conv
from .equation import TIME
from .plan import Axes, Costs, Plan, Step, Term, axes, by_products, has_signal, meet, transform_length
from .problem import EinsumProblem

# Intermediate tensors of this size together run faster than larger ones, which leave the caches and whose pages are
# fresh in every call, and no slower than smaller ones.
CHUNK_BYTES = 4 << 20
# Among the sizes of axes, whose names are letters: the taps that reach an output.
_TAPS = "taps"


class Operand(NamedTuple):
    """A tensor with the letters of its axes before the last; ``owned`` where nobody else sees its memory."""

    tensor: Tensor
    letters: str
    owned: bool = False

    def arranged(self, letters: str) -> Tensor:
        """The tensor with these axes, in this order, before the last."""
        if letters == self.letters:
            return self.tensor
        return self.tensor.permute(*(self.letters.index(axis) for axis in letters), len(letters))


def batch_axis(problem: EinsumProblem) -> str:
    """An axis that only x and the output have, along which the work can be divided; the longest, empty without one."""
    equation, lengths = problem.equation, dict(problem.sizes)
    free = [a for a in equation.signal if a in equation.output and not any(a in t for t in equation.operands)]
    return max((axis for axis in free if axis != TIME), key=lambda axis: lengths[axis], default="")


class Memory(NamedTuple):
    """Bytes of intermediate tensors: the most that those which do not depend on x take at one time, what is kept of
    them for every chunk of x, and the most that those which do take beside it, for the whole of x."""

    before: float
    kept: float
    during: float


def memory(problem: EinsumProblem, plan: Plan) -> Memory:
    """Follows the terms of a plan from the step that makes them to the step that uses them up."""
    costs = Costs(problem)

    def size(term: Term) -> float:
        return float(costs.item * costs.elements(term))

    def most(steps: Sequence[Step], live: dict[Term, float]) -> float:
        peak = sum(live.values())
        for step in steps:
            live[step.result] = size(step.result)
            peak = max(peak, sum(live.values()) + costs.work(step).scratch)
            for source in step.sources:
                live.pop(source, None)
        return peak

    casts = problem.dtype != problem.compute
    live = {Term(1 << at): size(Term(1 << at)) for at in range(1, len(problem.equation.terms))} if casts else {}
    before = most([step for step in plan.steps if not has_signal(step.result)], live)
    kept = sum(live.values())
    for step in plan.steps:
        if step.kind == "spectral" and not has_signal(step.sources[1]):
            before = max(before, kept + size(step.sources[1]))  # its spectrum in another memory order
    during = most([step for step in plan.steps if has_signal(step.result)], {Term(1): size(Term(1))} if casts else {})
    return Memory(before, kept, during)


def chunk(problem: EinsumProblem, plan: Plan, limit: float = math.inf) -> int:
    """How many entries of the batch axis to compute at a time, so that all intermediate tensors stay in ``limit``."""
    axis = batch_axis(problem)
    size = dict(problem.sizes).get(axis, 1)
    if not axis or not problem.chunked:
        return size
    _, kept, during = memory(problem, plan)
    # Every chunk reads all that is kept: of large kernels that is worth doing seldom.
    return max(1, min(size, int(min(limit - kept, max(CHUNK_BYTES, kept)) / max(1.0, during / size))))


def workspace(problem: EinsumProblem, plan: Plan, limit: float = math.inf) -> int:
    """Bytes of intermediate tensors alive at one time, which a small batch axis may keep from staying in ``limit``."""
    before, kept, during = memory(problem, plan)
    share = chunk(problem, plan, limit) / dict(problem.sizes).get(batch_axis(problem), 1)
    return int(max(before, kept + during * share))


# ---- steps ----


def _flat(tensor: Tensor, start: int, count: int) -> Tensor:
    """``count`` axes from ``start`` on as one; of none, a new axis of size 1."""
    return tensor.flatten(start, start + count - 1) if count else tensor.unsqueeze(start)


def _unflat(tensor: Tensor, at: int, extents: Sequence[int]) -> Tensor:
    """One axis as these; as none where there are none."""
    return tensor.reshape(*tensor.shape[:at], *extents, *tensor.shape[at + 1 :]) if extents else tensor.squeeze(at)


def _contract(first: Operand, second: Operand, parts: Axes, lengths: Mapping[str, int]) -> Operand:
    """Sums products of a term with one that has no l."""
    before = len(parts.rest + parts.joint)
    u = first.arranged(parts.rest + parts.joint + parts.summed)
    w = second.arranged(parts.joint + parts.new + parts.summed)
    if not parts.summed:
        w = w.to(u.dtype) if u.is_complex() else w
        for _ in parts.new:
            u = u.unsqueeze(before)
        return Operand(u * w, parts.result, True)
    u = _flat(u, before, len(parts.summed))
    w = w.squeeze(-1)
    w = _flat(w, w.ndim - len(parts.summed), len(parts.summed))
    w = _flat(w, len(parts.joint), len(parts.new))
    # A real matrix times complex numbers is the same matrix times twice as many real ones.
    y = torch.matmul(w, torch.view_as_real(u.contiguous()).flatten(-2) if u.is_complex() else u)
    if u.is_complex():
        y = torch.view_as_complex(y.reshape(*y.shape[:-1], -1, 2))
    return Operand(_unflat(y, before, [lengths[axis] for axis in parts.new]), parts.result, True)


def _channelwise(first: Operand, second: Operand, parts: Axes, lengths: Mapping[str, int], in_place: bool) -> Operand:
    """Every channel with its own filter, by the native engine."""
    channels = parts.joint + parts.summed + parts.new
    u, h = first.arranged(parts.rest + parts.joint + parts.summed), second.arranged(channels)
    for axis in parts.new:
        u = u.unsqueeze(-2).expand(*u.shape[:-1], lengths[axis], u.shape[-1])
    # One filter for all: the last axis of the signal serves as channels.
    lone = not channels and bool(parts.rest)
    if not lone:
        u = _flat(u, len(parts.rest), len(channels))
    u, h = u.mT, _flat(h, 0, len(channels)).mT
    out = u if in_place and first.owned and not parts.new else None
    y = causal_conv(u, h, out=out).mT
    if not lone:
        y = _unflat(y, len(parts.rest), [lengths[axis] for axis in channels])
    if parts.summed:
        start = len(parts.rest + parts.joint)
        y = y.sum(tuple(range(start, start + len(parts.summed))))
    return Operand(y, parts.result, True)


def _direct(first: Operand, second: Operand, parts: Axes, lengths: Mapping[str, int]) -> Operand:
    """PyTorch's grouped convolution, whose filters multiply the past in the opposite order."""
    u = first.arranged(parts.rest + parts.joint + parts.summed)
    u = _flat(u, len(parts.rest), len(parts.joint + parts.summed))
    w = second.arranged(parts.joint + parts.new + parts.summed)
    w = _flat(w, len(parts.joint + parts.new), len(parts.summed))
    w = _flat(w, 0, len(parts.joint + parts.new)).flip(-1)
    groups = math.prod(lengths[axis] for axis in parts.joint)
    u = torch.nn.functional.pad(_flat(u, 0, len(parts.rest)), (w.shape[-1] - 1, 0))
    y = torch.nn.functional.conv1d(u, w, groups=groups)
    y = _unflat(y, 1, [lengths[axis] for axis in parts.joint + parts.new])
    return Operand(_unflat(y, 0, [lengths[axis] for axis in parts.rest]), parts.result, True)


def _spectral(
    first: Operand, second: Operand, parts: Axes, lengths: Mapping[str, int], in_place: bool, by_products: bool
) -> Operand:
    """Products of spectra, summed."""
    before, count = len(parts.rest + parts.joint), len(parts.summed)
    u = first.arranged(parts.rest + parts.joint + parts.summed)
    g = second.arranged(parts.joint + parts.summed + parts.new)
    if not count:
        if in_place and first.owned and not parts.new:
            return Operand(u.mul_(g), parts.result, True)
        for _ in parts.new:
            u = u.unsqueeze(before)
        return Operand(u * g, parts.result, True)
    u, g = _flat(u, before, count), _flat(g, len(parts.joint), count)
    if by_products:
        for _ in parts.new:
            u = u.unsqueeze(-2)
        terms = list(zip(u.unbind(before), g.unbind(len(parts.joint)), strict=True))
        y = terms[0][0] * terms[0][1]
        for left, right in terms[1:]:
            y.addcmul_(left, right)
        return Operand(y, parts.result, True)
    # (f, joint, rest, summed) times (f, joint, summed, new), a matrix product for every frequency.
    u = _flat(_flat(u, len(parts.rest), len(parts.joint)), 0, len(parts.rest)).permute(3, 1, 0, 2)
    g = _flat(_flat(g, len(parts.joint) + 1, len(parts.new)), 0, len(parts.joint)).permute(3, 0, 1, 2)
    y = torch.matmul(u, g).permute(2, 1, 3, 0)
    extents = [[lengths[axis] for axis in group] for group in (parts.rest, parts.joint, parts.new)]
    y = _unflat(_unflat(_unflat(y, 2, extents[2]), 1, extents[1]), 0, extents[0])
    return Operand(y, parts.result, True)


# ---- plans ----


def _input(problem: EinsumProblem, place: int, tensor: Tensor, taps: int) -> Operand:
    """An input with l last, of size 1 where it has none, its needless taps dropped and its needless axes summed."""
    equation = problem.equation
    given, wanted = equation.terms[place], axes(equation, 1 << place)
    if place == equation.kernel + 1:
        tensor = tensor.narrow(given.index(TIME), 0, taps)
    needless = [position for position, axis in enumerate(given) if axis != TIME and axis not in wanted]
    if needless:
        tensor = tensor.sum(needless)
        given = "".join(axis for axis in given if axis == TIME or axis in wanted)
    if TIME not in given:
        return Operand(tensor.unsqueeze(-1), given)
    letters = given.replace(TIME, "")
    return Operand(tensor.movedim(given.index(TIME), -1), letters, bool(needless))


class Execution:
    """A plan bound to a problem: ``run(x, args)`` computes y."""

    def __init__(self, problem: EinsumProblem, plan: Plan, limit: float = math.inf) -> None:
        self.problem, self.plan = problem, plan
        self.axis = batch_axis(problem)
        self.chunk = chunk(problem, plan, limit)
        self.compute: torch.dtype = getattr(torch, problem.compute)
        step = plan.steps[0]
        # causal_conv stores the half types as such and computes in float32 by itself.
        self.casts = len(plan.steps) > 1 or step.kind != "channelwise" or bool(self._parts(step).summed)
        # Entries are multiplied one after the other in place, which nobody may record.
        product = self.product = next((step for step in plan.steps if step.kind == "spectral"), None)
        self.by_products = (
            product is None
            or not self._parts(product).summed
            or (problem.chunked and by_products(self._parts(product), dict(problem.sizes) | {self.axis: self.chunk}))
        )

    def _parts(self, step: Step) -> Axes:
        return meet(self.problem.equation, step.sources[0].inputs, step.sources[1].inputs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.compute) if self.casts else tensor

    def _step(self, step: Step, terms: Mapping[Term, Operand], lengths: Mapping[str, int]) -> Operand:
        first, *others = (terms[source] for source in step.sources)
        if step.kind == "transform":
            return Operand(torch.fft.rfft(first.tensor, self._points(lengths)), first.letters, True)
        if step.kind == "invert":
            y = torch.fft.irfft(first.tensor, self._points(lengths))
            return Operand(y[..., : lengths[TIME]], first.letters, True)
        second, parts = others[0], self._parts(step)
        if step.kind == "contract":
            return _contract(first, second, parts, lengths)
        if step.kind == "direct":
            return _direct(first, second, parts, lengths)
        if step.kind == "spectral":
            return _spectral(first, second, parts, lengths, self.problem.chunked, self.by_products)
        return _channelwise(first, second, parts, lengths, self.problem.chunked)

    def _walk(self, terms: dict[Term, Operand], lengths: Mapping[str, int], with_signal: bool) -> None:
        """Takes the steps that depend on x, or those that do not; forgets what has been used up."""
        for step in self.plan.steps:
            if has_signal(step.result) == with_signal:
                terms[step.result] = self._step(step, terms, lengths)
                for source in step.sources:
                    del terms[source]

    def _output(self, x: Tensor, kept: Mapping[Term, Operand], lengths: Mapping[str, int]) -> Tensor:
        terms = {**kept, Term(1): _input(self.problem, 0, self._cast(x), lengths[_TAPS])}
        self._walk(terms, lengths, True)
        (y,) = terms.values()
        output = self.problem.equation.output
        return y.arranged(output.replace(TIME, "")).movedim(-1, output.index(TIME))

    def run(self, x: Tensor, args: Sequence[Tensor]) -> Tensor:
        """y, of the dtype of x."""
        equation, lengths = self.problem.equation, self._lengths(x, args)
        if not self.problem.chunked or self.chunk >= lengths.get(self.axis, 1):
            return self._output(x, self._kept(args, lengths), lengths).to(x.dtype)
        extents = [lengths[axis] for axis in equation.output]
        y = torch.empty(extents, dtype=x.dtype, device=x.device)
        self.store(y, x, args)
        return y

    def store(self, y: Tensor, x: Tensor, args: Sequence[Tensor], add: bool = False) -> None:
        """Writes the result into ``y``, or adds it to what is there, a few entries of the batch axis at a time."""
        equation, lengths = self.problem.equation, self._lengths(x, args)
        kept = self._kept(args, lengths)
        along = equation.signal.index(self.axis) if self.axis else 0
        across = equation.output.index(self.axis) if self.axis else 0
        size = lengths.get(self.axis, 1)
        for start in range(0, size, self.chunk):
            count = min(self.chunk, size - start)
            source, target = x, y
            if self.axis:
                source, target = x.narrow(along, start, count), y.narrow(across, start, count)
            part = self._output(source, kept, lengths | {self.axis: count})
            if add:
                target.add_(part)
            else:
                target.copy_(part)

    def _lengths(self, x: Tensor, args: Sequence[Tensor]) -> dict[str, int]:
        """The size of every axis, and how many taps the sum has. From the tensors: an exported program may be run with
        others."""
        equation = self.problem.equation
        terms = list(zip(equation.terms, (x, *args), strict=True))
        sizes = {axis: size for axes_of, t in terms for axis, size in zip(axes_of, t.shape, strict=True)}
        of_kernel, kernel = terms[equation.kernel + 1]
        length, taps = x.shape[equation.signal.index(TIME)], kernel.shape[of_kernel.index(TIME)]
        taps = torch.sym_min(taps, length)  # type: ignore[no-untyped-call]
        return sizes | {TIME: length, _TAPS: taps}

    def _points(self, lengths: Mapping[str, int]) -> int:
        """Points of the transforms; of lengths that may change just as many as needed, for which ones are fast is not
        known."""
        samples = lengths[TIME] + lengths[_TAPS] - 1
        return transform_length(samples, self.problem.compute) if isinstance(samples, int) else samples

    def _kept(self, args: Sequence[Tensor], lengths: Mapping[str, int]) -> dict[Term, Operand]:
        """What does not depend on x."""
        terms = {
            Term(1 << at): _input(self.problem, at, self._cast(tensor), lengths[_TAPS])
            for at, tensor in enumerate(args, 1)
        }
        self._walk(terms, lengths, False)
        if not self.by_products and self.product is not None and self.product.sources[1] in terms:
            # The memory order that matrix products read: once, not for every chunk.
            spectrum, letters, owned = terms[self.product.sources[1]]
            flat = spectrum.flatten(0, -2).mT.contiguous()
            spectrum = flat.reshape(-1, *spectrum.shape[:-1]).movedim(0, -1)
            terms[self.product.sources[1]] = Operand(spectrum, letters, owned)
        return terms
