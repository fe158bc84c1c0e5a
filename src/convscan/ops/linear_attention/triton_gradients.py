"""Gradients of linear attention of all chunks at once, in the notation of ``triton_chunked``."""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide
from .triton_tiles import between_steps, column, decays_of, from_block, gates_of, halves, rows, to_block


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
            from_after = from_block(g, t, at_k, after, end, in_keys, gt, gk)
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
                from_start, to_end, between = halves(of_g, following, ROWS, 1 << level, KEYS)
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
            other *= to_block(g, t, at_k, begin, tl.minimum(first_row, end), in_keys, gt, gk)
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
                from_half, to_end, between = halves(of_g, following, ROWS, 1 << level, KEYS)
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
