"""opt_ssm_forward. Its truth goes by way of the states in float64, a few sequences at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.opt_ssm_forward import cases

from ..problem import Answer, Operator, Problem, differentiated

# States of so many points together are transformed at a time.
STATE_ELEMENTS = 1 << 21


def _call(problem: Problem, x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
    return convscan.opt_ssm_forward(x, K, B_, C)


def _layer(x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
    length, points = x.shape[1], 1 << (x.shape[1] + K.shape[0] - 1).bit_length()
    spectrum = torch.fft.rfft(K.T, points)
    rows = []
    for sequences in torch.split(x, max(1, STATE_ELEMENTS // (K.shape[1] * points))):
        states = torch.fft.irfft(torch.fft.rfft(B_ @ sequences.mT, points) * spectrum, points)[..., :length]
        rows.append((C @ states).mT)
    return torch.cat(rows)


def _answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
    values = differentiated(problem, _layer)
    rows = 1 + math.log2(2 * problem.length + 1)
    # Transforms spread the rounding of the largest values over all.
    return Answer(values, tuple((rows * v.abs().amax()).expand(v.shape[-1]) for v in values), ())


OPERATOR = Operator(
    name="opt_ssm_forward",
    short="ssm",
    cases=cases.CASES,
    inputs=cases.inputs,
    differentiable=("x", "K", "B_", "C"),
    shape=lambda problem: (*problem.x.shape, problem.inputs["B_"].shape[0]),
    axes="BLHN",
    group=lambda shape: "state-space layer",
    answer=_answer,
    bound=64.0,
    bandwidth="copy",
    call=_call,
    explain=lambda problem: convscan.explain("opt_ssm_forward", **problem.inputs),
    output_channels=lambda inputs: int(inputs["C"].shape[0]),
)
