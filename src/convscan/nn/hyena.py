"""Hyena: long convolutions and gates in alternation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.causal_conv.api import causal_conv
from ._layer import SequenceLayer, at_least, carry, tail
from .long_conv import ImplicitLongConv

HyenaState = tuple[Tensor, Tensor]
SHORT_TAPS = 3


class Hyena(SequenceLayer[HyenaState]):
    """y = out_proj(x0 * z), where z <- conv(z * xi, hi) + skip_i * z * xi for i = N-1, ..., 1: the order-N operator.

    The N+1 projections of the input, each smoothed by a filter of 3 taps, are the gates x0, ..., x(N-1) and the value
    with which z starts. The filters hi are implicit and long: one ``ImplicitLongConv`` makes them all.

    Args:
        d_model: D.
        l_max: K, the taps of the long filters. Sequences may be longer: what is K or more samples back has no effect.
        order: N, at least 2.
        dropout: of the gated values while training.
        width, depth, encoding_size, frequency, fast_decay, slow_decay, target, shift: of the filters, see
            ``ImplicitLongConv``.

    Parameters: ``in_proj`` (D to (N+1) D), ``out_proj``, ``short_weight`` (3, (N+1) D) with the tap of the current
    sample first, and ``short_bias``, uniform within 1/sqrt(3) at first as those of PyTorch's ``Conv1d``; ``long``, the
    filters.

    State: the last 2 projections (..., 2, (N+1) D) and the last inputs of the long filters (..., K-1, (N-1) D). A step
    costs O(N D² + N K D) after ``setup_step()``, and the making of the filters besides without it.

    Source: M. Poli et al., Hyena Hierarchy: Towards Larger Convolutional Language Models, 2023, arXiv 2302.10866.

    >>> import torch, convscan
    >>> layer = convscan.nn.Hyena(8, l_max=64, encoding_size=5, frequency=10.0)
    >>> y, _ = layer(torch.randn(2, 64, 8))
    >>> y, state = layer.step(torch.randn(2, 8), layer.default_state(2))
    >>> y.shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        d_model: int,
        l_max: int,
        order: int = 2,
        dropout: float = 0.0,
        *,
        width: int = 64,
        depth: int = 2,
        encoding_size: int = 3,
        frequency: float = 1.0,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        self.order = at_least("Hyena", "order", order, 2)
        at_least("Hyena", "l_max", l_max, 1)
        channels = (order + 1) * d_model
        self.in_proj = torch.nn.Linear(d_model, channels, True, device, dtype)
        self.out_proj = torch.nn.Linear(d_model, d_model, True, device, dtype)
        self.dropout = torch.nn.Dropout(dropout)
        bound = 1 / math.sqrt(SHORT_TAPS)
        weight = torch.empty(SHORT_TAPS, channels, device=device, dtype=dtype)
        self.short_weight = torch.nn.Parameter(weight.uniform_(-bound, bound))
        bias = torch.empty(channels, device=device, dtype=dtype)
        self.short_bias = torch.nn.Parameter(bias.uniform_(-bound, bound))
        self.long = ImplicitLongConv(
            (order - 1) * d_model,
            l_max,
            width=width,
            depth=depth,
            encoding_size=encoding_size,
            frequency=frequency,
            fast_decay=fast_decay,
            slow_decay=slow_decay,
            target=target,
            shift=shift,
            device=device,
            dtype=dtype,
        )

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> HyenaState:
        channels = (self.order + 1) * self.d_model
        short = self.short_weight.new_zeros(*batch_shape, SHORT_TAPS - 1, channels, device=device)
        return short, self.long.default_state(*batch_shape, device=device)

    def _run(self, x: Tensor, state: HyenaState | None) -> tuple[Tensor, HyenaState | None]:
        short, long = state or (None, None)
        taps = self.long.kernel_size
        if short is None or long is None:
            taps = self.long.taps_met(x)
        else:
            self._check_state(short, x, SHORT_TAPS - 1, (self.order + 1) * self.d_model)
            self._check_state(long, x, taps - 1, (self.order - 1) * self.d_model)
        projections = self.in_proj(x)
        smooth = causal_conv(projections, self.short_weight, bias=self.short_bias, initial_state=short)
        *gates, z = smooth.chunk(self.order + 1, -1)
        filters = self.long.response(taps).chunk(self.order - 1, -1)
        pasts = (None,) * len(filters) if long is None else long.chunk(self.order - 1, -1)
        gated = []
        for i, (gate, h, past) in enumerate(zip(reversed(gates[1:]), filters, pasts, strict=True)):
            # What dropout does to the gated values has to be stored; without it, gates are part of the convolution.
            drops = self.training and self.dropout.p > 0
            dropped = self.dropout(z * gate) if drops else None
            if long is not None:
                gated.append(tail(z, taps - 1) * tail(gate, taps - 1) if dropped is None else dropped)
            z = causal_conv(
                z if dropped is None else dropped,
                h,
                pre_gate=gate if dropped is None else None,
                post_gate=gates[0] if i == len(filters) - 1 else None,
                initial_state=past,
            )
        y = self.out_proj(z)
        if short is None or long is None:
            return y, None
        return y, (carry(short, projections), carry(long, torch.cat(gated, -1)))
