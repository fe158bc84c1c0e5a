"""vmap of the selective scan: a mapped axis becomes part of the channels, for A, D and delta_bias may have it too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The axis of channels or groups of every argument that has one, in their order.
CHANNEL_AXES = (-1, -1, -2, -2, -2, -1, -1, -1, -2)


def into_channels(tensor: Tensor | None, axis: int | None, size: int, channels: int) -> Tensor | None:
    """The mapped axis as the slower part of the axis of channels."""
    if tensor is None:
        return None
    front = tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
    return front.movedim(0, channels - 1).flatten(channels - 1, channels)


def out_of_channels(tensor: Tensor, size: int, channels: int) -> Tensor:
    """The mapped axis in front again."""
    front: Tensor = torch.unflatten(tensor, channels, (size, tensor.shape[channels] // size))  # type: ignore[no-untyped-call]
    return front.movedim(channels - 1, 0)


def mapped(tensors: Sequence[Tensor | None], axes: Sequence[int | None], size: int) -> list[Tensor | None]:
    """All arguments of the scan, in its order."""
    return [
        into_channels(tensor, axis, size, channels)
        for tensor, axis, channels in zip(tensors, axes, CHANNEL_AXES, strict=True)
    ]
