"""``torch.nn.functional.conv1d`` with one group per channel: what most models call.

It wants (B, D, L) memory; when the case is channel contiguous it is given its own copy, made once and not timed. Left
context comes from ``padding=K-1`` and a truncated view, as Mamba's reference writes it; for K > 16, where that would
double the work, the input is padded on the left only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Peer, Prepared, activate, from_torch, time_last, unsupported
from ..problem import Problem

# Multiply-adds a second it stays below on two cores; only refuses hopeless cases without running them. The gradient of
# a grouped filter is slow: 2e8 at best, 32 s for 4096 x 1024 samples and 128 taps.
MULTIPLY_ADDS_PER_SECOND = {"forward": 60e9, "backward": 5e8}


def _conv(problem: Problem, state: Tensor | None, x: Tensor, h: Tensor) -> Tensor:
    weight = h.flip(-1)[:, None]
    if h.shape[0] != x.shape[1]:
        weight = weight.expand(x.shape[1], 1, h.shape[1])
    taps = h.shape[1]
    if state is not None:
        y = F.conv1d(torch.cat([state, x], dim=-1), weight, groups=x.shape[1])
    elif taps <= 16:
        y = F.conv1d(x, weight, padding=taps - 1, groups=x.shape[1])[..., : x.shape[-1]]
    else:
        y = F.conv1d(F.pad(x, (taps - 1, 0)), weight, groups=x.shape[1])
    return activate(problem, y)


def _prepare(problem: Problem) -> Prepared:
    every, state = problem.size("K"), problem.inputs["initial_state"]
    taps = min(every, max(1, problem.size("L"))) if state is None else every
    h = problem["h"][:taps].t().contiguous()
    state = None if state is None else time_last(state)

    def gradients(g: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dh = g[1].t()
        if taps < every:
            dh = torch.cat([dh, dh.new_zeros((every - taps, dh.shape[1]))])
        return g[0].transpose(1, 2), dh

    return from_torch(
        problem,
        partial(_conv, problem, state),
        (time_last(problem["x"]), h),
        result=lambda y: y.transpose(1, 2),
        gradients=gradients,
        cotangent=time_last,
    )


def _estimate(problem: Problem) -> float:
    work = problem["x"].numel() * min(problem.size("K"), problem.size("L"))
    return work * (1 if problem.direction == "forward" else 3) / MULTIPLY_ADDS_PER_SECOND[problem.direction]


PEERS = (
    Peer(
        "torch conv1d",
        "causal_conv",
        "torch",
        lambda problem: unsupported(problem, backward=True, state=True),
        _prepare,
        estimate=_estimate,
        devices=("cpu", "cuda"),
    ),
)
