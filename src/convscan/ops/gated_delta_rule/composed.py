"""The gated delta rule in differentiable operators, tile by tile as the native kernels do: csrc/chunk/delta.h and
csrc/chunk/delta_gradient.cpp have the equations. Used where a derivative is itself differentiated."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 16


class _Tile(NamedTuple):
    """Of the steps of a tile, heads in front of time: D[t,s], D[t,-1] q and k, D[n-1,s] k, M and P."""

    q: Tensor
    k: Tensor
    decays: Tensor
    from_start: Tensor
    read_q: Tensor
    read_k: Tensor
    written: Tensor
    m: Tensor
    p: Tensor


def _tile(q: Tensor, k: Tensor, g: Tensor) -> _Tile:
    steps = torch.arange(g.shape[-2], device=g.device)
    # Sums of g over (s, t], none of which is a difference: g may be minus infinity.
    behind = torch.where((steps[:, None] > steps)[..., None], g.unsqueeze(-2), g.new_zeros(()))
    decays = torch.where((steps[:, None] >= steps)[..., None], behind.cumsum(-3).exp(), g.new_zeros(()))
    from_start = g.cumsum(-2).exp()
    moved = decays * k.unsqueeze(-3)
    return _Tile(
        q,
        k,
        decays,
        from_start,
        from_start * q,
        from_start * k,
        moved.select(-3, -1),
        (k.unsqueeze(-2) * moved).sum(-1).tril(-1),
        (q.unsqueeze(-2) * moved).sum(-1),
    )


def _solve(tile: _Tile, v: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """x = u / beta."""
    system = tile.m * beta.unsqueeze(-2)
    x: Tensor = torch.linalg.solve_triangular(system, v - tile.read_k @ state, upper=False, unitriangular=True)
    return x


def _advance(tile: _Tile, u: Tensor, state: Tensor) -> Tensor:
    return tile.from_start[..., -1, :, None] * state + tile.written.mT @ u


def _spans(cu_seqlens: Tensor | None, length: int) -> list[tuple[int, int]]:
    bounds: list[int] = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    return list(pairwise(bounds))


def _states(state: Tensor | None, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, sequences: int) -> list[Tensor]:
    if state is None:
        return [v.new_zeros((*k.shape[:-3], *k.shape[-2:], v.shape[-1]))] * sequences
    return [state] if cu_seqlens is None else list(state.unbind(-4))


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(-3, -2) for tensor in tensors]


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """Tiles of a signal, heads in front of time, as the signal."""
    return torch.cat(parts, -2).transpose(-3, -2) if parts else torch.zeros_like(like)


def _last(states: list[Tensor], cu_seqlens: Tensor | None) -> Tensor:
    return states[0] if cu_seqlens is None else torch.stack(states, -4)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """y and the last state, all in the type of arithmetic."""
    spans = _spans(cu_seqlens, v.shape[-3])
    states = _states(state, k, v, cu_seqlens, len(spans))
    by_key = g if g.ndim == k.ndim else g.unsqueeze(-1)
    qs, ks, vs, gs = _heads_first(scale * q, k, v, by_key)
    betas = beta.transpose(-2, -1)
    outputs: list[Tensor] = []
    for at, (begin, end) in enumerate(spans):
        for t in range(begin, end, STEPS):
            part = slice(t, min(t + STEPS, end))
            tile = _tile(qs[..., part, :], ks[..., part, :], gs[..., part, :])
            u = betas[..., part, None] * _solve(tile, vs[..., part, :], betas[..., part], states[at])
            outputs.append(tile.read_q @ states[at] + tile.p @ u)
            states[at] = _advance(tile, u, states[at])
    return _joined(outputs, v), _last(states, cu_seqlens)


def gradients(
    dy: Tensor,
    dlast: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of q, k, v, g, beta and the initial state, all in the type of arithmetic."""
    spans = _spans(cu_seqlens, v.shape[-3])
    starts = _states(state, k, v, cu_seqlens, len(spans))
    dstates = _states(dlast, k, v, cu_seqlens, len(spans))
    by_key = g if g.ndim == k.ndim else g.unsqueeze(-1)
    qs, ks, vs, gs, dys = _heads_first(scale * q, k, v, by_key, dy)
    betas = beta.transpose(-2, -1)
    found: list[tuple[Tensor, ...]] = []
    for at, (begin, end) in enumerate(spans):
        parts = [slice(t, min(t + STEPS, end)) for t in range(begin, end, STEPS)]
        tiles, state_of, x_of = [], [starts[at]], []
        for part in parts:
            tiles.append(_tile(qs[..., part, :], ks[..., part, :], gs[..., part, :]))
            x_of.append(_solve(tiles[-1], vs[..., part, :], betas[..., part], state_of[-1]))
            state_of.append(_advance(tiles[-1], betas[..., part, None] * x_of[-1], state_of[-1]))
        of_span = []
        for i in reversed(range(len(parts))):
            part = parts[i]
            *of_tile, dstates[at] = _tile_gradients(
                tiles[i], x_of[i], betas[..., part], gs[..., part, :], state_of[i], dys[..., part, :], dstates[at]
            )
            of_span.append(tuple(of_tile))
        found += of_span[::-1]
    dq, dk, dv, dg, dbeta = (
        [_joined(list(each), like) for each, like in zip(zip(*found, strict=True), (q, k, v, k, beta), strict=True)]
        if found
        else map(torch.zeros_like, (q, k, v, k, beta))
    )
    dg = dg if g.ndim == k.ndim else dg.sum(-1)
    dbeta = dbeta.squeeze(-1) if found else dbeta
    return scale * dq, dk, dv, dg, dbeta, _last(dstates, cu_seqlens)


def _tile_gradients(
    tile: _Tile, x: Tensor, beta: Tensor, g: Tensor, state: Tensor, dy: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    """Those of q, k, v, the running sum of g by key, beta, and the state before the tile."""
    u = beta.unsqueeze(-1) * x
    du = tile.p.mT @ dy + tile.written @ dstate
    system = tile.m.mT * beta.unsqueeze(-2)
    w = torch.linalg.solve_triangular(system, du, upper=True, unitriangular=True)
    b = beta.unsqueeze(-1) * w
    dm, dp = -(b @ u.mT).tril(-1), (dy @ u.mT).tril()
    written = u @ dstate.mT
    to_end = tile.decays.select(-3, -1)
    moved = tile.decays * tile.k.unsqueeze(-3)
    dq = tile.from_start * (dy @ state.mT) + (dp.unsqueeze(-1) * moved).sum(-2)
    reader = (dm.unsqueeze(-1) * moved).sum(-2) - tile.from_start * (b @ state.mT)
    passed = dp.unsqueeze(-1) * tile.q.unsqueeze(-2) + dm.unsqueeze(-1) * tile.k.unsqueeze(-2)
    writer = to_end * written + (tile.decays * passed).sum(-3)
    at_end = tile.from_start[..., -1, :] * (dstate * state).sum(-1) + (tile.written * written).sum(-2)
    running = tile.q * dq + tile.k * (reader - writer)
    behind = running.flip(-2).cumsum(-2).flip(-2) + at_end.unsqueeze(-2)
    dg = torch.where(g == -torch.inf, g.new_zeros(()), behind)
    before = tile.from_start[..., -1, :, None] * dstate + tile.read_q.mT @ dy - tile.read_k.mT @ b
    return dq, reader + writer, b, dg, (w * x).sum(-1, keepdim=True), before
