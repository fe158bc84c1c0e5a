"""flashfftconv's modules: long convolutions along the last axis, gated, and short centred ones.

The original takes half types, powers of two and some multiples only, and has no backward in ``eval()``; here any
length and floating dtype works, in either mode.

Source: D. Y. Fu et al., FlashFFTConv, 2023, arXiv 2311.05908; github.com/HazyResearch/flash-fft-conv.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from ..ops.causal_conv.api import causal_conv

__all__ = ["FlashDepthWiseConv1d", "FlashFFTConv"]


class FlashFFTConv(torch.nn.Module):
    """y = irfft(rfft(u · pregate) rfft(k)) · postgate: a circular convolution over ``seqlen`` samples.

    Inputs shorter than ``seqlen`` count as padded with zeros. With u and k of at most half of it, nothing wraps around
    and the convolution is causal.

    Args:
        seqlen: the period of the circular convolution; any number, not only powers of two.
        dtype: taken for the original's sake; outputs have the dtype of u.
        use_32_butterfly: taken for the original's sake.

    ``forward(u, k, pregate=None, postgate=None)``: u and the gates (B, H, L), k (H, N) in float32 or the dtype of u,
    with L and N at most ``seqlen``. Returns (B, H, L) in the dtype of u. No parameters.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: an argument that is not a tensor, or a dtype that is not supported.

    Cost: that of ``causal_conv``, of which the gates are part. k is not rounded to a half type.

    >>> import torch
    >>> from convscan.compat.flashfftconv import FlashFFTConv
    >>> conv = FlashFFTConv(8)
    >>> u, k = torch.tensor([[[1.0, 2.0, 3.0, 0.0]]]), torch.tensor([[1.0, 10.0]])
    >>> conv(u, k).flatten().tolist()
    [1.0, 12.0, 23.0, 30.0]
    """

    def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16, use_32_butterfly: bool = True) -> None:
        super().__init__()
        if seqlen < 1:
            raise ValueError(message("FlashFFTConv", "seqlen must be at least 1", seqlen))
        self.seqlen = seqlen
        self.dtype = dtype
        self.use_32_butterfly = use_32_butterfly

    def forward(self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None) -> Tensor:
        """(B, H, L), as the class says."""
        name = "FlashFFTConv"
        tensor_like(name, "u", u, u)
        tensor_like(name, "k", k, u)
        if u.ndim != 3 or u.shape[-1] > self.seqlen:
            expectation = f"u must have the shape (B, H, L) with L <= seqlen = {self.seqlen}"
            raise ValueError(message(name, expectation, shape_text(u.shape)))
        if k.ndim != 2 or k.shape[0] != u.shape[1] or not 1 <= k.shape[1] <= self.seqlen:
            expectation = f"k must have the shape (H, N) = ({u.shape[1]}, N) with 1 <= N <= {self.seqlen}"
            raise ValueError(message(name, expectation, shape_text(k.shape)))
        for label, gate in (("pregate", pregate), ("postgate", postgate)):
            if gate is not None:
                tensor_like(name, label, gate, u)
                has_shape(name, label, gate, u.shape, "of u, (B, H, L)")
        length, taps = u.shape[-1], k.shape[-1]
        state = None
        if length + taps - 1 > self.seqlen:
            # What is in front of the first sample is the end of the period.
            begin = self.seqlen - (taps - 1)
            end = u[..., begin:] if pregate is None else u[..., begin:] * pregate[..., begin:]
            state = torch.nn.functional.pad(end, (0, self.seqlen - length)).mT
        y = causal_conv(
            u.mT,
            k.mT,
            pre_gate=None if pregate is None else pregate.mT,
            post_gate=None if postgate is None else postgate.mT,
            initial_state=state,
        ).mT
        return y.to(u.dtype)


class FlashDepthWiseConv1d(torch.nn.Module):
    """y[b,d,t] = sum_k weights[d,k] x[b,d,t+k-padding] + bias[d]: ``nn.Conv1d`` with groups=channels.

    Args:
        channels: D.
        kernel_size: K.
        padding: zeros on either side of x.
        weights: (D, 1, K) or (D, K), those of an ``nn.Conv1d``.
        bias: (D,).
        is_bhl: whether x is (B, D, L), or (B, L, D).
        device, dtype: of the parameters; those of ``weights`` and ``bias`` if None.

    ``forward(x)`` returns (B, D, L + 2 padding - K + 1), or (B, L + 2 padding - K + 1, D), in the dtype of x.

    Parameters: ``weights`` (D, K), or (K, D) without ``is_bhl``, and ``bias`` (D,): copies of what is given.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: an argument that is not a tensor, or a dtype that is not supported.

    >>> import torch
    >>> from convscan.compat.flashfftconv import FlashDepthWiseConv1d
    >>> theirs = torch.nn.Conv1d(4, 4, 3, groups=4, padding=1)
    >>> ours = FlashDepthWiseConv1d(4, 3, 1, theirs.weight, theirs.bias)
    >>> x = torch.randn(2, 4, 10)
    >>> torch.allclose(ours(x), theirs(x), atol=1e-6)
    True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: int,
        weights: Tensor,
        bias: Tensor,
        is_bhl: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "FlashDepthWiseConv1d"
        tensor_like(name, "weights", weights, weights)
        tensor_like(name, "bias", bias, weights)
        if tuple(weights.shape) not in ((channels, 1, kernel_size), (channels, kernel_size)):
            expectation = f"weights must have the shape (D, 1, K) = ({channels}, 1, {kernel_size})"
            raise ValueError(message(name, expectation, shape_text(weights.shape)))
        has_shape(name, "bias", bias, (channels,), "(D,)")
        if padding < 0:
            raise ValueError(message(name, "padding must not be negative", padding))
        self.d, self.k, self.padding, self.is_bhl = channels, kernel_size, padding, is_bhl
        taps = weights.detach().reshape(channels, kernel_size).to(device=device, dtype=dtype)
        # A copy in its own order: parameters are stored the way they are used.
        self.weights = torch.nn.Parameter((taps if is_bhl else taps.T).clone(memory_format=torch.contiguous_format))
        self.bias = torch.nn.Parameter(bias.detach().to(device=device, dtype=dtype, copy=True))

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, L), or (B, L, D), as the class says."""
        x = input.mT if self.is_bhl else input
        h = (self.weights.T if self.is_bhl else self.weights).flip(0)
        # The causal convolution of x and `padding` zeros behind it has the output t at t + K - 1 - padding.
        ahead = self.k - 1 - self.padding
        y = causal_conv(torch.nn.functional.pad(x, (0, 0, max(0, -ahead), self.padding)), h, bias=self.bias)
        y = y[..., max(0, ahead) :, :]
        return (y.mT if self.is_bhl else y).to(input.dtype)
