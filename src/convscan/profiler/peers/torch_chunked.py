"""Linear attention with decay in tiles of time by PyTorch operations, as published reference code does it.

``huggingface torch`` is ``Mamba2Mixer.torch_forward`` of Hugging Face's transformers between its convolution and its
norm, with its tiles of 256 steps. ``torch chunked`` is what naive implementations of gated linear attention and the
mLSTM do: tiles of 64 steps (16 where decays differ between keys, of which one would overflow the quotient of running
products), products by ``bmm`` over all tiles at once, and a loop over the states between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from ..peer import Peer, Prepared, from_torch, unsupported
from ..problem import Problem

REAL = (torch.float32, torch.float64)


def segment_sum(tensor: Tensor) -> Tensor:
    """Sums over (s, t] of the last axis, minus infinity above the diagonal."""
    size = tensor.size(-1)
    tensor = tensor[..., None].expand(*tensor.size(), size)
    tensor = tensor.masked_fill(~torch.tril(torch.ones(size, size, dtype=torch.bool), diagonal=-1), 0)
    sums = torch.cumsum(tensor, dim=-2)
    return sums.masked_fill(~torch.tril(torch.ones(size, size, dtype=torch.bool), diagonal=0), -torch.inf)


def mamba2(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = 256) -> Tensor:
    """``Mamba2Mixer.torch_forward``, of steps that are positive already."""
    batch, length, heads, width = x.shape
    extra = (chunk - length % chunk) % chunk

    def chunked(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, extra)).reshape(batch, -1, chunk, *tensor.shape[2:])

    B, C = (tensor.repeat_interleave(heads // tensor.shape[2], 2) for tensor in (B, C))
    skipped = D[..., None] * x
    x, A, B, C = (chunked(tensor) for tensor in (x * dt[..., None], A * dt, B, C))
    A = A.permute(0, 3, 1, 2)
    A_cumsum = torch.cumsum(A, dim=-1)
    L = torch.exp(segment_sum(A))
    G = (C[:, :, :, None, :, :] * B[:, :, None, :, :, :]).sum(-1)
    M = (G[..., None] * L.permute(0, 2, 3, 4, 1)[..., None]).sum(-1)
    diagonal = (M[..., None] * x[:, :, None]).sum(3)
    decay_states = torch.exp(A_cumsum[:, :, :, -1:] - A_cumsum)
    B_decay = B * decay_states.permute(0, 2, 3, 1)[..., None]
    states = (B_decay[..., None, :] * x[..., None]).sum(2)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    decay_chunk = torch.exp(segment_sum(pad(A_cumsum[:, :, :, -1], (1, 0)))).transpose(1, 3)
    states = (decay_chunk[..., None, None] * states[:, :, None, ...]).sum(1)[:, :-1]
    decay_out = torch.exp(A_cumsum).permute(0, 2, 3, 1)[..., None]
    off = (C[..., None, :] * states[:, :, None, ...]).sum(-1) * decay_out
    return (diagonal + off).reshape(batch, -1, heads, width)[:, :length] + skipped


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """y[t] = S[t]^T q[t] with decays by key or by step, g (B, L, H, K) or (B, L, H)."""
    per_key = g.ndim == v.ndim
    chunk = 16 if per_key else 64
    length = v.shape[1]
    extra = (chunk - length % chunk) % chunk

    def chunked(tensor: Tensor) -> Tensor:
        """(batch, head, tile, step, ...)."""
        padded = pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, extra))
        return padded.reshape(padded.shape[0], -1, chunk, *padded.shape[2:]).movedim(3, 1)

    q, k, v, g = (chunked(tensor) for tensor in (q, k, v, g if per_key else g[..., None]))
    running = g.cumsum(-2)
    total = running[..., -1:, :]
    mask = torch.tril(torch.ones(chunk, chunk, dtype=torch.bool))
    if per_key:
        weights = (q * running.exp()) @ (k * (-running).exp()).mT
    else:
        weights = q @ k.mT * (running - running.mT).masked_fill(~mask, -torch.inf).exp()
    inside = weights.masked_fill(~mask, 0) @ v
    added = (k * (total - running).exp()).mT @ v
    state, before = torch.zeros_like(added[:, :, 0]), []
    for tile in range(added.shape[2]):
        before.append(state)
        state = total[:, :, tile].mT.exp() * state + added[:, :, tile]
    y = inside + (q * running.exp()) @ torch.stack(before, 2)
    return y.flatten(2, 3).transpose(1, 2)[:, :length]


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """The public function's scale."""
    return chunked_attention(q * q.shape[-1] ** -0.5, k, v, g)


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6) -> Tensor:
    """With the stabiliser of running maxima, as the parallel form has it."""
    log_f = logsigmoid(f)
    running = log_f.cumsum(1)
    m = running + torch.cummax(i - running, 1).values.clamp(min=0)
    before = pad(m, (0, 0, 1, 0))[:, :-1]
    columns = torch.cat([v, torch.ones_like(v[..., :1])], -1) * (i - m).exp()[..., None]
    read = chunked_attention(q * q.shape[-1] ** -0.5, k, columns, log_f + before - m)
    return read[..., :-1] / (torch.maximum(read[..., -1].abs(), (-m).exp()) + eps)[..., None]


def _peer(name: str, op: str, function: Callable[..., Tensor]) -> Peer:
    def why_not(problem: Problem) -> list[str]:
        return unsupported(problem, dtypes=REAL, backward=True)

    def prepare(problem: Problem) -> Prepared:
        arguments: Any = problem.arguments
        return from_torch(problem, function, arguments)

    return Peer(name, op, "torch", why_not, prepare)


PEERS = (
    _peer("huggingface torch", "ssd_scan", mamba2),
    _peer("torch chunked", "gated_linear_attention", gated_linear_attention),
    _peer("torch chunked", "mlstm", mlstm),
)
