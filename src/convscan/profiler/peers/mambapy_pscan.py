"""mambapy's ``pscan``: Blelloch's scan in PyTorch operations, as used by pure-PyTorch Mamba.

It takes (B, L, D, N); for linear recurrences N = 1, and the memory order of the case is kept, since it clones with the
strides it gets. Of selective scans it runs the discretised model, as the package's ``MambaBlock.selective_scan`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..peer import Peer, Prepared, from_torch, missing, unsupported
from ..problem import Problem


def _why_not(problem: Problem) -> list[str]:
    reasons = missing("mambapy") + unsupported(problem, backward=True)
    if problem.size("L") < 2:
        reasons.append("needs at least two steps")
    if problem.direction == "backward" and problem.dtype.is_complex:
        reasons.append("its gradient does not conjugate: wrong for complex numbers")
    return reasons


def _recurrence(problem: Problem) -> Prepared:
    from mambapy.pscan import pscan

    def scan(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
        a = a.expand(x.shape)
        first = torch.addcmul(x[:, 0], a[:, 0], y_init)[:, None]
        y: Tensor = pscan(a[..., None], torch.cat([first, x[:, 1:]], dim=1)[..., None])
        return y[..., 0]

    return from_torch(problem, scan, problem.arguments)


def _selective(problem: Problem) -> Prepared:
    from mambapy.pscan import pscan

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        dt = softplus(delta + bias)
        deltaA = torch.exp(dt.unsqueeze(-1) * A)
        BX = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        hs: Tensor = pscan(deltaA, BX)
        return ((hs @ C.unsqueeze(-1)).squeeze(3) + D * u) * silu(z)

    return from_torch(problem, scan, problem.arguments)


PEERS = (
    Peer("mambapy pscan", "linear_recurrence", "mambapy", _why_not, _recurrence),
    Peer("mambapy pscan", "selective_scan", "mambapy", _why_not, _selective),
)
