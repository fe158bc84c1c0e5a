"""Convolutions that mix channels, in plain PyTorch: one einsum between rfft and irfft of L + K points, which contracts
a state-space layer in the frequency domain; the same layer projected to its states first and transformed there; and
``conv1d`` with a full kernel.

All are given the memory they are written for: (B, L, H) for the einsum, (B, H, L) for the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)
# Multiply-adds a second conv1d stays below on two cores; only refuses hopeless cases without running them.
MULTIPLY_ADDS_PER_SECOND = 100e9


def _why_not(problem: Problem) -> list[str]:
    return unsupported(problem, dtypes=DTYPES, backward=True)


def _layer(x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
    length, points = x.shape[1], x.shape[1] + K.shape[0]
    signal, kernel = torch.fft.rfft(x, points, dim=1), torch.fft.rfft(K, points, dim=0)
    product = torch.einsum("blh,ln,nh,on->blo", signal, kernel, B_.to(signal.dtype), C.to(signal.dtype))
    y: Tensor = torch.fft.irfft(product, points, dim=1)[:, :length]
    return y


def _projected(x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
    length, points = x.shape[2], x.shape[2] + K.shape[1]
    states = torch.fft.rfft(torch.matmul(B_, x), points) * torch.fft.rfft(K, points)
    return torch.matmul(C, torch.fft.irfft(states, points)[..., :length])


def _prepare_projected(problem: Problem) -> Prepared:
    x, K, B_, C = problem.arguments
    return from_torch(
        problem,
        _projected,
        (time_last(x), K.t().contiguous(), B_, C),
        result=lambda y: y.transpose(1, 2),
        gradients=lambda g: (g[0].transpose(1, 2), g[1].t(), g[2], g[3]),
        cotangent=time_last,
    )


def _product(x: Tensor, kernel: Tensor) -> Tensor:
    length, points = x.shape[1], x.shape[1] + kernel.shape[0]
    signal, filters = torch.fft.rfft(x, points, dim=1), torch.fft.rfft(kernel, points, dim=0)
    y: Tensor = torch.fft.irfft(torch.einsum("bli,loi->blo", signal, filters), points, dim=1)[:, :length]
    return y


def _conv1d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv1d(F.pad(x, (weight.shape[-1] - 1, 0)), weight)


def _prepare_conv1d(problem: Problem) -> Prepared:
    x, kernel = problem.arguments
    return from_torch(
        problem,
        _conv1d,
        (time_last(x), kernel.permute(1, 2, 0).flip(-1).contiguous()),
        result=lambda y: y.transpose(1, 2),
        gradients=lambda g: (g[0].transpose(1, 2), g[1].flip(-1).permute(2, 0, 1)),
        cotangent=time_last,
    )


def _estimate_conv1d(problem: Problem) -> float:
    work = float(problem["x"].numel() * problem.size("K") * problem.size("D"))
    return work * (1 if problem.direction == "forward" else 3) / MULTIPLY_ADDS_PER_SECOND


PEERS = (
    Peer("torch fft einsum", "opt_ssm_forward", "torch", _why_not, lambda p: from_torch(p, _layer, p.arguments)),
    Peer("torch projected fft", "opt_ssm_forward", "torch", _why_not, _prepare_projected),
    Peer("torch fft einsum", "fft_conv", "torch", _why_not, lambda p: from_torch(p, _product, p.arguments)),
    Peer("torch full conv1d", "fft_conv", "torch", _why_not, _prepare_conv1d, estimate=_estimate_conv1d),
)
