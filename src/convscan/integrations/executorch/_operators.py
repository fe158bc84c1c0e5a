"""The operators as programs of ExecuTorch call them: functional, and writing into ``out``.

They take the same as the operators that PyTorch sees, and ``views``: two numbers for each of the tensors that a
transpose or a slice may stand before, whether time is the last axis instead of the channels, and the first channel. A
program of ExecuTorch copies where PyTorch makes a view; an operator that reads and writes views needs no copy.
"""

# mypy: disable-error-code="no-untyped-call"
# The registration functions of PyTorch have no annotations.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, library

from ...ops.causal_conv import api as conv_api
from ...ops.linear_recurrence import api as recurrence_api

NAMESPACE = "convscan_executorch"
_library = library.Library(NAMESPACE, "DEF")
_ORIGINALS = (conv_api, recurrence_api)  # which register what the functions below call

# The tensors with views, by operator, the output last.
CONV_VIEWS = ("x", "h", "initial_state", "pre_gate", "post_gate", "out")
SCAN_VIEWS = ("x", "a", "out")


def _seen(tensor: Tensor | None, views: Sequence[int], index: int, channels: int) -> Tensor | None:
    """What an operator reads of a tensor; all of the channels of one that has a single one."""
    if tensor is None:
        return None
    time_last, first = views[2 * index : 2 * index + 2]
    seen = tensor.mT if time_last else tensor
    return seen if seen.shape[-1] == 1 else seen.narrow(-1, first, channels)


def _shape(x: Tensor, views: Sequence[int], channels: int) -> list[Any]:
    """The shape of an output like x."""
    length = x.shape[-1] if views[0] else x.shape[-2]
    return [*x.shape[:-2], *((channels, length) if views[-2] else (length, channels))]


def _causal_conv(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str | None,
    origin: int,
    transposed: bool,
    precision: str,
    views: Sequence[int],
    channels: int,
) -> Tensor:
    y = torch.ops.convscan.causal_conv(
        _seen(x, views, 0, channels),
        h.mT if views[2] else h,
        bias,
        initial_state.mT if initial_state is not None and views[4] else initial_state,
        _seen(pre_gate, views, 3, channels),
        _seen(post_gate, views, 4, channels),
        cu_seqlens,
        activation,
        origin,
        transposed,
        precision,
        None,
    )
    return cast(Tensor, (y.mT if views[-2] else y).contiguous())


def _linear_recurrence(
    x: Tensor,
    y_init: Tensor | None,
    a: Tensor,
    cu_seqlens: Tensor | None,
    reverse: bool,
    views: Sequence[int],
    channels: int,
) -> Tensor:
    seen, coefficients = _seen(x, views, 0, channels), _seen(a, views, 1, channels)
    y = torch.ops.convscan.linear_recurrence(seen, y_init, coefficients, cu_seqlens, reverse)
    return cast(Tensor, (y.mT if views[-2] else y).contiguous())


def _define(schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    name, _, arguments = schema.rstrip(")").partition("(")
    _library.define(f"{name}({arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")
    _library.impl(name, function, "CompositeExplicitAutograd")

    def into(*given: Any, out: Tensor) -> Tensor:
        return out.copy_(function(*given))

    _library.impl(f"{name}.out", into, "CompositeExplicitAutograd")
    library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


_define(
    "causal_conv(Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, Tensor? pre_gate, Tensor? post_gate, "
    "Tensor? cu_seqlens, str? activation, SymInt origin, bool transposed, str precision, int[] views, int channels)",
    _causal_conv,
    lambda x, *rest: x.new_empty(_shape(x, rest[-2], rest[-1])),
)
_define(
    "linear_recurrence(Tensor x, Tensor? y_init, Tensor a, Tensor? cu_seqlens, bool reverse, int[] views, "
    "int channels)",
    _linear_recurrence,
    lambda x, *rest: x.new_empty(_shape(x, rest[-2], rest[-1])),
)
