"""The gated delta rule on a GPU's tensor cores: chunks of time in WY form.

    S[t] = (I - beta[t] k[t] k[t]^T) diag(a[t]) S[t-1] + beta[t] k[t] v[t]^T,   y[t] = S[t]^T q[t],   a = exp(g)

is linear attention, S[t] = diag(a[t]) S[t-1] + beta[t] k[t] x[t]^T, of errors x[t] in place of the values, weighted by
beta: of what v[t] differs from what the decayed state answers to k[t]. With D[t,s] the product of a over (s, t] and
M[t,s] = k[t]^T D[t,s] k[s] below the diagonal, those of a chunk that begins at state S solve

    x[t] + sum_{s<t} M[t,s] beta[s] x[s] = v[t] - S^T D[t,-1] k[t]

so that x = x0 - W S with x0 = T v, W = T (D[t,-1] k[t]), T the inverse of that unit lower triangular matrix.
``invert`` and ``solve`` make these of all chunks at once; ``scan`` goes through a sequence with a part of the columns
of the state, completes x and stores the state before every chunk; ``outputs`` of linear attention does the rest.

The gradient runs back in the same way. That of v, b = A^T du with A = diag(beta) T, comes from what x would have of
linear attention, du = P^T dy + (D[n-1,s] k[s])^T dS, where P[t,s] = q[t]^T D[t,s] k[s] and dS is that of the state
behind the chunk. So b = b0 + W' dS with b0 = (P A)^T dy and W' = A^T (D[n-1,s] k[s]), which ``solve`` makes too, and

    dS = D[n-1,-1] dS + sum_t (D[t,-1] q[t]) dy[t]^T - (D[t,-1] k[t]) b[t]^T

takes ``scan`` from the end of a sequence to its start. ``gradients`` of linear attention has the others, the keys being
queries too, of whose answers the gradient is -b.

Where decays differ between keys, M and P are sums by key, which ``pairs`` leaves in memory.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide
from ..linear_attention.triton_tiles import between_steps, column, decays_of, gates_of, rows


@triton.jit
def _inverse(m, STEPS: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """(I + m)^-1 of a strictly lower triangular matrix: of the blocks on the diagonal a row after the other, in all of
    them at once; then a block of rows after the other, by products with what lies before it."""
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    in_block = i // BLOCK == j // BLOCK
    inside = tl.where(in_block, m, 0.0)
    blocks = tl.where(i == j, 1.0, 0.0)
    for t in range(1, BLOCK):
        row = tl.sum(tl.where(i % BLOCK == t, inside, 0.0), 0)  # of every block, in its own columns
        found = tl.sum(row[:, None] * blocks, 0)
        blocks = tl.where(in_block & (i % BLOCK == t) & (j % BLOCK < t), -found[None, :], blocks)
    passed = dot(blocks, inside - m, tl.zeros([STEPS, STEPS], tl.float32), EXACT)
    inverse = blocks
    for _ in range(1, STEPS // BLOCK):
        inverse = dot(passed, inverse, blocks, EXACT)
    return inverse


@triton.jit
def _products(q, k, t, in_time, keys, qt, qk, kt, kk, STEPS: tl.constexpr, KEYS: tl.constexpr, BOTH: tl.constexpr):
    """Of all pairs of steps of a chunk."""
    products = tl.zeros([STEPS, STEPS], tl.float32)
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        of_q = rows(q, t, at_k, in_time, at_k < keys, qt, qk)
        of_k = rows(k, t, at_k, in_time, at_k < keys, kt, kk)
        products = dot(of_q, tl.trans(of_k), products, BOTH)
    return products


@triton.jit
def invert(
    q,
    k,
    g,
    beta,
    inverse,  # (batch, length, heads, STEPS), as answers: T, by key M first
    answers,  # P A, by key P first
    table,
    scale,
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
    bb,
    bt,
    bh,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    PER_KEY: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BOTH: tl.constexpr,
    EXACT: tl.constexpr,
):
    _, head, chunk, b = head_of(1, heads, chunks)
    _sequence, begin, end, _first, _count = place_of(chunk, table, table, length, STEPS, False, PACKED)
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    q += b * qb + (head // in_group) * qg
    k += b * kb + (head // in_group) * kg
    of_beta = column(beta + b * bb + head * bh, t, in_time, bt)
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    own = ((b * length + t) * heads + head)[:, None] * STEPS + j
    if PER_KEY:
        of_m = tl.load(inverse + own, mask=in_time[:, None] & (i > j), other=0.0)
        tl.debug_barrier()  # all of it has been read before it is overwritten
    else:
        decays = between_steps(column(g + b * gb + head * gh, t, in_time, gt), STEPS)
        of_m = tl.where(i > j, decays * _products(k, k, t, in_time, keys, kt, kk, kt, kk, STEPS, KEYS, BOTH), 0.0)
    solved = _inverse(of_m * of_beta[None, :], STEPS, BLOCK, EXACT)
    tl.store(inverse + own, solved, mask=in_time[:, None])
    if GRADIENT:
        if PER_KEY:
            of_p = tl.load(answers + own, mask=in_time[:, None] & (i >= j), other=0.0)
            tl.debug_barrier()
        else:
            decays = between_steps(column(g + b * gb + head * gh, t, in_time, gt), STEPS)
            of_p = decays * _products(q, k, t, in_time, keys, qt, qk, kt, kk, STEPS, KEYS, BOTH)
        solved *= of_beta[:, None]  # A
        solved = dot(of_p * scale, solved, tl.zeros([STEPS, STEPS], tl.float32), EXACT)
        tl.store(answers + own, solved, mask=in_time[:, None])


@triton.jit
def _multiply(
    matrix, v, x, t, in_time, at_row, values, vt, vc, STEPS: tl.constexpr, VALUES: tl.constexpr, LEFT: tl.constexpr
):
    """x = matrix v of the steps of a chunk."""
    for first_value in range(0, values, VALUES):
        at_v = wide(first_value) + tl.arange(0, VALUES)
        of_v = rows(v, t, at_v, in_time, at_v < values, vt, vc).to(tl.float32)
        part = dot(matrix, of_v, tl.zeros([STEPS, VALUES], tl.float32), LEFT)
        tl.store(x + at_row * values + at_v[None, :], part, mask=in_time[:, None] & (at_v < values)[None, :])


@triton.jit
def _multiply_keys(
    matrix,
    k,
    g,
    w,
    t,
    end,
    at_row,
    keys,
    kt,
    kk,
    gt,
    gk,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    PER_KEY: tl.constexpr,
    FROM_START: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """w = matrix (D k) with the decays since the start of the chunk, or up to its end."""
    in_time = t < end
    if not PER_KEY:
        matrix *= decays_of(g, t, t, end, in_time, gt, gk, PER_KEY, FROM_START)[None, :]
    for first_key in range(0, keys, KEYS):
        at_k = wide(first_key) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        of_k = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32)
        if PER_KEY:
            of_k *= decays_of(g, t, at_k, end, in_keys, gt, gk, PER_KEY, FROM_START)
        part = dot(matrix, of_k, tl.zeros([STEPS, KEYS], tl.float32), EXACT if PER_KEY else LEFT)
        tl.store(w + at_row * keys + at_k[None, :], part, mask=in_time[:, None] & in_keys[None, :])


@triton.jit
def solve(
    k,
    v,
    g,
    beta,
    dy,
    inverse,
    answers,
    x,  # x0: (batch, length, heads, values), as b0
    w,  # (batch, length, heads, keys), as wb
    b0,
    wb,
    table,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
    parts,
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
    bb,
    bt,
    bh,
    yb,
    yt,
    yh,
    yc,
    STEPS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    PER_KEY: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    part, head, chunk, b = head_of(parts, heads, chunks)
    _sequence, begin, end, _first, _count = place_of(chunk, table, table, length, STEPS, False, PACKED)
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    k += b * kb + (head // in_group) * kg
    g += b * gb + head * gh
    at_row = ((b * length + t) * heads + head)[:, None]
    own = at_row * STEPS + tl.arange(0, STEPS)[None, :]
    if part < 2:
        matrix = tl.load(inverse + own, mask=in_time[:, None], other=0.0)
        if part == 0:
            _multiply(matrix, v + b * vb + head * vh, x, t, in_time, at_row, values, vt, vc, STEPS, VALUES, LEFT)
        else:
            _multiply_keys(
                matrix, k, g, w, t, end, at_row, keys, kt, kk, gt, gk, STEPS, KEYS, PER_KEY, True, LEFT, EXACT
            )
    elif GRADIENT:
        if part == 2:
            matrix = tl.trans(tl.load(answers + own, mask=in_time[:, None], other=0.0))
            _multiply(matrix, dy + b * yb + head * yh, b0, t, in_time, at_row, values, yt, yc, STEPS, VALUES, LEFT)
        else:
            matrix = tl.load(inverse + own, mask=in_time[:, None], other=0.0)
            matrix = tl.trans(matrix * column(beta + b * bb + head * bh, t, in_time, bt)[:, None])  # of A
            _multiply_keys(
                matrix, k, g, wb, t, end, at_row, keys, kt, kk, gt, gk, STEPS, KEYS, PER_KEY, False, LEFT, EXACT
            )


@triton.jit
def scan(
    q,
    k,
    g,
    beta,
    dy,
    x,  # x0, which becomes x; backwards b0, which becomes b
    w,
    dv,
    start,
    final,
    between,  # (batch, chunks, heads, keys, values): states before chunks, backwards behind them
    bounds,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    chunks,
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
    gb,
    gt,
    gh,
    gk,
    bb,
    bt,
    bh,
    yb,
    yt,
    yh,
    yc,
    db,
    dt,
    dh,
    dc,
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
    PER_KEY: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, line, b = head_of(blocks, heads, sequences)
    sequence, first_step, last_step, first, count = place_of(line, bounds, bounds, length, STEPS, True, PACKED)
    at_v = wide(block) * VALUES + tl.arange(0, VALUES)
    in_values = at_v < values
    q += b * qb + (head // in_group) * qg
    k += b * kb + (head // in_group) * kg
    g += b * gb + head * gh
    beta += b * bb + head * bh
    dy += b * yb + head * yh
    dv += b * db + head * dh
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
        if BACKWARDS:
            at_first += (count - 1) * heads * step
        tl.store(at_first, state, mask=in_state & (count > 0))
        if HAS_FINAL:
            tl.store(final + at_k[:, None] * fk + at_v[None, :] * fv, state, mask=in_state & (count == 0))
    for index in range(0, count):
        tl.debug_barrier()  # the state at this end of the chunk has been written
        chunk = index
        if BACKWARDS:
            chunk = count - 1 - index
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
        of_x = tl.load(x + at_row * values + at_v[None, :], mask=in_tile, other=0.0)
        if BACKWARDS:
            of_x += read
            of_dy = rows(dy, t, at_v, in_time, in_values, yt, yc).to(tl.float32)
            tl.store(dv + t[:, None] * dt + at_v[None, :] * dc, of_x, mask=in_tile)
        else:
            of_x -= read
        tl.store(x + at_row * values + at_v[None, :], of_x, mask=in_tile)
        weight = tl.zeros([STEPS], tl.float32) + 1.0
        if not BACKWARDS:
            weight = column(beta, t, in_time, bt)
        for first_key in range(0, keys, KEYS):
            at_k = wide(first_key) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            in_state = in_keys[:, None] & in_values[None, :]
            at_state = here + at_k[:, None] * wide(values) + at_v[None, :]
            state = tl.load(at_state, mask=in_state, other=0.0)
            of_k = rows(k, t, at_k, in_time, in_keys, kt, kk).to(tl.float32)
            of_g = gates_of(g, t, at_k, in_time, in_keys, gt, gk, PER_KEY)
            decay = decays_of(g, t, at_k, end, in_keys, gt, gk, PER_KEY, BACKWARDS)
            whole = tl.exp(tl.sum(of_g, 0))
            if PER_KEY:
                state *= whole[:, None]
            else:
                state *= whole
                decay = decay[:, None]
            if BACKWARDS:
                asked = rows(q, t, at_k, in_time, in_keys, qt, qk).to(tl.float32) * decay * scale
                state = dot(tl.trans(asked), of_dy, state, LEFT)
                state = dot(tl.trans(of_k * decay), -of_x, state, EXACT)
                following_state = at_state - heads * step
            else:
                state = dot(tl.trans(of_k * decay * weight[:, None]), of_x, state, EXACT)
                following_state = at_state + heads * step
            tl.store(following_state, state, mask=in_state & (index + 1 < count))
            if HAS_FINAL:
                at_final = final + at_k[:, None] * fk + at_v[None, :] * fv
                tl.store(at_final, state, mask=in_state & (index + 1 == count))
