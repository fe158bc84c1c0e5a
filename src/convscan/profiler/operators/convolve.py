"""convolve, two-sided and circular. Its truth is a float64 product of spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import convscan
from convscan.ops.convolve import cases

from ..problem import Operator, by_formula


def _product(x: Tensor, h: Tensor, origin: int, circular: bool) -> Tensor:
    length, taps = x.shape[1], h.shape[0]
    if circular:
        turns = -(-taps // length)
        padded = torch.nn.functional.pad(h, (0, 0, 0, turns * length - taps))
        points, h = length, padded.reshape(turns, length, -1).sum(0)
    else:
        points = 1 << (length + taps - 1).bit_length()
    spectrum = torch.fft.rfft(x, points, dim=1) * torch.fft.rfft(h, points, dim=0)
    y: Tensor = torch.fft.irfft(spectrum, points, dim=1).roll(-origin, 1)[:, :length]
    return y


OPERATOR = Operator(
    name="convolve",
    short="two-sided",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.convolve,
    differentiable=("x", "h"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["h"].shape[0]),
    axes="BLDK",
    group=lambda shape: "two-sided, K ≤ 16" if shape[3] <= 16 else "two-sided, K > 16",
    # Transforms spread the rounding of the largest values over all.
    answer=by_formula(_product, lambda problem: 1 + math.log2(2 * problem.size("L") + 1)),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("convolve", **inputs),
)
