"""What kernels of linear attention read and form of a tile of steps, in the notation of ``triton_chunked``: signals,
decays between steps, and the state behind the tile."""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, wide


@triton.jit
def rows(x, t, c, in_time, in_columns, xt, xc):
    """Some steps of a signal: (time, columns)."""
    return tl.load(x + t[:, None] * xt + c[None, :] * xc, mask=in_time[:, None] & in_columns[None, :], other=0.0)


@triton.jit
def column(x, t, in_time, xt):
    return tl.load(x + t * xt, mask=in_time, other=0.0)


@triton.jit
def gates_of(g, t, c, in_time, in_columns, gt, gk, PER_KEY: tl.constexpr):
    """g of some steps, zero elsewhere: by step, or (time, keys)."""
    gates = rows(g, t, c, in_time, in_columns, gt, gk) if PER_KEY else column(g, t, in_time, gt)
    return gates


@triton.jit
def between_steps(g, TIME: tl.constexpr):
    """exp of g summed over (s, t], (time, time); zero above the diagonal."""
    t, s = tl.arange(0, TIME)[:, None], tl.arange(0, TIME)[None, :]
    sums = tl.cumsum(tl.where(t > s, g[:, None], 0.0), 0)
    return tl.where(t >= s, tl.exp(sums), 0.0)


@triton.jit
def decays_of(g, t, at_k, end, in_keys, gt, gk, PER_KEY: tl.constexpr, FROM_START: tl.constexpr):
    """Decays of some steps since the first of them, or from behind each up to ``end``."""
    if FROM_START:
        decays = tl.exp(tl.cumsum(gates_of(g, t, at_k, t < end, in_keys, gt, gk, PER_KEY), 0))
    else:
        following = gates_of(g, t + 1, at_k, t + 1 < end, in_keys, gt, gk, PER_KEY)
        decays = tl.exp(tl.cumsum(following, 0, reverse=True))
    return decays


@triton.jit
def halves(g, following, ROWS: tl.constexpr, HALF: tl.constexpr, KEYS: tl.constexpr):
    """Decays by key from the start of each HALF rows up to each of them, from behind each to their end, and between
    which rows both lie: those of the second half of twice as many, and those of the first."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    following = tl.where((i + 1) % HALF == 0, 0.0, following)
    from_start = tl.cumsum(tl.reshape(g, [ROWS // HALF, HALF, KEYS]), 1)
    to_end = tl.cumsum(tl.reshape(following, [ROWS // HALF, HALF, KEYS]), 1, reverse=True)
    between = (i // HALF == j // HALF + 1) & (i // HALF % 2 == 1)
    return tl.exp(tl.reshape(from_start, [ROWS, KEYS])), tl.exp(tl.reshape(to_end, [ROWS, KEYS])), between


@triton.jit
def to_block(g, t, c, begin, block, in_columns, gt, gk):
    """exp of g by key, summed from behind each step up to where a later block of the chunk begins."""
    within = (t + 1 < block) & (t >= begin)
    return tl.exp(tl.cumsum(rows(g, t + 1, c, within, in_columns, gt, gk), 0, reverse=True))


@triton.jit
def from_block(g, t, c, behind, end, in_columns, gt, gk):
    """exp of g by key, summed from the end of an earlier block up to each step."""
    return tl.exp(tl.cumsum(rows(g, t, c, (t >= behind) & (t < end), in_columns, gt, gk), 0))


@triton.jit
def value_columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS: tl.constexpr, BACKWARDS: tl.constexpr):
    """Some steps of the values in float32, behind which a column of ones gives sums, or backwards their gradient."""
    of_v = rows(v, t, at_v, in_time, at_v < values, vt, vc).to(tl.float32)
    if HAS_SUMS:
        of_sums = tl.where(in_time, 1.0, 0.0)
        if BACKWARDS:
            of_sums = column(sums, t, in_time, ut)
        of_v = tl.where((at_v == values)[None, :], of_sums[:, None], of_v)
    return of_v


@triton.jit
def absorb(
    state,
    k,
    v,
    g,
    w,
    sums,
    begin,
    last,
    first_key,
    keys,
    at_v,
    values,
    scale,
    kt,
    kk,
    vt,
    vc,
    gt,
    gk,
    wt,
    ut,
    TIME: tl.constexpr,
    KEYS: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    BACKWARDS: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The state behind TIME steps from ``begin`` on, or backwards before them: of each block of keys (values, keys)."""
    end = tl.minimum(begin + TIME, last)
    t = begin + tl.arange(0, TIME)
    in_time = t < end
    of_v = value_columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS, BACKWARDS)
    weight = tl.zeros([TIME], tl.float32) + 1.0
    if HAS_W:
        weight = column(w, t, in_time, wt)
    if not PER_KEY:
        of_g = column(g, t, in_time, gt)
        if BACKWARDS:
            weight *= tl.exp(tl.cumsum(of_g, 0)) * scale
        else:
            weight *= tl.exp(tl.cumsum(column(g, t + 1, t + 1 < end, gt), 0, reverse=True))
        whole = tl.exp(tl.sum(of_g, 0))
        of_v *= weight[:, None]  # rather than the keys, which may be more and are exact as they are
    behind = ()
    for part in tl.static_range(len(state)):
        at_k = wide(first_key + part * KEYS) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        of_k = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32)
        if PER_KEY:
            of_g = rows(g, t, at_k, in_time, in_keys, gt, gk)
            if BACKWARDS:
                decay = tl.exp(tl.cumsum(of_g, 0)) * scale
            else:
                following = rows(g, t + 1, at_k, t + 1 < end, in_keys, gt, gk)
                decay = tl.exp(tl.cumsum(following, 0, reverse=True))
            of_k *= decay * weight[:, None]
            decayed = state[part] * tl.exp(tl.sum(of_g, 0))[None, :]
            behind = behind + (dot(tl.trans(of_v), of_k, decayed, EXACT if HAS_SUMS and BACKWARDS else RIGHT),)
        else:
            behind = behind + (dot(tl.trans(of_v), of_k, state[part] * whole, LEFT),)
    return behind
