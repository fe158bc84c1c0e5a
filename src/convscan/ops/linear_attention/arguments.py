"""Checks of arguments that the operators on linear attention share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks
from ..._errors import message
from .api import DTYPES, arithmetic


def with_heads(function: str, name: str, tensor: Tensor) -> None:
    """A signal with heads has time, heads and channels as its last three axes."""
    if not isinstance(tensor, Tensor):
        remedy = f"Convert it with torch.as_tensor({name})"
        raise TypeError(message(function, f"{name} must be a torch.Tensor", type(tensor).__name__, remedy))
    if tensor.ndim < 3:
        remedy = "Add the missing axis with unsqueeze"
        expectation = f"{name} must have the shape (..., L, H, channels)"
        raise ValueError(message(function, expectation, _checks.shape_text(tensor.shape), remedy))


def shaped(function: str, name: str, tensor: Tensor, x: Tensor, expected: Sequence[int], meaning: str) -> None:
    """A tensor on the device of x with this shape and a dtype that gates and states may have."""
    _checks.tensor_like(function, name, tensor, x)
    _checks.has_shape(function, name, tensor, expected, meaning)
    _checks.common_dtype(function, DTYPES, **{name: tensor})


def grouped(function: str, name: str, tensor: Tensor, x: Tensor, channels: int | None, meaning: str) -> None:
    """Keys or queries of groups: the leading axes and the length of x, and heads that divide those of x."""
    with_heads(function, name, tensor)
    _checks.tensor_like(function, name, tensor, x)
    groups, size = tensor.shape[-2], tensor.shape[-1] if channels is None else channels
    _checks.has_shape(function, name, tensor, (*x.shape[:-2], groups, size), meaning)
    if groups == 0 or x.shape[-2] % groups != 0:
        expectation = f"the groups of {name} must divide the {x.shape[-2]} heads of x"
        raise ValueError(message(function, expectation, groups))


def sequences(function: str, cu_seqlens: Tensor | None, x: Tensor) -> tuple[int, ...]:
    """The axis that states have in front of heads: none, or (S,) for S packed sequences."""
    return () if cu_seqlens is None else (_checks.packed(function, cu_seqlens, x),)


def gate(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gate or a state in the type of arithmetic of ``dtype``."""
    return tensor.to(arithmetic(dtype))


def with_time(function: str, name: str, tensor: Tensor) -> Tensor:
    """One step's signal with heads, (..., H, channels), as a sequence of one step."""
    if not isinstance(tensor, Tensor):
        remedy = f"Convert it with torch.as_tensor({name})"
        raise TypeError(message(function, f"{name} must be a torch.Tensor", type(tensor).__name__, remedy))
    if tensor.ndim < 2:
        remedy = "Add the missing axis with unsqueeze"
        expectation = f"{name} must have the shape (..., H, channels)"
        raise ValueError(message(function, expectation, _checks.shape_text(tensor.shape), remedy))
    return tensor.unsqueeze(-3)
