"""vmap of a convolution and of its gradients: one more leading axis."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ..._errors import message
from .arguments import Operands
from .composed import apply, filter_gradient


def _with_leading(tensor: Tensor | None, axis: int | None, size: int, own: int, leading: int) -> Tensor | None:
    """With the mapped axis in front of ``leading`` others, and ``own`` behind, where it has one; otherwise what
    broadcasts over it."""
    if tensor is None:
        return None
    if axis is None:
        # Filters have all leading axes or none.
        return tensor.unsqueeze(0) if leading > 0 and tensor.ndim == leading + own else tensor
    front = tensor.movedim(axis, 0)
    return front[(slice(None), *(None,) * (leading + own + 1 - front.ndim))]


def _all_leading(tensor: Tensor | None, axis: int | None, size: int) -> Tensor | None:
    """The same of a tensor that has all leading axes, with the mapped one in full."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _not_mapped(axis: int | None) -> None:
    if axis is not None:
        expectation = "cu_seqlens must be the same for every element of a torch.vmap"
        raise ValueError(message("causal_conv", expectation, f"one with the mapped axis {axis}", "Call in a loop"))


def conv_vmap(info: Any, axes: tuple[int | None, ...], *operands: Any) -> tuple[Tensor, int]:
    p, size = Operands(*operands), info.batch_size
    _not_mapped(axes[6])
    x = cast(Tensor, _all_leading(p.x, axes[0], size))
    leading = x.ndim - 3
    y = apply(
        p._replace(
            x=x,
            h=cast(Tensor, _with_leading(p.h, axes[1], size, 2, leading)),
            bias=_with_leading(p.bias, axes[2], size, 1, leading),
            state=_all_leading(p.state, axes[3], size),
            pre_gate=_with_leading(p.pre_gate, axes[4], size, 2, leading),
            post_gate=_with_leading(p.post_gate, axes[5], size, 2, leading),
            spectrum=p.spectrum if axes[1] is None else None,
        )
    )
    return y, 0


def filter_gradient_vmap(
    info: Any,
    axes: tuple[int | None, ...],
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    taps: int,
    origin: int,
    per_batch: bool,
    precision: str,
) -> tuple[Tensor, int]:
    _not_mapped(axes[5])
    signals = [_all_leading(tensor, axis, info.batch_size) for tensor, axis in zip((x, dz, state), axes, strict=False)]
    leading = cast(Tensor, signals[0]).ndim - 3
    gates = [
        _with_leading(gate, axis, info.batch_size, 2, leading)
        for gate, axis in zip((x_gate, dz_gate), axes[3:5], strict=True)
    ]
    dh = filter_gradient(*signals, *gates, cu_seqlens, taps, origin, True, precision)
    return (dh if per_batch or leading == 0 else dh.flatten(1, -3).sum(1)), 0
