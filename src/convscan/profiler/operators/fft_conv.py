"""fft_conv with full kernels, a filter for every pair of channels. Its truth is a float64 product of spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.fft_conv import cases

from ..problem import Operator, by_formula


def _call(x: Tensor, kernel: Tensor) -> Tensor:
    return convscan.fft_conv(cases.EQUATION, x, kernel)


def _product(x: Tensor, kernel: Tensor) -> Tensor:
    length, points = x.shape[1], 1 << (x.shape[1] + kernel.shape[0] - 1).bit_length()
    signal = torch.fft.rfft(x.transpose(0, 1), points, dim=0).contiguous()
    filters = torch.fft.rfft(kernel.mT, points, dim=0).contiguous()
    y: Tensor = torch.fft.irfft(signal @ filters, points, dim=0)[:length].transpose(0, 1)
    return y


OPERATOR = Operator(
    name="fft_conv",
    short="einsum",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=_call,
    differentiable=("x", "kernel"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["kernel"].shape[0]),
    axes="BLDK",
    group=lambda shape: "full kernels, K ≤ 32" if shape[3] <= 32 else "full kernels, K > 32",
    # Transforms spread the rounding of the largest values over all.
    answer=by_formula(_product, lambda problem: 1 + math.log2(2 * problem.size("L") + 1)),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("fft_conv", cases.EQUATION, *inputs.values()),
)
