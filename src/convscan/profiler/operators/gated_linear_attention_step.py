"""gated_linear_attention_step. Its truth: the definition in float64."""

from __future__ import annotations

from torch import Tensor

import convscan
from convscan.ops.gated_linear_attention import cases
from convscan.ops.linear_attention.cases import Case

from ..step import read, step_operator
from .gated_linear_attention import OPERATOR as SEQUENCE


def _formula(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    decay = g.exp() if g.ndim == k.ndim else g.exp()[..., None]
    return read(decay[..., None] * state + k[..., None] * v[..., None, :], q) * float(q.shape[-1] ** -0.5)


OPERATOR = step_operator(
    SEQUENCE,
    short="gla-step",
    function=convscan.gated_linear_attention_step,
    timed=("v", "q", "k", "g"),
    cases=(Case("tiny", "one head of 8 x 8", 1, 1, 1, 8, 8, per_key=True), *cases.CASES),
    state=lambda case: (1, case.heads, case.keys, case.values),
    formula=_formula,
)
