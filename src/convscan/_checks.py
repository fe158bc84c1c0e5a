"""Checks of arguments that operators share. Kernels trust what passes; a failure says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from ._errors import message
from ._layout import dtype_name


def shape_text(shape: Sequence[int]) -> str:
    """``(2, 7, 3)``, for a ``torch.Size`` too."""
    return str(tuple(shape))


def signal(function: str, name: str, tensor: Tensor) -> None:
    """A signal has time and channels as its last two axes."""
    if not isinstance(tensor, Tensor):
        remedy = f"Convert it with torch.as_tensor({name})"
        raise TypeError(message(function, f"{name} must be a torch.Tensor", type(tensor).__name__, remedy))
    if tensor.ndim < 2:
        remedy = "Add the missing axis with unsqueeze"
        raise ValueError(message(function, f"{name} must have the shape (..., L, D)", shape_text(tensor.shape), remedy))


def tensor_like(function: str, name: str, tensor: Tensor, x: Tensor, of: str = "x") -> None:
    """An argument beside x is a tensor on the device of x, which the function calls ``of``."""
    if not isinstance(tensor, Tensor):
        remedy = f"Convert it with torch.as_tensor({name})"
        raise TypeError(message(function, f"{name} must be a torch.Tensor", type(tensor).__name__, remedy))
    if tensor.device != x.device:
        remedy = f"Move it with {name}.to({of}.device)"
        raise ValueError(message(function, f"{name} must be on the device of {of}, {x.device}", tensor.device, remedy))


def common_dtype(function: str, allowed: Sequence[torch.dtype], **tensors: Tensor | None) -> torch.dtype:
    """The dtype PyTorch promotes the tensors to; each must have one of the allowed dtypes."""
    result: torch.dtype | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in allowed:
            expectation = f"{name} must have one of the dtypes {', '.join(map(dtype_name, allowed))}"
            raise TypeError(
                message(function, expectation, dtype_name(tensor.dtype), f"Convert it with {name}.to(dtype)")
            )
        result = tensor.dtype if result is None else torch.promote_types(result, tensor.dtype)
    assert result is not None
    return result


def has_shape(function: str, name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """An exact shape, which ``meaning`` explains in the letters of the documentation."""
    if tuple(tensor.shape) != tuple(expected):
        expectation = f"{name} must have the shape {meaning} = {shape_text(expected)}"
        raise ValueError(message(function, expectation, shape_text(tensor.shape)))


def broadcasts(function: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """A shape that broadcasts to that of x, and makes it no larger."""
    fits = tensor.ndim <= x.ndim
    for of_tensor, of_x in zip(reversed(tensor.shape), reversed(x.shape), strict=False):
        fits = fits and (of_tensor == 1 or of_tensor == of_x)
    if not fits:
        expectation = f"{name} must broadcast to the shape of x, {shape_text(x.shape)}"
        raise ValueError(message(function, expectation, shape_text(tensor.shape)))


def output(function: str, out: Tensor, x: Tensor, dtype: torch.dtype, needs_gradient: bool) -> None:
    """Caller's memory for the result: the shape of x, the dtype of the result, and nothing to differentiate."""
    tensor_like(function, "out", out, x)
    if needs_gradient or out.requires_grad:
        expectation = "out cannot be given where a gradient is needed"
        remedy = "Call under torch.no_grad(), or without out"
        raise RuntimeError(message(function, expectation, "a tensor that requires grad", remedy))
    has_shape(function, "out", out, x.shape, "of x")
    if out.dtype != dtype:
        expectation = f"out must have the dtype of the result, {dtype_name(dtype)}"
        raise TypeError(message(function, expectation, dtype_name(out.dtype)))


def packed(function: str, cu_seqlens: Tensor, x: Tensor) -> int:
    """How many sequences lie behind one another along the time axis of x: sequence s has the steps
    cu_seqlens[s] <= t < cu_seqlens[s+1]. Looks at the shape only; ``boundaries`` looks at the values."""
    tensor_like(function, "cu_seqlens", cu_seqlens, x)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        expectation = "cu_seqlens must have one of the dtypes int32, int64"
        raise TypeError(message(function, expectation, dtype_name(cu_seqlens.dtype)))
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        expectation = "cu_seqlens must have the shape (S+1,) for S >= 1 sequences"
        raise ValueError(message(function, expectation, shape_text(cu_seqlens.shape)))
    return cu_seqlens.shape[0] - 1


def boundaries(function: str, cu_seqlens: Tensor, length: int) -> list[int]:
    """The values of cu_seqlens: from 0 to the length, none below the one before it. Sequences may be empty."""
    values: list[int] = cu_seqlens.tolist()
    if values[0] != 0 or values[-1] != length:
        expectation = f"cu_seqlens must begin with 0 and end with L = {length}"
        raise ValueError(message(function, expectation, f"{values[0]} ... {values[-1]}"))
    for s, (begin, end) in enumerate(pairwise(values)):
        if end < begin:
            expectation = "cu_seqlens must not decrease"
            raise ValueError(message(function, expectation, f"{end} after {begin} at {s + 1}"))
    return values


@contextmanager
def read_boundaries(function: str, cu_seqlens: Tensor | None, length: int) -> Iterator[Tensor | None]:
    """cu_seqlens as native kernels read it, for calls of them inside the ``with`` block. They look at every value once,
    and only refuse: a refusal is explained here."""
    try:
        yield None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64).contiguous()
    except ValueError:
        if cu_seqlens is not None:
            boundaries(function, cu_seqlens, length)
        raise
