"""The statement's matrix form: T[i,j] = h[i-j], y = T x, one batched matrix product over channels.

T is built once per filter and kept (its bytes count as memory); the backward pass has to build it inside autograd.
Refused when T would exceed a gibibyte: at L = 4096 and 1024 channels it would be 64 GiB.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Peer, Prepared, activate, from_torch, unsupported
from ..problem import Problem

LARGEST_MATRIX = 1 << 30


def _matrix_bytes(problem: Problem) -> int:
    return problem["h"].shape[1] * problem.size("L") ** 2 * problem["x"].element_size()


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem, backward=True)
    size = _matrix_bytes(problem) * (1 if problem.direction == "forward" else 3)
    if size > LARGEST_MATRIX:
        reasons.append(f"its matrices would take {size / 2**30:,.0f} GiB (limit 1)")
    return reasons


def toeplitz(h: Tensor, length: int) -> Tensor:
    """(channels, L, L) lower triangular matrices from the filter (K, channels)."""
    taps = h[:length].t()
    # Row i of the reversed matrix is the window starting at i of [h reversed, zeros]; flipping rows gives T.
    line = F.pad(taps.flip(-1), (length - taps.shape[1], length - 1))
    return line.unfold(-1, length, 1).flip(-2)


def _prepare(problem: Problem) -> Prepared:
    x = problem["x"].permute(2, 1, 0).contiguous()
    length = problem.size("L")
    if problem.direction == "forward":
        matrix = toeplitz(problem["h"], length).contiguous()
        return from_torch(
            problem,
            lambda x: activate(problem, torch.matmul(matrix, x)),
            (x,),
            result=lambda y: y.permute(2, 1, 0),
            kept_bytes=matrix.numel() * matrix.element_size(),
        )
    return from_torch(
        problem,
        lambda x, h: activate(problem, torch.matmul(toeplitz(h, length), x)),
        (x, problem["h"]),
        gradients=lambda g: (g[0].permute(2, 1, 0), g[1]),
        cotangent=lambda g: g.permute(2, 1, 0),
    )


PEERS = (
    Peer(
        "toeplitz product",
        "causal_conv",
        "torch",
        _why_not,
        _prepare,
        estimate=lambda problem: 2e-11 * problem["x"].numel() * problem.size("L"),
    ),
)
