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
def _halves(g, following, ROWS: tl.constexpr, HALF: tl.constexpr, KEYS: tl.constexpr):
    """Decays by key from the start of each HALF rows up to each of them, from behind each to their end, and between
    which rows both lie: those of the second half of twice as many, and those of the first."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    following = tl.where((i + 1) % HALF == 0, 0.0, following)
    from_start = tl.cumsum(tl.reshape(g, [ROWS // HALF, HALF, KEYS]), 1)
    to_end = tl.cumsum(tl.reshape(following, [ROWS // HALF, HALF, KEYS]), 1, reverse=True)
    between = (i // HALF == j // HALF + 1) & (i // HALF % 2 == 1)
    return tl.exp(tl.reshape(from_start, [ROWS, KEYS])), tl.exp(tl.reshape(to_end, [ROWS, KEYS])), between


@triton.jit
def _to_block(g, t, c, begin, block, in_columns, gt, gk):
    """exp of g by key, summed from behind each step up to where a later block of the chunk begins."""
    within = (t + 1 < block) & (t >= begin)
    return tl.exp(tl.cumsum(rows(g, t + 1, c, within, in_columns, gt, gk), 0, reverse=True))


@triton.jit
def _from_block(g, t, c, behind, end, in_columns, gt, gk):
    """exp of g by key, summed from the end of an earlier block up to each step."""
    return tl.exp(tl.cumsum(rows(g, t, c, (t >= behind) & (t < end), in_columns, gt, gk), 0))


@triton.jit
def _columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS: tl.constexpr, BACKWARDS: tl.constexpr):
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
    of_v = _columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS, BACKWARDS)
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


@triton.jit
def states(
    k,
    v,
    g,
    w,
    sums,  # backwards, in place of the column of ones the gradient of the sums
    between,  # (batch, segments, heads, keys, columns): what segments add to the state
    decays,  # (batch, segments, heads), and keys where they differ: logarithms of decays over segments
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    columns,  # of a state in memory: values, and behind them the sums
    segments,
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
    SEGMENT: tl.constexpr,
    PARTS: tl.constexpr,  # blocks of keys that a program has
    TIME: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, segment, b = head_of(value_blocks * key_blocks, heads, segments)
    value_block, key_block = block % value_blocks, block // value_blocks
    _sequence, first_step, last_step, first, _count = place_of(segment, table, table, length, SEGMENT, False, PACKED)
    group = head // in_group
    first_key = key_block * PARTS * KEYS
    at_v = wide(value_block) * VALUES + tl.arange(0, VALUES)
    in_columns = at_v < values + HAS_SUMS
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    sums += b * ub + head * uh
    state = ()
    for _part in tl.static_range(PARTS):
        state = state + (tl.zeros([VALUES, KEYS], tl.float32),)
    tiles = (last_step - first_step + TIME - 1) // TIME
    for index in range(0, tiles):
        begin = first_step + (tiles - 1 - index if BACKWARDS else index) * TIME
        state = absorb(
            state,
            k,
            v,
            g,
            w,
            sums,
            begin,
            last_step,
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
            TIME,
            KEYS,
            PER_KEY,
            HAS_W,
            HAS_SUMS,
            BACKWARDS,
            RIGHT,
            LEFT,
            EXACT,
        )
    at = (b * segments + first) * heads + head
    for part in tl.static_range(PARTS):
        at_k = wide(first_key + part * KEYS) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        own = at_k[None, :] * wide(columns) + at_v[:, None]
        tl.store(between + at * keys * columns + own, state[part], mask=in_keys[None, :] & in_columns[:, None])
        faded = tl.zeros([KEYS] if PER_KEY else [], tl.float32)
        for index in range(0, tiles):
            t = first_step + index * TIME + tl.arange(0, TIME)
            faded += tl.sum(gates_of(g, t, at_k, t < last_step, in_keys, gt, gk, PER_KEY), 0)
        if PER_KEY:
            tl.store(decays + at * keys + at_k, faded, mask=in_keys & (value_block == 0))
        elif part == 0:
            tl.store(decays + at, faded, mask=block == 0)


@triton.jit
def carry(
    between,  # what segments add to the state, and then the states before them, backwards behind them
    decays,
    start,
    start_sum,
    final,
    final_sum,
    bounds,
    length,
    heads,
    keys,
    values,
    columns,
    segments,
    sequences,
    blocks,
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
    WINDOW: tl.constexpr,  # segments whose states are on their way at once
    NUMBERS: tl.constexpr,  # of a state, in a program
    PER_KEY: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
):
    """Carries some numbers of a head's state over the segments of a sequence; one number is one thread's throughout."""
    block, head, line, b = head_of(blocks, heads, sequences)
    sequence, _begin, _end, first, count = place_of(line, bounds, bounds, length, SEGMENT, True, PACKED)
    e = block * NUMBERS + tl.arange(0, NUMBERS)
    size = wide(keys) * columns
    key, value = wide(e // columns), wide(e % columns)
    of_value = (e < size) & (value < values)
    of_sum = (e < size) & (value == values) & HAS_SUMS
    here = of_value | of_sum
    state = tl.zeros([NUMBERS], tl.float32)
    if HAS_START:
        start += b * sb + sequence * ss + head * sh
        state += tl.load(start + key * sk + value * sv, mask=of_value, other=0.0)
        if HAS_SUMS:
            start_sum += b * nb + sequence * ns + head * nh
            state += tl.load(start_sum + key * nk, mask=of_sum, other=0.0)
    for index in range(0, count, WINDOW):
        added, faded = (), ()
        for ahead in tl.static_range(WINDOW):
            segment = first + (count - 1 - index - ahead if BACKWARDS else index + ahead)
            at = (b * segments + segment) * heads + head
            there = index + ahead < count
            added = added + (tl.load(between + at * size + e, mask=here & there, other=0.0),)
            if PER_KEY:
                faded = faded + (tl.load(decays + at * keys + key, mask=here & there, other=0.0),)
            else:
                faded = faded + (tl.load(decays + at, mask=there, other=0.0),)
        for ahead in tl.static_range(WINDOW):
            segment = first + (count - 1 - index - ahead if BACKWARDS else index + ahead)
            at = (b * segments + segment) * heads + head
            tl.store(between + at * size + e, state, mask=here & (index + ahead < count))
            state = state * tl.exp(faded[ahead]) + added[ahead]
    if HAS_FINAL:
        final += b * fb + sequence * fs + head * fh
        tl.store(final + key * fk + value * fv, state, mask=of_value)
        if HAS_SUMS:
            final_sum += b * mb + sequence * ms + head * mh
            tl.store(final_sum + key * mk, state, mask=of_sum)


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
        written *= _to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk).to(tl.float32)
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk).to(tl.float32)
        far = dot(of_q * from_start, tl.trans(written), far, EXACT)
        near += tl.where(i == j, tl.sum(of_q * of_k, 1)[:, None], 0.0)
        for level in tl.static_range(4):
            from_half, to_end, between = _halves(of_g, following, BLOCK, 1 << level, KEYS)
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
        of_v = _columns(v, sums, t, at_v, in_time, values, vt, vc, ut, HAS_SUMS, False)
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


@triton.jit
def pair_gradients(
    v,
    dy,
    dsums,
    errors,  # (batch, length, heads, values): gradients of what v is less the answer of the decayed state to k
    dp,  # (batch, length, heads, STEPS), as dm: of each step those with the steps of its chunk up to it
    dm,
    table,
    scale,
    length,
    heads,
    values,
    chunks,
    vb,
    vt,
    vh,
    vc,
    yb,
    yt,
    yh,
    yc,
    ub,
    ut,
    uh,
    STEPS: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    HAS_ERRORS: tl.constexpr,
    PACKED: tl.constexpr,
    BOTH: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Those of q[t]^T D[t,s] k[s], and of k[t]^T D[t,s] k[s] where keys are read by too, but for the weight of s."""
    # Values are inputs, but where they are solved for.
    OF_VALUES: tl.constexpr = EXACT if HAS_ERRORS else BOTH
    _, head, chunk, b = head_of(1, heads, chunks)
    _sequence, begin, end, _first, _count = place_of(chunk, table, table, length, STEPS, False, PACKED)
    v += b * vb + head * vh
    dy += b * yb + head * yh
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    at_row = ((b * length + t) * heads + head)[:, None]
    of_p, of_m = tl.zeros([STEPS, STEPS], tl.float32), tl.zeros([STEPS, STEPS], tl.float32)
    for first_value in range(0, values, VALUES):
        at_v = wide(first_value) + tl.arange(0, VALUES)
        in_values = at_v < values
        of_v = rows(v, t, at_v, in_time, in_values, vt, vc)
        of_dy = rows(dy, t, at_v, in_time, in_values, yt, yc).to(of_v.dtype)
        of_p = dot(of_dy, tl.trans(of_v), of_p, OF_VALUES)
        if HAS_ERRORS:
            in_tile = in_time[:, None] & in_values[None, :]
            of_errors = tl.load(errors + at_row * values + at_v[None, :], mask=in_tile, other=0.0)
            of_m = dot(of_errors, tl.trans(of_v), of_m, EXACT)
    if HAS_SUMS:
        of_p += column(dsums + b * ub + head * uh, t, in_time, ut)[:, None]
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    tl.store(dp + at_row * STEPS + j, tl.where(i >= j, of_p * scale, 0.0), mask=in_time[:, None])
    if HAS_ERRORS:
        tl.store(dm + at_row * STEPS + j, tl.where(i > j, -of_m, 0.0), mask=in_time[:, None])


@triton.jit
def gradients(
    q,
    k,
    v,
    g,
    w,
    dy,
    dsums,
    errors,
    dp,
    dm,
    before,  # (batch, segments, heads, keys, columns)
    behind,
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
    columns,
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
    WRITTEN: tl.constexpr = EXACT if HAS_ERRORS else RIGHT
    HAS_PAIRS: tl.constexpr = HAS_ERRORS or PER_KEY
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
    before += at * keys * columns
    behind += at * keys * columns
    total, total_behind = tl.zeros([KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
    if HAS_SUMS:
        total += tl.load(before + at_k * wide(columns) + values, mask=in_keys, other=0.0)
        total_behind += tl.load(behind + at_k * wide(columns) + values, mask=in_keys, other=0.0)
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
        own = at_k[:, None] * wide(columns) + at_v[None, :]
        in_state = in_keys[:, None] & (at_v < values)[None, :]
        state = tl.load(before + own, mask=in_state, other=0.0)
        kept += tl.sum(state * tl.load(behind + own, mask=in_state, other=0.0), 1)
    # Blocks of keys first, whose part in the state at the end all decays before it have.
    for index in range(0, row_blocks):
        first_row = begin + index * ROWS
        row = first_row + tl.arange(0, ROWS)
        in_rows = row < end
        after = first_row + ROWS
        at_row = (b * length + row) * heads + head
        near = tl.zeros([ROWS, ROWS], tl.float32)
        wrote = tl.zeros([ROWS, KEYS], tl.float32)
        read = tl.zeros([ROWS, KEYS], tl.float32)
        read_error = read
        for first_value in range(0, values, VALUES):
            at_v = wide(first_value) + tl.arange(0, VALUES)
            in_values = at_v < values
            own = at_k[:, None] * wide(columns) + at_v[None, :]
            in_state = in_keys[:, None] & in_values[None, :]
            of_v = rows(v, row, at_v, in_rows, in_values, vt, vc)
            later = tl.load(behind + own, mask=in_state, other=0.0)
            wrote = dot(of_v.to(tl.float32), tl.trans(later), wrote, WRITTEN)
            if not PER_KEY:
                of_dy = rows(dy, row, at_v, in_rows, in_values, yt, yc)
                if not HAS_PAIRS:
                    near = dot(of_dy, tl.trans(of_v), near, BOTH)
                state = tl.load(before + own, mask=in_state, other=0.0)
                read = dot(of_dy.to(tl.float32), tl.trans(state), read, RIGHT)
                if HAS_ERRORS:
                    of_error = rows(errors, row, at_v, in_rows, in_values, next_errors, 1)
                    read_error = dot(of_error, tl.trans(state), read_error, EXACT)
        if HAS_SUMS:
            wrote += total_behind[None, :]
            if not PER_KEY:
                of_dsums = column(dsums, row, in_rows, ut)
                near += of_dsums[:, None]
                read += of_dsums[:, None] * total[None, :]
        at_pairs = at_row[:, None] * STEPS + index * ROWS + j
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk)
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk)
        q32, k32 = of_q.to(tl.float32), of_k.to(tl.float32)
        weight = tl.zeros([ROWS], tl.float32) + 1.0
        if HAS_W:
            weight = column(w, row, in_rows, wt)
        of_g = gates_of(g, row, at_k, in_rows, in_keys, gt, gk, PER_KEY)
        in_tile = in_rows[:, None] & in_keys[None, :]
        if PER_KEY:
            near = tl.load(dp + at_pairs, mask=in_rows[:, None], other=0.0)
            to_after = decays_of(g, row, at_k, tl.minimum(after, end), in_keys, gt, gk, PER_KEY, False)
            behind_rows = in_time & (t >= after)
            rest = rows(g, t, at_k, behind_rows, in_keys, gt, gk)
            wrote *= to_after * tl.exp(tl.sum(rest, 0))[None, :]
            at_end += tl.sum(k32 * wrote * weight[:, None], 0)
            from_after = _from_block(g, t, at_k, after, end, in_keys, gt, gk)
            # Of the keys of these rows and the queries behind them.
            at_far = ((b * length + t) * heads + head)[None, :] * STEPS + (row - begin)[:, None]
            is_far = in_rows[:, None] & behind_rows[None, :]
            far = tl.load(dp + at_far, mask=is_far, other=0.0)
            asked = rows(q, t, at_k, behind_rows, in_keys, qt, qk).to(tl.float32)
            passed = dot(far, asked * from_after, tl.zeros([ROWS, KEYS], tl.float32), EXACT)
            if HAS_ERRORS:
                far = tl.load(dm + at_far, mask=is_far, other=0.0)
                asked = rows(k, t, at_k, behind_rows, in_keys, kt, kk).to(tl.float32)
                passed = dot(far, asked * from_after, passed, EXACT)
            of_dk = wrote + to_after * passed + tl.sum(tl.where(i == j, near, 0.0), 1)[:, None] * q32
            following = rows(g, row + 1, at_k, row + 1 < end, in_keys, gt, gk)
            near_m = near
            if HAS_ERRORS:
                near_m = tl.load(dm + at_pairs, mask=in_rows[:, None], other=0.0)
            for level in tl.static_range(4):
                from_start, to_end, between = _halves(of_g, following, ROWS, 1 << level, KEYS)
                passed = tl.zeros([ROWS, KEYS], tl.float32)
                passed = dot(tl.trans(tl.where(between, near, 0.0)), q32 * from_start, passed, EXACT)
                if HAS_ERRORS:
                    passed = dot(tl.trans(tl.where(between, near_m, 0.0)), k32 * from_start, passed, EXACT)
                of_dk += to_end * passed
        else:
            whole = tl.exp(tl.sum(of_g, 0))
            wrote *= decays_of(g, row, row, end, in_rows, gt, gk, PER_KEY, False)[:, None]
            from_start = tl.exp(tl.cumsum(of_g, 0))
            read *= (from_start * scale)[:, None]
            # A decay counts in what passes over it: pairs of a step before and one not before, and the states.
            passing = tl.zeros([ROWS, ROWS], tl.float32)
            of_reads = tl.sum(q32 * read, 1)
            of_dk = wrote
            if HAS_ERRORS:
                read_error *= -from_start[:, None]
                of_reads += tl.sum(k32 * read_error, 1)
                near_m = tl.load(dm + at_pairs, mask=in_rows[:, None], other=0.0) * between_steps(of_g, ROWS)
                of_dk = dot(tl.trans(near_m), k32, of_dk, LEFT)
                near_m *= weight[None, :]
                passing = dot(of_k, tl.trans(of_k), passing, BOTH) * near_m
                read_error = dot(near_m, k32, read_error, LEFT)
            if HAS_PAIRS:  # no sooner, for want of registers
                near = tl.load(dp + at_pairs, mask=in_rows[:, None], other=0.0)
            else:
                near = tl.where(i >= j, near, 0.0) * scale
            near *= between_steps(of_g, ROWS)
            of_dk = dot(tl.trans(near), q32, of_dk, LEFT)
            near *= weight[None, :]
            passing += dot(of_q, tl.trans(of_k), tl.zeros([ROWS, ROWS], tl.float32), BOTH) * near
            passing = tl.cumsum(passing, 0, reverse=True)
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
            of_dk += read_error
        tl.store(dk + at_row[:, None] * keys + at_k[None, :], of_dk, mask=in_tile)
    if PER_KEY:
        tl.debug_barrier()  # what has been stored of the keys is read again
        at_end += kept * tl.exp(tl.sum(rows(g, t, at_k, in_time, in_keys, gt, gk), 0))
        for index in range(0, row_blocks):
            first_row = begin + (row_blocks - 1 - index) * ROWS
            row = first_row + tl.arange(0, ROWS)
            in_rows, before_rows = row < end, in_time & (t < first_row)
            at_row = (b * length + row) * heads + head
            read = tl.zeros([ROWS, KEYS], tl.float32)
            read_error = read
            for first_value in range(0, values, VALUES):
                at_v = wide(first_value) + tl.arange(0, VALUES)
                in_values = at_v < values
                of_dy = rows(dy, row, at_v, in_rows, in_values, yt, yc).to(tl.float32)
                own = at_k[:, None] * wide(columns) + at_v[None, :]
                state = tl.load(before + own, mask=in_keys[:, None] & in_values[None, :], other=0.0)
                read = dot(of_dy, tl.trans(state), read, RIGHT)
                if HAS_ERRORS:
                    of_error = rows(errors, row, at_v, in_rows, in_values, next_errors, 1)
                    read_error = dot(of_error, tl.trans(state), read_error, EXACT)
            if HAS_SUMS:
                read += column(dsums, row, in_rows, ut)[:, None] * total[None, :]
            q32 = rows(q, row, at_k, in_rows, in_keys, qt, qk).to(tl.float32)
            k32 = rows(k, row, at_k, in_rows, in_keys, kt, kk).to(tl.float32)
            of_g = rows(g, row, at_k, in_rows, in_keys, gt, gk)
            from_start = tl.exp(tl.cumsum(of_g, 0))
            # Of the queries of these rows and the keys before them.
            rest = tl.exp(tl.sum(rows(g, t, at_k, before_rows, in_keys, gt, gk), 0))[None, :]
            other = rows(k, t, at_k, before_rows, in_keys, kt, kk).to(tl.float32)
            other *= _to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
            weight, of_all = tl.zeros([ROWS], tl.float32) + 1.0, tl.zeros([STEPS], tl.float32) + 1.0
            if HAS_W:
                weight, of_all = column(w, row, in_rows, wt), column(w, t, in_time, wt)
            at_near = at_row[:, None] * STEPS + (first_row - begin) + j
            at_far = at_row[:, None] * STEPS + tl.arange(0, STEPS)[None, :]
            is_far = in_rows[:, None] & before_rows[None, :]
            near = tl.load(dp + at_near, mask=in_rows[:, None], other=0.0) * weight[None, :]
            far = tl.load(dp + at_far, mask=is_far, other=0.0) * of_all[None, :]
            of_dq = dot(far, other, read * (rest * scale), EXACT) * from_start
            of_dq += tl.sum(tl.where(i == j, near, 0.0), 1)[:, None] * k32
            near_m, of_key = near, read_error
            if HAS_ERRORS:
                near_m = tl.load(dm + at_near, mask=in_rows[:, None], other=0.0) * weight[None, :]
                far = tl.load(dm + at_far, mask=is_far, other=0.0) * of_all[None, :]
                of_key = dot(far, other, -read_error * rest, EXACT) * from_start
            following = rows(g, row + 1, at_k, row + 1 < end, in_keys, gt, gk)
            for level in tl.static_range(4):
                from_half, to_end, between = _halves(of_g, following, ROWS, 1 << level, KEYS)
                moved, passed = k32 * to_end, tl.zeros([ROWS, KEYS], tl.float32)
                of_dq += from_half * dot(tl.where(between, near, 0.0), moved, passed, EXACT)
                if HAS_ERRORS:
                    of_key += from_half * dot(tl.where(between, near_m, 0.0), moved, passed, EXACT)
            at_rows = at_row[:, None] * keys + at_k[None, :]
            in_tile = in_rows[:, None] & in_keys[None, :]
            tl.store(dq + at_rows, of_dq, mask=in_tile)
            # A pair of steps behind a decay counts in both and cancels; one that it lies between counts in its query.
            of_dk = tl.load(dk + at_rows, mask=in_tile, other=0.0)
            moved = q32 * of_dq - k32 * of_dk
            if HAS_ERRORS:
                moved += k32 * of_key
                tl.store(dk + at_rows, of_dk + of_key, mask=in_tile)
            of_dg = tl.cumsum(moved, 0, reverse=True) + (through + at_end)[None, :]
            through += tl.sum(moved, 0)
            tl.store(dg + at_rows, tl.where(of_g == float("-inf"), 0.0, of_dg), mask=in_tile)
