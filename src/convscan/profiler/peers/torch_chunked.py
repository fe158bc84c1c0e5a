"""Linear attention with decay in tiles of time by PyTorch operations, as naive implementations of gated linear
attention and the mLSTM do it: tiles of 64 steps (16 where decays differ between keys, of which one would overflow the
quotient of running products), products by ``bmm`` over all tiles at once, and a loop over the states between them.
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


def _peer(op: str, function: Callable[..., Tensor]) -> Peer:
    def why_not(problem: Problem) -> list[str]:
        return unsupported(problem, dtypes=REAL, backward=True)

    def prepare(problem: Problem) -> Prepared:
        arguments: Any = problem.arguments
        return from_torch(problem, function, arguments)

    return Peer("torch chunked", op, "torch", why_not, prepare)


PEERS = (
    _peer("gated_linear_attention", gated_linear_attention),
    _peer("mlstm", mlstm),
)
