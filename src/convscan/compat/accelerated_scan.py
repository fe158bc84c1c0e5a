"""accelerated_scan's ``scan``, for any length, memory order and dtype."""

from __future__ import annotations

from torch import Tensor

from .._checks import has_shape, tensor_like
from .._errors import message
from ..ops.linear_recurrence.api import linear_recurrence

__all__ = ["scan"]


def scan(gates: Tensor, tokens: Tensor, *, reverse: bool = False) -> Tensor:
    """x[t] = gates[t] x[t-1] + tokens[t] along the last axis, from zero; of x[t+1] with ``reverse``.

    Args:
        gates, tokens: (B, C, T), one shape, real or complex. T is free, where the original's first releases take powers
            of two only.
        reverse: from the end, which the original has in its module ``ref``.

    Returns:
        x, (B, C, T).

    dtypes, errors, cost and derivatives are those of ``linear_recurrence``.

    Source: accelerated-scan 0.2 and 0.3; V. Kyrylov, github.com/proger/accelerated-scan.

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
    return linear_recurrence(tokens.mT, None, gates.mT, reverse=reverse).mT


def scan_by_later_names(forget: Tensor, inputs: Tensor) -> Tensor:
    """``scan`` with the arguments' names of release 0.3, in its modules ``scalar`` and ``complex``."""
    return scan(forget, inputs)
