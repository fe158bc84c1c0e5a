"""The selective scan of Mamba by mamba_ssm's names, its step for decoding, and the inner function of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import has_shape, packed, shape_text, tensor_like
from .._errors import message
from ..ops.selective_scan.api import selective_scan_step, selective_scan_with_state
from .causal_conv1d import causal_conv1d_fn


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """out[d,t] = sum_n C[n,t] h[d,n,t] + D[d] u[d,t], times silu(z), with h = exp(delta A) h[t-1] + delta B u.

    Args:
        u, delta, z: (batch, dim, seqlen), in any memory order.
        A: (dim, dstate), real or complex.
        B, C: (dim, dstate), constant in time; (batch, dstate, seqlen); or (batch, groups, dstate, seqlen). Where A is
            complex, those that vary are real with real and imaginary parts in turn, (..., dstate, 2 seqlen).
        D, delta_bias: (dim,).
        delta_softplus: whether the step size is softplus(delta + delta_bias).
        return_last_state: whether to return the state after the last step too.
        cu_seqlens: (S + 1,), integers: the sequences that lie behind one another along seqlen, the same in each row.

    Returns:
        out, (batch, dim, seqlen), in the dtype of u; with ``return_last_state``, out and (batch, dim, dstate).

    dtypes, errors, cost and derivatives are those of ``selective_scan``; gradients pass through the last state too.

    >>> import torch
    >>> from convscan.compat.mamba_ssm import selective_scan_fn
    >>> one = torch.ones(1, 1, 3)
    >>> selective_scan_fn(torch.tensor([[[1.0, 2.0, 3.0]]]), one, torch.zeros(1, 1), one, one).flatten().tolist()
    [1.0, 3.0, 6.0]
    """
    name = "selective_scan_fn"
    tensor_like(name, "u", u, u)
    if u.ndim != 3:
        raise ValueError(message(name, "u must have the shape (batch, dim, seqlen)", shape_text(u.shape)))
    for label, tensor in (("delta", delta), ("z", z)):
        if tensor is not None:
            tensor_like(name, label, tensor, u)
            has_shape(name, label, tensor, u.shape, "of u, (batch, dim, seqlen)")
    b, c = _projection(name, "B", B, A, u), _projection(name, "C", C, A, u)
    if cu_seqlens is not None:
        packed(name, cu_seqlens, u.mT)
    y, last = selective_scan_with_state(
        u.mT,
        delta.mT,
        A,
        b,
        c,
        D=D,
        z=None if z is None else z.mT,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        cu_seqlens=cu_seqlens,
    )
    out = y.mT.to(u.dtype)
    if not return_last_state:
        return out
    return out, last if cu_seqlens is None else last[:, -1]  # of the last sequence


def _projection(name: str, label: str, projection: Tensor, A: Tensor, u: Tensor) -> Tensor:
    """B or C as selective_scan takes it: (dim, dstate), (batch, seqlen, dstate) or (batch, seqlen, groups, dstate)."""
    tensor_like(name, label, projection, u)
    if projection.ndim == 2:
        return projection
    if projection.ndim not in (3, 4):
        expectation = f"{label} must have two axes (dim, dstate), three (batch, dstate, seqlen) or four, with groups"
        raise ValueError(message(name, expectation, shape_text(projection.shape)))
    if A.is_complex() and not projection.is_complex():
        projection = _paired(projection)
    return projection.mT if projection.ndim == 3 else projection.permute(0, 3, 1, 2)


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """out = C · state + D x, times silu(z), after state := exp(dt A) state + dt B x, in place.

    Args:
        state: (batch, dim, dstate), or (batch, nheads, dim, dstate), written in place.
        x, dt, z: (batch, dim), or (batch, nheads, dim).
        A: (dim, dstate), or (nheads, dim, dstate).
        B, C: (batch, dstate), or (batch, groups, dstate), heads being shared out evenly among groups.
        D, dt_bias: (dim,), or (nheads, dim).
        dt_softplus: whether the step size is softplus(dt + dt_bias).
        state_batch_indices: (batch,), integers: which row of ``state`` (then of any number) belongs to each sequence; a
            sequence with a negative one has none, and its output is zero.

    Returns:
        out, with the shape and dtype of x. Without a gradient, as the original.

    dtypes, errors and cost are those of ``selective_scan_step``.

    >>> import torch
    >>> from convscan.compat.mamba_ssm import selective_state_update
    >>> state, one = torch.ones(1, 1, 1), torch.ones(1, 1)
    >>> selective_state_update(state, 2 * one, one, 0 * one, one, one).item(), state.item()
    (3.0, 3.0)
    """
    name = "selective_state_update"
    tensor_like(name, "state", state, state)
    if state.ndim not in (3, 4):
        expectation = "state must have the shape (batch, dim, dstate) or (batch, nheads, dim, dstate)"
        raise ValueError(message(name, expectation, shape_text(state.shape)))
    tensor_like(name, "x", x, state)
    if state_batch_indices is not None:
        tensor_like(name, "state_batch_indices", state_batch_indices, state)
        has_shape(name, "state_batch_indices", state_batch_indices, x.shape[:1], "(batch,)")
        if bool((state_batch_indices < 0).any()):
            there = (state_batch_indices >= 0).nonzero().flatten()
            gates = None if z is None else z[there]
            real = selective_state_update(
                state,
                x[there],
                dt[there],
                A,
                B[there],
                C[there],
                D,
                gates,
                dt_bias,
                dt_softplus,
                state_batch_indices[there],
            )
            return torch.zeros_like(x).index_copy_(0, there, real)
    rows = state if state_batch_indices is None else state[state_batch_indices.long()]
    has_shape(name, "x", x, rows.shape[:-1], "of the state but for dstate")
    # Heads are neighbouring channels, which share the coefficients of their group.
    channels = -1 if state.ndim == 4 else None

    def merged(tensor: Tensor, axis: int) -> Tensor:
        return tensor if channels is None else tensor.flatten(axis, axis + 1)

    flat = merged(rows, 1)
    out = selective_scan_step(
        flat,
        merged(x, 1),
        merged(dt, 1),
        merged(A, 0),
        B,
        C,
        D=None if D is None else merged(D, 0),
        z=None if z is None else merged(z, 1),
        delta_bias=None if dt_bias is None else merged(dt_bias, 0),
        delta_softplus=dt_softplus,
    )
    if state_batch_indices is not None:
        state[state_batch_indices.long()] = flat.view(rows.shape)
    elif flat.data_ptr() != state.data_ptr():
        state.copy_(flat.view(rows.shape))
    return out.view(x.shape).to(x.dtype)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block between its input projection and its output: convolution, selective scan, gate and projection.

    Args:
        xz: (batch, 2 dim, seqlen), the signal and its gate.
        conv1d_weight, conv1d_bias: (dim, 1, width) and (dim,).
        x_proj_weight: (rank + 2 dstate, dim), by which the convolved signal gives delta, B and C in turn; without the
            rows of B or C where these are given.
        delta_proj_weight: (dim, rank).
        out_proj_weight, out_proj_bias: (d_model, dim) and (d_model,).
        A, B, C, D, delta_bias, delta_softplus: as in ``selective_scan_fn``; B and C are made of the signal if None.
        B_proj_bias, C_proj_bias: (dstate,), added to those that are made of the signal.

    Returns:
        (batch, seqlen, d_model).

    >>> import torch
    >>> from convscan.compat.mamba_ssm import mamba_inner_fn
    >>> shapes = [(2, 8, 10), (4, 1, 3), (4,), (5, 4), (4, 1), (6, 4), (6,)]
    >>> mamba_inner_fn(*map(torch.randn, shapes), -torch.ones(4, 2)).shape
    torch.Size([2, 10, 6])
    """
    x, z = xz.chunk(2, 1)
    signal = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    assert isinstance(signal, Tensor)
    rank, states = delta_proj_weight.shape[1], A.shape[-1] * (2 if A.is_complex() else 1)
    mixed = torch.nn.functional.linear(signal.mT, x_proj_weight)
    delta = torch.nn.functional.linear(mixed[..., :rank], delta_proj_weight).mT
    if B is None:
        B = _made(mixed[..., rank : rank + states], B_proj_bias, A)
    if C is None:
        C = _made(mixed[..., -states:], C_proj_bias, A)
    B = _normalised(B, b_rms_weight, b_c_dt_rms_eps)
    C = _normalised(C, c_rms_weight, b_c_dt_rms_eps)
    delta = _normalised(delta, dt_rms_weight, b_c_dt_rms_eps)
    out = selective_scan_fn(signal, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert isinstance(out, Tensor)
    return torch.nn.functional.linear(out.mT, out_proj_weight, out_proj_bias)


def _made(numbers: Tensor, bias: Tensor | None, A: Tensor) -> Tensor:
    """B or C of the signal, (batch, seqlen, dstate), as (batch, dstate, seqlen), complex where A is."""
    numbers = numbers if bias is None else numbers + bias.to(numbers.dtype)
    return (_paired(numbers) if A.is_complex() else numbers).mT


def _normalised(numbers: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Numbers (batch, channels, seqlen), or with groups (batch, groups, channels, seqlen), over their root mean square
    along the channels."""
    return numbers if weight is None else torch.nn.functional.rms_norm(numbers.mT, weight.shape, weight, eps).mT


def _paired(numbers: Tensor) -> Tensor:
    """Complex numbers of real and imaginary parts in turn along the last axis."""
    wide = numbers if numbers.dtype == torch.float64 else numbers.float()
    return torch.view_as_complex(wide.reshape(*wide.shape[:-1], -1, 2))
