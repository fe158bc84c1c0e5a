"""Kernels of state-space layers in plain PyTorch, and the training step of a layer around one.

The matrices (H, N, L) of powers or reciprocals are made, contracted by one einsum, and kept for the gradient, as the
published S4 and S4D code does without its extensions; 16 features at a time, which is faster than all at once. The
other form of powers is the best that we know in PyTorch operations: two tables, whose matrix product sums over n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..operators.cauchy import matrix_product
from ..operators.fft_conv_s4 import convolved, discretised
from ..operators.vandermonde import two_tables
from ..peer import Peer, Prepared, from_torch, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
BLOCK = 16
LARGEST_GRADIENT = 4 << 30
# Powers a second that complex exponentials stay below on two cores; only refuses hopeless cases without running them.
POWERS_PER_SECOND = 1e8


def powers(c: Tensor, a: Tensor, length: int) -> Tensor:
    """y[l] = Re sum_n c[n] a[n]^l by the matrix of powers."""
    steps = torch.arange(length)
    blocks = zip(torch.split(c, BLOCK), torch.split(a, BLOCK), strict=True)
    return torch.cat(
        [torch.einsum("hn,hnl->hl", x, torch.exp(torch.log(y)[..., None] * steps)).real for x, y in blocks]
    )


def reciprocals(v: Tensor, z: Tensor, poles: Tensor) -> Tensor:
    """k[w] = sum_n v[n] / (z[w] - poles[n]) by the matrix of reciprocals."""
    blocks = zip(torch.split(v, BLOCK, 1), torch.split(poles, BLOCK), strict=True)
    return torch.cat([matrix_product(x, z, y) for x, y in blocks], 1)


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem, dtypes=DTYPES, backward=True)
    # Complex numbers: the matrix, and what its derivative keeps.
    size = 2 * 8 * problem.size("H") * problem.size("N") * problem.size("L")
    if problem.direction == "backward" and size > LARGEST_GRADIENT:
        reasons.append(f"its gradient would keep {size / 2**30:.0f} GiB (limit {LARGEST_GRADIENT >> 30})")
    return reasons


def _estimate(problem: Problem) -> float:
    """Backward keeps and reads the matrix again."""
    if problem.direction == "forward":
        return 0.0
    return problem.size("H") * problem.size("N") * problem.size("L") / POWERS_PER_SECOND


def _prepare_vandermonde(product: Callable[..., Tensor]) -> Callable[[Problem], Prepared]:
    return lambda problem: from_torch(problem, lambda c, a: product(c, a, problem.inputs["length"]), problem.arguments)


def _prepare_cauchy(problem: Problem) -> Prepared:
    return from_torch(problem, lambda v, poles: reciprocals(v, problem["z"], poles), problem.arguments)


def _prepare_layer(product: Callable[..., Tensor]) -> Callable[[Problem], Prepared]:
    def layer(x: Tensor, D: Tensor, C: Tensor, B: Tensor, A_real: Tensor, A_imag: Tensor, inv_dt: Tensor) -> Any:
        return convolved(x, product(*discretised(A_real, A_imag, B, C, inv_dt), x.shape[-1]), D)

    return lambda problem: from_torch(problem, layer, problem.arguments)


# The quick ones first: one call of the others may take a whole case's time.
PEERS = (
    Peer("torch two tables of powers", "vandermonde", "torch", lambda p: [], _prepare_vandermonde(two_tables)),
    Peer("torch einsum of powers", "vandermonde", "torch", _why_not, _prepare_vandermonde(powers), estimate=_estimate),
    Peer("torch einsum of reciprocals", "cauchy", "torch", _why_not, _prepare_cauchy),
    Peer("torch two tables of powers", "FFTConvS4", "torch", lambda p: [], _prepare_layer(two_tables)),
    Peer("torch einsum of powers", "FFTConvS4", "torch", _why_not, _prepare_layer(powers)),
)
