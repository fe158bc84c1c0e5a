"""torchlpc's ``sample_wise_lpc`` of order one: a compiled loop, one row (batch × channel) after the other, threaded.

It wants (rows, time) memory and the coefficients negated; both are prepared once and not timed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, missing, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _prepare(problem: Problem) -> Prepared:
    from torchlpc import sample_wise_lpc

    batch, length, channels = problem["x"].shape
    x = time_last(problem["x"]).reshape(batch * channels, length)
    a = -time_last(problem["a"].expand(problem["x"].shape)).reshape(batch * channels, length, 1)
    y_init = problem["y_init"].reshape(batch * channels, 1)

    def unfold(t: Tensor) -> Tensor:
        return t.reshape(batch, channels, length).transpose(1, 2)

    def gradients(g: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return unfold(g[0]), g[1].reshape(batch, channels), -unfold(g[2][..., 0])

    return from_torch(
        problem,
        lambda x, y_init, a: sample_wise_lpc(x, a, y_init),
        (x, y_init, a),
        result=unfold,
        gradients=gradients,
        cotangent=lambda g: time_last(g).reshape(batch * channels, length),
    )


def _why_not(problem: Problem) -> list[str]:
    reasons = missing("torchlpc") + unsupported(problem, dtypes=DTYPES, backward=True)
    if problem.direction == "backward" and problem["a"].shape != problem["x"].shape:
        reasons.append("takes full-size coefficients only")
    return reasons


PEERS = (Peer("torchlpc", "linear_recurrence", "torchlpc", _why_not, _prepare),)
