"""The definition of the product, with the matrix, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def toeplitz_matmul(column: Tensor, row: Tensor, X: Tensor) -> Tensor:
    """T X, T[i,j] = column[i-j] for i >= j and row[j-i] for j > i."""
    times = torch.arange(X.shape[-2], device=X.device)
    lag = times[:, None] - times
    T = torch.where(lag >= 0, column.double()[..., lag.clamp(min=0)], row.double()[..., (-lag).clamp(min=0)])
    return T @ X.double()
