"""linear_recurrence_step. Its truth: the definition in float64."""

from __future__ import annotations

from torch import Tensor

import convscan
from convscan.ops.linear_recurrence import cases

from ..step import step_operator
from .linear_recurrence import OPERATOR as SEQUENCE


def _function(state: Tensor, x: Tensor, a: Tensor, reverse: bool) -> Tensor:
    """Of one sample there is no other direction."""
    return convscan.linear_recurrence_step(state, x, a)


OPERATOR = step_operator(
    SEQUENCE,
    short="recurrence-step",
    function=_function,
    timed=("x", "a"),
    cases=(
        cases.Case("tiny", "8 channels", 1, 1, 8),
        cases.Case("recurrent-gemma-2b", "RecurrentGemma 2B: 2560 channels", 1, 1, 2560),
    ),
    state=lambda case: (1, case.channels),
    formula=lambda state, x, a, reverse: a * state + x,
    before="y_init",
)
