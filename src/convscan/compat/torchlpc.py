"""torchlpc's all-pole filter whose coefficients vary with time.

Source: C.-Y. Yu, G. Fazekas, Differentiable Time-Varying Linear Prediction in the Context of End-to-End
Analysis-by-Synthesis, 2024, arXiv 2406.05128; github.com/DiffAPF/TorchLPC, 0.7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from ..ops.allpole_filter.api import allpole_filter

__all__ = ["sample_wise_lpc"]


def sample_wise_lpc(
    x: Tensor, a: Tensor, zi: Tensor | None = None, return_zf: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """y[b,t] = x[b,t] - sum_i a[b,t,i] y[b,t-1-i].

    Args:
        x: (B, T).
        a: (B, T, order); coefficients that are constant in time may be expanded, which costs no memory.
        zi: (B, order), the outputs before the first, latest first; None for zeros.
        return_zf: whether to return the last outputs too, as the next call's ``zi``.

    Returns:
        y, (B, T); with ``return_zf``, y and (B, order), latest first, those of ``zi`` included where T is shorter.

    dtypes, cost and derivatives are those of ``allpole_filter``; complex numbers are not supported.

    Raises:
        ValueError: a shape or device that does not fit. TypeError: an argument that is not a tensor, or a dtype that is
        not supported.

    >>> import torch
    >>> from convscan.compat.torchlpc import sample_wise_lpc
    >>> sample_wise_lpc(torch.tensor([[1.0, 0.0, 0.0]]), torch.full((1, 3, 1), -0.5)).tolist()
    [[1.0, 0.5, 0.25]]
    """
    name = "sample_wise_lpc"
    tensor_like(name, "x", x, x)
    if x.ndim != 2:
        raise ValueError(message(name, "x must have the shape (B, T)", shape_text(x.shape)))
    tensor_like(name, "a", a, x)
    if a.ndim != 3 or a.shape[:2] != x.shape:
        expectation = f"a must have the shape (B, T, order) = ({x.shape[0]}, {x.shape[1]}, order)"
        raise ValueError(message(name, expectation, shape_text(a.shape)))
    order = a.shape[2]
    if zi is not None:
        tensor_like(name, "zi", zi, x)
        has_shape(name, "zi", zi, (x.shape[0], order), "(B, order)")
    if order == 0:
        return (x.clone(), x.new_zeros(x.shape[0], 0)) if return_zf else x.clone()
    before = None if zi is None else zi.flip(1)
    state = None if before is None else before.unsqueeze(-1)
    taps = -(a[:, :1] if a.stride(1) == 0 else a)
    y = allpole_filter(x.unsqueeze(-1), taps.unsqueeze(-1), initial_state=state).squeeze(-1)
    if not return_zf:
        return y
    past = y.new_zeros(x.shape[0], order) if before is None else before.to(y.dtype)
    return y, torch.cat([past, y], 1)[:, y.shape[1] :].flip(1)
