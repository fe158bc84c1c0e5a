"""Calls that stand for each GPU kernel when ``convscan tune`` looks for its fastest tile sizes: of models' sizes, with
the arguments that layers give.

A workload is a row of an operator, the problem and the tensors of a call, which ``make`` places: on the device, or on
none, where only the launches are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..ops.causal_conv import arguments as conv
from ..ops.causal_conv import backward
from ..ops.causal_conv import step as conv_step
from ..ops.gated_delta_rule import api as delta
from ..ops.gated_linear_attention import api as gla
from ..ops.linear_attention import api as attention
from ..ops.linear_attention.problem import AttentionGradientProblem
from ..ops.linear_attention.step import Settings
from ..ops.linear_recurrence import api as scan
from ..ops.selective_scan import arguments as selective
from ..ops.selective_scan import gradient as selective_gradient

# (B, L, D): past the caches, for what multiplies more, for what multiplies most.
_LONG, _SHORT, _FEW = (8, 4096, 2048), (8, 4096, 256), (4, 4096, 64)


class Make(Protocol):
    """Normal numbers of a shape."""

    def __call__(self, *shape: int, dtype: torch.dtype = ...) -> Tensor: ...


class Workload(NamedTuple):
    """``row`` of the operator ``op`` is prepared for ``problem`` and called with ``arguments``."""

    op: str
    row: str
    problem: Any
    arguments: tuple[Any, ...]


def _signal(make: Make, size: tuple[int, int, int], order: str, dtype: torch.dtype = torch.float32) -> Tensor:
    batch, length, channels = size
    if order == "time":
        return make(batch, channels, length, dtype=dtype).mT
    return make(batch, length, 2 * channels, dtype=dtype)[..., ::2] if order == "strided" else make(*size, dtype=dtype)


def _conv(row: str, taps: int, order: str, make: Make, size: tuple[int, int, int] = _LONG) -> Workload:
    x = _signal(make, size, order)
    h, y = make(taps, size[2]), torch.empty_like(x)
    problem = conv.problem_of(conv.Operands(x, h), y)
    return Workload("causal_conv", row, problem, (x, h, None, None, None, None, y))


def _filter_gradient(row: str, taps: int, order: str, make: Make, size: tuple[int, int, int] = _LONG) -> Workload:
    x, dh = _signal(make, size, order), make(taps, size[2])
    problem = conv.filter_gradient_problem(x, x, None, None, None, dh)
    return Workload("causal_conv_filter_gradient", row, problem, (x, x, None, None, None, dh))


def _backward(row: str, taps: int, order: str, make: Make, size: tuple[int, int, int] = _LONG) -> Workload:
    x, h = _signal(make, size, order), make(taps, size[2])
    is_gated = taps > 16
    gate = x if is_gated else None
    needs = [True, True, False, False, is_gated, is_gated]
    given = backward._Given(x, x, h, None, None, gate, gate, None, None, "silu", 0, "default", needs)
    return Workload("causal_conv_backward", row, backward._describe(given, None), (*given[:7], None))


def _step(make: Make) -> Workload:
    x, state, h = make(64, 1, 2048), make(64, 3, 2048), make(4, 2048)
    y = torch.empty_like(x)
    problem = conv_step._problem(x, state, h, h[0], y, "silu", None, None, -1)
    return Workload("causal_conv_step", "triton_step", problem, (x, state, h, h[0], None, None, y))


def _scan(order: str, make: Make) -> Workload:
    x = _signal(make, _LONG, order)
    a, y = torch.sigmoid(x), torch.empty_like(x)
    return Workload(
        "linear_recurrence", "triton_scan", scan._problem(x, None, a, None, False, y), (x, None, a, None, y)
    )


def _selective(make: Make, *, is_gradient: bool = False) -> Workload:
    u = make(1, 4096, 1536)
    b, a, d, start = make(1, 4096, 1, 16), -make(1536, 16).exp(), make(1536), make(1, 1536, 16)
    given = selective.Arguments(u, u, a, b, b, d, u, d, start)
    if not is_gradient:
        problem = selective.problem_of(given, True, start, None, u)
        return Workload("selective_scan", "triton_by_state", problem, (*given, start, None, torch.empty_like(u)))
    kept = make(1, 64 * 16, 1536)
    gradient = selective_gradient._describe_gradient(u, start, kept, given, True)
    results = (u, start, *(torch.empty_like(u) for _ in range(2)), start, b[None], b[None], make(1, 1536))
    results = tuple(torch.empty_like(one) for one in (*results, u, make(1, 1536), start))
    return Workload("selective_scan_gradient", "triton_by_state", gradient, (*given, None, kept, None, u, *results[1:]))


def _attention(
    make: Make, dtype: torch.dtype = torch.float32, *, is_gradient: bool = False, per_key: bool = False
) -> Workload:
    """Of Mamba-2; gradients with as many groups as heads, where programs walk over chunks, or all chunks at once."""
    batch, groups, heads, values = (1 if per_key else 8, 16, 16, 128) if is_gradient else (2, 1, 80, 64)
    q, v = make(batch, 4096, groups, 128, dtype=dtype), make(batch, 4096, heads, values, dtype=dtype)
    g, state = -make(batch, 4096, heads, *((128,) if per_key else ())).abs(), make(batch, heads, 128, values)
    problem = attention.describe(q, v, g, None, False)
    given, ends = (q, q, v, g, None, state, None), (torch.empty_like(v), None, torch.empty_like(state), None)
    if not is_gradient:
        return Workload("gated_linear_attention", "triton_chunked", problem, (given, None, ends, None, 1.0))
    outputs = (q[None], q[None], v, g, None, state, None)
    results = tuple(None if one is None else torch.empty_like(one) for one in outputs)
    arguments = (given, (v, None, state, None), results, None, 1.0)
    return Workload("linear_attention_gradient", "triton_chunked", AttentionGradientProblem(problem), arguments)


def _attention_by_key(make: Make) -> Workload:
    q, g, state = make(2, 4096, 16, 128), -make(2, 4096, 16, 128).abs(), make(2, 16, 128, 128)
    given, ends = (q, q, q, g, None, state, None), (torch.empty_like(q), None, torch.empty_like(state), None)
    problem = attention.describe(q, q, g, None, False)
    return Workload("gated_linear_attention", "triton_chunked", problem, (given, None, ends, None, 1.0))


def _attention_step(make: Make) -> Workload:
    q, v, g, state = make(64, 16, 128), make(64, 32, 128), -make(64, 32).abs(), make(64, 32, 128, 128)
    tensors = (v, state, q, q, g)
    problem = gla._step._problem(Settings("decay", softplus=True), [*tensors, v])
    return Workload("gated_linear_attention_step", "triton_step", problem, (*tensors, torch.empty_like(v)))


def _delta(make: Make, *, is_gradient: bool = False, per_key: bool = False) -> Workload:
    q, v = make(1, 4096, 16, 128, dtype=torch.bfloat16), make(1, 4096, 32, 128, dtype=torch.bfloat16)
    q = torch.nn.functional.normalize(q, dim=-1)
    beta, state, of_key = torch.sigmoid(make(1, 4096, 32)), make(1, 32, 128, 128), make(1, 4096, 32, 128)
    g = -(of_key if per_key else make(1, 4096, 32)).abs()
    given = (q, q, v, g, beta, state)
    problem = delta._problem(q, v, g, None, is_gradient=is_gradient)
    if not is_gradient:
        ends = (torch.empty_like(v), torch.empty_like(state))
        return Workload("gated_delta_rule", "triton_wy", problem, (given, None, (), ends, 1.0))
    results = tuple(map(torch.empty_like, (of_key, of_key, v, g, beta, state)))
    return Workload("gated_delta_rule_gradient", "triton_wy", problem, (given, None, (v, state), results, 1.0))


# Of each configuration in gpu.json the kernel that it is measured with.
WORKLOADS: Mapping[str, Callable[[Make], Workload]] = {
    **{f"conv.direct.{order}": partial(_conv, "triton_direct", 4, order) for order in ("channel", "time", "strided")},
    "conv.rolling": partial(_conv, "triton_rolling", 4, "channel"),
    "conv.toeplitz": partial(_conv, "triton_toeplitz", 128, "time", size=_SHORT),
    "conv.fft": partial(_conv, "triton_fft", 4096, "time", size=_SHORT),
    "conv.fft.passes": partial(_conv, "triton_fft_passes", 65536, "time", size=(2, 65536, 64)),
    **{
        f"conv.gradient.{order}": partial(_filter_gradient, "triton_direct", 8, order, size=_SHORT)
        for order in ("channel", "time", "strided")
    },
    "conv.toeplitz.gradient": partial(_filter_gradient, "triton_toeplitz", 128, "time", size=_SHORT),
    "conv.toeplitz.diagonals": partial(_filter_gradient, "triton_toeplitz", 1024, "time", size=_FEW),
    "conv.backward.rolling": partial(_backward, "triton_rolling", 4, "channel"),
    "conv.backward.tile.channel": partial(_backward, "triton_direct", 4, "channel"),
    "conv.backward.tile.time": partial(_backward, "triton_direct", 4, "time"),
    "conv.backward.fft": partial(_backward, "triton_fft", 4096, "time", size=_SHORT),
    "conv.backward.fft.passes": partial(_backward, "triton_fft_passes", 1 << 21, "time", size=(1, 1 << 21, 8)),
    "step": _step,
    "scan.channel": partial(_scan, "channel"),
    "scan.time": partial(_scan, "time"),
    "selective": _selective,
    "selective.gradient": partial(_selective, is_gradient=True),
    "selective.turn": _selective,
    "selective.carry": _selective,
    "attention": _attention,
    "attention.half": partial(_attention, dtype=torch.bfloat16),
    "attention.by_key": _attention_by_key,
    "attention.step": _attention_step,
    "attention.gradient": partial(_attention, is_gradient=True, per_key=True),
    "attention.gradient.half": partial(_attention, dtype=torch.bfloat16, is_gradient=True, per_key=True),
    "attention.walk": partial(_attention, is_gradient=True),
    "attention.walk.half": partial(_attention, dtype=torch.bfloat16, is_gradient=True),
    "delta": _delta,
    "delta.gradient": partial(_delta, is_gradient=True),
    "delta.gradient.by_key": partial(_delta, is_gradient=True, per_key=True),
}
