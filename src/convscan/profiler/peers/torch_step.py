"""Steps of generation by PyTorch operations, in place where they can be, as models' own decoding loops have them: a
product of the state, an outer product added to it and a product with a vector; samples moved up and summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, silu, softplus

from ..peer import Peer, Prepared, unsupported
from ..problem import Problem, as_tuple, own
from ..step import read


def _advanced(state: Tensor, decay: Tensor, k: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """S = decay S + k v^T in place, and S^T q: (B, H, K, V)."""
    state.mul_(decay).addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
    return read(state, q)


def _decay(g: Tensor, k: Tensor) -> Tensor:
    return g.exp()[..., None] if g.ndim == k.ndim else g.exp()[..., None, None]


def gated_linear_attention(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """With the public function's scale."""
    return _advanced(state, _decay(g, k), k, v, q) * float(q.shape[-1] ** -0.5)


def gated_delta_rule(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The memory's answer first."""
    state.mul_(_decay(g, k))
    write = (v - read(state, k)) * beta[..., None]
    state.addcmul_(k.unsqueeze(-1), write.unsqueeze(-2))
    return read(state, q) * float(q.shape[-1] ** -0.5)


def ssd_scan(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba-2's."""
    B, C = (tensor.repeat_interleave(x.shape[1] // tensor.shape[1], 1) for tensor in (B, C))
    decay = (dt * A).exp()[..., None, None]
    state.mul_(decay).addcmul_((dt[..., None] * x).unsqueeze(-1), B.unsqueeze(-2))
    return (state @ C.unsqueeze(-1)).squeeze(-1) + D[:, None] * x


def mlstm(state: tuple[Tensor, Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """xLSTM's, with its stabiliser."""
    memory, n, m = state
    moved = logsigmoid(f) + m
    torch.maximum(moved, i, out=m)
    decay, weight = (moved - m).exp()[..., None], (i - m).exp()[..., None]
    q, k = q * q.shape[-1] ** -0.5, weight * k
    n.mul_(decay).add_(k)
    answer = _advanced(memory, decay[..., None], k, v, q)
    return answer / (torch.maximum((n * q).sum(-1).abs(), (-m).exp()) + 1e-6)[..., None]


def selective_scan(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Mamba's."""
    dt = softplus(delta + delta_bias)
    state.mul_((dt[..., None] * A).exp()).addcmul_((dt * u)[..., None], B[:, None])
    return ((state @ C.unsqueeze(-1)).squeeze(-1) + D * u) * silu(z)


def causal_conv(state: Tensor, x: Tensor, h: Tensor, activation: str | None) -> Tensor:
    """Mamba's: the samples move up, then are summed."""
    window = torch.cat([state, x[:, None]], 1)
    state.copy_(window[:, 1:])
    y = torch.einsum("bkd,kd->bd", window, h.flip(0))
    return silu(y) if activation == "silu" else y


def linear_recurrence(state: Tensor, x: Tensor, a: Tensor, reverse: bool) -> Tensor:
    """RecurrentGemma's."""
    return state.mul_(a).add_(x).clone()


def _peer(op: str, function: Callable[..., Tensor]) -> Peer:
    def prepare(problem: Problem) -> Prepared:
        arguments: Any = own(problem)

        def run() -> Tensor:
            with torch.no_grad():
                return function(**arguments)

        return Prepared(run, as_tuple)

    def why_not(problem: Problem) -> list[str]:
        return unsupported(problem, dtypes=(torch.float32, torch.float64))

    return Peer("torch operations", f"{op}_step", "torch", why_not, prepare, devices=("cpu", "cuda"))


PEERS = tuple(
    _peer(function.__name__, function)
    for function in (
        gated_linear_attention,
        gated_delta_rule,
        ssd_scan,
        mlstm,
        selective_scan,
        causal_conv,
        linear_recurrence,
    )
)
