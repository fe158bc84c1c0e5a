"""accelerated_scan's ``scan``, for any length, memory order and dtype."""

from __future__ import annotations

from torch import Tensor

from .._checks import has_shape, tensor_like
from .._errors import message
from ..ops.linear_recurrence.api import linear_recurrence

__all__ = ["scan"]


def scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """x[t] = gates[t] x[t-1] + tokens[t] along the last axis, from zero.

    Args:
        gates, tokens: (B, C, T), one shape. T is free, where the original takes powers of two only.

    Returns:
        x, (B, C, T).

    dtypes, errors, cost and derivatives are those of ``linear_recurrence``.

    Source: accelerated-scan 0.2; V. Kyrylov, github.com/proger/accelerated-scan.

    >>> import torch
    >>> from convscan.compat.accelerated_scan import scan
    >>> scan(torch.full((1, 1, 3), 0.5), torch.tensor([[[1.0, 2.0, 3.0]]])).flatten().tolist()
    [1.0, 2.5, 4.25]
    """
    tensor_like("scan", "gates", gates, gates)
    if gates.ndim != 3:
        raise ValueError(message("scan", "gates must have the shape (B, C, T)", tuple(gates.shape)))
    tensor_like("scan", "tokens", tokens, gates)
    has_shape("scan", "tokens", tokens, gates.shape, "of gates, (B, C, T)")
    return linear_recurrence(tokens.mT, None, gates.mT).mT
