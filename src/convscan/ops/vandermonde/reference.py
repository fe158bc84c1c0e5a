"""The definition of both products, one power after the other in double precision: truth and fallback."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _powers(a: Tensor, length: int, order: int) -> Iterator[tuple[int, Tensor]]:
    """l and l (l-1) ... (l-order+1) a^(l-order), for order <= l < length."""
    power = torch.ones_like(a, dtype=torch.complex128)
    for l in range(order, length):
        factor = 1.0
        for i in range(order):
            factor *= l - i
        yield l, factor * power
        power = power * a


def vandermonde(c: Tensor, a: Tensor, length: int, order: int = 0) -> Tensor:
    """y[..., l] = Re sum_n c[..., n] a[..., n]^l, of which ``order`` derivatives with respect to a are taken."""
    c, a = c.to(torch.complex128), a.to(torch.complex128)
    y = torch.zeros(*(c * a).shape[:-1], length, dtype=torch.float64)
    for l, power in _powers(a, length, order):
        y[..., l] = (c * power).sum(-1).real
    return y


def adjoint(g: Tensor, a: Tensor, order: int = 0) -> Tensor:
    """w[..., n] = sum_l g[..., l] a[..., n]^l, of which ``order`` derivatives with respect to a are taken."""
    w = torch.zeros_like(g.sum(-1, keepdim=True) * a, dtype=torch.complex128)
    for l, power in _powers(a, g.shape[-1], order):
        w = w + g[..., l : l + 1].double() * power
    return w
