"""Leading axes and memory order: what turns (…, L, D) tensors into (batch, time, channel) strides without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

Triple = tuple[int, int, int]
NO_STRIDES: Triple = (0, 0, 0)  # of an array that is not given


class Leading(NamedTuple):
    """The leading axes of several tensors: one batch axis, and what cannot be merged into it as a loop outside.

    ``batch`` and ``strides`` (one per tensor) describe the batch axis. ``offsets`` has the element offsets of the
    tensors for every turn of the loop; it is None when there is one turn.
    """

    batch: int
    strides: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...] | None


def fold(sizes: Sequence[int], strides: Sequence[Sequence[int]], *, innermost: bool = False) -> Leading:
    """Merges axes that every tensor steps through evenly; the largest remaining one is the batch axis, or the innermost
    one, in which contiguous tensors step from one entry to the next."""
    tensors = len(strides)
    axes: list[tuple[int, tuple[int, ...]]] = []
    for axis, size in enumerate(sizes):
        if size == 0:
            return Leading(0, (0,) * tensors, None)
        steps = tuple(s[axis] for s in strides)
        if size == 1:
            continue
        if axes and all(outer == inner * size for outer, inner in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, steps)
        else:
            axes.append((size, steps))
    if not axes:
        return Leading(1, (0,) * tensors, None)
    batch = len(axes) - 1 if innermost else max(range(len(axes)), key=lambda index: axes[index][0])
    size, steps = axes.pop(batch)
    if not axes:
        return Leading(size, steps, None)
    offsets = tuple(
        tuple(sum(i * axis[1][t] for i, axis in zip(index, axes, strict=True)) for t in range(tensors))
        for index in product(*(range(axis[0]) for axis in axes))
    )
    return Leading(size, steps, offsets)


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that all broadcast to; a RuntimeError where there is none."""
    longest: tuple[int, ...] = ()
    for shape in shapes:
        longest = tuple(shape) if len(shape) > len(longest) else longest
    # The usual case without PyTorch's 20 µs; of symbolic sizes a comparison would become an assumption.
    if all(type(n) is int for n in longest) and all(tuple(s) == longest[len(longest) - len(s) :] for s in shapes):
        return longest
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def kind(tensor: torch.Tensor | None) -> object:
    """What a plan that works for any strides knows of an optional argument; an AttributeError where it is no tensor."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def order(strides: Triple) -> str:
    """The memory order of a (batch, time, channel) array in words, for tables of costs."""
    if abs(strides[2]) == 1:
        return "channel"
    return "time" if abs(strides[1]) == 1 else "strided"
