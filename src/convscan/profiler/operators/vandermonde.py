"""vandermonde, the kernel of a diagonal state-space layer. Its truth: a product of two tables of powers in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan.ops.vandermonde import cases

from ..problem import Operator, by_formula


def two_tables(c: Tensor, a: Tensor, length: int) -> Tensor:
    """a^(jT + t) = (a^T)^j a^t with T about the root of the length, so that the sum over n is a matrix product."""
    columns = max(1, math.isqrt(length))
    rows = -(-length // columns)
    logarithm = torch.log(a)[..., None]
    fine = torch.exp(logarithm * torch.arange(columns))
    coarse = torch.exp(logarithm * torch.arange(0, rows * columns, columns))
    y: Tensor = ((c[..., None] * coarse).mT @ fine).real.flatten(-2)[..., :length]
    return y


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    c = inputs["c"]
    return (c.real.new_empty((*c.shape[:-1], inputs["length"]), device="meta"),)


OPERATOR = Operator(
    name="vandermonde",
    short="vandermonde",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.vandermonde,
    differentiable=("c", "a"),
    shape=lambda inputs: (*inputs["c"].shape, inputs["length"]),
    axes="HNL",
    group=lambda shape: "kernels of S4D",
    # A power by way of a logarithm is off by as much as l log a was rounded, and rivals may take it that way.
    answer=by_formula(two_tables, lambda problem: math.sqrt(1 + problem.size("L"))),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("vandermonde", **inputs),
    outputs=_outputs,
)
