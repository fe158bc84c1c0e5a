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


def shaped(
    function: str, name: str, tensor: Tensor, x: Tensor, expected: Sequence[int], meaning: str, of: str = "v"
) -> None:
    """A tensor on the device of x, which the function calls ``of``, with this shape and a dtype that gates and states
    may have."""
    _checks.tensor_like(function, name, tensor, x, of)
    _checks.has_shape(function, name, tensor, expected, meaning)
    _checks.common_dtype(function, DTYPES, **{name: tensor})


def grouped(
    function: str, name: str, tensor: Tensor, x: Tensor, channels: int | None, meaning: str, of: str = "v"
) -> None:
    """Keys or queries of groups: the leading axes and the length of x, which the function calls ``of``, and heads that
    divide those of x."""
    with_heads(function, name, tensor)
    _checks.tensor_like(function, name, tensor, x, of)
    groups, size = tensor.shape[-2], tensor.shape[-1] if channels is None else channels
    _checks.has_shape(function, name, tensor, (*x.shape[:-2], groups, size), meaning)
    if (x.shape[-2] % groups if groups else x.shape[-2]) != 0:
        expectation = f"the groups of {name} must divide the {x.shape[-2]} heads of {of}"
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


def keys_and_values(function: str, q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    """Queries and keys of groups, and values; returns the dtype that they are promoted to."""
    with_heads(function, "v", v)
    grouped(function, "q", q, v, None, "(..., L, G, K)")
    grouped(function, "k", k, v, q.shape[-1], "(..., L, G, K)")
    _checks.has_shape(function, "k", k, q.shape, "of q")
    return _checks.common_dtype(function, DTYPES, q=q, k=k, v=v)


def decays(function: str, g: Tensor, q: Tensor, v: Tensor, *, constant: bool) -> None:
    """Logarithms of decays by key, by step, or where they may be constant of each head."""
    _checks.tensor_like(function, "g", g, v, "v")
    _checks.common_dtype(function, DTYPES, g=g)
    by_key, by_step, heads = (*v.shape[:-1], q.shape[-1]), tuple(v.shape[:-1]), v.shape[-2]
    shapes, meanings = [by_key, by_step], [f"(..., L, H, K) = {by_key}", f"(..., L, H) = {by_step}"]
    if constant:
        shapes.append((heads,))
        meanings.append(f"(H,) = ({heads},)")
    # No `in`: of symbolic sizes it knows only whether they are one object.
    if not any(tuple(g.shape) == shape for shape in shapes):
        expectation = f"g must have the shape {', '.join(meanings[:-1])} or {meanings[-1]}"
        raise ValueError(message(function, expectation, _checks.shape_text(g.shape)))


def key_value_state(
    function: str, initial_state: Tensor | None, q: Tensor, v: Tensor, cu_seqlens: Tensor | None
) -> None:
    """Boundaries, and the state before the first step, of each sequence."""
    of_sequences = sequences(function, cu_seqlens, v)
    if initial_state is None:
        return
    shape = (*v.shape[:-3], *of_sequences, v.shape[-2], q.shape[-1], v.shape[-1])
    meaning = "(..., S, H, K, V)" if of_sequences else "(..., H, K, V)"
    shaped(function, "initial_state", initial_state, v, shape, meaning)
