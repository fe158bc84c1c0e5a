"""convscan as a rival among rivals: the choice dispatch makes, and every registered implementation on its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

import convscan
from convscan._dispatch import Explanation

from .operators import operator
from .peer import Peer, Prepared
from .problem import Problem


def _call(problem: Problem, **keywords: Any) -> torch.Tensor:
    return problem.operator.call(problem, *problem.arguments, **keywords)


def _forced(name: str | None) -> AbstractContextManager[None]:
    return nullcontext() if name is None else convscan.force(name)


def explain(problem: Problem) -> Explanation:
    """Dispatch's view of the forward call."""
    return problem.operator.explain(problem)


def _why_not(problem: Problem, name: str) -> list[str]:
    return [reason for c in explain(problem).candidates if c.name == name for reason in c.reasons]


def _estimate(problem: Problem, name: str) -> float:
    """The cost model's seconds, halved: a kernel far off its favoured shapes must not use up its rivals' time."""
    costs = [c.cost.seconds for c in explain(problem).candidates if c.name == name and c.cost is not None]
    return sum(costs) / 2


def _workspace() -> int:
    return convscan.workspace_memory().peak


def _prepare(problem: Problem, name: str | None = None, fresh: bool = False) -> Prepared:
    if problem.direction == "backward":
        return _prepare_backward(problem, name)
    fresh = fresh or not problem.operator.takes_out
    y = None if fresh else torch.empty_like(problem.x)
    force = partial(_forced, name)

    def run() -> torch.Tensor:
        with torch.no_grad(), force():
            return _call(problem) if fresh else _call(problem, out=y)

    def run_chosen() -> torch.Tensor:
        return _call(problem) if fresh else _call(problem, out=y)

    return Prepared(
        run_chosen if name is None else run,
        lambda y: (y,),
        fresh=fresh,
        workspace_bytes=_workspace,
        note=_note(problem, name),
    )


def _note(problem: Problem, name: str | None) -> str:
    return f"dispatch chose {explain(problem).chosen}" if name is None else ""


def _prepare_backward(problem: Problem, name: str | None) -> Prepared:
    leaves = [t.detach().requires_grad_() for t in problem.arguments]

    def run() -> tuple[torch.Tensor, ...]:
        with _forced(name):
            y = problem.operator.call(problem, *leaves)
        return torch.autograd.grad(y, leaves, problem.gradient_of_output)

    return Prepared(run, lambda g: g, workspace_bytes=_workspace, note=_note(problem, name))


def peers(op: str) -> tuple[Peer, ...]:
    """`convscan` (what a user gets, with ``out=`` if it takes that), the same with a fresh output, and a row for each
    implementation.

    The reference loop is left out: it is the statement's loop, which is the baseline already.
    """
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
    for row in convscan.implementations(op):
        if row.name != "reference":
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
