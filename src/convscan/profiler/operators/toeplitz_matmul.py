"""toeplitz_matmul, batched over heads. Its truth is the product with the matrix in float64."""

from __future__ import annotations

import math

import torch

import convscan
from convscan.ops.toeplitz_matmul import cases
from convscan.ops.toeplitz_matmul.reference import toeplitz_matmul

from ..problem import Operator, by_formula

OPERATOR = Operator(
    name="toeplitz_matmul",
    short="toeplitz",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.toeplitz_matmul,
    differentiable=("column", "row", "X"),
    shape=lambda inputs: tuple(inputs["X"].shape),
    axes="BHLF",
    group=lambda shape: "Toeplitz products",
    # Transforms spread the rounding of the largest values over all.
    answer=by_formula(toeplitz_matmul, lambda problem: 1 + math.log2(2 * problem.size("L") + 1)),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("toeplitz_matmul", **inputs),
    outputs=lambda inputs: (torch.empty_like(inputs["X"], device="meta"),),
)
