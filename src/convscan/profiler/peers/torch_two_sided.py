"""Two-sided, gated and packed convolutions and Toeplitz products as users of PyTorch write them: real FFTs along time,
one ``conv1d`` with a group per channel, and the product with the whole matrix.

FFTs and ``conv1d`` are given (B, D, L) memory, which they need contiguous: the other order would be copied inside. The
matrix is built once and kept (its bytes count as memory) and refused beyond a gibibyte.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, on_rows, time_last, unsupported
from ..problem import Problem
from .torch_conv1d import MULTIPLY_ADDS_PER_SECOND

DTYPES = (torch.float32, torch.float64)
LARGEST_MATRIX = 1 << 30


def _product(x: Tensor, h: Tensor, points: int) -> Tensor:
    y: Tensor = torch.fft.irfft(torch.fft.rfft(x, points) * torch.fft.rfft(h, points), points)
    return y


def _conv1d(x: Tensor, h: Tensor, pad: tuple[int, int]) -> Tensor:
    return F.conv1d(F.pad(x, pad), h.flip(-1)[:, None], groups=x.shape[1])


def wraps_once(problem: Problem) -> list[str]:
    """A reason where a circular filter is longer than its period."""
    too_long = problem.inputs["circular"] and problem.size("K") > problem.size("L")
    return ["wraps no filter that is longer than the period"] if too_long else []


# ---- convolve ----


def _two_sided_fft(problem: Problem) -> Prepared:
    length, taps = problem.size("L"), problem.size("K")
    origin, circular = problem.inputs["origin"], problem.inputs["circular"]

    def conv(x: Tensor, h: Tensor) -> Tensor:
        if circular:
            return _product(x, h[..., :length], length).roll(-origin, -1)
        return _product(x, h, length + taps)[..., origin : origin + length]

    return on_rows(problem, conv)


def _why_not_conv1d(problem: Problem) -> list[str]:
    reasons = unsupported(problem, backward=True)
    if problem.inputs["circular"]:
        reasons.append("pads with zeros")
    return reasons


def _two_sided_conv1d(problem: Problem) -> Prepared:
    taps, origin = problem.size("K"), problem.inputs["origin"]

    def conv(x: Tensor, h: Tensor) -> Tensor:
        return _conv1d(x, h, (taps - 1 - origin, origin))

    return on_rows(problem, conv)


def _conv1d_estimate(problem: Problem) -> float:
    work = problem["x"].numel() * problem.size("K")
    return work * (1 if problem.direction == "forward" else 3) / MULTIPLY_ADDS_PER_SECOND[problem.direction]


# ---- gated, packed ----


def _pieces(problem: Problem) -> list[tuple[int, int]]:
    packed = problem.inputs["cu_seqlens"]
    return [(0, problem.size("L"))] if packed is None else list(pairwise(packed.tolist()))


def _gated(problem: Problem, is_fft: bool) -> Prepared:
    """One sequence after the other, where several are packed."""
    taps, pieces = problem.size("K"), [piece for piece in _pieces(problem) if piece[0] < piece[1]]

    def conv(u: Tensor, h: Tensor) -> Tensor:
        if is_fft:
            return _product(u, h, u.shape[-1] + taps)[..., : u.shape[-1]]
        return _conv1d(u, h, (taps - 1, 0))

    def function(x: Tensor, h: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        u = pre * x
        parts = [conv(u[..., begin:end], h) for begin, end in pieces]
        return post * (parts[0] if len(parts) == 1 else torch.cat(parts, -1))

    return on_rows(problem, function, problem["pre_gate"], problem["post_gate"])


# ---- Toeplitz products ----


def _lags(column: Tensor, row: Tensor) -> Tensor:
    """The entries of lags 0 ... L-1, 0, 1-L ... -1 as one period of 2L."""
    return torch.cat([column, torch.zeros_like(column[..., :1]), row[..., 1:].flip(-1)], -1)


def _toeplitz_fft(problem: Problem) -> Prepared:
    length = problem.size("L")

    def function(column: Tensor, row: Tensor, X: Tensor) -> Tensor:
        return _product(X, _lags(column, row)[:, None], 2 * length)[..., :length]

    return from_torch(
        problem,
        function,
        (problem["column"], problem["row"], time_last(problem["X"])),
        result=lambda y: y.transpose(-1, -2),
        gradients=lambda g: (g[0], g[1], g[2].transpose(-1, -2)),
        cotangent=time_last,
    )


def _matrix(column: Tensor, row: Tensor) -> Tensor:
    length = column.shape[-1]
    line = torch.cat([row[..., 1:].flip(-1), column], -1).flip(-1)  # lags L-1 ... 1-L
    return line.unfold(-1, length, 1).flip(-2).contiguous()


def _why_not_matrix(problem: Problem) -> list[str]:
    reasons = unsupported(problem, backward=True)
    copies = 1 if problem.direction == "forward" else 3
    size = problem.size("H") * problem.size("L") ** 2 * problem["X"].element_size() * copies
    if size > LARGEST_MATRIX:
        reasons.append(f"its matrices would take {size / 2**30:,.0f} GiB (limit 1)")
    return reasons


def _toeplitz_matrix(problem: Problem) -> Prepared:
    column, row, X = problem["column"], problem["row"], problem["X"]
    if problem.direction == "forward":
        matrix = _matrix(column, row)
        kept = matrix.numel() * matrix.element_size()
        return from_torch(problem, lambda X: torch.matmul(matrix, X), (X,), kept_bytes=kept)
    return from_torch(problem, lambda column, row, X: torch.matmul(_matrix(column, row), X), (column, row, X))


PEERS = (
    Peer(
        "torch fft",
        "convolve",
        "torch",
        lambda problem: unsupported(problem, dtypes=DTYPES, backward=True) + wraps_once(problem),
        _two_sided_fft,
    ),
    Peer("torch conv1d", "convolve", "torch", _why_not_conv1d, _two_sided_conv1d, estimate=_conv1d_estimate),
    Peer(
        "torch fft",
        "gated causal_conv",
        "torch",
        lambda problem: unsupported(problem, dtypes=DTYPES, backward=True),
        lambda problem: _gated(problem, is_fft=True),
    ),
    Peer(
        "torch conv1d",
        "gated causal_conv",
        "torch",
        lambda problem: unsupported(problem, backward=True),
        lambda problem: _gated(problem, is_fft=False),
        estimate=_conv1d_estimate,
    ),
    Peer(
        "torch fft",
        "toeplitz_matmul",
        "torch",
        lambda problem: unsupported(problem, dtypes=DTYPES, backward=True),
        _toeplitz_fft,
    ),
    Peer("torch matrix", "toeplitz_matmul", "torch", _why_not_matrix, _toeplitz_matrix),
)
