"""Linear attention with decay by fla's names, and what all of fla's functions share.

Everywhere q and k are (B, T, H, K), v and o (B, T, H, V), logarithms of decays at most zero, and

* ``scale`` is the factor of q, 1 / sqrt(K) if None;
* ``initial_state`` is (N, H, K, V), or (N, H, V, K) with ``state_v_first``, for N = B sequences, or the N of
  ``cu_seqlens``; None for zeros;
* ``output_final_state``: whether the second of what is returned is the state after the last step, in the layout of
  ``initial_state``, or None;
* ``cu_seqlens`` is (N + 1,), integers: N sequences lie behind one another in one row, B = 1;
* ``cu_seqlens_cpu`` and ``chunk_size`` have no effect;
* ``reverse``: time runs from the end of each sequence to its beginning.

dtypes, errors, cost and derivatives are those of the operator named by each function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._checks import shape_text, tensor_like
from .._errors import message
from ..ops.gated_linear_attention.api import gated_linear_attention_with_state
from ..ops.linear_recurrence.api import linear_recurrence

Attended = tuple[Tensor, Tensor | None]


def attended(
    name: str,
    operator: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    *,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    reverse: bool = False,
    state_v_first: bool = False,
) -> Attended:
    """What ``operator`` makes of inputs (B, T, H, ...), the values being the third, by the conventions above."""
    state = initial_state
    for label, tensor in zip(("q", "k", "v"), inputs, strict=False):
        tensor_like(name, label, tensor, inputs[0], "q")
        if tensor.ndim != 4:
            expectation = f"{label} must have the shape (B, T, H, channels)"
            raise ValueError(message(name, expectation, shape_text(tensor.shape)))
    values = inputs[2]
    if state is not None:
        tensor_like(name, "initial_state", state, values)
        state = state.mT if state_v_first else state
    if cu_seqlens is not None:
        if values.shape[0] != 1:
            remedy = "Put the sequences behind one another in one row"
            raise ValueError(message(name, "B must be 1 with cu_seqlens", values.shape[0], remedy))
        state = None if state is None else state.unsqueeze(0)
    axis = 0 if cu_seqlens is None else 1
    bounds = cu_seqlens
    if reverse:
        # In time that runs backwards the last sequence is the first one.
        inputs = [tensor.flip(1) if tensor.ndim > 1 else tensor for tensor in inputs]
        if cu_seqlens is not None:
            bounds = values.shape[1] - cu_seqlens.flip(0)
            state = None if state is None else state.flip(1)
    y, last = operator(*inputs, scale=scale, initial_state=state, cu_seqlens=bounds)
    if reverse:
        y, last = y.flip(1), (last.flip(1) if axis else last)
    if not output_final_state:
        return y, None
    last = last.squeeze(0) if axis else last
    return y, last.mT if state_v_first else last


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> Attended:
    """o[t] = scale S[t]^T q[t], S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T, with g (B, T, H, K): a decay for each key.

    Computed by ``gated_linear_attention``; returns o and the last state or None. The other arguments are those that
    ``convscan.compat.fla`` has in common.

    >>> import torch
    >>> from convscan.compat.fla import chunk_gla
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> o, state = chunk_gla(one, one, v, torch.log(one / 2), output_final_state=True)
    >>> o.flatten().tolist(), state.shape
    ([1.0, 2.5, 5.25], torch.Size([1, 1, 1, 1]))
    """
    return attended(
        "chunk_gla",
        gated_linear_attention_with_state,
        (q, k, v, g),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        state_v_first=state_v_first,
    )


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_gla`` with decays by key, gk (B, T, H, K), by value, gv (B, T, H, V), by both, or none.

    With gv every value is a head of its own; with both, B T H V K decays are written out.

    >>> import torch
    >>> from convscan.compat.fla import fused_recurrent_gla
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> fused_recurrent_gla(one, one, v, gv=torch.log(one / 2), reverse=True)[0].flatten().tolist()
    [3.0, 4.0, 4.0]
    """
    name = "fused_recurrent_gla"
    if gv is None:
        g = q.new_zeros(q.shape[2]) if gk is None else gk
    else:
        g = gv.flatten(2) if gk is None else (gk.unsqueeze(-2) + gv.unsqueeze(-1)).flatten(2, 3)
    return attended(
        name,
        gated_linear_attention_with_state if gv is None else _by_value,
        (q, k, v, g),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        reverse=reverse,
        state_v_first=state_v_first,
    )


def _by_value(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``gated_linear_attention_with_state`` of decays by value, g (B, T, H V): each value is a head with one value."""
    heads, values = v.shape[-2:]
    state = None if initial_state is None else initial_state.mT.flatten(-3, -2).unsqueeze(-1)
    y, last = gated_linear_attention_with_state(
        q, k, v.flatten(-2).unsqueeze(-1), g, scale=scale, initial_state=state, cu_seqlens=cu_seqlens
    )
    return torch.unflatten(y.squeeze(-1), -1, (heads, values)), torch.unflatten(
        last.squeeze(-1), -2, (heads, values)
    ).mT


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_size: int | None = None,
) -> Attended:
    """o[t] = scale S[t]^T q[t], S[t] = exp(g[t]) S[t-1] + k[t] v[t]^T, with one decay a step and head.

    g is (B, T, H), or g_gamma (H,) constant; without either nothing decays. Computed by ``gated_linear_attention``;
    returns o and the last state or None. The other arguments are those that ``convscan.compat.fla`` has in common.

    >>> import torch
    >>> from convscan.compat.fla import chunk_simple_gla
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> chunk_simple_gla(one, one, v, torch.log(one[..., 0] / 2))[0].flatten().tolist()
    [1.0, 2.5, 5.25]
    """
    return fused_recurrent_simple_gla(
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, False, state_v_first, cu_seqlens
    )


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_simple_gla``, in either direction of time.

    >>> import torch
    >>> from convscan.compat.fla import fused_recurrent_simple_gla
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> fused_recurrent_simple_gla(one, one, v, g_gamma=torch.log(one[0, 0, 0] / 2), reverse=True)[0].flatten().tolist()
    [3.0, 4.0, 4.0]
    """
    name = "simple_gla"
    if g is not None and g_gamma is not None:
        raise ValueError(message(name, "one of g and g_gamma must be given at the most", "both"))
    decay = g_gamma if g is None else g
    return attended(
        name,
        gated_linear_attention_with_state,
        (q, k, v, q.new_zeros(v.shape[2]) if decay is None else decay),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        reverse=reverse,
        state_v_first=state_v_first,
    )


def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
) -> Attended:
    """``chunk_simple_gla`` with the decay 1 - 2^(-5-h) in head h: RetNet.

    >>> import torch
    >>> from convscan.compat.fla import chunk_retention
    >>> one = torch.ones(1, 2, 1, 1)
    >>> chunk_retention(one, one, one)[0].flatten().tolist()
    [1.0, 1.96875]
    """
    return fused_recurrent_retention(q, k, v, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


def fused_recurrent_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_retention``, in either direction of time."""
    tensor_like("retention", "q", q, q)
    heads = torch.arange(q.shape[2], dtype=torch.float64, device=q.device)
    gamma = torch.log1p(-(2.0 ** (-5.0 - heads))).to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return fused_recurrent_simple_gla(
        q, k, v, None, gamma, scale, initial_state, output_final_state, reverse, state_v_first, cu_seqlens
    )


def chunk_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
) -> Attended:
    """``chunk_simple_gla`` with the decay exp(-8 h / H (1 - layer_idx / num_layers)) in head h.

    >>> import torch
    >>> from convscan.compat.fla import chunk_lightning_attn
    >>> one = torch.ones(1, 2, 1, 1)
    >>> chunk_lightning_attn(one, one, one, layer_idx=0, num_layers=2)[0].flatten().tolist()
    [1.0, 2.0]
    """
    return fused_recurrent_lightning_attn(
        q, k, v, layer_idx, num_layers, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens
    )


def fused_recurrent_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_lightning_attn``, in either direction of time."""
    tensor_like("lightning_attn", "q", q, q)
    heads = q.shape[2]
    gamma = -(8 / heads * (1 - layer_idx / num_layers)) * torch.arange(heads, dtype=torch.float32, device=q.device)
    return fused_recurrent_simple_gla(
        q, k, v, None, gamma, scale, initial_state, output_final_state, reverse, False, cu_seqlens
    )


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor | None, Tensor] | None]:
    """o[t] = scale S[t]^T q[t], S[t] = S[t-1] + k[t] v[t]^T: linear attention in which nothing decays.

    With ``normalize``, o[t] over scale z[t]·q[t] + 1e-10, z[t] = z[t-1] + k[t]; ``initial_state`` is then S or a pair
    (S, z), z being (N, 1, H, K), and the second result is the pair of the last ones, S None without
    ``output_final_state``.

    >>> import torch
    >>> from convscan.compat.fla import chunk_linear_attn
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    >>> chunk_linear_attn(one, one, v)[0].flatten().tolist()
    [1.0, 1.5, 3.0]
    """
    return fused_recurrent_linear_attn(
        q, k, v, scale, initial_state, output_final_state, normalize=normalize, cu_seqlens=cu_seqlens
    )


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor | None, Tensor] | None]:
    """``chunk_linear_attn``, in either direction of time, and not normalised unless asked for."""
    state, sums = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
    y, last = fused_recurrent_simple_gla(
        q, k, v, None, None, scale, state, output_final_state, reverse, False, cu_seqlens
    )
    if not normalize:
        return y, last
    # The sums of keys are what the same memory makes of values that are one.
    one = torch.ones_like(v[..., :1])
    before = None if sums is None else sums.squeeze(1).unsqueeze(-1)
    divisor, keys = fused_recurrent_simple_gla(q, k, one, None, None, scale, before, True, reverse, False, cu_seqlens)
    assert keys is not None
    return y / (divisor + 1e-10), (last, keys.squeeze(-1).unsqueeze(1))


def chunk_hgrn(x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False) -> Attended:
    """o[t] = exp(g[t]) o[t-1] + x[t], element by element; x and g are (B, T, D).

    Computed by ``linear_recurrence``. Returns o, in the dtype of x, and the last o, (B, D), or None.

    >>> import torch
    >>> from convscan.compat.fla import chunk_hgrn
    >>> x = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> chunk_hgrn(x, torch.log(torch.full_like(x, 0.5)))[0].flatten().tolist()
    [1.0, 2.5, 5.25]
    """
    return fused_recurrent_hgrn(x, g, initial_state, output_final_state)


def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_hgrn``, with ``cu_seqlens`` (N + 1,) for N sequences behind one another in one row; states are (N, D)."""
    name = "hgrn"
    tensor_like(name, "x", x, x)
    tensor_like(name, "g", g, x)
    if x.ndim != 3 or g.shape != x.shape:
        raise ValueError(message(name, "x and g must have the shape (B, T, D)", shape_text(g.shape)))
    wide = x if x.dtype == torch.float64 else x.float()
    state = None if initial_state is None else initial_state.to(wide.dtype)
    if cu_seqlens is not None and state is not None:
        state = state.unsqueeze(0)
    y = linear_recurrence(wide, state, g.to(wide.dtype).exp(), cu_seqlens=cu_seqlens)
    if not output_final_state:
        return y.to(x.dtype), None
    before = wide.new_zeros(x.shape[0], x.shape[2]) if state is None else state
    if cu_seqlens is None:
        return y.to(x.dtype), y[:, -1] if x.shape[1] else before
    lengths = cu_seqlens.diff()
    last = y[0, (cu_seqlens[1:].long() - 1).clamp_min(0)] if x.shape[1] else y.new_zeros(len(lengths), x.shape[2])
    fresh = y.new_zeros(len(lengths), x.shape[2]) if state is None else state[0]
    return y.to(x.dtype), torch.where((lengths > 0).unsqueeze(-1), last, fresh)
