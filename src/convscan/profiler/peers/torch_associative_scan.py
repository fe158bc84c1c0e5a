"""PyTorch's own (prototype) ``associative_scan``, generic mode, eager and compiled.

The initial state enters by folding a[0]·y_init into x[0], which is timed: the operator has to do it too.
"""

from __future__ import annotations

import importlib.util
import shutil

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, unsupported
from ..problem import Problem


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def scan(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
    """Inclusive scan of the pairs (a, x) under composition of affine maps."""
    from torch._higher_order_ops.associative_scan import associative_scan

    a = a.expand(x.shape)
    first = torch.addcmul(x[:, 0], a[:, 0], y_init)[:, None]
    folded = torch.cat([first, x[:, 1:]], dim=1)
    result: Tensor = associative_scan(_combine, (a, folded), dim=1, combine_mode="generic")[1]
    return result


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem)
    if importlib.util.find_spec("torch._higher_order_ops.associative_scan") is None:
        reasons.append("this PyTorch has no associative_scan")
    return reasons


def _why_not_compiled(problem: Problem) -> list[str]:
    reasons = _why_not(problem)
    if problem.dtype.is_complex:
        reasons.append("inductor has no complex arithmetic")
    if shutil.which("g++") is None:
        reasons.append("needs g++ at run time")
    return reasons


def _eager(problem: Problem) -> Prepared:
    return from_torch(problem, scan, problem.arguments)


def _compiled(problem: Problem) -> Prepared:
    torch._dynamo.reset()
    prepared = from_torch(problem, torch.compile(scan, dynamic=False), problem.arguments)
    prepared.run()  # compiles
    return prepared


PEERS = (
    Peer("torch associative_scan", "linear_recurrence", "torch", _why_not, _eager),
    Peer(
        "torch associative_scan, compiled",
        "linear_recurrence",
        "torch",
        _why_not_compiled,
        _compiled,
        setup=lambda problem: 30.0,
    ),
)
