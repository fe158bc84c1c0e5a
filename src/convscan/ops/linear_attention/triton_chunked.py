"""Linear attention with decay on a GPU's tensor cores: chunks of time as products of matrices.

    S[t] = diag(a[t]) S[t-1] + w[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)

With D[t,s] the product of a over (s, t], a chunk of n steps that begins at state S is

    y[t] = S^T (D[t,-1] q[t]) + sum_{s<=t} P[t,s] v[s],   P[t,s] = w[s] q[t]^T D[t,s] k[s]
    S    = D[n-1,-1] S + sum_s w[s] (D[n-1,s] k[s]) v[s]^T

Chunks have 64 steps. A program of ``outputs`` walks over those of a segment with all keys and a block of the values of
one head's state in registers. Where heads and batch fill a device, the segment is the sequence, and no state is ever in
memory but the first and the last. Else sequences are cut into segments of some chunks: ``states`` computes what each
adds to the state, all of them at once, and ``carry`` goes over these and puts the state before each in their place. Of
states too large for registers a segment is a chunk, whose products with the state are formed a block of keys at a time.
Backwards the same kernels, with q for k and the gradient of y for v, carry the gradient of the state from the end and
give that of v; ``gradients`` computes those of q, k and the decays, for a part of the keys of all chunks at once.

Logarithms of decays are summed over what lies between two steps, so that nothing is divided by a product that may have
underflowed, and a = 0 is a number like any other. Where a is one number a step, D is a matrix and P an ordinary product
weighted by it. Where a differs between keys, ``pairs`` makes P of all chunks first: decays between two steps are split
where the later one's block of 16 steps begins, or within a block where the later one's half, quarter and so on does,
which leaves products too. The gradient splits them in the same way, of what ``pair_gradients`` makes for either kind.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide
from .triton_tiles import absorb, between_steps, column, decays_of, halves, rows, to_block, value_columns


@triton.jit
def pairs(
    q,
    k,
    g,
    p,  # (batch, length, heads, STEPS): of each step those with the steps of its chunk up to it
    table,
    length,
    in_group,
    heads,
    keys,
    chunks,
    qb,
    qt,
    qg,
    qk,
    kb,
    kt,
    kg,
    kk,
    gb,
    gt,
    gh,
    gk,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """q[t]^T D[t,s] k[s] of decays by key."""
    block, head, chunk, b = head_of(STEPS // BLOCK, heads, chunks)
    _sequence, begin, end, _first, _count = place_of(chunk, table, table, length, STEPS, False, PACKED)
    q += b * qb + (head // in_group) * qg
    k += b * kb + (head // in_group) * kg
    g += b * gb + head * gh
    first_row = begin + block * BLOCK
    row, t = first_row + tl.arange(0, BLOCK), begin + tl.arange(0, STEPS)
    in_rows, before = row < end, (t < end) & (t < first_row)
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    near, far = tl.zeros([BLOCK, BLOCK], tl.float32), tl.zeros([BLOCK, STEPS], tl.float32)
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        of_g = rows(g, row, at_k, in_rows, in_keys, gt, gk)
        following = rows(g, row + 1, at_k, row + 1 < end, in_keys, gt, gk)
        from_start = tl.exp(tl.cumsum(of_g, 0))
        written = rows(k, t, at_k, before, in_keys, kt, kk).to(tl.float32)
        written *= to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk).to(tl.float32)
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk).to(tl.float32)
        far = dot(of_q * from_start, tl.trans(written), far, EXACT)
        near += tl.where(i == j, tl.sum(of_q * of_k, 1)[:, None], 0.0)
        for level in tl.static_range(4):
            from_half, to_end, between = halves(of_g, following, BLOCK, 1 << level, KEYS)
            moved, none = tl.trans(of_k * to_end), tl.zeros([BLOCK, BLOCK], tl.float32)
            near += tl.where(between, dot(of_q * from_half, moved, none, EXACT), 0.0)
    at_row = ((b * length + row) * heads + head)[:, None] * STEPS
    at_near, at_far = at_row + block * BLOCK + j, at_row + tl.arange(0, STEPS)[None, :]
    is_far = in_rows[:, None] & before[None, :]
    tl.store(p + at_near, near, mask=in_rows[:, None])
    tl.store(p + at_far, far, mask=is_far)


@triton.jit
def outputs(
    q,
    k,
    v,  # backwards the gradient of y
    g,
    w,
    p,  # of decays by key
    skip,
    y,  # backwards that of v
    sums,
    between,
    start,
    start_sum,
    final,
    final_sum,
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    columns,
    segments,
    sequences,
    blocks,
    qb,
    qt,
    qg,
    qk,
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
    gk,
    wb,
    wt,
    wh,
    ph,
    pc,
    yb,
    yt,
    yh,
    yc,
    ub,
    ut,
    uh,
    sb,
    ss,
    sh,
    sk,
    sv,
    nb,
    ns,
    nh,
    nk,
    fb,
    fs,
    fh,
    fk,
    fv,
    mb,
    ms,
    mh,
    mk,
    SEGMENT: tl.constexpr,
    WHOLE: tl.constexpr,  # a segment is a sequence
    CARRIED: tl.constexpr,  # as many blocks of keys are in registers; if none, a segment has one chunk
    STEPS: tl.constexpr,
    TIME: tl.constexpr,  # of a tile that the state takes up at once
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    BOTH: tl.constexpr,  # precisions of products: of two inputs, and of an input at the right or left of what is exact
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    lines = sequences if WHOLE else segments
    block, head, line, b = head_of(blocks, heads, lines)
    sequence, first_step, last_step, first, _count = place_of(line, bounds, table, length, SEGMENT, WHOLE, PACKED)
    group = head // in_group
    at_v = wide(block) * VALUES + tl.arange(0, VALUES)
    in_values = at_v < values
    of_sum = at_v == values
    q += b * qb + group * qg
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    y += b * yb + head * yh
    sums += b * ub + head * uh
    start += b * sb + sequence * ss + head * sh
    start_sum += b * nb + sequence * ns + head * nh
    at = (b * segments + first) * heads + head
    between += at * keys * columns
    state = ()
    for part in tl.static_range(CARRIED):
        at_k = wide(part * KEYS) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        first_state = tl.zeros([VALUES, KEYS], tl.float32)
        if not WHOLE:
            at_first = between + at_k[None, :] * wide(columns) + at_v[:, None]
            first_state += tl.load(at_first, mask=in_keys[None, :] & (at_v < values + HAS_SUMS)[:, None], other=0.0)
        elif HAS_START:
            at_first = start + at_k[None, :] * sk + at_v[:, None] * sv
            first_state += tl.load(at_first, mask=in_keys[None, :] & in_values[:, None], other=0.0)
            if HAS_SUMS:
                first_sum = tl.load(start_sum + at_k * nk, mask=in_keys, other=0.0)
                first_state += tl.where(of_sum[:, None], first_sum[None, :], 0.0)
        state = state + (first_state,)
    of_skip = tl.zeros([VALUES], tl.float32)
    if HAS_SKIP:
        of_skip = tl.load(skip + head * ph + at_v * pc, mask=in_values, other=0.0)
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    TILES: tl.constexpr = STEPS // TIME
    chunks = (last_step - first_step + STEPS - 1) // STEPS
    for chunk in range(0, chunks):
        begin = first_step + (chunks - 1 - chunk if BACKWARDS else chunk) * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        t = begin + tl.arange(0, STEPS)
        in_time = t < end
        near = tl.zeros([STEPS, STEPS], tl.float32)
        read = tl.zeros([STEPS, VALUES], tl.float32)
        # Before the products with the state, for which registers are few.
        if PER_KEY:
            at_row = ((b * length + t) * heads + head)[:, None] * STEPS
            near = tl.load(p + at_row + j, mask=in_time[:, None] & (i >= j), other=0.0) * scale
        else:
            of_g = column(g, t, in_time, gt)
            for first_key in range(0, keys, KEYS):
                at_k = wide(first_key) + tl.arange(0, KEYS)
                in_keys = at_k < keys
                of_q = rows(q, t, at_k, in_time, in_keys, qt, qk)
                near = dot(of_q, tl.trans(rows(k, t, at_k, in_time, in_keys, kt, kk)), near, BOTH)
            near *= between_steps(of_g, STEPS) * scale
        if HAS_W and not BACKWARDS:
            near *= column(w, t, in_time, wt)[None, :]
        for part in tl.static_range(CARRIED if CARRIED else 1):
            for first_key in range(part * KEYS, (part + 1) * KEYS if CARRIED else keys, KEYS):
                at_k = wide(first_key) + tl.arange(0, KEYS)
                in_keys = at_k < keys
                if CARRIED:
                    of_state = tl.trans(state[part])
                else:
                    at_state = between + at_k[:, None] * wide(columns) + at_v[None, :]
                    in_state = in_keys[:, None] & (at_v < values + HAS_SUMS)[None, :]
                    of_state = tl.load(at_state, mask=in_state, other=0.0)
                if BACKWARDS:
                    own = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32)
                else:
                    own = rows(q, t, at_k, in_time, in_keys, qt, qk).to(tl.float32)
                if PER_KEY:
                    own *= decays_of(g, t, at_k, end, in_keys, gt, gk, PER_KEY, not BACKWARDS)
                read = dot(own, of_state, read, EXACT if PER_KEY else RIGHT)
        if not PER_KEY:
            if BACKWARDS:
                following = column(g, t + 1, t + 1 < end, gt)
                read *= tl.exp(tl.cumsum(following, 0, reverse=True))[:, None]
            else:
                read *= tl.exp(tl.cumsum(of_g, 0))[:, None]
        if not BACKWARDS:
            read *= scale
        of_v = value_columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS, False)
        read = dot(tl.trans(near) if BACKWARDS else near, of_v, read, LEFT)
        if BACKWARDS and HAS_W:
            read *= column(w, t, in_time, wt)[:, None]
        if HAS_SKIP:
            read += of_skip[None, :] * of_v
        tl.store(y + t[:, None] * yt + at_v[None, :] * yc, read, mask=in_time[:, None] & in_values[None, :])
        if HAS_SUMS:
            summed = tl.sum(tl.where(of_sum[None, :], read, 0.0), 1)
            tl.store(sums + t * ut, summed, mask=in_time & (block == values // VALUES))
        if CARRIED:
            for tile in tl.static_range(TILES):
                state = absorb(
                    state,
                    q if BACKWARDS else k,
                    v,
                    g,
                    w,
                    sums,
                    begin + (TILES - 1 - tile if BACKWARDS else tile) * TIME,
                    end,
                    0,
                    keys,
                    at_v,
                    values,
                    scale,
                    qt if BACKWARDS else kt,
                    qk if BACKWARDS else kk,
                    vt,
                    vc,
                    gt,
                    gk,
                    wt,
                    ut,
                    TIME,
                    KEYS,
                    PER_KEY,
                    HAS_W and not BACKWARDS,
                    HAS_SUMS,
                    BACKWARDS,
                    RIGHT,
                    LEFT,
                    EXACT,
                )
    if HAS_FINAL:
        final += b * fb + sequence * fs + head * fh
        final_sum += b * mb + sequence * ms + head * mh
        for part in tl.static_range(CARRIED):
            at_k = wide(part * KEYS) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            at_final = final + at_k[None, :] * fk + at_v[:, None] * fv
            tl.store(at_final, state[part], mask=in_keys[None, :] & in_values[:, None])
            if HAS_SUMS:
                last_sum = tl.sum(tl.where(of_sum[:, None], state[part], 0.0), 0)
                tl.store(final_sum + at_k * mk, last_sum, mask=in_keys & (block == values // VALUES))
