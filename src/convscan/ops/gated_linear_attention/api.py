"""gated_linear_attention: signature and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks
from ..._calls import run_prepared
from ..._dispatch import register
from ..._library import is_traced
from ..linear_attention.api import ROWS, Attended, attend, describe
from ..linear_attention.arguments import decays, gate, key_value_state, keys_and_values, with_time
from ..linear_attention.problem import AttentionProblem
from ..linear_attention.step import Settings, Step, state_of, written_and_read

_NAME = "gated_linear_attention"


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y[t] = scale S[t]^T q[t], S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T, in every head.

    Linear attention whose memory decays: by key (GLA, HGRN2), by one number a step (Mamba-2, simple GLA), or by one
    constant a head (RetNet). ``gated_linear_attention_with_state`` also returns the last state, and
    ``gated_linear_attention_step`` computes one step of generation.

    Args:
        q, k: (..., L, H, K), any number of leading axes, any strides. L and every other size may be 0. Fewer heads than
            those of v are groups, of which each serves as many heads in a row.
        v: (..., L, H, V).
        g: logarithms of decays, at most zero for a memory that fades; minus infinity closes a gate exactly. (..., L, H,
            K) by key, (..., L, H) by step, or (H,) constant.
        scale: factor of q, by default 1 / sqrt(K).
        initial_state: (..., H, K, V), the state before the first step; None for zeros. With ``cu_seqlens``
            (..., S, H, K, V).
        cu_seqlens: (S+1,) int32 or int64, on the device of v: S sequences lie behind one another along time, the s-th
            at cu_seqlens[s] <= t < cu_seqlens[s+1], and nothing passes from one to the next. They may be empty.

    Returns:
        y, with the shape of v.

    dtypes: float32, float64, bfloat16, float16; those of q, k and v are promoted as in any PyTorch operator. Half types
    are computed in float32, which g and the states are converted to.

    Raises:
        ValueError: a shape or device that does not fit, or boundaries that are none.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: some 2 K V multiply-adds a step and head; tiles of time as dense products (64 steps, 16 with decays by key),
    with the state in the cache between them. Nothing but the arguments is kept for the gradient, which costs some seven
    such products, and sqrt(L) states of workspace. Second derivatives keep the states of all steps.

    Reference: S. Yang, B. Wang, Y. Shen, R. Panda, Y. Kim, Gated Linear Attention Transformers with Hardware-Efficient
    Training, 2024.

    >>> import torch, convscan
    >>> q = k = torch.ones(3, 1, 1)
    >>> v = torch.tensor([[[1.0]], [[2.0]], [[4.0]]])
    >>> convscan.gated_linear_attention(q, k, v, torch.tensor([0.5]).log()).flatten().tolist()
    [1.0, 2.5, 5.25]
    """
    return _attend(_NAME, q, k, v, g, scale, initial_state, cu_seqlens).y


def gated_linear_attention_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y of ``gated_linear_attention``, and the state behind the last step, the next call's ``initial_state``.

    Returns:
        y, with the shape of v, and the last state, (..., H, K, V), with ``cu_seqlens`` (..., S, H, K, V); float32 where
        v has a half type. Both are differentiable.

    Arguments, dtypes, errors and cost as in ``gated_linear_attention``.

    >>> import torch, convscan
    >>> q = k = v = torch.ones(3, 1, 1)
    >>> convscan.gated_linear_attention_with_state(q, k, v, torch.zeros(1))[1].tolist()
    [[[3.0]]]
    """
    found = _attend(f"{_NAME}_with_state", q, k, v, g, scale, initial_state, cu_seqlens)
    return found.y, found.state


def _check(
    name: str, q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> torch.dtype:
    dtype = keys_and_values(name, q, k, v)
    decays(name, g, q, v, constant=True)
    key_value_state(name, initial_state, q, v, cu_seqlens)
    return dtype


def _by_step(g: Tensor, v: Tensor) -> Tensor:
    """Constant decays as decays by step; others as they are."""
    return g.expand(v.shape[:-1]) if g.ndim == 1 else g


def _attend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Attended:
    dtype = _check(name, q, k, v, g, initial_state, cu_seqlens)
    return attend(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        gate(_by_step(g, v), dtype),
        scale=default_scale(q) if scale is None else float(scale),
        state=None if initial_state is None else gate(initial_state, dtype),
        cu_seqlens=cu_seqlens,
    )


def default_scale(q: Tensor) -> float:
    """1 / sqrt(K)."""
    return float(max(1, q.shape[-1]) ** -0.5)


def _describe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> AttentionProblem:
    """The problem of a call of ``gated_linear_attention``, for ``explain``."""
    dtype = _check(_NAME, q, k, v, g, initial_state, cu_seqlens)
    return describe(q, v.to(dtype), _by_step(g, v), cu_seqlens, False)


register(_NAME, ROWS, _describe)


# ---- one step ----


def gated_linear_attention_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, scale: float | None = None
) -> Tensor:
    """y = scale S^T q and state = S, of S = diag(exp(g)) state + k v^T: one step, in place.

    Args:
        state: (..., H, K, V), overwritten with the next state; the last state of ``gated_linear_attention_with_state``,
            or zeros. float32 where v has a half type.
        q, k: (..., H, K), or of fewer heads, groups.
        v: (..., H, V).
        g: (..., H, K), (..., H) or (H,).
        scale: factor of q, by default 1 / sqrt(K).

    Returns:
        y, with the shape of v.

    Raises:
        ValueError, TypeError: as ``gated_linear_attention``, and for a state of another dtype.
        RuntimeError: where a gradient is needed.

    Cost: the state is read and written once, and some 3 µs a call.

    >>> import torch, convscan
    >>> state, one = torch.ones(1, 1, 1), torch.ones(1, 1)
    >>> convscan.gated_linear_attention_step(state, one, one, one, torch.tensor([0.5]).log()).item(), state.item()
    (1.5, 1.5)
    """
    if not is_traced():
        y = run_prepared(_step.prepared, scale, v, state, q, k, g, None)
        if y is not None:
            return y
    scale = None if scale is None else float(scale)
    return _step.run(scale, *_step_arguments(state, q, k, v, g, scale=scale))


def _step_arguments(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, scale: float | None = None
) -> tuple[Settings, Sequence[Tensor | None]]:
    """Checks the arguments of a step, and puts them into the order and the dtypes of the native call."""
    name = f"{_NAME}_step"
    timed_q, timed_k, timed_v = with_time(name, "q", q), with_time(name, "k", k), with_time(name, "v", v)
    _checks.tensor_like(name, "g", g, v)
    by_time = g if g.ndim == 1 else g.unsqueeze(g.ndim - (2 if g.ndim == v.ndim else 1))
    dtype = _check(name, timed_q, timed_k, timed_v, by_time, None, None)
    state_of(name, "state", state, v.to(dtype), (*v.shape[:-1], q.shape[-1], v.shape[-1]), "(..., H, K, V)")
    settings = Settings("decay", default_scale(q) if scale is None else float(scale))
    return settings, (v.to(dtype), state, q.to(dtype), k.to(dtype), gate(g, dtype))


def _composed_step(
    settings: Settings, v: Tensor, state: Tensor, q: Tensor, k: Tensor, g: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    decay = (g if g.ndim == v.ndim else g.unsqueeze(-1)).exp()
    return written_and_read(settings.scale, v, state, q, k, decay)


_step = Step(
    f"{_NAME}_step",
    "decay",
    "Tensor v, Tensor(a!) state, Tensor q, Tensor k, Tensor g",
    _composed_step,
    _step_arguments,
    states=(1,),
    queries=2,
)
