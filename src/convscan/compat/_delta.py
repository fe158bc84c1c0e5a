"""Delta rules by fla's names. What all functions have in common is said in ``_linear``; besides,

* v may have more heads than q and k, HV, of which each head of q and k serves HV / H in a row;
* ``use_qk_l2norm_in_kernel`` divides q and k by sqrt(|q|² + 1e-6) and sqrt(|k|² + 1e-6) first;
* ``use_beta_sigmoid_in_kernel`` takes sigmoid(beta), with ``allow_neg_eigval`` 2 sigmoid(beta), for beta;
* ``use_gate_in_kernel`` takes -exp(A_log) softplus(g + dt_bias) for g.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .._checks import tensor_like
from .._errors import message
from ..ops.gated_delta_rule.api import gated_delta_rule_with_state
from ._linear import Attended, attended


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int = 64,
) -> Attended:
    """o[t] = scale S[t]^T q[t], S[t] = (I - beta[t] k[t] k[t]^T) exp(g[t]) S[t-1] + beta[t] k[t] v[t]^T.

    g, beta: (B, T, HV); A_log, dt_bias: (HV,). Computed by ``gated_delta_rule``; returns o, (B, T, HV, V), and the last
    state or None.

    >>> import torch
    >>> from convscan.compat.fla import chunk_gated_delta_rule
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> chunk_gated_delta_rule(one, one, v, 0 * one[..., 0], one[..., 0] / 2)[0].flatten().tolist()
    [0.5, 1.25, 2.625]
    """
    name = "gated_delta_rule"
    g = _activated(name, g, A_log, dt_bias) if use_gate_in_kernel else g
    return _ruled(
        name,
        q,
        k,
        v,
        g,
        _strength(name, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        state_v_first,
        cu_seqlens,
    )


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_gated_delta_rule`` with decays by step, g (B, T, HV), by key, gk (B, T, HV, K), by value, gv (B, T, HV,
    V), or any of them together; beta (B, T, HV) is 1 if None.

    With gv every value is a head of its own, for which keys, queries and decays are written out.

    >>> import torch
    >>> from convscan.compat.fla import fused_recurrent_gated_delta_rule
    >>> one, v = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> fused_recurrent_gated_delta_rule(one, one, v)[0].flatten().tolist()
    [1.0, 2.0, 4.0]
    """
    name = "gated_delta_rule"
    tensor_like(name, "v", v, v)
    if use_gate_in_kernel:
        if g is None:
            raise ValueError(message(name, "g must be given with use_gate_in_kernel", g))
        g = _activated(name, g, A_log, dt_bias)
    decay = v.new_zeros(v.shape[:-1]) if g is None else g
    if gk is not None:
        decay = decay.unsqueeze(-1) + gk
    strength = v.new_ones(v.shape[:-1]) if beta is None else beta
    strength = _strength(name, strength, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    common = (scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, state_v_first, cu_seqlens)
    if gv is None:
        return _ruled(name, q, k, v, decay, strength, *common)
    heads, values = v.shape[-2:]
    decay = decay.unsqueeze(3) + (gv if gk is None else gv.unsqueeze(-1))
    state = initial_state
    if state is not None:
        state = (state if state_v_first else state.mT).flatten(1, 2).unsqueeze(-1)
    y, last = _ruled(
        name,
        q,
        k,
        v.flatten(2).unsqueeze(-1),
        decay.flatten(2, 3),
        strength.repeat_interleave(values, -1),
        scale,
        state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        False,
        cu_seqlens,
    )
    if last is not None:
        last = torch.unflatten(last.squeeze(-1), 1, (heads, values))
        last = last if state_v_first else last.mT
    return torch.unflatten(y.squeeze(-1), -1, (heads, values)), last


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    *,
    chunk_size: int = 64,
) -> Attended:
    """``chunk_gated_delta_rule`` without decay.

    >>> import torch
    >>> from convscan.compat.fla import chunk_delta_rule
    >>> one = torch.ones(1, 2, 1, 1)
    >>> chunk_delta_rule(one, one, one, one[..., 0] / 2)[0].flatten().tolist()
    [0.5, 0.75]
    """
    return fused_recurrent_delta_rule(
        q, k, v, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
    )


def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_delta_rule``, with beta 1 if None."""
    return fused_recurrent_gated_delta_rule(
        q,
        k,
        v,
        beta=beta,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens,
    )


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    *,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int = 64,
) -> Attended:
    """Kimi Delta Attention: ``chunk_gated_delta_rule`` with a decay for each key, g (B, T, HV, K).

    With ``use_gate_in_kernel``, A_log is (HV,) and dt_bias (HV K,); with ``lower_bound`` too the decay is lower_bound
    sigmoid(exp(A_log) (g + dt_bias)), A_log None standing for zeros. ``safe_gate`` and ``disable_recompute`` have no
    effect.

    >>> import torch
    >>> from convscan.compat.fla import chunk_kda
    >>> one = torch.ones(1, 2, 1, 1)
    >>> chunk_kda(one, one, one, 0 * one, one[..., 0] / 2)[0].flatten().tolist()
    [0.5, 0.75]
    """
    name = "kda"
    if use_gate_in_kernel:
        tensor_like(name, "v", v, v)
        tensor_like(name, "g", g, v)
        bias = None if dt_bias is None else dt_bias.view(g.shape[-2:])
        if lower_bound is None:
            g = _activated(name, g, None if A_log is None else A_log.view(-1, 1), bias)
        else:
            g = g.float() if bias is None else g.float() + bias
            g = lower_bound * torch.sigmoid(g if A_log is None else A_log.view(-1, 1).float().exp() * g)
    beta = _strength(name, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    common = (scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, state_v_first, cu_seqlens)
    return _ruled(name, q, k, v, g, beta, *common)


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Attended:
    """``chunk_kda`` in another order of arguments."""
    return chunk_kda(
        q,
        k,
        v,
        g,
        beta,
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        A_log=A_log,
        dt_bias=dt_bias,
    )


def normalised(x: Tensor) -> Tensor:
    """x over its length along the last axis, in the type of arithmetic: fla's l2norm."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide * torch.rsqrt(torch.linalg.vecdot(wide, wide).unsqueeze(-1) + 1e-6)


def _activated(name: str, g: Tensor, A_log: Tensor | None, dt_bias: Tensor | None) -> Tensor:
    if A_log is None:
        raise ValueError(message(name, "A_log must be given with use_gate_in_kernel", A_log))
    g = g if g.dtype == torch.float64 else g.float()
    return -A_log.to(g.dtype).exp() * softplus(g if dt_bias is None else g + dt_bias)


def _strength(name: str, beta: Tensor, sigmoid: bool, twice: bool) -> Tensor:
    if twice and not sigmoid:
        raise ValueError(message(name, "allow_neg_eigval needs use_beta_sigmoid_in_kernel", False))
    return (2 if twice else 1) * beta.sigmoid() if sigmoid else beta


def _ruled(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    normalise: bool,
    state_v_first: bool,
    cu_seqlens: Tensor | None,
) -> Attended:
    for label, tensor in (("q", q), ("k", k), ("v", v)):
        tensor_like(name, label, tensor, v, "v")
    heads, groups = v.shape[2], q.shape[2]
    if groups == 0 or heads % groups:
        raise ValueError(message(name, f"the {heads} heads of v must be a multiple of those of q and k", groups))
    if normalise:
        q, k = normalised(q), normalised(k)
    y, last = attended(
        name,
        gated_delta_rule_with_state,
        (q, k, v, g, beta),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        state_v_first=state_v_first,
    )
    return y.to(v.dtype), last
