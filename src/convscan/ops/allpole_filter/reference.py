"""The definition of the all-pole filter, one time step after the other in double precision: truth and fallback."""

from __future__ import annotations

from torch import Tensor


def allpole_filter(x: Tensor, a: Tensor, initial_state: Tensor | None = None, transposed: bool = False) -> Tensor:
    """y[i,n] = x[i,n] + sum_k a_k[i,n] y[i-k,n] after the outputs ``initial_state``; with ``transposed`` from the end,
    y[i,n] = x[i,n] + sum_k a_k[i+k,n] y[i+k,n]."""
    order, length = a.shape[-2], x.shape[-2]
    x, a = x.double(), a.double().expand(*x.shape[:-1], order, x.shape[-1])
    y = x.clone()
    steps = range(length)
    for i in reversed(steps) if transposed else steps:
        for k in range(1, order + 1):
            if transposed and i + k < length:
                y[..., i, :] += a[..., i + k, k - 1, :] * y[..., i + k, :]
            elif not transposed and i >= k:
                y[..., i, :] += a[..., i, k - 1, :] * y[..., i - k, :]
            elif not transposed and initial_state is not None:
                y[..., i, :] += a[..., i, k - 1, :] * initial_state[..., order + i - k, :].double()
    return y
