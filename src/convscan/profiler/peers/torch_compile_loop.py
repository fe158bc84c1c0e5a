"""``torch.compile`` of the loop over time. Inductor unrolls it, so compile time grows with L: only short sequences."""

from __future__ import annotations

import shutil
from functools import partial

import torch

from ..peer import Peer, Prepared, activate, from_torch, unsupported
from ..problem import Problem
from . import time_loop

LONGEST = 128


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem, backward=True, state=True)
    if problem.dtype.is_complex:
        reasons.append("inductor has no complex arithmetic")
    if problem.size("L") > LONGEST:
        reasons.append(f"unrolls {problem.size('L')} steps; compiled up to {LONGEST}")
    if shutil.which("g++") is None:
        reasons.append("needs g++ at run time")
    return reasons


def _prepare(problem: Problem) -> Prepared:
    torch._dynamo.reset()
    if problem.op == "causal_conv":
        function = torch.compile(partial(time_loop.convolve, state=problem.inputs["initial_state"]), dynamic=False)
        prepared = from_torch(problem, lambda x, h: activate(problem, function(x, h)), problem.arguments)
    else:
        prepared = from_torch(problem, torch.compile(time_loop.recur, dynamic=False), problem.arguments)
    prepared.run()  # compiles
    return prepared


PEERS = tuple(
    Peer(
        "torch.compile of the loop",
        op,
        "torch",
        _why_not,
        _prepare,
        setup=lambda p: 15 + 0.3 * p.size("L"),
        devices=("cpu", "cuda"),
    )
    for op in ("causal_conv", "linear_recurrence")
)
