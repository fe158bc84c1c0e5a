"""opt_ssm_forward. Its truth goes by way of the states in float64, a few sequences at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan.ops.opt_ssm_forward import cases

from ..problem import Operator, by_formula

# States of so many points together are transformed at a time.
STATE_ELEMENTS = 1 << 21


def _layer(x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
    length, points = x.shape[1], 1 << (x.shape[1] + K.shape[0] - 1).bit_length()
    spectrum = torch.fft.rfft(K.T, points)
    rows = []
    for sequences in torch.split(x, max(1, STATE_ELEMENTS // (K.shape[1] * points))):
        states = torch.fft.irfft(torch.fft.rfft(B_ @ sequences.mT, points) * spectrum, points)[..., :length]
        rows.append((C @ states).mT)
    return torch.cat(rows)


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    x, C = inputs["x"], inputs["C"]
    return (x.new_empty((*x.shape[:-1], C.shape[0]), device="meta"),)


OPERATOR = Operator(
    name="opt_ssm_forward",
    short="ssm",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.opt_ssm_forward,
    differentiable=("x", "K", "B_", "C"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["B_"].shape[0]),
    axes="BLHN",
    group=lambda shape: "state-space layer",
    # Transforms spread the rounding of the largest values over all.
    answer=by_formula(_layer, lambda problem: 1 + math.log2(2 * problem.size("L") + 1)),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("opt_ssm_forward", **inputs),
    outputs=_outputs,
)
