"""States of linear attention between segments of a sequence, in the notation of ``triton_chunked``: ``states`` sums
what each adds, of all segments at once, ``carry`` carries them over the sequence."""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import head_of, place_of, wide
from .triton_tiles import absorb, gates_of


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
