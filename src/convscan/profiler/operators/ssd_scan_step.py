"""ssd_scan_step. Its truth: the definition in float64."""

from __future__ import annotations

from torch import Tensor

import convscan
from convscan.ops.linear_attention.cases import Case
from convscan.ops.ssd_scan import cases

from ..step import read, step_operator
from .ssd_scan import OPERATOR as SEQUENCE


def _formula(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    keys, queries = (tensor.repeat_interleave(x.shape[1] // tensor.shape[1], 1) for tensor in (B, C))
    state = (dt * A).exp()[..., None, None] * state + (dt[..., None] * x)[..., None] * keys[..., None, :]
    return read(state.mT, queries) + D[:, None] * x


OPERATOR = step_operator(
    SEQUENCE,
    short="ssd-step",
    function=convscan.ssd_scan_step,
    timed=("x", "dt", "B", "C"),
    cases=(Case("tiny", "one head of 8, N 8", 1, 1, 1, 8, 8, groups=1), *cases.CASES),
    state=lambda case: (1, case.heads, case.values, case.keys),
    formula=_formula,
)
