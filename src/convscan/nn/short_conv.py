"""ShortConv: the doubly gated short convolution of LFM2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.causal_conv.api import causal_conv
from ._layer import SequenceLayer, at_least, carry, tail


class ShortConv(SequenceLayer[Tensor]):
    """y = out_proj(C * conv(B * v)) with B, C, v = in_proj(x): a short causal convolution between two gates.

    Args:
        d_model: D.
        kernel_size: K, the taps of the filter of each channel.
        bias: whether the projections and the convolution add one.

    Parameters: ``in_proj`` (3D, D), ``out_proj`` (D, D), ``weight`` (K, D) with the tap of the current sample first,
    ``bias`` (D,). All start as in the released model, whose modules start as PyTorch's ``Linear`` and ``Conv1d`` do:
    uniform, for the convolution within 1/sqrt(K).

    State: (..., K-1, D), the last gated inputs B * v. A step costs O(D² + K D).

    Source: Liquid AI, LFM2 Technical Report, 2025, arXiv 2511.23404.

    >>> import torch, convscan
    >>> layer = convscan.nn.ShortConv(8, kernel_size=3)
    >>> y, _ = layer(torch.randn(2, 100, 8))
    >>> state = layer.default_state(2)
    >>> y, state = layer.step(torch.randn(2, 8), state)
    >>> y.shape, state.shape
    (torch.Size([2, 8]), torch.Size([2, 2, 8]))
    """

    bias: Tensor | None

    def __init__(
        self,
        d_model: int,
        kernel_size: int = 3,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        self.kernel_size = at_least("ShortConv", "kernel_size", kernel_size, 1)
        self.in_proj = torch.nn.Linear(d_model, 3 * d_model, bias, device, dtype)
        self.out_proj = torch.nn.Linear(d_model, d_model, bias, device, dtype)
        bound = 1 / math.sqrt(kernel_size)
        weight = torch.empty(kernel_size, d_model, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(weight.uniform_(-bound, bound))
        start = torch.empty(d_model, device=device, dtype=dtype).uniform_(-bound, bound) if bias else None
        self.register_parameter("bias", None if start is None else torch.nn.Parameter(start))

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        return self.weight.new_zeros(*batch_shape, self.kernel_size - 1, self.d_model, device=device)

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        B, C, v = self.in_proj(x).chunk(3, -1)
        past = self.kernel_size - 1
        if state is not None:
            self._check_state(state, x, past, self.d_model)
        y = causal_conv(v, self.weight, bias=self.bias, pre_gate=B, post_gate=C, initial_state=state)
        return self.out_proj(y), None if state is None else carry(state, tail(B, past) * tail(v, past))
