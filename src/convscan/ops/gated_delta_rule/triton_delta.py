"""The gated delta rule on a GPU's tensor cores: chunks of time in WY form.

    S[t] = (I - beta[t] k[t] k[t]^T) a[t] S[t-1] + beta[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)

is linear attention, S[t] = a[t] S[t-1] + k[t] u[t]^T, of corrections u[t] in place of the values. With D[t,s] the
product of a over (s, t], those of a chunk that begins at state S solve

    u[t] + beta[t] sum_{s<t} D[t,s] k[t]^T k[s] u[s] = beta[t] (v[t] - S^T D[t,-1] k[t])

so that u = u0 - W S with u0 = T (beta v), W = T (beta D k), T the inverse of that unit lower triangular matrix.
``solve`` makes u0 and W of all chunks at once, T row by row; ``scan`` goes through a sequence with a part of the
columns of the state, completes u and stores the state before every chunk; ``outputs`` of linear attention does the
rest.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide
from ..linear_attention.triton_chunked import between_steps, column, rows


@triton.jit
def _inverse(m, STEPS: tl.constexpr):
    """(I + m)^-1 of a strictly lower triangular matrix, a row after the other."""
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0)
    for t in range(1, STEPS):
        row = tl.sum(tl.where(i == t, m, 0.0), 0)
        found = tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where((i == t) & (j < t), -found[None, :], inverse)
    return inverse


@triton.jit
def solve(
    k,
    v,
    g,
    beta,
    u,  # (batch, length, heads, values)
    w,  # (batch, length, heads, keys)
    table,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
    kb,
    kt,
    kg,
    kk,
    vb,
    vt,
    vh,
    vc,
    gb,
    gt,
    gh,
    bb,
    bt,
    bh,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PACKED: tl.constexpr,
    BOTH: tl.constexpr,
    LEFT: tl.constexpr,
):
    _, head, chunk, b = head_of(1, heads, chunks)
    _sequence, begin, end, _first, _count = place_of(chunk, table, table, length, STEPS, False, PACKED)
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    k += b * kb + (head // in_group) * kg
    v += b * vb + head * vh
    of_g = column(g + b * gb + head * gh, t, in_time, gt)
    of_beta = column(beta + b * bb + head * bh, t, in_time, bt)
    m = tl.zeros([STEPS, STEPS], tl.float32)
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        of_k = rows(k, t, at_k, in_time, at_k < keys, kt, kk)
        m = dot(of_k, tl.trans(of_k), m, BOTH)
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    m = tl.where(i > j, m * between_steps(of_g, STEPS), 0.0) * of_beta[:, None]
    inverse = _inverse(m, STEPS) * of_beta[None, :]
    at_row = ((b * length + t) * heads + head)[:, None]
    for first_value in range(0, values, VALUES):
        at_v = wide(first_value) + tl.arange(0, VALUES)
        of_v = rows(v, t, at_v, in_time, at_v < values, vt, vc).to(tl.float32)
        part = dot(inverse, of_v, tl.zeros([STEPS, VALUES], tl.float32), LEFT)
        tl.store(u + at_row * values + at_v[None, :], part, mask=in_time[:, None] & (at_v < values)[None, :])
    inverse *= tl.exp(tl.cumsum(of_g, 0))[None, :]
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        of_k = rows(k, t, at_k, in_time, at_k < keys, kt, kk).to(tl.float32)
        part = dot(inverse, of_k, tl.zeros([STEPS, KEYS], tl.float32), LEFT)
        tl.store(w + at_row * keys + at_k[None, :], part, mask=in_time[:, None] & (at_k < keys)[None, :])


@triton.jit
def scan(
    k,
    g,
    u,  # u0, which becomes u
    w,
    start,
    final,
    between,  # (batch, chunks, heads, keys, values): states before chunks
    bounds,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
    sequences,
    blocks,
    kb,
    kt,
    kg,
    kk,
    gb,
    gt,
    gh,
    sb,
    ss,
    sh,
    sk,
    sv,
    fb,
    fs,
    fh,
    fk,
    fv,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_START: tl.constexpr,
    PACKED: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, line, b = head_of(blocks, heads, sequences)
    sequence, first_step, last_step, first, count = place_of(line, bounds, bounds, length, STEPS, True, PACKED)
    at_v = wide(block) * VALUES + tl.arange(0, VALUES)
    in_values = at_v < values
    k += b * kb + (head // in_group) * kg
    g += b * gb + head * gh
    start += b * sb + sequence * ss + head * sh
    final += b * fb + sequence * fs + head * fh
    step = wide(keys) * values
    between += ((b * chunks + first) * heads + head) * step
    # The state is in memory, of which a program has its own columns: a block of keys at a time is in registers.
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        in_state = (at_k < keys)[:, None] & in_values[None, :]
        state = tl.zeros([KEYS, VALUES], tl.float32)
        if HAS_START:
            state += tl.load(start + at_k[:, None] * sk + at_v[None, :] * sv, mask=in_state, other=0.0)
        at_first = between + at_k[:, None] * wide(values) + at_v[None, :]
        tl.store(at_first, state, mask=in_state & (count > 0))
        tl.store(final + at_k[:, None] * fk + at_v[None, :] * fv, state, mask=in_state & (count == 0))
    for chunk in range(0, count):
        tl.debug_barrier()  # the state before the chunk has been written
        begin = first_step + chunk * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        t = begin + tl.arange(0, STEPS)
        in_time = t < end
        at_row = ((b * length + t) * heads + head)[:, None]
        in_tile = in_time[:, None] & in_values[None, :]
        read = tl.zeros([STEPS, VALUES], tl.float32)
        here = between + chunk * heads * step
        for first_key in range(0, keys, KEYS):
            at_k = wide(first_key) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            of_w = tl.load(w + at_row * keys + at_k[None, :], mask=in_time[:, None] & in_keys[None, :], other=0.0)
            at_state = here + at_k[:, None] * wide(values) + at_v[None, :]
            state = tl.load(at_state, mask=in_keys[:, None] & in_values[None, :], other=0.0)
            read = dot(of_w, state, read, EXACT)
        of_u = tl.load(u + at_row * values + at_v[None, :], mask=in_tile, other=0.0) - read
        tl.store(u + at_row * values + at_v[None, :], of_u, mask=in_tile)
        following = column(g, t + 1, t + 1 < end, gt)
        to_end = tl.exp(tl.cumsum(following, 0, reverse=True))
        whole = tl.exp(tl.sum(column(g, t, in_time, gt), 0))
        for first_key in range(0, keys, KEYS):
            at_k = wide(first_key) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            in_state = in_keys[:, None] & in_values[None, :]
            at_state = here + at_k[:, None] * wide(values) + at_v[None, :]
            state = tl.load(at_state, mask=in_state, other=0.0) * whole
            written = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32) * to_end[:, None]
            state = dot(tl.trans(written), of_u, state, EXACT)
            tl.store(at_state + heads * step, state, mask=in_state & (chunk + 1 < count))
            at_final = final + at_k[:, None] * fk + at_v[None, :] * fv
            tl.store(at_final, state, mask=in_state & (chunk + 1 == count))
