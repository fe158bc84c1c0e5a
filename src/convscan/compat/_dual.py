"""The state-space layer of Mamba-2 by mamba_ssm's names: the scan alone, and all between the projections of a block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu, softplus

from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from ..ops.ssd_scan.api import ssd_scan_with_state
from ._sequences import rows_of
from .causal_conv1d import causal_conv1d_fn

_ANY_STEP = (0.0, math.inf)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = _ANY_STEP,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """out[t] = S[t] C[t] + D x[t], times silu(z), with S[t] = exp(dt A) S[t-1] + dt x[t] B[t]^T in every head.

    Args:
        x, z: (batch, seqlen, nheads, headdim).
        dt: (batch, seqlen, nheads); the step is dt + dt_bias, with ``dt_softplus`` its softplus, clamped to
            ``dt_limit``.
        A, dt_bias: (nheads,).
        B, C: (batch, seqlen, ngroups, dstate), each group serving nheads / ngroups heads in a row.
        chunk_size: of no effect: tiles are as long as the processor likes them.
        D: (nheads,) or (nheads, headdim).
        initial_states: (batch, nheads, headdim, dstate), those before the first step of each row.
        seq_idx: (batch, seqlen), integers: equal neighbours belong to one sequence, and nothing passes from one to
            the next. ``initial_states`` belong to the first one.
        cu_seqlens: (S + 1,), integers: the sequences whose last states ``return_varlen_states`` returns, from zero.
        return_final_states: whether to return the states after the last step of each row too.
        return_varlen_states: whether to return the states after each sequence of ``cu_seqlens`` too; of one row.
        state_dtype: of no effect: states have the type of arithmetic.

    Returns:
        out, with the shape and dtype of x; with the flags a tuple of out, the final states (batch, nheads, headdim,
        dstate) and the states of sequences (S, nheads, headdim, dstate).

    dtypes, errors, cost and derivatives are those of ``ssd_scan``; gradients pass through all states.

    >>> import torch
    >>> from convscan.compat.mamba_ssm import mamba_chunk_scan_combined
    >>> x, one = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    >>> mamba_chunk_scan_combined(x, one[..., 0], torch.zeros(1), one, one, 64).flatten().tolist()
    [1.0, 3.0, 6.0]
    """
    name = "mamba_chunk_scan_combined"
    tensor_like(name, "x", x, x)
    if x.ndim != 4:
        expectation = "x must have the shape (batch, seqlen, nheads, headdim)"
        raise ValueError(message(name, expectation, shape_text(x.shape)))
    tensor_like(name, "dt", dt, x)
    if dt_bias is not None:
        tensor_like(name, "dt_bias", dt_bias, x)
        has_shape(name, "dt_bias", dt_bias, x.shape[2:3], "(nheads,)")
    if tuple(dt_limit) != _ANY_STEP:
        dt = dt if dt_bias is None else dt + dt_bias
        dt = (softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
        dt_bias, dt_softplus = None, False
    given: dict[str, Any] = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus}
    if seq_idx is None:
        out, last = ssd_scan_with_state(x, dt, A, B, C, z=z, initial_state=initial_states, **given)
    else:
        tensor_like(name, "seq_idx", seq_idx, x)
        has_shape(name, "seq_idx", seq_idx, x.shape[:2], "(batch, seqlen)")
        rows = []
        for b, row in enumerate(rows_of(seq_idx)):
            before = None
            if initial_states is not None:
                fresh = initial_states.new_zeros(len(row.bounds) - 2, *initial_states.shape[1:])
                before = torch.cat([initial_states[b : b + 1], fresh])
            gate = None if z is None else z[b]
            rows.append(
                ssd_scan_with_state(
                    x[b], dt[b], A, B[b], C[b], z=gate, initial_state=before, cu_seqlens=row.bounds, **given
                )
            )
        if rows:
            out, last = torch.stack([y for y, _ in rows]), torch.stack([states[-1] for _, states in rows])
        else:
            out, last = ssd_scan_with_state(x, dt, A, B, C, z=z, initial_state=initial_states, **given)
    results = [out.to(x.dtype)]
    if return_final_states:
        results.append(last)
    if return_varlen_states:
        if cu_seqlens is None or x.shape[0] != 1:
            expectation = "return_varlen_states needs cu_seqlens and a batch of one row"
            raise ValueError(message(name, expectation, f"batch {x.shape[0]}, cu_seqlens {cu_seqlens}"))
        results.append(ssd_scan_with_state(x[0], dt[0], A, B[0], C[0], cu_seqlens=cu_seqlens, **given)[1])
    return results[0] if len(results) == 1 else tuple(results)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = _ANY_STEP,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A block of Mamba-2 behind its input projection: convolution, scan, gate, norm and output projection.

    Args:
        zxbcdt: (batch, seqlen, 2 dim + 2 ngroups dstate + nheads), the gate, the signal, B, C and the steps, with dim =
            nheads headdim; where there is more, it is the two halves of a gated unit in front, whose outputs come
            before the others.
        conv1d_weight, conv1d_bias: (dim + 2 ngroups dstate, width) and (dim + 2 ngroups dstate,).
        dt_bias, A, D, chunk_size, initial_states, seq_idx, dt_limit, state_dtype: as in ``mamba_chunk_scan_combined``;
            steps are softplus(dt + dt_bias).
        return_final_states: whether to return the states after the last step too.
        activation: of the convolution: None, ``"silu"`` or ``"swish"``.
        rmsnorm_weight: (dim,), to divide each group's outputs by their root mean square; None for no norm.
        rmsnorm_eps: added to the mean square.
        outproj_weight, outproj_bias: (out_dim, dim) and (out_dim,); None for no projection.
        headdim: where D is (nheads,).
        ngroups: of B and C, and of the norm.
        norm_before_gate: whether the gate multiplies the normalised outputs, or what is normalised.

    Returns:
        out, (batch, seqlen, dim or out_dim); with ``return_final_states``, out and (batch, nheads, headdim, dstate).

    >>> import torch
    >>> from convscan.compat.mamba_ssm import mamba_split_conv1d_scan_combined
    >>> zxbcdt, weight = torch.randn(2, 10, 2 * 8 + 2 * 4 + 2), torch.randn(8 + 2 * 4, 4)
    >>> A, one = -torch.ones(2), torch.ones(2)
    >>> mamba_split_conv1d_scan_combined(zxbcdt, weight, None, one, A, one, 64, headdim=4).shape
    torch.Size([2, 10, 8])
    """
    name = "mamba_split_conv1d_scan_combined"
    tensor_like(name, "zxbcdt", zxbcdt, zxbcdt)
    tensor_like(name, "D", D, zxbcdt)
    if D.ndim == 1 and headdim is None:
        raise ValueError(message(name, "headdim must be given where D has the shape (nheads,)", headdim))
    heads, width = D.shape[0], headdim if D.ndim == 1 else D.shape[1]
    assert width is not None
    dim = heads * width
    mixed = conv1d_weight.shape[0]
    extra = zxbcdt.shape[-1] - dim - mixed - heads
    if zxbcdt.ndim != 3 or mixed < dim or (mixed - dim) % (2 * ngroups) or extra < 0 or extra % 2:
        expectation = f"zxbcdt must have the shape (batch, seqlen, {2 * dim + heads} + 2 ngroups dstate)"
        raise ValueError(message(name, expectation, shape_text(zxbcdt.shape)))
    unit, z, xbc, dt = torch.split(zxbcdt, [extra, dim, mixed, heads], -1)
    convolved = causal_conv1d_fn(xbc.mT, conv1d_weight, conv1d_bias, seq_idx, activation=activation)
    assert isinstance(convolved, Tensor)
    size = (mixed - dim) // 2
    x, B, C = torch.split(convolved.mT, [dim, size, size], -1)
    found = mamba_chunk_scan_combined(
        torch.unflatten(x, -1, (heads, width)),
        dt,
        A,
        torch.unflatten(B, -1, (ngroups, size // ngroups)),
        torch.unflatten(C, -1, (ngroups, size // ngroups)),
        chunk_size,
        D,
        torch.unflatten(z, -1, (heads, width)) if rmsnorm_weight is None else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    out, last = found[0].flatten(-2), found[1]
    if rmsnorm_weight is not None:
        out = out if norm_before_gate else out * silu(z)
        groups = torch.unflatten(out, -1, (ngroups, dim // ngroups))
        out = rms_norm(groups, groups.shape[-1:], eps=rmsnorm_eps).flatten(-2) * rmsnorm_weight
        out = out * silu(z) if norm_before_gate else out
    if extra:
        gate, value = unit.chunk(2, -1)
        out = torch.cat([silu(gate) * value, out], -1)
    if outproj_weight is not None:
        out = linear(out, outproj_weight, outproj_bias)
    return (out, last) if return_final_states else out
