"""fft_conv with full kernels, a filter for every pair of channels. Its truth is a float64 product of spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.fft_conv import cases

from ..problem import Answer, Operator, Problem, differentiated


def _call(problem: Problem, x: Tensor, kernel: Tensor) -> Tensor:
    return convscan.fft_conv(cases.EQUATION, x, kernel)


def _product(x: Tensor, kernel: Tensor) -> Tensor:
    length, points = x.shape[1], 1 << (x.shape[1] + kernel.shape[0] - 1).bit_length()
    signal = torch.fft.rfft(x.transpose(0, 1), points, dim=0).contiguous()
    filters = torch.fft.rfft(kernel.mT, points, dim=0).contiguous()
    y: Tensor = torch.fft.irfft(signal @ filters, points, dim=0)[:length].transpose(0, 1)
    return y


def _answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
    values = differentiated(problem, _product)
    rows = 1 + math.log2(2 * problem.length + 1)
    # Transforms spread the rounding of the largest values over all.
    return Answer(values, tuple((rows * v.abs().amax()).expand(v.shape[-1]) for v in values), ())


OPERATOR = Operator(
    name="fft_conv",
    short="einsum",
    cases=cases.CASES,
    inputs=cases.inputs,
    differentiable=("x", "kernel"),
    shape=lambda problem: (*problem.x.shape, problem.inputs["kernel"].shape[0]),
    axes="BLDK",
    group=lambda shape: "full kernels, K ≤ 32" if shape[3] <= 32 else "full kernels, K > 32",
    answer=_answer,
    bound=64.0,
    bandwidth="copy",
    call=_call,
    explain=lambda problem: convscan.explain("fft_conv", cases.EQUATION, *problem.arguments),
    output_channels=lambda inputs: int(inputs["kernel"].shape[1]),
)
