"""gated_linear_attention. Its truth: the loop over time in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan.ops.gated_linear_attention import cases

from ..problem import Operator, by_formula


def outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """One like v."""
    return (torch.empty_like(inputs["v"], device="meta"),)


def loop(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """y[t] = S[t]^T q[t], S[t] = diag(decay[t]) S[t-1] + k[t] v[t]^T; (B, L, H, ...), decays of K numbers or one."""
    state = v.new_zeros((v.shape[0], v.shape[2], k.shape[3], v.shape[3]))
    read = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        read.append((q[:, t, :, None, :] @ state).squeeze(2))
    return torch.stack(read, 1)


def _formula(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    decay = g.exp()
    return loop(q * q.shape[-1] ** -0.5, k, v, decay if g.ndim == v.ndim else decay[..., None])


OPERATOR = Operator(
    name="gated_linear_attention",
    short="gla",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.gated_linear_attention,
    differentiable=("q", "k", "v", "g"),
    shape=lambda inputs: (*inputs["q"].shape, inputs["v"].shape[-1]),
    axes="BLHKV",
    group=lambda shape: "gated linear attention",
    answer=by_formula(_formula, lambda problem: math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("gated_linear_attention", **inputs),
    outputs=outputs,
)
