"""The package causal-conv1d (Dao-AILab): up to 4 taps, in either memory order, with silu; its step shifts its state.

Its weights are (D, K), the last of which multiplies the current sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, on_gpu, unsupported
from ..problem import Problem, as_tuple, own

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _why_not(problem: Problem) -> list[str]:
    reasons = on_gpu(problem, "causal_conv1d") + unsupported(problem, dtypes=DTYPES, backward=True)
    if not 2 <= problem.size("K") <= 4:
        reasons.append("takes 2 to 4 taps")
    if problem.inputs["activation"] not in (None, "silu"):
        reasons.append("has no activation but silu")
    return reasons


def _prepare(problem: Problem) -> Prepared:
    from causal_conv1d import causal_conv1d_fn  # type: ignore[import-not-found, unused-ignore]

    activation = problem.inputs["activation"]

    def conv(x: Tensor, weight: Tensor) -> Any:
        return causal_conv1d_fn(x, weight, None, activation=activation)

    return from_torch(
        problem,
        conv,
        (problem["x"].mT, problem["h"].flip(0).T.contiguous()),
        result=lambda y: y.mT,
        gradients=lambda g: (g[0].mT, g[1].T.flip(0)),
        cotangent=lambda g: g.mT,
    )


def _prepare_step(problem: Problem) -> Prepared:
    from causal_conv1d import causal_conv1d_update

    given, activation = own(problem), problem.inputs["activation"]
    state, weight = given["state"].mT.contiguous(), given["h"].flip(0).T.contiguous()

    def run() -> Any:
        with torch.no_grad():
            return causal_conv1d_update(given["x"], state, weight, None, activation)

    return Prepared(run, as_tuple)


PEERS = (
    Peer("causal-conv1d", "causal_conv", "causal-conv1d", _why_not, _prepare, devices=("cuda",)),
    Peer("causal-conv1d", "causal_conv_step", "causal-conv1d", _why_not, _prepare_step, devices=("cuda",)),
)
