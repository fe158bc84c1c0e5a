"""Hugging Face transformers' PyTorch path of Gated DeltaNet, ``torch_chunk_gated_delta_rule`` of Qwen3-Next, written
out here so that nothing has to be installed: chunks of 64 steps, whose triangular matrices are inverted row by row.
Without its normalisation of q and k, which is no part of the operator. (B, L, H, channels), as the model has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)
CHUNK = 64


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem, dtypes=DTYPES, backward=True)
    if problem["g"].ndim == problem["k"].ndim:
        reasons.append("decays by key")
    if problem.inputs.get("initial_state") is not None or problem["q"].ndim != 4:
        reasons.append("an initial state or other leading axes")
    return reasons


def chunk_gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    query, key, value, beta, g = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value, beta, g))
    length, keys, values = key.shape[2], key.shape[3], value.shape[3]
    padding = (CHUNK - length % CHUNK) % CHUNK
    query, key, value = (F.pad(tensor, (0, 0, 0, padding)) for tensor in (query, key, value))
    beta, g = F.pad(beta, (0, padding)), F.pad(g, (0, padding))
    query = query * keys**-0.5
    v_beta, k_beta = value * beta.unsqueeze(-1), key * beta.unsqueeze(-1)
    query, key, value, k_beta, v_beta = (
        tensor.reshape(*tensor.shape[:2], -1, CHUNK, tensor.shape[-1]) for tensor in (query, key, value, k_beta, v_beta)
    )
    g = g.reshape(*g.shape[:2], -1, CHUNK).cumsum(-1)
    mask = torch.triu(torch.ones(CHUNK, CHUNK, dtype=torch.bool), diagonal=0)
    decay = (g.unsqueeze(-1) - g.unsqueeze(-2)).tril().exp().tril()
    inverse = -((k_beta @ key.transpose(-1, -2)) * decay).masked_fill(mask, 0)
    for i in range(1, CHUNK):
        row, rows = inverse[..., i, :i].clone(), inverse[..., :i, :i].clone()
        inverse[..., i, :i] = row + (row.unsqueeze(-1) * rows).sum(-2)
    inverse = inverse + torch.eye(CHUNK, dtype=inverse.dtype)
    value = inverse @ v_beta
    k_decayed = inverse @ (k_beta * g.exp().unsqueeze(-1))
    state = value.new_zeros(*value.shape[:2], keys, values)
    outputs = []
    mask = torch.triu(torch.ones(CHUNK, CHUNK, dtype=torch.bool), diagonal=1)
    for i in range(value.shape[2]):
        q_i, k_i, g_i = query[:, :, i], key[:, :, i], g[:, :, i]
        attention = (q_i @ k_i.transpose(-1, -2) * decay[:, :, i]).masked_fill(mask, 0)
        v_new = value[:, :, i] - k_decayed[:, :, i] @ state
        outputs.append((q_i * g_i.exp().unsqueeze(-1)) @ state + attention @ v_new)
        to_end = (g_i[..., -1, None] - g_i).exp().unsqueeze(-1)
        state = state * g_i[..., -1, None, None].exp() + (k_i * to_end).transpose(-1, -2) @ v_new
    y = torch.stack(outputs, 2).flatten(2, 3)[:, :, :length]
    return y.transpose(1, 2).contiguous()


def _prepare(problem: Problem) -> Prepared:
    return from_torch(problem, chunk_gated_delta_rule, problem.arguments)


PEERS = (Peer("transformers torch", "gated_delta_rule", "torch", _why_not, _prepare),)
