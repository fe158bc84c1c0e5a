"""gated_delta_rule. Its truth: the loop over time in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.gated_delta_rule import cases

from ..problem import Operator, by_formula
from .gated_linear_attention import outputs


def loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The definition, (B, L, H, ...)."""
    decay = g.exp() if g.ndim == v.ndim else g.exp()[..., None]
    state = v.new_zeros((v.shape[0], v.shape[2], k.shape[3], v.shape[3]))
    read = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state
        error = v[:, t] - (k[:, t, :, None, :] @ state).squeeze(2)
        state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * error)[:, :, None, :]
        read.append((q[:, t, :, None, :] @ state).squeeze(2))
    return torch.stack(read, 1) * float(q.shape[-1] ** -0.5)


OPERATOR = Operator(
    name="gated_delta_rule",
    short="delta",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.gated_delta_rule,
    differentiable=("q", "k", "v", "g", "beta"),
    shape=lambda inputs: (*inputs["q"].shape, inputs["v"].shape[-1]),
    axes="BLHKV",
    group=lambda shape: "gated delta rules",
    answer=by_formula(loop, lambda problem: math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("gated_delta_rule", **inputs),
    outputs=outputs,
)
