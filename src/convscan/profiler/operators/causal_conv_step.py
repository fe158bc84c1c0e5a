"""causal_conv_step. Its truth: the definition in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import convscan
from convscan.ops.causal_conv import cases

from ..step import step_operator
from .causal_conv import OPERATOR as SEQUENCE
from .causal_conv import activate


def _formula(state: Tensor, x: Tensor, h: Tensor, activation: str | None) -> Tensor:
    return activate((torch.cat([state, x[:, None]], 1) * h.flip(0)).sum(1), activation)


OPERATOR = step_operator(
    SEQUENCE,
    short="conv-step",
    function=convscan.causal_conv_step,
    timed=("x",),
    cases=(
        cases.Case("tiny", "8 channels", 1, 1, 8, 4),
        cases.Case("mamba-130m", "Mamba-130m: d_inner 1536, d_conv 4", 1, 1, 1536, 4, activation="silu"),
        cases.Case("lfm2", "LFM2: 2048 channels, 3 taps", 1, 1, 2048, 3),
    ),
    state=lambda case: (1, case.taps - 1, case.channels),
    formula=_formula,
)
