"""allpole_filter. Its truth is the loop over time in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import convscan
from convscan.ops.allpole_filter import cases

from ..problem import Operator, by_formula


def _loop(x: Tensor, a: Tensor) -> Tensor:
    past, steps = x.new_zeros((x.shape[0], *a.shape[-2:])), []
    for i in range(x.shape[1]):
        y = x[:, i] + ((a if a.ndim == 2 else a[:, i]) * past).sum(-2)
        past = torch.cat([y[:, None], past[:, :-1]], 1)
        steps.append(y)
    return torch.stack(steps, 1)


OPERATOR = Operator(
    name="allpole_filter",
    short="allpole",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.allpole_filter,
    differentiable=("x", "a"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["a"].shape[-2]),
    axes="BLDP",
    group=lambda shape: "all-pole filters, one sequence" if shape[0] * shape[2] == 1 else "all-pole filters",
    answer=by_formula(_loop),
    # Resonances pass the rounding of every step on.
    bound=1024.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("allpole_filter", **inputs),
    takes_out=True,
)
