"""ssd_scan. Its truth: the loop over time in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import convscan
from convscan.ops.ssd_scan import cases

from ..problem import Operator, by_formula
from .gated_linear_attention import loop


def _formula(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    heads = x.shape[2]
    keys, queries = (tensor.repeat_interleave(heads // tensor.shape[2], 2) for tensor in (B, C))
    return loop(queries, keys, x * dt[..., None], (dt * A).exp()[..., None]) + D[:, None] * x


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (inputs["x"].new_empty(inputs["x"].shape, device="meta"),)


OPERATOR = Operator(
    name="ssd_scan",
    short="ssd",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.ssd_scan,
    differentiable=("x", "dt", "A", "B", "C", "D"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["B"].shape[-1]),
    axes="BLHPN",
    group=lambda shape: "Mamba-2",
    answer=by_formula(_formula, lambda problem: math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("ssd_scan", **inputs),
    outputs=_outputs,
)
