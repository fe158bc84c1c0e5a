"""Published initial values of state matrices: HiPPO, its normal-plus-low-rank form, and diagonal ones.

A. Gu et al., HiPPO, 2020; A. Gu et al., Efficiently Modeling Long Sequences with Structured State Spaces, 2021
(arXiv 2111.00396), appendix C; A. Gu et al., How to Train Your HiPPO, 2022 (arXiv 2206.12037); A. Gu et al., On the
Parameterization and Initialization of Diagonal State Space Models, 2022 (arXiv 2206.11893), section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# The least rank of the correction that makes a HiPPO matrix normal.
NATURAL_RANK = {"legs": 1, "legt": 2, "fourier": 1}
DIAGONAL_INITS = ("legs", "lin", "inv", "legt", "fourier", "random")


def transition(measure: str, states: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (N, N), B (N,) and P (r, N) of a measure, real, with A + P^T P normal.

    LegT and Fourier are scaled to a window of two time units, LegS has none.
    """
    n = torch.arange(states, dtype=torch.float64)
    root, even = torch.sqrt(2 * n + 1), (n % 2 == 0).double()
    if measure == "legs":
        A = -torch.tril(torch.outer(root, root), -1) - torch.diag(n + 1)
        return A, root, torch.sqrt(n + 0.5)[None]
    if measure == "legt":
        above = torch.triu(torch.ones(states, states, dtype=torch.float64), 1)
        signs = torch.where(above > 0, (-1.0) ** (n[:, None] - n), 1.0)
        return -torch.outer(root, root) * signs / 2, root / 2, root / math.sqrt(2) * torch.stack([even, 1 - even])
    B = math.sqrt(2) * even
    B[0] = 1.0
    frequencies = (math.pi / 2 * n * even)[:-1]
    A = torch.diag(frequencies, -1) - torch.diag(frequencies, 1) - torch.outer(B, B)
    return A, B, B[None]


class DiagonalPlusLowRank(NamedTuple):
    """A = V (diag(poles) - P P^*) V^* and V^* B, one number of each conjugate pair, positive frequencies rising."""

    poles: Tensor  # (N/2,)
    P: Tensor  # (rank, N/2)
    B: Tensor  # (N/2,)


def diagonal_plus_low_rank(measure: str, states: int, rank: int) -> DiagonalPlusLowRank:
    """The HiPPO matrix of a measure in the eigenbasis of its normal part, complex128."""
    A, B, P = transition(measure, states)
    P = torch.cat([P, P.new_zeros(rank - P.shape[0], states)])
    normal = A + P.T @ P
    # Normal with a constant diagonal: what is left without it is skew-symmetric, and -i times that Hermitian.
    decay = normal.diagonal().mean()
    skew = normal - decay * torch.eye(states, dtype=torch.float64)
    frequencies, V = torch.linalg.eigh(-1j * (skew - skew.T) / 2)
    frequencies, V = frequencies[states // 2 :], V[:, states // 2 :]
    if measure == "fourier":
        # The constant and an unused sine share the frequency zero, where a pair of eigenvectors has to be chosen.
        frequencies = torch.cat([frequencies.new_zeros(1), frequencies[1:]])
        V[:, 0] = 0
        V[0, 0], V[1, 0] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    to_modes = V.conj().T
    return DiagonalPlusLowRank(
        torch.complex(decay.expand_as(frequencies), frequencies),
        (to_modes @ P.T.to(V.dtype)).T,
        to_modes @ B.to(V.dtype),
    )


def diagonal(init: str, states: int, rows: int) -> Tensor:
    """(rows, N/2): poles with the real part -1/2, and the imaginary parts that the name stands for."""
    n = torch.arange(states // 2, dtype=torch.float64)
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = states / math.pi * (states / (2 * n + 1) - 1)
    elif init == "random":
        return torch.complex(torch.tensor(-0.5, dtype=torch.float64), torch.randn(rows, states // 2).double().exp())
    else:
        imaginary = diagonal_plus_low_rank(init, states, NATURAL_RANK[init]).poles.imag
    return torch.complex(torch.full_like(imaginary, -0.5), imaginary).repeat(rows, 1)
