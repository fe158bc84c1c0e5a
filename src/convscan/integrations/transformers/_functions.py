"""What takes the place of functions in transformers' model files, argument for argument.

A maker is given the function that it replaces, and the replacement calls that one for all it does not compute itself:
tensors that are not on the CPU, activations other than silu, and gradients through a step that overwrites its state.
Results are those of the original to rounding; states are written where the original writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...compat._delta import normalised
from ...compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from ...compat.fla import chunk_gated_delta_rule
from ...compat.mamba_ssm import mamba_chunk_scan_combined, selective_scan_fn, selective_state_update
from ...ops.gated_delta_rule.api import gated_delta_rule_step
from ...ops.selective_scan.api import selective_scan_step
from ...ops.ssd_scan.api import ssd_scan_step

Function = Callable[..., Any]

# Activations of short convolutions, none included.
SILU = (None, "silu", "swish")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_served(x: Tensor) -> bool:
    """Whether convscan computes with a tensor like this one."""
    return x.device.type == "cpu" and x.dtype in _DTYPES


def overwrites(*tensors: Tensor | None) -> bool:
    """Whether a step with these tensors may overwrite its state: nothing of it has to be differentiated."""
    return not torch.is_grad_enabled() or not any(tensor is not None and tensor.requires_grad for tensor in tensors)


def short_conv(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs: Any
    ) -> Any:
        if activation not in SILU or not is_served(hidden_states):
            return original(hidden_states, weight, bias, activation=activation, **kwargs)
        return causal_conv1d_fn(hidden_states, weight, bias, kwargs.get("seq_idx"), activation=activation)

    return replacement


def short_conv_step(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        hidden_states: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Any:
        served = activation in SILU and is_served(hidden_states)
        if not served or not overwrites(hidden_states, conv_state, weight, bias):
            return original(hidden_states, conv_state, weight, bias, activation)
        return causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)

    return replacement


def selective(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Any:
        given = (hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
        return (selective_scan_fn if is_served(hidden_states) else original)(*given)

    return replacement


def selective_step(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        state: Tensor,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        z: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not is_served(hidden_states) or not overwrites(state, hidden_states, dt, A, B, C, D, dt_bias, z):
            return original(state, hidden_states, dt, A, B, C, D, dt_bias, dt_softplus, z, **kwargs)
        return selective_scan_step(
            state, hidden_states, dt, A, B, C, D=D, z=z, delta_bias=dt_bias, delta_softplus=dt_softplus
        )

    return replacement


def dual(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        z: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not is_served(hidden_states):
            if seq_idx is not None:
                kwargs["seq_idx"] = seq_idx
            given = (hidden_states, dt, A, B, C, chunk_size, D, dt_bias, initial_states, dt_softplus, dt_limit)
            return original(*given, return_final_states, z=z, **kwargs)
        return mamba_chunk_scan_combined(
            hidden_states,
            dt,
            A,
            B,
            C,
            chunk_size,
            D,
            z,
            dt_bias,
            initial_states,
            seq_idx,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            return_final_states=return_final_states,
        )

    return replacement


def _of_heads(tensor: Tensor) -> Tensor | None:
    """What a tensor (..., heads, dim) has for each head, where it was expanded over dim."""
    return tensor[..., 0] if tensor.stride(-1) == 0 or tensor.shape[-1] == 1 else None


def dual_step(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(
        state: Tensor,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        z: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not is_served(hidden_states) or not overwrites(state, hidden_states, dt, A, B, C, D, dt_bias, z):
            return original(state, hidden_states, dt, A, B, C, D, dt_bias, dt_softplus, z, **kwargs)
        step, bias = _of_heads(dt), None if dt_bias is None else _of_heads(dt_bias)
        decay = _of_heads(A) if A.stride(-1) == 0 else None
        decay = None if decay is None else _of_heads(decay)
        whole = state.dtype == (torch.float64 if hidden_states.dtype == torch.float64 else torch.float32)
        if step is None or decay is None or (bias is None) != (dt_bias is None) or not whole:
            return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)
        return ssd_scan_step(state, hidden_states, step, decay, B, C, D=D, z=z, dt_bias=bias, dt_softplus=dt_softplus)

    return replacement


def delta_rule(original: Function) -> Function:
    """Of sequences; decays by step or by key."""

    @functools.wraps(original)
    def replacement(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        chunk_size: int = 64,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not is_served(query):
            if cu_seqlens is not None:
                kwargs["cu_seqlens"] = cu_seqlens
            given = (query, key, value, g, beta, chunk_size, initial_state, output_final_state, use_qk_l2norm_in_kernel)
            return original(*given, **kwargs)
        return chunk_gated_delta_rule(
            query,
            key,
            value,
            g,
            beta,
            None,
            initial_state,
            output_final_state,
            use_qk_l2norm_in_kernel,
            cu_seqlens=cu_seqlens,
        )

    return replacement


def delta_rule_step(original: Function) -> Function:
    """Of a step or more; decays by step or by key."""

    @functools.wraps(original)
    def replacement(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,
    ) -> Any:
        if not is_served(query):
            given = (query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel)
            return original(*given, **kwargs)
        alone = query.shape[1] == 1 and initial_state is not None and kwargs.get("cu_seqlens") is None
        if not alone or not overwrites(query, key, value, g, beta, initial_state):
            common = (initial_state, output_final_state, use_qk_l2norm_in_kernel)
            return chunk_gated_delta_rule(
                query, key, value, g, beta, None, *common, cu_seqlens=kwargs.get("cu_seqlens")
            )
        q, k, v = query[:, 0], key[:, 0], value[:, 0]
        if use_qk_l2norm_in_kernel:
            q, k = normalised(q), normalised(k)
        if q.shape[1] != v.shape[1]:
            q, k = (tensor.repeat_interleave(v.shape[1] // q.shape[1], 1) for tensor in (q, k))
        assert initial_state is not None
        # A copy, because the original returns one: who called may hold on to the state before.
        state = initial_state.to(torch.float64 if v.dtype == torch.float64 else torch.float32, copy=True)
        y = gated_delta_rule_step(state, q, k, v, g[:, 0], beta[:, 0]).to(query.dtype)
        return y.unsqueeze(1), state if output_final_state else None

    return replacement
