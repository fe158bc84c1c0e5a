"""cauchy, the generating function of an S4 layer. Its truth is the sum in float64, some features at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import convscan
from convscan.ops.cauchy import cases

from ..problem import Operator, by_formula

# Numbers of the matrix (features, N, L) that are made at a time.
MATRIX_ELEMENTS = 1 << 24


def matrix_product(v: Tensor, z: Tensor, poles: Tensor) -> Tensor:
    """The sum over n by the matrix of reciprocals."""
    y: Tensor = torch.einsum("shn,hnl->shl", v, 1 / (z - poles[..., None]))
    return y


def _in_blocks(v: Tensor, z: Tensor, poles: Tensor) -> Tensor:
    """The same without keeping the matrix for the gradient."""
    features = max(1, MATRIX_ELEMENTS // (poles.shape[-1] * z.shape[-1]))
    blocks = zip(torch.split(v, features, 1), torch.split(poles, features), strict=True)
    return torch.cat([checkpoint(matrix_product, each, z, some, use_reentrant=False) for each, some in blocks], 1)


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    v, z = inputs["v"], inputs["z"]
    return (v.new_empty((*v.shape[:-1], z.shape[-1]), device="meta"),)


OPERATOR = Operator(
    name="cauchy",
    short="cauchy",
    cases=cases.CASES,
    inputs=cases.inputs,
    function=convscan.cauchy,
    differentiable=("v", "poles"),
    shape=lambda inputs: (*inputs["v"].shape, inputs["z"].shape[0]),
    axes="SHNL",
    group=lambda shape: "generating functions of S4",
    answer=by_formula(_in_blocks),
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("cauchy", **inputs),
    outputs=_outputs,
)
