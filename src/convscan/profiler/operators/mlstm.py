"""mlstm. Its truth: the loop over time in float64, whose range needs no stabiliser at the gates of the cases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.mlstm import cases

from ..problem import Operator, by_formula
from .gated_linear_attention import loop, outputs


def _formula(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6) -> Tensor:
    columns = torch.cat([v, torch.ones_like(v[..., :1])], -1) * i.exp()[..., None]
    read = loop(q * q.shape[-1] ** -0.5, k, columns, f.sigmoid()[..., None])
    m = [torch.zeros_like(i[:, 0])]
    for t in range(i.shape[1]):
        m.append(torch.maximum(torch.nn.functional.logsigmoid(f[:, t]) + m[-1], i[:, t]))
    # The divisor of the stabilised form, max(|n q| exp(-m), exp(-m)) + eps, times exp(m).
    divisor = read[..., -1:].abs().clamp(min=1) + eps * torch.stack(m[1:], 1).exp()[..., None]
    return read[..., :-1] / divisor


OPERATOR = Operator(
    name="mlstm",
    short="mlstm",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.mlstm,
    differentiable=("q", "k", "v", "i", "f"),
    shape=lambda inputs: (*inputs["q"].shape, inputs["v"].shape[-1]),
    axes="BLHKV",
    group=lambda shape: "xLSTM",
    # Near the edge of the divisor's two cases, and where it is small, rounding of the sums is magnified.
    answer=by_formula(_formula, lambda problem: 8 * math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("mlstm", **inputs),
    outputs=outputs,
)
