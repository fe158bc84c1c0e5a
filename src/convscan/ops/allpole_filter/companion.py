"""Finite filters as recurrences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _checks
from ..._errors import message


class CompanionForm(NamedTuple):
    """s[i+1] = A s[i] + B x[i], y[i] = sum_j C[j] s[i,j] + D x[i] from s[0] = 0: a filter as a state-space model.

    A (N, N) and B (N,) are shared by the channels, C (N, channels) and D (channels,) are the filter's.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


def fir_to_recurrence(h: Tensor) -> CompanionForm:
    """s[i+1] = A s[i] + B x[i], y[i] = C s[i] + D x[i]: the recurrence that equals ``causal_conv(x, h)``.

    The companion form of a finite filter: the state holds the last K-1 samples, the newest first, A moves them on and
    is nilpotent, B takes in the current one. Sums have the same terms as the convolution's.

    Args:
        h: (K, D), K >= 1: h[0] multiplies the current sample.

    Returns:
        A (K-1, K-1), B (K-1,), C = h[1:] (K-1, D) and D = h[0] (D,), of the dtype and on the device of h.

    Raises:
        ValueError: h of another shape.
        TypeError: h that is not a tensor.

    Cost: A is dense, (K-1)^2 numbers, of which K-2 are ones. A step of the recurrence needs no product with it.

    Reference: T. Kailath, Linear Systems, 1980, section 2.1.

    >>> import torch, convscan
    >>> form = convscan.fir_to_recurrence(torch.tensor([[1.0], [2.0], [3.0]]))
    >>> form.A.tolist(), form.B.tolist(), form.C.flatten().tolist(), form.D.tolist()
    ([[0.0, 0.0], [1.0, 0.0]], [1.0, 0.0], [2.0, 3.0], [1.0])
    """
    _checks.tensor_like("fir_to_recurrence", "h", h, h)
    if h.ndim != 2 or h.shape[0] == 0:
        expectation = "h must have the shape (K, D), K >= 1"
        raise ValueError(message("fir_to_recurrence", expectation, _checks.shape_text(h.shape)))
    states = h.shape[0] - 1
    shift = torch.eye(states, dtype=h.dtype, device=h.device).roll(1, 0)
    shift[:1] = 0
    B = torch.zeros(states, dtype=h.dtype, device=h.device)
    B[:1] = 1
    return CompanionForm(shift, B, h[1:], h[0])
