"""PyTorch's real FFT as the statement writes it, ``irfft(rfft(x, n) * rfft(h, n))[:L]`` with n = L + K, and a second
form that keeps the filter's spectrum between calls (its bytes count as memory).

Both are given (B, D, L) memory, which PyTorch's FFT needs contiguous: the other order would be copied inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..peer import Peer, Prepared, activate, from_torch, on_rows, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)


def _stated(problem: Problem) -> Prepared:
    n, length = problem.size("L") + problem.size("K"), problem.size("L")

    def conv(x: Tensor, h: Tensor) -> Tensor:
        return activate(problem, torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(h, n), n)[..., :length])

    return on_rows(problem, conv)


def _in_float32(problem: Problem) -> Prepared:
    """What models in half types do."""
    n, length = problem.size("L") + problem.size("K"), problem.size("L")

    def conv(x: Tensor, h: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.float(), n) * torch.fft.rfft(h.float(), n)
        return activate(problem, torch.fft.irfft(spectrum, n)[..., :length].to(x.dtype))

    return on_rows(problem, conv)


def _kept(problem: Problem) -> Prepared:
    n, length = problem.size("L") + problem.size("K"), problem.size("L")
    spectrum = torch.fft.rfft(problem["h"].t().contiguous(), n)

    def conv(x: Tensor) -> Tensor:
        return activate(problem, torch.fft.irfft(torch.fft.rfft(x, n) * spectrum, n)[..., :length])

    return from_torch(
        problem,
        conv,
        (time_last(problem["x"]),),
        result=lambda y: y.transpose(1, 2),
        kept_bytes=spectrum.numel() * spectrum.element_size(),
    )


PEERS = (
    Peer(
        "torch fft as stated",
        "causal_conv",
        "torch",
        lambda problem: unsupported(problem, dtypes=DTYPES, backward=True),
        _stated,
        devices=("cpu", "cuda"),
    ),
    Peer(
        "torch fft in float32",
        "causal_conv",
        "torch",
        lambda problem: unsupported(problem, dtypes=(torch.bfloat16, torch.float16), backward=True),
        _in_float32,
        devices=("cuda",),
    ),
    Peer(
        "torch fft, spectrum kept",
        "causal_conv",
        "torch",
        lambda problem: unsupported(problem, dtypes=DTYPES),
        _kept,
        devices=("cpu", "cuda"),
    ),
)
