"""causal_conv1d's functions: short depthwise convolutions, their caches, and packed sequences.

Wherever the original has a limit this has none: any width (it stops at 4), any memory order, any length of a cache,
``seq_idx`` together with states. The last tap of ``weight`` multiplies the current sample, as in ``nn.Conv1d``.

Source: T. Dao, github.com/Dao-AILab/causal-conv1d, 1.6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from ..ops.causal_conv.api import causal_conv
from ..ops.causal_conv.step import updated
from ._sequences import rows_of

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]

_ACTIVATIONS = {None: None, "silu": "silu", "swish": "silu"}


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[b,d,t] = activation(sum_k weight[d,width-1-k] x[b,d,t-k] + bias[d]).

    Args:
        x: (batch, dim, seqlen), in any memory order.
        weight: (dim, width).
        bias: (dim,).
        seq_idx: (batch, seqlen), integers: equal neighbours belong to one sequence, and nothing leaks from one sequence
            into the next. Samples with a negative number are padding: their output is zero.
        initial_states: (batch, dim, width - 1), the samples before x; with ``seq_idx``, before the first sequence.
        return_final_states: whether to return the last width - 1 samples too, those before x included; with
            ``seq_idx``, of the last sequence, with zeros before its beginning.
        final_states_out: (batch, dim, width - 1), memory to write them to.
        activation: None, ``"silu"`` or ``"swish"``, which are the same.

    Returns:
        out, (batch, dim, seqlen), in the dtype of x; with ``return_final_states``, out and the final states.

    Raises:
        ValueError: a shape, device or activation that does not fit.
        TypeError: an argument that is not a tensor, or a dtype that is not supported.

    Differentiable in everything but ``seq_idx``.

    >>> import torch
    >>> from convscan.compat.causal_conv1d import causal_conv1d_fn
    >>> causal_conv1d_fn(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 1.0]])).flatten().tolist()
    [1.0, 12.0, 23.0]
    """
    name = "causal_conv1d_fn"
    h, kind = _filter(name, weight, activation)
    tensor_like(name, "x", x, weight)
    if x.ndim != 3 or x.shape[1] != weight.shape[0]:
        expectation = f"x must have the shape (batch, dim, seqlen) = (batch, {weight.shape[0]}, seqlen)"
        raise ValueError(message(name, expectation, shape_text(x.shape)))
    before = None
    if initial_states is not None:
        tensor_like(name, "initial_states", initial_states, x)
        expected = (*x.shape[:2], weight.shape[1] - 1)
        has_shape(name, "initial_states", initial_states, expected, "(batch, dim, width-1)")
        before = initial_states.mT
    if seq_idx is None:
        y = causal_conv(x.mT, h, bias=bias, activation=kind, initial_state=before)
        last = _last(x.mT, before, h.shape[0] - 1) if return_final_states else None
    else:
        tensor_like(name, "seq_idx", seq_idx, x)
        has_shape(name, "seq_idx", seq_idx, (x.shape[0], x.shape[2]), "(batch, seqlen)")
        y, last = _packed(x.mT, h, bias, kind, before, seq_idx)
    out = y.mT.to(x.dtype)
    if not return_final_states:
        return out
    assert last is not None
    states = last.mT.to(x.dtype)
    if final_states_out is not None:
        states = final_states_out.copy_(states)
    return out, states


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    pad_slot_id: int = -1,
) -> Tensor:
    """The outputs for new samples, which ``conv_state`` takes in place of its oldest.

    Args:
        x: (batch, dim), one sample, or (batch, dim, seqlen).
        conv_state: (batch, dim, state_len), state_len >= width - 1, written in place: the last samples, oldest first.
        weight, bias, activation: as in ``causal_conv1d_fn``.
        cache_seqlens: (batch,), integers: how many samples each sequence has had. The state is then a ring, in which
            sample t is at t mod state_len; nothing in it is moved.
        conv_state_indices: (batch,), integers: which row of ``conv_state`` (then of any number of rows) belongs to each
            sequence.
        pad_slot_id: sequences with this index have no state: their output is zero.

    Returns:
        out, with the shape and dtype of x. Without a gradient, as the original.

    Raises:
        ValueError, TypeError: as ``causal_conv1d_fn``.

    >>> import torch
    >>> from convscan.compat.causal_conv1d import causal_conv1d_update
    >>> state = torch.tensor([[[1.0, 2.0]]])
    >>> causal_conv1d_update(torch.tensor([[3.0]]), state, torch.tensor([[10.0, 1.0]])).item(), state.flatten().tolist()
    (23.0, [2.0, 3.0])
    """
    name = "causal_conv1d_update"
    h, kind = _filter(name, weight, activation)
    width, dim = h.shape
    tensor_like(name, "x", x, weight)
    tensor_like(name, "conv_state", conv_state, x)
    if x.ndim not in (2, 3) or x.shape[1] != dim:
        expectation = f"x must have the shape (batch, dim) or (batch, dim, seqlen) with dim = {dim}"
        raise ValueError(message(name, expectation, shape_text(x.shape)))
    if conv_state.ndim != 3 or conv_state.shape[1] != dim or conv_state.shape[2] < width - 1:
        expectation = f"conv_state must have the shape (batch, {dim}, state_len) with state_len >= {width - 1}"
        raise ValueError(message(name, expectation, shape_text(conv_state.shape)))
    for label, integers in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if integers is not None:
            tensor_like(name, label, integers, x)
            has_shape(name, label, integers, x.shape[:1], "(batch,)")
    if conv_state_indices is None and conv_state.shape[0] != x.shape[0]:
        remedy = "Rows are picked from a larger conv_state by conv_state_indices"
        raise ValueError(message(name, f"conv_state must have {x.shape[0]} rows", conv_state.shape[0], remedy))

    samples = x if x.ndim == 3 else x.unsqueeze(-1)
    y = updated(samples.mT, conv_state.mT, h, bias, kind, cache_seqlens, conv_state_indices, pad_slot_id).mT
    return y if x.ndim == 3 else y.squeeze(-1)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last ``state_len`` samples of each of several sequences that lie behind one another; zeros before short ones.

    Args:
        x: (total_tokens, dim).
        cu_seqlens: (batch + 1,), integers: sequence b has the samples cu_seqlens[b] <= t < cu_seqlens[b+1].
        state_len: how many.

    Returns:
        states, (batch, dim, state_len).

    Raises:
        ValueError, TypeError: a shape, device or argument that does not fit.

    >>> import torch
    >>> from convscan.compat.causal_conv1d import causal_conv1d_varlen_states
    >>> x = torch.arange(1.0, 6.0)[:, None]
    >>> causal_conv1d_varlen_states(x, torch.tensor([0, 1, 5]), 2).tolist()
    [[[0.0, 1.0]], [[4.0, 5.0]]]
    """
    name = "causal_conv1d_varlen_states"
    tensor_like(name, "x", x, x)
    if x.ndim != 2:
        raise ValueError(message(name, "x must have the shape (total_tokens, dim)", shape_text(x.shape)))
    tensor_like(name, "cu_seqlens", cu_seqlens, x)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(message(name, "cu_seqlens must have the shape (batch+1,)", shape_text(cu_seqlens.shape)))
    begin, end = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    index = end[:, None] + torch.arange(-state_len, 0, device=x.device)
    is_there = (index >= begin[:, None])[..., None]
    # A row of zeros in front, so that there is one to point at where x is empty.
    samples = torch.cat([x.new_zeros(1, x.shape[1]), x])[(index + 1).clamp_min(0)]
    return torch.where(is_there, samples, torch.zeros_like(samples)).mT


def _filter(name: str, weight: Tensor, activation: str | None) -> tuple[Tensor, str | None]:
    """The weight (dim, width) as a filter (K, D), and the activation by our name."""
    tensor_like(name, "weight", weight, weight)
    if weight.ndim != 2 or weight.shape[1] == 0:
        remedy = "nn.Conv1d's weight (dim, 1, width) is weight.squeeze(1)"
        raise ValueError(message(name, "weight must have the shape (dim, width)", shape_text(weight.shape), remedy))
    if activation not in _ACTIVATIONS:
        raise ValueError(message(name, "activation must be None, 'silu' or 'swish'", repr(activation)))
    return weight.flip(-1).mT, _ACTIVATIONS[activation]


def _last(x: Tensor, before: Tensor | None, count: int) -> Tensor:
    """The last ``count`` samples of x (..., L, D) and those before it, zeros if none are known."""
    if before is None:
        before = x.new_zeros(*x.shape[:-2], count, x.shape[-1])
    kept = min(count, x.shape[-2])
    return torch.cat([before[..., kept:, :], x[..., x.shape[-2] - kept :, :]], -2)


def _packed(
    x: Tensor, h: Tensor, bias: Tensor | None, activation: str | None, before: Tensor | None, seq_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of sequences that lie behind one another in each row of x (B, L, D), and the last samples of the last
    that is no padding."""
    past = h.shape[0] - 1
    rows, ends = [], []
    for b, (bounds, begin, end) in enumerate(rows_of(seq_idx)):
        states = None
        if before is not None:
            fresh = x.new_zeros(len(bounds) - 2, past, x.shape[2])
            states = torch.cat([before[b].unsqueeze(0), fresh.to(before.dtype)])
        y = causal_conv(x[b], h, bias=bias, activation=activation, initial_state=states, cu_seqlens=bounds)
        rows.append(torch.where((seq_idx[b] >= 0).unsqueeze(-1), y, torch.zeros_like(y)))
        first = states[0] if states is not None and begin == 0 else None
        ends.append(_last(x[b, begin:end], first, past))
    if not rows:
        return causal_conv(x, h, bias=bias, activation=activation), x.new_zeros(0, past, x.shape[2])
    return torch.stack(rows), torch.stack(ends)
