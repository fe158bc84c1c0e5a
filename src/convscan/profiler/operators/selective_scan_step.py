"""selective_scan_step. Its truth: the definition in float64."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu, softplus

import convscan
from convscan.ops.selective_scan import cases

from ..step import step_operator
from .selective_scan import OPERATOR as SEQUENCE


def _formula(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    dt = softplus(delta + delta_bias)[..., None]
    state = (dt * A).exp() * state + dt * u[..., None] * B[:, None]
    return ((state * C[:, None]).sum(-1) + D * u) * silu(z)


OPERATOR = step_operator(
    SEQUENCE,
    short="selective-step",
    function=convscan.selective_scan_step,
    timed=("u", "delta", "B", "C", "z"),
    cases=(
        cases.Case("tiny", "8 channels of 4 states", 1, 1, 8, 4),
        cases.Case("mamba-130m", "Mamba-130m: d_inner 1536, d_state 16", 1, 1, 1536, 16),
        cases.Case("mamba-2.8b", "Mamba-2.8b: d_inner 5120", 1, 1, 5120, 16),
    ),
    state=lambda case: (1, case.channels, case.states),
    formula=_formula,
)
