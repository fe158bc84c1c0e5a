"""torchlpc's ``sample_wise_lpc``: a compiled loop, one row (batch × channel) after the other, threaded; of order one
for recurrences.

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


def _prepare_allpole(problem: Problem) -> Prepared:
    from torchlpc import sample_wise_lpc

    batch, length, channels = problem["x"].shape
    order = problem.size("P")
    x = time_last(problem["x"]).reshape(batch * channels, length)
    a = problem["a"].expand(batch, length, order, channels)
    a = -a.permute(0, 3, 1, 2).reshape(batch * channels, length, order)

    def unfold(t: Tensor) -> Tensor:
        return t.reshape(batch, channels, length).transpose(1, 2)

    return from_torch(
        problem,
        lambda x, a: sample_wise_lpc(x, a),
        (x, a),
        result=unfold,
        gradients=lambda g: (unfold(g[0]), -g[1].reshape(batch, channels, length, order).permute(0, 2, 3, 1)),
        cotangent=lambda g: time_last(g).reshape(batch * channels, length),
    )


def _why_not_allpole(problem: Problem) -> list[str]:
    reasons = missing("torchlpc") + unsupported(problem, dtypes=DTYPES, backward=True)
    if problem.direction == "backward" and problem["a"].ndim < 4:
        reasons.append("takes full-size coefficients only")
    return reasons


PEERS = (
    Peer("torchlpc", "linear_recurrence", "torchlpc", _why_not, _prepare),
    Peer("torchlpc", "allpole_filter", "torchlpc", _why_not_allpole, _prepare_allpole),
)
