"""LayerStream: a layer of convscan.nn, or any module with its protocol, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..nn import FFTConvS4
from ..nn._layer import SequenceLayer
from ._stream import StateStream


class LayerStream(StateStream):
    """y, state = layer(x, state) for chunks, and layer.step(x, state) for samples.

    Args:
        layer: a layer of ``convscan.nn``; shared, not copied. Its ``setup_step`` is called, and again by ``refresh()``
            when its parameters have changed.
        batch_shape: the leading axes of x. Chunks are (*batch_shape, L, D), those of ``FFTConvS4`` (*batch_shape, D, L)
            where it is ``transposed``.

    State: the layer's. Gradients flow through it from chunk to chunk; assigning the detached state ends them there.

    Cost: the layer's.

    >>> import torch, convscan
    >>> layer = convscan.nn.ShortConv(8).eval()
    >>> stream = convscan.stream.LayerStream(layer, (2,))
    >>> x = torch.randn(2, 10, 8)
    >>> with torch.no_grad():
    ...     y = torch.cat([stream.extend(x[:, :7]), stream.step(x[:, 7])[:, None], stream.extend(x[:, 8:])], 1)
    ...     bool(torch.allclose(y, layer(x)[0], atol=1e-6))
    True
    """

    def __init__(self, layer: SequenceLayer[Any] | FFTConvS4, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape, layer.default_state(*batch_shape))
        self.layer = layer
        if isinstance(layer, FFTConvS4) and layer.transposed:
            self.time_axis = -1
        self.refresh()

    def refresh(self) -> None:
        """Prepares the layer's parameters for steps."""
        self.layer.setup_step()

    def _advance(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y, self._state = self.layer(x, self._state)
        return y  # type: ignore[no-any-return]

    def _advance_one(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y, self._state = self.layer.step(x, self._state)
        return y

    def reset(self) -> None:
        self._state = self.layer.default_state(*self.batch_shape)
        self._forget()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LayerStream:
        """The state on another device; the layer's own ``to`` moves the layer, and decides the dtype."""
        return self._with(self.batch_shape, lambda tensor: tensor.to(device=device))
