"""RGLRU: the real-gated linear recurrent unit of Griffin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import message
from ..ops.linear_recurrence.api import linear_recurrence
from ._layer import SequenceLayer, at_least, last, wide

C = 8.0  # the constant c of the article
# The square root's slope is bounded by 1000, as in the released code: the gate may close to the last bit.
SMALLEST_ENERGY = 2.5e-7


class RGLRU(SequenceLayer[Tensor]):
    """y[i] = a[i] * y[i-1] + sqrt(1 - a[i]²) * (g[i] * x[i]) with a[i] = exp(-c softplus(-Lambda) * r[i]), c = 8.

    r = sigmoid(recurrence_gate(x)) and g = sigmoid(input_gate(x)) are gates by block-diagonal matrices, one block a
    head. sigmoid(Lambda)^c = exp(-c softplus(-Lambda)) is the slowest decay of a channel, with r = 1.

    Args:
        d_model: D, a multiple of ``num_heads``.
        num_heads: blocks of the gates' matrices.

    Parameters: ``Lambda`` (D,), such that exp(-c softplus(-Lambda)) is uniform between 0.9 and 0.999 at first;
    ``input_gate`` and ``recurrence_gate``, each with ``weight`` (heads, D/heads, D/heads), normal with deviation
    sqrt(heads/D), and ``bias`` (heads, D/heads), zero.

    State: (..., D), the last y; float32 for half types. A step costs O(D²/heads).

    Source: S. De et al., Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models,
    2024, arXiv 2402.19427, section 2.4.

    >>> import torch, convscan
    >>> layer = convscan.nn.RGLRU(8, num_heads=2)
    >>> y, _ = layer(torch.randn(2, 100, 8))
    >>> y, state = layer.step(torch.randn(2, 8), layer.default_state(2))
    >>> y.shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        if at_least("RGLRU", "num_heads", num_heads, 1) and d_model % num_heads:
            raise ValueError(message("RGLRU", f"d_model must be a multiple of num_heads, {num_heads}", d_model))
        decay = torch.empty(d_model, dtype=torch.float64, device=device).uniform_(0.9, 0.999).pow(1 / C)
        self.Lambda = torch.nn.Parameter(torch.logit(decay).to(dtype or torch.get_default_dtype()))
        self.input_gate = BlockDiagonalLinear(d_model, num_heads, device, dtype)
        self.recurrence_gate = BlockDiagonalLinear(d_model, num_heads, device, dtype)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        return wide(self.Lambda).new_zeros(*batch_shape, self.d_model, device=device)

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if state is not None:
            self._check_state(state, x, self.d_model)
        r = torch.sigmoid(wide(self.recurrence_gate(x)))
        gated = torch.sigmoid(self.input_gate(x)) * x
        log_a = -C * torch.nn.functional.softplus(-wide(self.Lambda)) * r
        energy = -torch.expm1(2 * log_a)
        driven = torch.sqrt(energy.clamp_min(SMALLEST_ENERGY)) * wide(gated)
        y = linear_recurrence(driven, state, torch.exp(log_a))
        return y.to(x.dtype), None if state is None else last(y, state)


class BlockDiagonalLinear(torch.nn.Module):
    """y = W x + b with a block-diagonal W: every head sees its own D/heads features only."""

    def __init__(
        self, features: int, num_heads: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        size = features // num_heads
        weight = torch.randn(num_heads, size, size, device=device, dtype=dtype) / math.sqrt(size)
        self.weight = torch.nn.Parameter(weight)
        self.bias = torch.nn.Parameter(torch.zeros(num_heads, size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to (..., D)."""
        blocks = x.reshape(*x.shape[:-1], *self.bias.shape)
        return (torch.einsum("...hi,hij->...hj", blocks, self.weight) + self.bias).flatten(-2)
