"""Which implementation runs a problem: declared costs and refusals in, one choice out, nothing found out by raising.

An operator registers its rows once. A row says why it cannot run a problem, what the problem would cost, and prepares
the function that runs it. Selection is pure and cached: the cheapest row that can run the problem within the workspace
limit. ``force`` and ``workspace_limit`` change the choice inside a ``with`` block, ``explain`` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ._errors import cannot_run, message


class Cost(NamedTuple):
    """Predicted time of one call, and the workspace it needs beyond inputs and outputs (an upper bound).

    Where implementations differ in what they compute, also the additions and multiplications, and the bytes that all
    their steps together read and write.
    """

    seconds: float
    workspace_bytes: int
    flops: int | None = None
    moved_bytes: int | None = None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operator on one target.

    ``why_not(problem)`` lists the reasons why it cannot run the problem; empty means that it can.
    ``cost(problem)`` predicts, and is asked only where ``why_not`` is empty.
    ``prepare(problem)`` does once all that does not depend on addresses, and returns the function that runs the
    problem on tensors; the operator's api.py says which tensors, in which order.
    """

    name: str
    target: str
    why_not: Callable[[Any], list[str]]
    cost: Callable[[Any], Cost]
    prepare: Callable[[Any], Callable[..., Any]]


class Settings(NamedTuple):
    """What ``with`` blocks around a call, or its own arguments, ask of the selection."""

    forced: str | None = None
    max_workspace_bytes: int | None = None

    def within(self, outer: Settings | None) -> Settings:
        """These settings inside those of a ``with`` block: the innermost name, the narrower limit."""
        if outer is None:
            return self
        limits = [s.max_workspace_bytes for s in (self, outer) if s.max_workspace_bytes is not None]
        return Settings(self.forced or outer.forced, min(limits, default=None))


def _asks_nothing(problem: Any) -> Settings:
    return Settings()


class _Operator(NamedTuple):
    implementations: tuple[Implementation, ...]
    describe: Callable[..., Hashable]
    asks: Callable[[Any], Settings]


_operators: dict[str, _Operator] = {}
settings_variable: ContextVar[Settings | None] = ContextVar("convscan_settings", default=None)
settings = settings_variable.get


def register(
    op: str,
    implementations: tuple[Implementation, ...],
    describe: Callable[..., Hashable],
    asks: Callable[[Any], Settings] = _asks_nothing,
) -> None:
    """Enters an operator: its rows, the function that makes a problem from the public function's arguments, and what
    the arguments of a problem ask of the selection."""
    _operators[op] = _Operator(implementations, describe, asks)


_MOST_PREPARED = 4096
_caches: list[dict[Any, Any]] = []


class _Prepared(dict[Any, Any]):
    """Empties itself where it would grow without end."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= _MOST_PREPARED:
            self.clear()
        super().__setitem__(key, value)


def prepared_cache() -> dict[Any, Any]:
    """A dictionary for calls that an operator has prepared; emptied whenever selection may change its mind, and when it
    is full."""
    cache = _Prepared()
    _caches.append(cache)
    return cache


def forget() -> None:
    """Forgets every selection and every prepared call, after the cost constants have changed."""
    select.cache_clear()
    for cache in _caches:
        cache.clear()


def operators() -> tuple[str, ...]:
    """The registered operators."""
    return tuple(_operators)


def _operator(op: str) -> _Operator:
    if op not in _operators:
        raise ValueError(message("convscan", f"the operator must be one of {', '.join(_operators)}", repr(op)))
    return _operators[op]


def implementations(op: str) -> tuple[Implementation, ...]:
    """All registered implementations of an operator."""
    return _operator(op).implementations


@lru_cache(maxsize=16384)
def select(op: str, problem: Any, max_workspace_bytes: int | None = None) -> Implementation:
    """The cheapest implementation that can run ``problem`` within the workspace limit."""
    best: Implementation | None = None
    best_seconds = 0.0
    least_workspace: int | None = None
    for candidate in implementations(op):
        if candidate.why_not(problem):
            continue
        cost = candidate.cost(problem)
        if least_workspace is None or cost.workspace_bytes < least_workspace:
            least_workspace = cost.workspace_bytes
        if max_workspace_bytes is not None and cost.workspace_bytes > max_workspace_bytes:
            continue
        if best is None or cost.seconds < best_seconds:
            best, best_seconds = candidate, cost.seconds
    if best is None and least_workspace is not None:
        expectation = f"no implementation fits in {max_workspace_bytes} bytes of workspace"
        raise MemoryError(
            message(op, expectation, f"a problem that needs {least_workspace}", "Raise workspace_limit()")
        )
    if best is None:
        reasons = "; ".join(f"{row.name}: {', '.join(row.why_not(problem))}" for row in implementations(op))
        raise NotImplementedError(f"{op}: no implementation runs this problem: {reasons}")
    return best


def choose(op: str, problem: Any, *, strict: bool = True) -> Implementation:
    """``select`` under the settings of the surrounding ``with`` blocks.

    A forced implementation that cannot run the problem is an error; with ``strict=False``, which the parts of a
    gradient use, it is passed over.
    """
    wanted = _operator(op).asks(problem).within(settings())
    for row in implementations(op):
        if row.name == wanted.forced:
            reasons = row.why_not(problem)
            if not reasons:
                return row
            if strict:
                raise ValueError(cannot_run(op, row.name, reasons))
    return select(op, problem, wanted.max_workspace_bytes)


@contextmanager
def force(implementation: str) -> Iterator[None]:
    """Makes every operator that has this implementation use it, in this thread or task, inside the ``with`` block.

    A problem that the implementation cannot run is a ``ValueError`` with its reasons. Operators without an
    implementation of this name, and gradients that it cannot compute, choose freely.

    >>> import torch, convscan
    >>> with convscan.force("reference"):
    ...     y = convscan.causal_conv(torch.ones(4, 1), torch.ones(2, 1))
    >>> y.flatten().tolist()
    [1.0, 2.0, 2.0, 2.0]
    """
    known = {row.name for entry in _operators.values() for row in entry.implementations}
    if implementation not in known:
        raise ValueError(message("force", f"implementation must be one of {', '.join(sorted(known))}", implementation))
    token = settings_variable.set((settings() or Settings())._replace(forced=implementation))
    try:
        yield
    finally:
        settings_variable.reset(token)


@contextmanager
def workspace_limit(max_workspace_bytes: int) -> Iterator[None]:
    """Picks the fastest implementation that needs at most this much workspace, inside the ``with`` block.

    Workspace is what a call needs beyond its inputs and outputs, of all threads together. A problem that nothing
    can run within the limit is a ``MemoryError``.
    """
    if max_workspace_bytes < 0:
        raise ValueError(message("workspace_limit", "max_workspace_bytes must not be negative", max_workspace_bytes))
    token = settings_variable.set((settings() or Settings())._replace(max_workspace_bytes=max_workspace_bytes))
    try:
        yield
    finally:
        settings_variable.reset(token)


@dataclass(frozen=True)
class Candidate:
    """An implementation as ``explain`` saw it: its cost, or the reasons why it cannot run the problem."""

    name: str
    target: str
    cost: Cost | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Every candidate for one problem and the chosen one; ``str`` of it is a table."""

    op: str
    problem: Any
    candidates: tuple[Candidate, ...]
    chosen: str

    def __str__(self) -> str:
        counted = any(candidate.cost and candidate.cost.flops is not None for candidate in self.candidates)
        lines = [
            f"{self.op}: {self.problem}",
            f"  {'implementation':<18}{'target':<8}{'predicted':>12}{'workspace':>14}"
            + (f"{'flops':>12}{'moved':>14}" if counted else ""),
        ]
        for candidate in self.candidates:
            mark = "*" if candidate.name == self.chosen else " "
            start = f"{mark} {candidate.name:<18}{candidate.target:<8}"
            if candidate.cost is None:
                lines.append(f"{start}  cannot: {'; '.join(candidate.reasons)}")
            else:
                refusal = f"  {'; '.join(candidate.reasons)}" if candidate.reasons else ""
                time, workspace = _time(candidate.cost.seconds), _bytes(candidate.cost.workspace_bytes)
                counts = _counts(candidate.cost) if counted else ""
                lines.append(f"{start}{time:>12}{workspace:>14}{counts}{refusal}")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _bytes(count: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} B"


def _counts(cost: Cost) -> str:
    flops = "" if cost.flops is None else f"{cost.flops:.3g}"
    return f"{flops:>12}{'' if cost.moved_bytes is None else _bytes(cost.moved_bytes):>14}"


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Every implementation with its predicted time, workspace or reasons for refusing, and the choice.

    ``op`` is a public function or its name; the other arguments are those of the call. Nothing is computed.

    >>> import torch, convscan
    >>> explanation = convscan.explain(convscan.causal_conv, torch.ones(8, 2), torch.ones(3, 2))
    >>> explanation.chosen in [candidate.name for candidate in explanation.candidates]
    True
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    problem = _operator(name).describe(*args, **kwargs)
    limit = _operator(name).asks(problem).within(settings()).max_workspace_bytes
    candidates = []
    for row in implementations(name):
        reasons = row.why_not(problem)
        cost = None if reasons else row.cost(problem)
        if cost is not None and limit is not None and cost.workspace_bytes > limit:
            reasons = [f"more workspace than the limit of {_bytes(limit)}"]
        candidates.append(Candidate(row.name, row.target, cost, tuple(reasons)))
    return Explanation(name, problem, tuple(candidates), choose(name, problem).name)
