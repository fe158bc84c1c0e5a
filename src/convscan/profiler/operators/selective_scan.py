"""selective_scan. Its truth: the loop over time in float64, a stretch at a time, so that autograd keeps few states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

import convscan
from convscan.ops.selective_scan import cases

from ..problem import Operator, by_formula

_STRETCH = 64  # steps


def _stretch(h: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    rows = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        rows.append((h @ C[:, t, :, None])[..., 0])
    return h, torch.stack(rows, 1)


def _formula(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> Tensor:
    dt = softplus(delta + delta_bias) if delta_softplus else delta + delta_bias
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    parts = []
    for begin in range(0, u.shape[1], _STRETCH):
        steps = slice(begin, begin + _STRETCH)
        arguments = (h, u[:, steps], dt[:, steps], A, B[:, steps], C[:, steps])
        h, y = cast("tuple[Tensor, Tensor]", checkpoint(_stretch, *arguments, use_reentrant=False))
        parts.append(y)
    return (torch.cat(parts, 1) + D * u) * silu(z)


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (torch.empty_like(inputs["u"], device="meta"),)


OPERATOR = Operator(
    name="selective_scan",
    short="selective",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.selective_scan,
    differentiable=("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"),
    shape=lambda inputs: (*inputs["u"].shape, inputs["A"].shape[1]),
    axes="BLDN",
    group=lambda shape: "Mamba",
    answer=by_formula(_formula, lambda problem: math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("selective_scan", **inputs),
    outputs=_outputs,
)
