"""convscan as a rival among rivals: the choice dispatch makes, and every registered implementation on its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

import convscan
from convscan._dispatch import Candidate, Explanation
from convscan._targets import TARGETS

from .operators import operator
from .peer import Peer, Prepared
from .problem import Problem, as_tuple, own


def _forced(name: str | None) -> AbstractContextManager[None]:
    return nullcontext() if name is None else convscan.force(name)


def explain(problem: Problem) -> Explanation | None:
    """Dispatch's view of the forward call, if it has one."""
    look = problem.operator.explain
    return None if look is None else look(problem.inputs)


def _candidates(problem: Problem, name: str) -> list[Candidate]:
    explanation = explain(problem)
    return [] if explanation is None else [c for c in explanation.candidates if c.name == name]


def _why_not(problem: Problem, name: str) -> list[str]:
    return [reason for c in _candidates(problem, name) for reason in c.reasons]


def _estimate(problem: Problem, name: str) -> float:
    """The cost model's seconds, halved: a kernel far off its favoured shapes must not use up its rivals' time."""
    return sum(c.cost.seconds for c in _candidates(problem, name) if c.cost is not None) / 2


def _workspace() -> int:
    return convscan.workspace_memory().peak


def _prepare(problem: Problem, name: str | None = None, fresh: bool = False) -> Prepared:
    if problem.direction == "backward":
        return _prepare_backward(problem, name)
    call = partial(problem.operator.function, **own(problem))
    fresh = fresh or not problem.operator.takes_out
    y = None if fresh else torch.empty_like(problem.outputs[0], device=problem.device)
    force = partial(_forced, name)

    def run() -> Any:
        with torch.no_grad(), force():
            return call() if fresh else call(out=y)

    def run_chosen() -> Any:
        return call() if fresh else call(out=y)

    return Prepared(
        run_chosen if name is None else run,
        as_tuple,
        fresh=fresh,
        workspace_bytes=_workspace,
        note=_note(problem, name),
    )


def _note(problem: Problem, name: str | None) -> str:
    explanation = explain(problem) if name is None else None
    return "" if explanation is None else f"dispatch chose {explanation.chosen}"


def _prepare_backward(problem: Problem, name: str | None) -> Prepared:
    leaves = tuple(t.detach().requires_grad_() for t in problem.arguments)
    named = zip(problem.differentiated, leaves, strict=True)
    call = partial(problem.operator.function, **(dict(problem.inputs) | dict(named)))

    def run() -> tuple[torch.Tensor, ...]:
        with _forced(name):
            y = call()
        return torch.autograd.grad(as_tuple(y), leaves, problem.cotangents)

    return Prepared(run, lambda g: g, workspace_bytes=_workspace, note=_note(problem, name))


def _kept(problem: Problem) -> Mapping[str, Any] | None:
    keep = problem.operator.kept
    return None if keep is None else keep(problem.inputs)


def _prepare_kept(problem: Problem) -> Prepared:
    inputs = _kept(problem)
    assert inputs is not None
    y = torch.empty_like(problem.outputs[0], device=problem.device)
    run = partial(problem.operator.function, **inputs, out=y)
    run()  # prepares what is kept
    kept = [value.nbytes for value in inputs.values() if isinstance(value, convscan.FilterSpectrum)]
    return Prepared(run, as_tuple, kept_bytes=sum(kept), fresh=False, workspace_bytes=_workspace)


def _nothing_kept(problem: Problem) -> list[str]:
    if problem.direction == "backward":
        return ["is compared forwards"]
    return ["keeps nothing that would be used"] if _kept(problem) is None else []


def peers(op: str) -> tuple[Peer, ...]:
    """`convscan` (what a user gets, with ``out=`` if it takes that), the same with a fresh output, with a spectrum kept
    where there is one, and a row for each implementation.

    The reference loop is left out: it is the statement's loop, which is the baseline already.
    """
    present = {"any", *(target.name for target in TARGETS if target.why_not() is None)}
    rows = [Peer("convscan", op, "convscan", lambda problem: [], _prepare, ours=True)]
    if operator(op).takes_out:
        rows.append(
            Peer(
                "convscan, fresh output",
                op,
                "convscan",
                lambda problem: ["allocates its gradients anyway"] if problem.direction == "backward" else [],
                partial(_prepare, fresh=True),
                ours=True,
            )
        )
    if operator(op).kept is not None:
        rows.append(Peer("convscan, spectrum kept", op, "convscan", _nothing_kept, _prepare_kept, ours=True))
    for row in convscan.implementations(op) if operator(op).explain is not None else ():
        if row.name != "reference" and row.target in present:
            rows.append(
                Peer(
                    f"convscan {row.name}",
                    op,
                    "convscan",
                    partial(_why_not, name=row.name),
                    partial(_prepare, name=row.name),
                    estimate=partial(_estimate, name=row.name),
                    ours=True,
                )
            )
    return tuple(rows)
