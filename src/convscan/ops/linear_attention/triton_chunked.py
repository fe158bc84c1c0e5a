"""Linear attention with decay on a GPU's tensor cores: chunks of time as products of matrices.

    S[t] = diag(a[t]) S[t-1] + w[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)

With D[t,s] the product of a over (s, t], a tile of n steps that begins at state S is

    y[t] = S^T (D[t,-1] q[t]) + sum_{s<=t} P[t,s] v[s],   P[t,s] = w[s] q[t]^T D[t,s] k[s]
    S    = D[n-1,-1] S + sum_s w[s] (D[n-1,s] k[s]) v[s]^T

Chunks have 64 steps. ``scan`` carries a part of one head's state through a sequence and stores it before every chunk;
``outputs`` then computes all chunks at once. Backwards the same kernels, with q for k and the gradient of y for v,
carry the gradient of the state from the end and give that of v; ``gradients`` computes those of q, k and the decays,
for a part of the keys of all chunks at once. Nothing needs more of a head at once than a block of its keys and one of
its values.

Logarithms of decays are summed over what lies between two steps, so that nothing is divided by a product that may have
underflowed, and a = 0 is a number like any other. Where a is one number a step, D is a matrix and P an ordinary product
weighted by it. Where a differs between keys, decays between blocks of 16 steps are split where the later block begins,
or the earlier one ends, which leaves products too; within a block P is summed by key while decays are multiplied on.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide


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
def products_by_key(q, k, g, begin, c, end, in_keys, kt, kk, gt, gk, TIME: tl.constexpr):
    """q[t]^T D[t,s] k[s] of a block of steps, while the decays since s are multiplied onto the queries."""
    t = tl.arange(0, TIME)
    moving = q
    products = tl.zeros([TIME, TIME], tl.float32)
    for index in range(TIME):
        s = TIME - 1 - index
        there = in_keys & (begin + s < end)
        of_k = tl.load(k + (begin + s) * kt + c * kk, mask=there, other=0.0).to(tl.float32)
        of_g = tl.load(g + (begin + s) * gt + c * gk, mask=there, other=0.0)
        product = tl.where(t >= s, tl.sum(moving * of_k[None, :], 1), 0.0)
        products = tl.where(t[None, :] == s, product[:, None], products)
        moving = tl.where((t >= s)[:, None], moving * tl.exp(of_g)[None, :], moving)
    return products


@triton.jit
def to_block(g, t, c, begin, block, in_columns, gt, gk):
    """exp of g by key, summed from behind each step up to where a later block of the chunk begins."""
    within = (t + 1 < block) & (t >= begin)
    return tl.exp(tl.cumsum(rows(g, t + 1, c, within, in_columns, gt, gk), 0, reverse=True))


@triton.jit
def _from_block(g, t, c, behind, end, in_columns, gt, gk):
    """exp of g by key, summed from the end of an earlier block up to each step."""
    return tl.exp(tl.cumsum(rows(g, t, c, (t >= behind) & (t < end), in_columns, gt, gk), 0))


@triton.jit
def scan(
    k,
    v,
    g,
    w,
    sums,  # backwards, in place of the column of ones the gradient of the sums
    start,
    start_sum,
    final,
    final_sum,
    between,  # (batch, chunks, heads, keys, values): states before chunks, backwards behind them
    between_sum,
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
    sequences,
    key_blocks,
    value_blocks,
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
    STEPS: tl.constexpr,
    TIME: tl.constexpr,  # of a tile, less than a chunk for the sake of registers
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    LEFT: tl.constexpr,
):
    block, head, line, b = head_of(value_blocks * key_blocks, heads, sequences)
    value_block, key_block = block % value_blocks, block // value_blocks
    sequence, first_step, last_step, first, count = place_of(line, bounds, table, length, STEPS, True, PACKED)
    group = head // in_group
    at_k, at_v = wide(key_block) * KEYS + tl.arange(0, KEYS), wide(value_block) * VALUES + tl.arange(0, VALUES)
    in_keys, in_values = at_k < keys, at_v < values
    in_state = in_keys[:, None] & in_values[None, :]
    of_sum = in_keys & (value_block == 0)
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    sums += b * ub + head * uh
    own = at_k[:, None] * wide(values) + at_v[None, :]
    step = wide(keys) * values
    state = tl.zeros([KEYS, VALUES], tl.float32)
    total = tl.zeros([KEYS], tl.float32)
    if HAS_START:
        at_start = start + b * sb + sequence * ss + head * sh
        state += tl.load(at_start + at_k[:, None] * sk + at_v[None, :] * sv, mask=in_state, other=0.0)
        if HAS_SUMS:
            total += tl.load(start_sum + b * nb + sequence * ns + head * nh + at_k * nk, mask=in_keys, other=0.0)
    tiles: tl.constexpr = STEPS // TIME
    for index in range(0, count * tiles):
        tile = index
        if BACKWARDS:
            tile = count * tiles - 1 - index
        if index % tiles == 0:
            at = (b * chunks + first + tile // tiles) * heads + head
            tl.store(between + at * step + own, state, mask=in_state)
            if HAS_SUMS:
                tl.store(between_sum + at * keys + at_k, total, mask=of_sum)
        begin = first_step + tile * TIME
        end = tl.minimum(begin + TIME, last_step)
        t = begin + tl.arange(0, TIME)
        in_time = t < end
        written = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32)
        of_v = rows(v, t, at_v, in_time, in_values, vt, vc).to(tl.float32)
        of_g = gates_of(g, t, at_k, in_time, in_keys, gt, gk, PER_KEY)
        if BACKWARDS:
            decay = tl.exp(tl.cumsum(of_g, 0)) * scale
        else:
            following = gates_of(g, t + 1, at_k, t + 1 < end, in_keys, gt, gk, PER_KEY)
            decay = tl.exp(tl.cumsum(following, 0, reverse=True))
        if PER_KEY:
            written *= decay
        else:
            written *= decay[:, None]
        if HAS_W:
            written *= column(w, t, in_time, wt)[:, None]
        whole = tl.exp(tl.sum(of_g, 0))
        if HAS_SUMS:
            if BACKWARDS:
                total = total * whole + tl.sum(written * column(sums, t, in_time, ut)[:, None], 0)
            else:
                total = total * whole + tl.sum(written, 0)
        if PER_KEY:
            state *= whole[:, None]
        else:
            state *= whole
        state = dot(tl.trans(written), of_v, state, LEFT)
    if HAS_FINAL:
        at_final = final + b * fb + sequence * fs + head * fh
        tl.store(at_final + at_k[:, None] * fk + at_v[None, :] * fv, state, mask=in_state)
        if HAS_SUMS:
            tl.store(final_sum + b * mb + sequence * ms + head * mh + at_k * mk, total, mask=of_sum)


@triton.jit
def outputs(
    q,
    k,
    v,  # backwards the gradient of y
    g,
    w,
    skip,
    y,  # backwards that of v
    sums,
    between,
    between_sum,
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
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
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,  # of steps whose decays differ by key
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    BOTH: tl.constexpr,  # precisions of products: of two inputs, and of an input at the right or left of what is exact
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, chunk, b = head_of(blocks, heads, chunks)
    _sequence, begin, end, first, _count = place_of(chunk, bounds, table, length, STEPS, False, PACKED)
    group = head // in_group
    at_v = wide(block) * VALUES + tl.arange(0, VALUES)
    in_values = at_v < values
    q += b * qb + group * qg
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    y += b * yb + head * yh
    sums += b * ub + head * uh
    at = (b * chunks + first) * heads + head
    between += at * keys * values
    between_sum += at * keys
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    of_skip = tl.zeros([VALUES], tl.float32)
    if HAS_SKIP:
        of_skip = tl.load(skip + head * ph + at_v * pc, mask=in_values, other=0.0)
    ROWS: tl.constexpr = BLOCK if PER_KEY else STEPS
    row_blocks = (end - begin + ROWS - 1) // ROWS if PER_KEY else 1
    for index in range(0, row_blocks):
        first_row = begin + index * ROWS
        row = first_row + tl.arange(0, ROWS)
        in_rows = row < end
        behind = first_row + ROWS
        near = tl.zeros([ROWS, ROWS], tl.float32)  # products with steps of the same rows
        far = tl.zeros([ROWS, STEPS], tl.float32)  # with those of other blocks
        read = tl.zeros([ROWS, VALUES], tl.float32)
        summed = tl.zeros([ROWS], tl.float32)
        for first_key in range(0, keys, KEYS):
            at_k = wide(first_key) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk)
            of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk)
            at_state = between + at_k[:, None] * wide(values) + at_v[None, :]
            state = tl.load(at_state, mask=in_keys[:, None] & in_values[None, :], other=0.0)
            if PER_KEY:
                of_q = of_q.to(tl.float32)
                near += products_by_key(of_q, k, g, first_row, at_k, end, in_keys, kt, kk, gt, gk, ROWS)
                of_g = rows(g, row, at_k, in_rows, in_keys, gt, gk)
                if BACKWARDS:
                    following = rows(g, row + 1, at_k, (row + 1 < behind) & (row + 1 < end), in_keys, gt, gk)
                    own = of_k.to(tl.float32) * tl.exp(tl.cumsum(following, 0, reverse=True))
                    other = rows(q, t, at_k, in_time & (t >= behind), in_keys, qt, qk).to(tl.float32)
                    other *= _from_block(g, t, at_k, behind, end, in_keys, gt, gk)
                    rest = rows(g, t, at_k, in_time & (t >= behind), in_keys, gt, gk)
                else:
                    own = of_q * tl.exp(tl.cumsum(of_g, 0))
                    other = rows(k, t, at_k, in_time & (t < first_row), in_keys, kt, kk).to(tl.float32)
                    other *= to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
                    rest = rows(g, t, at_k, in_time & (t < first_row), in_keys, gt, gk)
                far = dot(own, tl.trans(other), far, EXACT)
                own *= tl.exp(tl.sum(rest, 0))[None, :]
                read = dot(own, state, read, EXACT)
            else:
                own = of_q.to(tl.float32)
                near = dot(of_q, tl.trans(of_k), near, BOTH)
                read = dot(of_k.to(tl.float32) if BACKWARDS else own, state, read, RIGHT)
            if HAS_SUMS:
                total = tl.load(between_sum + at_k, mask=in_keys, other=0.0)
                summed += tl.sum(own * total[None, :], 1)
        if not PER_KEY:
            of_g = column(g, row, in_rows, gt)
            near *= between_steps(of_g, ROWS)
            if BACKWARDS:
                following = column(g, row + 1, row + 1 < end, gt)
                read *= tl.exp(tl.cumsum(following, 0, reverse=True))[:, None]
            else:
                from_start = tl.exp(tl.cumsum(of_g, 0))
                read *= from_start[:, None]
                summed *= from_start
        of_v = rows(v, row, at_v, in_rows, in_values, vt, vc).to(tl.float32)
        if BACKWARDS:
            near, far = near * scale, far * scale
            if PER_KEY:
                all_v = rows(v, t, at_v, in_time, in_values, vt, vc).to(tl.float32)
                read = dot(far, all_v, read, LEFT)
            read = dot(tl.trans(near), of_v, read, LEFT)
            if HAS_W:
                read *= column(w, row, in_rows, wt)[:, None]
        else:
            near, far, read, summed = near * scale, far * scale, read * scale, summed * scale
            if HAS_W:
                near *= column(w, row, in_rows, wt)[None, :]
                far *= column(w, t, in_time, wt)[None, :]
            if HAS_SUMS:
                summed += tl.sum(near, 1)
                if PER_KEY:
                    summed += tl.sum(far, 1)
                tl.store(sums + row * ut, summed, mask=in_rows & (block == 0))
            if PER_KEY:
                all_v = rows(v, t, at_v, in_time, in_values, vt, vc).to(tl.float32)
                read = dot(far, all_v, read, LEFT)
            read = dot(near, of_v, read, LEFT)
            if HAS_SKIP:
                read += of_skip[None, :] * of_v
        tl.store(y + row[:, None] * yt + at_v[None, :] * yc, read, mask=in_rows[:, None] & in_values[None, :])


@triton.jit
def gradients(
    q,
    k,
    v,
    g,
    w,
    dy,
    dsums,
    errors,  # (batch, length, heads, values): gradients of what v is less the answer of the decayed state to k
    before,
    before_sum,
    behind,
    behind_sum,
    dq,  # (batch, length, heads, keys), as dk; dg where it is by key
    dk,
    dg,  # (key blocks, batch, length, heads), as dw
    dw,
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
    batch,
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
    yb,
    yt,
    yh,
    yc,
    ub,
    ut,
    uh,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    HAS_ERRORS: tl.constexpr,
    PACKED: tl.constexpr,
    BOTH: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    # Values are inputs, but where they are solved for.
    OF_VALUES: tl.constexpr = EXACT if HAS_ERRORS else BOTH
    WRITTEN: tl.constexpr = EXACT if HAS_ERRORS else RIGHT
    block, head, chunk, b = head_of(blocks, heads, chunks)
    _sequence, begin, end, first, _count = place_of(chunk, bounds, table, length, STEPS, False, PACKED)
    group = head // in_group
    at_k = wide(block) * KEYS + tl.arange(0, KEYS)
    in_keys = at_k < keys
    q += b * qb + group * qg
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    dy += b * yb + head * yh
    dsums += b * ub + head * uh
    errors += (b * length * heads + head) * values
    next_errors = wide(heads) * values
    at = (b * chunks + first) * heads + head
    before += at * keys * values
    behind += at * keys * values
    total, total_behind = tl.zeros([KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
    if HAS_SUMS:
        total += tl.load(before_sum + at * keys + at_k, mask=in_keys, other=0.0)
        total_behind += tl.load(behind_sum + at * keys + at_k, mask=in_keys, other=0.0)
    kept = total * total_behind  # what the decay of the whole chunk multiplies
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    ROWS: tl.constexpr = BLOCK if PER_KEY else STEPS
    row_blocks = (end - begin + ROWS - 1) // ROWS if PER_KEY else 1
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    at_end = tl.zeros([KEYS], tl.float32)
    through = tl.zeros([KEYS], tl.float32)  # of blocks behind this one, what reaches their queries less their keys
    for first_value in range(0, values, VALUES):
        at_v = wide(first_value) + tl.arange(0, VALUES)
        own = at_k[:, None] * wide(values) + at_v[None, :]
        in_state = in_keys[:, None] & (at_v < values)[None, :]
        state = tl.load(before + own, mask=in_state, other=0.0)
        kept += tl.sum(state * tl.load(behind + own, mask=in_state, other=0.0), 1)
    # Blocks of keys first, whose part in the state at the end all decays before it have.
    for index in range(0, row_blocks):
        first_row = begin + index * ROWS
        row = first_row + tl.arange(0, ROWS)
        in_rows = row < end
        after = first_row + ROWS
        near = tl.zeros([ROWS, ROWS], tl.float32)  # dy[t]^T v[s] within the rows
        far = tl.zeros([ROWS, STEPS], tl.float32)  # of their values and queries behind them
        near_error, far_error = near, far  # the same of errors
        wrote = tl.zeros([ROWS, KEYS], tl.float32)
        read = tl.zeros([ROWS, KEYS], tl.float32)
        read_error = read
        for first_value in range(0, values, VALUES):
            at_v = wide(first_value) + tl.arange(0, VALUES)
            in_values = at_v < values
            own = at_k[:, None] * wide(values) + at_v[None, :]
            in_state = in_keys[:, None] & in_values[None, :]
            of_v = rows(v, row, at_v, in_rows, in_values, vt, vc)
            of_dy = rows(dy, row, at_v, in_rows, in_values, yt, yc).to(of_v.dtype)
            near = dot(of_dy, tl.trans(of_v), near, OF_VALUES)
            later = tl.load(behind + own, mask=in_state, other=0.0)
            wrote = dot(of_v.to(tl.float32), tl.trans(later), wrote, WRITTEN)
            if HAS_ERRORS:
                of_error = rows(errors, row, at_v, in_rows, in_values, next_errors, 1)
                near_error = dot(of_error, tl.trans(of_v), near_error, EXACT)
            if PER_KEY:
                all_dy = rows(dy, t, at_v, in_time & (t >= after), in_values, yt, yc).to(of_v.dtype)
                far = dot(of_v, tl.trans(all_dy), far, OF_VALUES)
                if HAS_ERRORS:
                    all_errors = rows(errors, t, at_v, in_time & (t >= after), in_values, next_errors, 1)
                    far_error = dot(of_v, tl.trans(all_errors), far_error, EXACT)
            else:
                state = tl.load(before + own, mask=in_state, other=0.0)
                read = dot(of_dy.to(tl.float32), tl.trans(state), read, RIGHT)
                if HAS_ERRORS:
                    read_error = dot(of_error, tl.trans(state), read_error, EXACT)
        if HAS_SUMS:
            of_dsums = column(dsums, row, in_rows, ut)
            near += of_dsums[:, None]
            wrote += total_behind[None, :]
            if PER_KEY:
                far += column(dsums, t, in_time & (t >= after), ut)[None, :]
            else:
                read += of_dsums[:, None] * total[None, :]
        near = tl.where(i >= j, near, 0.0) * scale
        near_error = tl.where(i > j, -near_error, 0.0)
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk)
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk)
        q32, k32 = of_q.to(tl.float32), of_k.to(tl.float32)
        weight = tl.zeros([ROWS], tl.float32) + 1.0
        if HAS_W:
            weight = column(w, row, in_rows, wt)
        of_g = gates_of(g, row, at_k, in_rows, in_keys, gt, gk, PER_KEY)
        at_row = (b * length + row) * heads + head
        in_tile = in_rows[:, None] & in_keys[None, :]
        if PER_KEY:
            following = rows(g, row + 1, at_k, (row + 1 < after) & (row + 1 < end), in_keys, gt, gk)
            to_after = tl.exp(tl.cumsum(following, 0, reverse=True))
            rest = rows(g, t, at_k, in_time & (t >= after), in_keys, gt, gk)
            wrote *= to_after * tl.exp(tl.sum(rest, 0))[None, :]
            at_end += tl.sum(k32 * wrote * weight[:, None], 0)
            asked = rows(q, t, at_k, in_time & (t >= after), in_keys, qt, qk).to(tl.float32)
            from_after = _from_block(g, t, at_k, after, end, in_keys, gt, gk)
            passed = dot(far * scale, asked * from_after, tl.zeros([ROWS, KEYS], tl.float32), EXACT)
            if HAS_ERRORS:
                asked = rows(k, t, at_k, in_time & (t >= after), in_keys, kt, kk).to(tl.float32)
                passed = dot(-far_error, asked * from_after, passed, EXACT)
            of_dk = wrote + to_after * passed
            decay = tl.zeros([ROWS, KEYS], tl.float32) + 1.0
            step_row = tl.arange(0, ROWS)
            for step in range(ROWS):
                s = ROWS - 1 - step
                g_s = tl.load(g + (first_row + s) * gt + at_k * gk, mask=in_keys & (first_row + s < end), other=0.0)
                near_s = tl.sum(tl.where(j == s, near, 0.0), 1)
                pairs = near_s[:, None] * q32
                if HAS_ERRORS:
                    pairs += tl.sum(tl.where(j == s, near_error, 0.0), 1)[:, None] * k32
                pairs = tl.where((step_row >= s)[:, None], pairs * decay, 0.0)
                of_dk += tl.where((step_row == s)[:, None], tl.sum(pairs, 0)[None, :], 0.0)
                decay = tl.where((step_row >= s)[:, None], decay * tl.exp(g_s)[None, :], decay)
        else:
            whole = tl.exp(tl.sum(of_g, 0))
            following = column(g, row + 1, row + 1 < end, gt)
            wrote *= tl.exp(tl.cumsum(following, 0, reverse=True))[:, None]
            from_start = tl.exp(tl.cumsum(of_g, 0))
            read *= (from_start * scale)[:, None]
            decays = between_steps(of_g, ROWS)
            near *= decays
            of_dk = dot(tl.trans(near), q32, wrote, LEFT)
            near *= weight[None, :]
            # A decay counts in what passes over it: pairs of a step before and one not before, and the states.
            pairs = dot(of_q, tl.trans(of_k), tl.zeros([ROWS, ROWS], tl.float32), BOTH) * near
            of_reads = tl.sum(q32 * read, 1)
            if HAS_ERRORS:
                read_error *= -from_start[:, None]
                near_error *= decays
                of_dk = dot(tl.trans(near_error), k32, of_dk, LEFT)
                near_error *= weight[None, :]
                pairs += dot(of_k, tl.trans(of_k), tl.zeros([ROWS, ROWS], tl.float32), BOTH) * near_error
                of_reads += tl.sum(k32 * read_error, 1)
            passing = tl.cumsum(pairs, 0, reverse=True)
            through_k = tl.sum(k32 * wrote, 1) * weight
            of_dg = tl.sum(tl.where(j < i, passing + through_k[None, :], 0.0), 1)
            of_dg += tl.cumsum(of_reads, 0, reverse=True) + whole * tl.sum(kept, 0)
            tl.store(dg + wide(block) * batch * length * heads + at_row, of_dg, mask=in_rows)
            of_dq = dot(near, k32, read, LEFT)
            tl.store(dq + at_row[:, None] * keys + at_k[None, :], of_dq, mask=in_tile)
        if HAS_W:
            of_dw = tl.sum(k32 * of_dk, 1)
            tl.store(dw + wide(block) * batch * length * heads + at_row, of_dw, mask=in_rows)
        of_dk *= weight[:, None]
        if HAS_ERRORS and not PER_KEY:
            of_dk += dot(near_error, k32, read_error, LEFT)
        tl.store(dk + at_row[:, None] * keys + at_k[None, :], of_dk, mask=in_tile)
    if PER_KEY:
        tl.debug_barrier()  # what has been stored of the keys is read again
        at_end += kept * tl.exp(tl.sum(rows(g, t, at_k, in_time, in_keys, gt, gk), 0))
        for index in range(0, row_blocks):
            first_row = begin + (row_blocks - 1 - index) * ROWS
            row = first_row + tl.arange(0, ROWS)
            in_rows = row < end
            near = tl.zeros([ROWS, ROWS], tl.float32)
            far = tl.zeros([ROWS, STEPS], tl.float32)  # of their queries and values before them
            read = tl.zeros([ROWS, KEYS], tl.float32)
            near_error, far_error, read_error = near, far, read
            for first_value in range(0, values, VALUES):
                at_v = wide(first_value) + tl.arange(0, VALUES)
                in_values = at_v < values
                of_v = rows(v, row, at_v, in_rows, in_values, vt, vc)
                of_dy = rows(dy, row, at_v, in_rows, in_values, yt, yc).to(of_v.dtype)
                near = dot(of_dy, tl.trans(of_v), near, OF_VALUES)
                all_v = rows(v, t, at_v, in_time & (t < first_row), in_values, vt, vc)
                far = dot(of_dy, tl.trans(all_v), far, OF_VALUES)
                own = at_k[:, None] * wide(values) + at_v[None, :]
                state = tl.load(before + own, mask=in_keys[:, None] & in_values[None, :], other=0.0)
                read = dot(of_dy.to(tl.float32), tl.trans(state), read, RIGHT)
                if HAS_ERRORS:
                    of_error = rows(errors, row, at_v, in_rows, in_values, next_errors, 1)
                    near_error = dot(of_error, tl.trans(of_v), near_error, EXACT)
                    far_error = dot(of_error, tl.trans(all_v), far_error, EXACT)
                    read_error = dot(of_error, tl.trans(state), read_error, EXACT)
            if HAS_SUMS:
                of_dsums = column(dsums, row, in_rows, ut)
                near += of_dsums[:, None]
                far += of_dsums[:, None]
                read += of_dsums[:, None] * total[None, :]
            q32 = rows(q, row, at_k, in_rows, in_keys, qt, qk).to(tl.float32)
            k32 = rows(k, row, at_k, in_rows, in_keys, kt, kk).to(tl.float32)
            of_g = rows(g, row, at_k, in_rows, in_keys, gt, gk)
            from_start = tl.exp(tl.cumsum(of_g, 0))
            rest = rows(g, t, at_k, in_time & (t < first_row), in_keys, gt, gk)
            other = rows(k, t, at_k, in_time & (t < first_row), in_keys, kt, kk).to(tl.float32)
            other *= to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
            near = tl.where(i >= j, near, 0.0)
            near_error = tl.where(i > j, near_error, 0.0)
            if HAS_W:
                weight, of_all = column(w, row, in_rows, wt)[None, :], column(w, t, in_time, wt)[None, :]
                near, far, near_error, far_error = near * weight, far * of_all, near_error * weight, far_error * of_all
            of_start = tl.exp(tl.sum(rest, 0))[None, :]
            of_dq = dot(far, other, read * of_start, EXACT) * from_start
            of_key = read_error
            if HAS_ERRORS:
                of_key = dot(far_error, other, read_error * of_start, EXACT) * from_start
            decay = tl.zeros([ROWS, KEYS], tl.float32) + 1.0
            step_row = tl.arange(0, ROWS)
            for step in range(ROWS):
                s = ROWS - 1 - step
                there = in_keys & (first_row + s < end)
                k_s = tl.load(k + (first_row + s) * kt + at_k * kk, mask=there, other=0.0).to(tl.float32)
                g_s = tl.load(g + (first_row + s) * gt + at_k * gk, mask=there, other=0.0)
                near_s = tl.sum(tl.where(j == s, near, 0.0), 1)
                moved = tl.where((step_row >= s)[:, None], decay * k_s[None, :], 0.0)
                of_dq += near_s[:, None] * moved
                if HAS_ERRORS:
                    of_key += tl.sum(tl.where(j == s, near_error, 0.0), 1)[:, None] * moved
                decay = tl.where((step_row >= s)[:, None], decay * tl.exp(g_s)[None, :], decay)
            of_dq *= scale
            at_rows = ((b * length + row) * heads + head)[:, None] * keys + at_k[None, :]
            in_tile = in_rows[:, None] & in_keys[None, :]
            tl.store(dq + at_rows, of_dq, mask=in_tile)
            # A pair of steps behind a decay counts in both and cancels; one that it lies between counts in its query.
            of_dk = tl.load(dk + at_rows, mask=in_tile, other=0.0)
            moved = q32 * of_dq - k32 * of_dk
            if HAS_ERRORS:
                moved -= k32 * of_key
                tl.store(dk + at_rows, of_dk - of_key, mask=in_tile)
            of_dg = tl.cumsum(moved, 0, reverse=True) + (through + at_end)[None, :]
            through += tl.sum(moved, 0)
            tl.store(dg + at_rows, tl.where(of_g == float("-inf"), 0.0, of_dg), mask=in_tile)
