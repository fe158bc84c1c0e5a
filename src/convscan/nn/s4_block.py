"""S4Block: a state-space layer as a residual block of a deep network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._layer import SequenceLayer
from .fft_conv_s4 import FFTConvS4


class S4Block(SequenceLayer[Tensor]):
    """y = x + dropout(glu(W dropout(gelu(s4(norm(x)))) + b)), or y = norm(x + ...) with ``prenorm=False``.

    The state-space layer mixes time, each feature by itself; the gated matrix W mixes features.

    Args:
        d_model: D.
        dropout: of both dropouts, while training.
        prenorm: whether to normalise what goes into the branch, or what comes out of the sum.
        arguments: of the state-space layer, see ``FFTConvS4``: ``kernel``, ``channels``, ``drop_kernel``, and those of
            the kernel, ``d_state``, ``init``, ``dt_min``, ....

    Parameters: ``norm``, a LayerNorm over channels; ``s4``, an ``FFTConvS4``; ``output`` (2D, channels D), as PyTorch's
    ``Linear``.

    State: that of ``s4``, whose step a step takes, and O(D²).

    Source: A. Gu, K. Goel, C. Ré, Efficiently Modeling Long Sequences with Structured State Spaces, 2021,
    arXiv 2111.00396, and the authors' released code.

    >>> import torch, convscan
    >>> block = convscan.nn.S4Block(8, d_state=16, dropout=0.1).eval()
    >>> y, _ = block(torch.randn(2, 100, 8))
    >>> y, state = block.step(torch.randn(2, 8), block.default_state(2))
    >>> y.shape
    torch.Size([2, 8])
    """

    def __init__(self, d_model: int, dropout: float = 0.0, prenorm: bool = True, **arguments: Any) -> None:
        super().__init__(d_model)
        device, dtype = arguments.get("device"), arguments.get("dtype")
        self.prenorm = prenorm
        self.norm = torch.nn.LayerNorm(d_model, device=device, dtype=dtype)
        self.s4 = FFTConvS4(d_model, transposed=False, **arguments)
        self.output = torch.nn.Linear(self.s4.d_output, 2 * d_model, device=device, dtype=dtype)
        self.dropout = torch.nn.Dropout(dropout)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        return self.s4.default_state(*batch_shape, device=device)

    def setup_step(self, mode: str | None = None) -> None:
        """As ``FFTConvS4.setup_step``."""
        self.s4.setup_step(mode)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        z, next_state = self.s4.step(self.norm(x) if self.prenorm else x, state)
        return self._mixed(x, z.flatten(-2)), next_state

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z, next_state = self.s4(self.norm(x) if self.prenorm else x, state)
        return self._mixed(x, z.flatten(-3, -2).mT), next_state

    def _mixed(self, x: Tensor, z: Tensor) -> Tensor:
        """The rest of the block after its state-space layer, z (..., channels D)."""
        gated = torch.nn.functional.glu(self.output(self.dropout(torch.nn.functional.gelu(z))), -1)
        y: Tensor = x + self.dropout(gated)
        return y if self.prenorm else self.norm(y)
