"""The selective scan of Mamba in PyTorch operations, as published code without a GPU runs it.

``huggingface torch`` is the loop of ``MambaMixer.slow_forward`` of Hugging Face's transformers, in its memory order,
(B, D, L), into which other signals are brought before the time is taken. ``mambapy pscan`` is the package's parallel
scan over the discretised model, as its ``MambaBlock.selective_scan`` calls it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..peer import Peer, Prepared, from_torch, missing, time_last, unsupported
from ..problem import Problem

REAL = (torch.float32, torch.float64)
_SIGNALS = ("u", "delta", "z")


def slow_forward(
    hidden: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gate: Tensor, bias: Tensor
) -> Tensor:
    """``MambaMixer.slow_forward`` between its projections, of signals (B, D, L)."""
    step = softplus(dt + bias[:, None])
    discrete_A = torch.exp(A[None, :, None, :] * step[:, :, :, None])
    deltaB_u = step[:, :, :, None] * B[:, None, :, :] * hidden[:, :, :, None]
    state = hidden.new_zeros(hidden.shape[0], *A.shape)
    outputs = []
    for i in range(hidden.shape[2]):
        state = discrete_A[:, :, i, :] * state + deltaB_u[:, :, i, :]
        outputs.append(torch.matmul(state, C[:, i, :].unsqueeze(-1))[:, :, 0])
    return (torch.stack(outputs, dim=-1) + hidden * D[None, :, None]) * silu(gate)


def _huggingface(problem: Problem) -> Prepared:
    def order(tensors: Any) -> list[Tensor]:
        named = zip(problem.differentiated, tensors, strict=True)
        return [time_last(tensor) if name in _SIGNALS else tensor for name, tensor in named]

    def back(gradients: Any) -> list[Tensor]:
        named = zip(problem.differentiated, gradients, strict=True)
        return [gradient.transpose(-1, -2) if name in _SIGNALS else gradient for name, gradient in named]

    return from_torch(
        problem,
        slow_forward,
        order(problem.arguments),
        result=lambda y: y.transpose(-1, -2),
        gradients=back,
        cotangent=time_last,
    )


def _mambapy(problem: Problem) -> Prepared:
    from mambapy.pscan import pscan

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        dt = softplus(delta + bias)
        deltaA = torch.exp(dt.unsqueeze(-1) * A)
        BX = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        hs: Tensor = pscan(deltaA, BX)
        return ((hs @ C.unsqueeze(-1)).squeeze(3) + D * u) * silu(z)

    return from_torch(problem, scan, problem.arguments)


def _why_not(problem: Problem) -> list[str]:
    return unsupported(problem, dtypes=REAL, backward=True)


def _why_not_mambapy(problem: Problem) -> list[str]:
    short = ["needs at least two steps"] if problem.size("L") < 2 else []
    return missing("mambapy") + _why_not(problem) + short


PEERS = (
    Peer("huggingface torch", "selective_scan", "torch", _why_not, _huggingface),
    Peer("mambapy pscan", "selective_scan", "mambapy", _why_not_mambapy, _mambapy),
)
