"""gated_delta_rule_step. Its truth: the definition in float64."""

from __future__ import annotations

from torch import Tensor

import convscan
from convscan.ops.gated_delta_rule import cases
from convscan.ops.linear_attention.cases import Case

from ..step import read, step_operator
from .gated_delta_rule import OPERATOR as SEQUENCE


def _formula(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    state = (g.exp() if g.ndim == k.ndim else g.exp()[..., None])[..., None] * state
    write = beta[..., None] * (v - read(state, k))
    return read(state + k[..., None] * write[..., None, :], q) * float(q.shape[-1] ** -0.5)


OPERATOR = step_operator(
    SEQUENCE,
    short="delta-step",
    function=convscan.gated_delta_rule_step,
    timed=("v", "q", "k", "g", "beta"),
    cases=(Case("tiny", "one head of 8 x 8", 1, 1, 1, 8, 8), *cases.CASES),
    state=lambda case: (1, case.heads, case.keys, case.values),
    formula=_formula,
)
