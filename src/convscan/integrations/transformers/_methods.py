"""What takes the place of methods in transformers' model files that have no function for their operator.

As in ``_functions``: a maker is given the method that it replaces, which is called for all that is not served.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...ops.causal_conv.api import causal_conv
from ...ops.linear_recurrence.api import linear_recurrence
from ...ops.mlstm.api import mlstm_step, mlstm_with_state
from ._functions import Function, is_served, overwrites


def rg_lru_scan(original: Function) -> Function:
    """The recurrence of RecurrentGemma, y[t] = a[t] y[t-1] + x[t], where ``reset`` begins a document with a[t] = 0."""

    @functools.wraps(original)
    def replacement(
        self: torch.nn.Module,
        hidden_states: Tensor,
        recurrent_gate: Tensor,
        reset: Tensor,
        recurrent_states: Tensor | None,
        acc_dtype: torch.dtype = torch.float32,
    ) -> Any:
        if not is_served(hidden_states) or hidden_states.shape[1] == 0:
            return original(self, hidden_states, recurrent_gate, reset, recurrent_states, acc_dtype)
        # Accumulates in acc_dtype, or in what is wider.
        wide = torch.promote_types(hidden_states.dtype, acc_dtype)
        a = recurrent_gate.masked_fill(reset, 0).to(wide)
        before = None if recurrent_states is None else recurrent_states.to(wide)
        y = linear_recurrence(hidden_states.to(wide), before, a)
        return y.to(hidden_states.dtype), y[:, -1].to(acc_dtype)

    return replacement


def rg_lru(original: Function) -> Function:
    """The gates of RecurrentGemma and its recurrence, in three arrays of the size of the input instead of fifteen."""

    @functools.wraps(original)
    def replacement(self: Any, activations: Tensor, position_ids: Tensor) -> Any:
        parameters = (self.recurrent_param, self.input_gate_weight, self.recurrent_gate_weight)
        single = activations.dtype == torch.float32 and activations.shape[1] > 0
        if not single or not is_served(activations) or not overwrites(activations, *parameters):
            return original(self, activations, position_ids)
        reset = position_ids[:, :, None] == 0
        heads = activations.reshape(-1, self.num_attention_heads, self.block_width).transpose(0, 1)

        def gate(weight: Tensor, bias: Tensor) -> Tensor:
            mixed = torch.baddbmm(bias[:, None, :], heads, weight)
            return mixed.transpose(0, 1).reshape(activations.shape).sigmoid_()

        x = gate(self.input_gate_weight, self.input_gate_bias).mul_(activations)
        log_a = gate(self.recurrent_gate_weight, self.recurrent_gate_bias)
        log_a.mul_(-8.0 * torch.nn.functional.softplus(self.recurrent_param))
        a = log_a.exp().masked_fill_(reset, 0)
        # The first sample of a document counts in full.
        x.mul_(log_a.mul_(2).exp_().neg_().add_(1).sqrt_().masked_fill_(reset, 1))
        before = None if self.recurrent_states is None else self.recurrent_states.to(x.dtype)
        y = linear_recurrence(x, before, a, out=x)
        self.recurrent_states = y[:, -1].clone()
        return y

    return replacement


def mlstm_backend(original: Function) -> Function:
    """The matrix memory of xLSTM, in every mode: (batch, heads, time, channels)."""

    @functools.wraps(original)
    def replacement(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        igate: Tensor,
        fgate: Tensor,
        c_initial: Tensor | None = None,
        n_initial: Tensor | None = None,
        m_initial: Tensor | None = None,
        return_last_states: bool | None = None,
        mode: str | None = None,
    ) -> Any:
        how = self.config.mode if mode is None else mode
        training = "train" in how
        whole = (c_initial is None) == (n_initial is None) == (m_initial is None)
        served = is_served(query) and whole and query.shape[2] > 0 and (training or "inference" in how)
        # What the original refuses is for it to refuse.
        if training and return_last_states is None:
            return_last_states = self.config.return_last_states
        if not served or (self.config.mode == "train_with_padding" and return_last_states):
            states = (c_initial, n_initial, m_initial)
            return original(self, query, key, value, igate, fgate, *states, return_last_states, mode)
        before = None
        if c_initial is not None and n_initial is not None and m_initial is not None:
            before = (c_initial, n_initial, m_initial.squeeze(-1))
        if query.shape[2] == 1 and before is not None and overwrites(query, key, value, igate, fgate, *before):
            kind = torch.float64 if value.dtype == torch.float64 else torch.float32
            # Copies: who called may hold on to the state before.
            c, n, m = (tensor.to(kind, copy=True) for tensor in before)
            last = (c, n, m)
            signals = (tensor.squeeze(2) for tensor in (query, key, value, igate, fgate))
            y = mlstm_step(last, *signals, eps=self.config.eps).unsqueeze(2)
        else:
            signals = (tensor.transpose(1, 2) for tensor in (query, key, value, igate, fgate))
            y, last = mlstm_with_state(*signals, eps=self.config.eps, initial_state=before)
            y = y.transpose(1, 2)
        if training and not return_last_states:
            return y
        return y, (last[0], last[1], last[2].unsqueeze(-1))

    return replacement


def gated_short_conv(original: Function) -> Function:
    """The short convolution of LFM2 and LFM3 between its gates, out(C · conv(B · x)), but for single cached steps."""

    @functools.wraps(original)
    def replacement(
        self: Any,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        elsewhere = kwargs.get("seq_idx") is not None or "past_key_values" in kwargs or not is_served(hidden_states)
        state = None
        if cache is not None and not elsewhere:
            state = cache.get_conv_state(self.layer_idx, state_idx=0)
            elsewhere = (state is not None and hidden_states.shape[1] == 1) or cache.is_recording_past(self.layer_idx)
        if elsewhere:
            return original(self, hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
        if attention_mask is not None:
            hidden_states = (hidden_states * attention_mask[:, :, None]).to(hidden_states.dtype)
        b, c, x = self.in_proj(hidden_states).chunk(3, -1)
        h = self.conv.weight.squeeze(1).flip(-1).mT
        taps = h.shape[0]
        before = None if state is None else state[..., state.shape[-1] - (taps - 1) :].mT.clone()
        if cache is not None:
            # Of the gated samples the cache keeps the last ones only.
            last = (b[:, -taps:] * x[:, -taps:]).mT
            cache.update_conv_state(last, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        y = causal_conv(x, h, bias=self.conv.bias, pre_gate=b, post_gate=c, initial_state=before)
        return self.out_proj(y)

    return replacement
