"""The definition of the recurrence, one time step after the other in double precision: truth and fallback."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _parts(cu_seqlens: Tensor) -> Iterator[tuple[int, slice]]:
    """The sequences that are packed along time: sequence s has the steps cu_seqlens[s] <= i < cu_seqlens[s+1]."""
    return enumerate(slice(begin, end) for begin, end in pairwise(cu_seqlens.tolist()))


def linear_recurrence(
    x: Tensor, y_init: Tensor | None, a: Tensor, reverse: bool = False, cu_seqlens: Tensor | None = None
) -> Tensor:
    """y[i,n] = a[i,n] y[i-1,n] + x[i,n] from y[-1,n] = y_init[n]; from the end with ``reverse``."""
    x, a = _wide(x), _wide(a).expand(x.shape)
    if cu_seqlens is not None:
        parts = [
            linear_recurrence(x[..., part, :], None if y_init is None else y_init[..., s, :], a[..., part, :], reverse)
            for s, part in _parts(cu_seqlens)
        ]
        return torch.cat(parts, -2)
    y = torch.empty_like(x)
    last = x.new_zeros(*x.shape[:-2], x.shape[-1]) if y_init is None else _wide(y_init)
    steps = range(x.shape[-2])
    for i in reversed(steps) if reverse else steps:
        last = a[..., i, :] * last + x[..., i, :]
        y[..., i, :] = last
    return y


def gradient(
    dy: Tensor, y_init: Tensor | None, a: Tensor, y: Tensor, reverse: bool, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da (of the shape of y) and dy_init: g[i] = dy[i] + conj(a[i+1]) g[i+1], dx = g, da[i] = g[i] conj(y[i-1])."""
    dy, a, y = _wide(dy), _wide(a).expand(y.shape), _wide(y)
    if cu_seqlens is not None:
        gradients = []
        for s, part in _parts(cu_seqlens):
            initial = None if y_init is None else y_init[..., s, :]
            gradients.append(gradient(dy[..., part, :], initial, a[..., part, :], y[..., part, :], reverse))
        dxs, das, starts = zip(*gradients, strict=True)
        return torch.cat(dxs, -2), torch.cat(das, -2), torch.stack(starts, -2)
    # conj_physical: a lazy conjugate is read as if it were none where a caller has switched PyTorch's handling off.
    start = y.new_zeros(*y.shape[:-2], y.shape[-1]) if y_init is None else _wide(y_init)
    dx, da = torch.empty_like(dy), torch.empty_like(dy)
    steps = range(y.shape[-2])
    carried = torch.zeros_like(start)
    for i in steps if reverse else reversed(steps):
        before = i + 1 if reverse else i - 1
        g = dy[..., i, :] + carried
        dx[..., i, :] = g
        da[..., i, :] = g * (y[..., before, :] if 0 <= before < len(steps) else start).conj_physical()
        carried = a[..., i, :].conj_physical() * g
    return dx, da, carried
