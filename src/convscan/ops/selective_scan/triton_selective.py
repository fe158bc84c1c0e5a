"""The selective scan on a GPU: chunks of time, in each of which one state of all channels after the other is scanned.

    h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] B[t,n] u[t],   y[t] = sum_n C[t,n] h[t,n]

A program has a tile of time and channels in registers. For each state n it makes gates and forcing, scans them along
time from the state before the chunk, and adds C h to the output: nothing of the size L D N is ever in memory, only the
states between chunks. Real states, where they are few, are all in registers instead: ``outputs_by_channel`` takes one
step after the other. Those between chunks are known in one of two ways:

* where batch entries and channels are enough to fill a device, a program runs over all chunks of its channels (SERIAL)
  and hands the states on to itself;
* else ``local_states`` sums what every chunk adds to the state, for all chunks at once, ``between_chunks`` carries the
  states from chunk to chunk, and ``outputs`` or ``gradients`` then runs over all chunks at once.

The decay over many steps is exp(A sum dt), so that what a chunk adds takes no scan. Backwards it is the same with time
reversed: the gradient of the state is carried from the last chunk to the first, and the states themselves are computed
again from those before every chunk that the forward scan has kept. Sums over channels and over chunks are stored in
parts, which are added up in a fixed order. Complex numbers are pairs, with twice the strides.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, activation_gradient, join, join_complex, place_of, row_of, softplus, times, wide


@triton.jit
def _place(lines, channel_tiles, group_tiles, in_group, CHANNELS: tl.constexpr):
    """Of this program the batch entry, the chunk or sequence of ``lines``, the group, which of its tiles, and the
    channels in it."""
    program = tl.program_id(0)
    tile = program % channel_tiles
    group = wide(tile // group_tiles)
    shard = tile % group_tiles
    in_tile = shard * CHANNELS + tl.arange(0, CHANNELS)
    place = (program // channel_tiles) % lines
    return wide(program // (channel_tiles * lines)), place, group, shard, group * in_group + in_tile, in_tile < in_group


@triton.jit
def _tile(x, t, c, inside, xt, xc, WIDE: tl.constexpr):
    return tl.load(x + t * xt + c * xc, mask=inside, other=0.0).to(WIDE)


@triton.jit
def _rate(a, inside, WIDE: tl.constexpr):
    """A, of which -inf is a number so large that exp(dt A) is zero for every dt but zero: steps behind the end."""
    rate = tl.load(a, mask=inside, other=0.0).to(WIDE)
    return tl.where(rate == float("-inf"), -1e38, rate)


@triton.jit
def _step_sizes(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """dt, zero outside."""
    dt = delta + bias[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    return tl.where(inside, dt, 0.0)


@triton.jit
def _projected(b, n, t, c, in_time, in_channels, group, bt, bg, bn, CONSTANT: tl.constexpr, WIDE: tl.constexpr):
    """B or C of a state: a column over time, or where constant a row of channels."""
    if CONSTANT:
        found = tl.load(b + c * bg + n * bn, mask=in_channels, other=0.0).to(WIDE)[None, :]
    else:
        found = tl.load(b + t * bt + group * bg + n * bn, mask=in_time, other=0.0).to(WIDE)[:, None]
    return found


@triton.jit
def _gate(exponent, angle, COMPLEX: tl.constexpr):
    """exp(exponent + i angle)."""
    real = tl.exp(exponent)
    imaginary = real * 0.0
    if COMPLEX:
        # What has faded away has no angle.
        imaginary = tl.where(real == 0.0, 0.0, real * tl.sin(angle))
        real = tl.where(real == 0.0, 0.0, real * tl.cos(angle))
    return real, imaginary


@triton.jit
def local_states(
    u,  # with GRADIENT dy
    delta,
    a,
    projection,  # B, with GRADIENT C
    z,
    bias,
    local,  # (batch, chunks, states, parts, channels)
    totals,  # (batch, chunks, channels): sums of dt
    table,
    length,
    channels,
    states,
    in_group,
    group_tiles,
    channel_tiles,
    chunks,
    ub,
    ut,
    uc,
    db,
    dt_,
    dc,
    ac,
    an,
    pb,
    pt,
    pg,
    pn,
    zb,
    zt,
    zc,
    bc,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CONSTANT: tl.constexpr,
    COMPLEX: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The state at a chunk's end of one that begins with zeros; backwards, its gradient at the beginning of one that
    ends with zeros."""
    b, chunk, group, _, c, in_channels = _place(chunks, channel_tiles, group_tiles, in_group, CHANNELS)
    _, begin, end, _, _ = place_of(chunk, table, table, length, STEPS, False, PACKED)
    t = begin + tl.arange(0, STEPS)
    in_time = t < end
    at_t, at_c = t[:, None], c[None, :]
    inside = in_time[:, None] & in_channels[None, :]
    shift = tl.zeros([CHANNELS], WIDE)
    if HAS_BIAS:
        shift = tl.load(bias + c * bc, mask=in_channels, other=0.0).to(WIDE)
    dt = _step_sizes(_tile(delta + b * db, at_t, at_c, inside, dt_, dc, WIDE), shift, inside, SOFTPLUS)
    x = _tile(u + b * ub, at_t, at_c, inside, ut, uc, WIDE)
    if GRADIENT:
        if HAS_Z:
            x *= activate(_tile(z + b * zb, at_t, at_c, inside, zt, zc, WIDE), "silu")
        if COMPLEX:
            x *= 2.0
        between = tl.cumsum(dt, 0)
    else:
        x *= dt
        later = inside & (at_t + 1 < end)
        following = _tile(delta + b * db, at_t + 1, at_c, later, dt_, dc, WIDE)
        between = tl.cumsum(_step_sizes(following, shift, later, SOFTPLUS), 0, reverse=True)
    tl.store(totals + (b * chunks + chunk) * channels + c, tl.sum(dt, 0), mask=in_channels)
    parts: tl.constexpr = 2 if COMPLEX else 1
    local += ((b * chunks + chunk) * states * parts) * channels + c
    a += c * ac
    projection += b * pb
    for index in range(0, states):
        n = wide(index)
        rate = _rate(a + n * an, in_channels, WIDE)[None, :]
        angle = rate
        if COMPLEX:
            angle = tl.load(a + n * an + 1, mask=in_channels, other=0.0).to(WIDE)[None, :]
        p, q = _gate(between * rate, between * angle, COMPLEX)
        r = _projected(projection, n, t, c, in_time, in_channels, group, pt, pg, pn, CONSTANT, WIDE)
        if COMPLEX:
            i = _projected(projection + 1, n, t, c, in_time, in_channels, group, pt, pg, pn, CONSTANT, WIDE)
            if GRADIENT:
                q, i = -q, -i
            sum_r = tl.sum(times(p, x * r) - times(q, x * i), 0)
            sum_i = tl.sum(times(p, x * i) + times(q, x * r), 0)
            tl.store(local + (2 * n) * channels, sum_r, mask=in_channels)
            tl.store(local + (2 * n + 1) * channels, sum_i, mask=in_channels)
        else:
            tl.store(local + n * channels, tl.sum(times(p, x * r), 0), mask=in_channels)


@triton.jit
def between_chunks(
    local,
    totals,
    a,
    start,  # the initial state, or the gradient of the last
    between,  # (batch, chunks, states, parts, channels): before every chunk, or backwards behind it
    final,  # the last state, or the gradient of the initial one
    bounds,
    length,
    channels,
    states,
    chunks,
    sequences,
    blocks,
    ac,
    an,
    sb,
    sc,
    sn,
    ss,
    fb,
    fc,
    fn,
    fs,
    STEPS: tl.constexpr,
    WINDOW: tl.constexpr,
    NUMBERS: tl.constexpr,
    COMPLEX: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PACKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Carries some numbers of a sequence's state over its chunks, WINDOW at a time."""
    program = tl.program_id(0)
    block = program % blocks
    sequence = (program // blocks) % sequences
    b = wide(program // (blocks * sequences))
    sequence, _, _, first, count = place_of(sequence, bounds, bounds, length, STEPS, True, PACKED)
    e = wide(block) * NUMBERS + tl.arange(0, NUMBERS)
    here = e < states * channels
    n, c = e // channels, e % channels
    parts: tl.constexpr = 2 if COMPLEX else 1
    number = n * parts * channels + c
    step = states * parts * wide(channels)
    rate = _rate(a + c * ac + n * an, here, WIDE)[None, :]
    angle = rate
    carry, carry_i = tl.zeros([1, NUMBERS], WIDE), tl.zeros([1, NUMBERS], WIDE)
    start += b * sb + c * sc + n * sn + sequence * ss
    if HAS_START:
        carry += tl.load(start, mask=here, other=0.0).to(WIDE)[None, :]
    if COMPLEX:
        angle = tl.load(a + c * ac + n * an + 1, mask=here, other=0.0).to(WIDE)[None, :]
        if HAS_START:
            carry_i += tl.load(start + 1, mask=here, other=0.0).to(WIDE)[None, :]
    local += b * chunks * step
    between += b * chunks * step
    totals += b * chunks * channels
    at = first * step
    if GRADIENT:
        at = (first + count - 1) * step
    at_start = (at + number)[None, :]
    begins = here[None, :] & (count > 0)
    tl.store(between + at_start, carry, mask=begins)
    if COMPLEX:
        tl.store(between + at_start + channels, carry_i, mask=begins)
    window = tl.arange(0, WINDOW)[:, None]
    for i in range(0, count, WINDOW):
        index = i + window
        known = (index < count) & here[None, :]
        chunk, following = first + index, first + index + 1
        if GRADIENT:
            chunk, following = first + count - 1 - index, first + count - 2 - index
        total = tl.load(totals + chunk * channels + c[None, :], mask=known, other=0.0)
        p, q = _gate(total * rate, total * angle, COMPLEX)
        of_chunk = chunk * step + number[None, :]
        v = tl.load(local + of_chunk, mask=known, other=0.0)
        of_next = following * step + number[None, :]
        passes = known & (index + 1 < count)
        if COMPLEX:
            w = tl.load(local + of_chunk + channels, mask=known, other=0.0)
            if GRADIENT:
                q = -q
            p, q, v, w = tl.associative_scan((p, q, v, w), 0, join_complex)
            v, w = v + times(p, carry) - times(q, carry_i), w + times(p, carry_i) + times(q, carry)
            carry, carry_i = row_of(v, WINDOW - 1, WINDOW)[None, :], row_of(w, WINDOW - 1, WINDOW)[None, :]
            tl.store(between + of_next + channels, w, mask=passes)
        else:
            p, v = tl.associative_scan((p, v), 0, join)
            v += times(p, carry)
            carry = row_of(v, WINDOW - 1, WINDOW)[None, :]
        tl.store(between + of_next, v, mask=passes)
    if HAS_FINAL:
        at_final = (b * fb + c * fc + n * fn + sequence * fs)[None, :]
        tl.store(final + at_final, carry, mask=here[None, :])
        if COMPLEX:
            tl.store(final + at_final + 1, carry_i, mask=here[None, :])


@triton.jit
def outputs(
    u,
    delta,
    a,
    b_,
    c_,
    d,
    z,
    bias,
    start,
    before,  # (batch, chunks, states, parts, channels); SERIAL without KEEP two for each sequence in turn
    final,
    y,
    bounds,
    table,
    length,
    channels,
    states,
    in_group,
    group_tiles,
    channel_tiles,
    chunks,  # of all sequences, those that ``before`` has room for
    sequences,
    ub,
    ut,
    uc,
    db,
    dt_,
    dc,
    ac,
    an,
    bb,
    bt,
    bg,
    bn,
    cb,
    ct,
    cg,
    cn,
    dd,
    zb,
    zt,
    zc,
    bias_c,
    sb,
    sc,
    sn,
    ss,
    fb,
    fc,
    fn,
    fs,
    yb,
    yt,
    yc,
    STEPS: tl.constexpr,  # of a chunk
    TIME: tl.constexpr,  # of a tile: less where the signal is shorter
    CHANNELS: tl.constexpr,
    CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr,
    COMPLEX: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    IN_PLACE: tl.constexpr,
    PACKED: tl.constexpr,
    SERIAL: tl.constexpr,
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    lines = sequences if SERIAL else chunks
    b, place, group, _, c, in_channels = _place(lines, channel_tiles, group_tiles, in_group, CHANNELS)
    sequence, first_step, last_step, first, count = place_of(place, bounds, table, length, STEPS, SERIAL, PACKED)
    parts: tl.constexpr = 2 if COMPLEX else 1
    step = states * parts * wide(channels)
    u += b * ub
    delta += b * db
    z += b * zb
    y += b * yb
    a += c * ac
    b_ += b * bb
    c_ += b * cb
    start += b * sb + c * sc + sequence * ss
    final += b * fb + c * fc + sequence * fs
    before += b * (chunks if KEEP or not SERIAL else 2 * sequences) * step + c
    shift = tl.zeros([CHANNELS], WIDE)
    if HAS_BIAS:
        shift = tl.load(bias + c * bias_c, mask=in_channels, other=0.0).to(WIDE)
    if SERIAL and HAS_FINAL:
        if count == 0:
            for index in range(0, states):
                n = wide(index)
                for part in tl.static_range(parts):
                    carry = tl.zeros([CHANNELS], WIDE)
                    if HAS_START:
                        carry = tl.load(start + n * sn + part, mask=in_channels, other=0.0).to(WIDE)
                    tl.store(final + n * fn + part, carry, mask=in_channels)
    for i in range(0, count):
        begin = first_step + i * STEPS
        t = begin + tl.arange(0, TIME)
        in_time = t < tl.minimum(begin + STEPS, last_step)
        at_t, at_c = t[:, None], c[None, :]
        inside = in_time[:, None] & in_channels[None, :]
        dt = _step_sizes(_tile(delta, at_t, at_c, inside, dt_, dc, WIDE), shift, inside, SOFTPLUS)
        x = _tile(u, at_t, at_c, inside, ut, uc, WIDE)
        total = tl.zeros([TIME, CHANNELS], WIDE)
        if HAS_D:
            total += x * tl.load(d + c * dd, mask=in_channels, other=0.0).to(WIDE)[None, :]
        x *= dt
        here, following = first + i, first + i + 1
        if SERIAL and not KEEP:
            here, following = 2 * sequence + i % 2, 2 * sequence + (i + 1) % 2
        of_here, of_next = before + here * step, before + following * step
        from_start = SERIAL & (i == 0)
        ends = in_channels & (i + 1 == count)
        passes = in_channels & (i + 1 < count)
        for index in range(0, states):
            n = wide(index)
            rate = _rate(a + n * an, in_channels, WIDE)[None, :]
            row = n * parts * wide(channels)
            carry = tl.load(of_here + row, mask=in_channels & (from_start == 0), other=0.0).to(WIDE)
            if HAS_START and SERIAL:
                carry += tl.load(start + n * sn, mask=in_channels & from_start, other=0.0).to(WIDE)
            angle = rate
            if COMPLEX:
                angle = tl.load(a + n * an + 1, mask=in_channels, other=0.0).to(WIDE)[None, :]
                carry_i = tl.load(of_here + row + channels, mask=in_channels & (from_start == 0), other=0.0).to(WIDE)
                if HAS_START and SERIAL:
                    carry_i += tl.load(start + n * sn + 1, mask=in_channels & from_start, other=0.0).to(WIDE)
            if IN_PLACE:
                tl.debug_barrier()  # every thread has read what one of them is about to overwrite
            if KEEP and SERIAL:
                tl.store(of_here + row, carry, mask=in_channels & from_start)
                if COMPLEX:
                    tl.store(of_here + row + channels, carry_i, mask=in_channels & from_start)
            p, q = _gate(dt * rate, dt * angle, COMPLEX)
            v = x * _projected(b_, n, t, c, in_time, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
            r = _projected(c_, n, t, c, in_time, in_channels, group, ct, cg, cn, CONSTANT_C, WIDE)
            if COMPLEX:
                w = x * _projected(b_ + 1, n, t, c, in_time, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
                s = _projected(c_ + 1, n, t, c, in_time, in_channels, group, ct, cg, cn, CONSTANT_C, WIDE)
                p, q, v, w = tl.associative_scan((p, q, v, w), 0, join_complex)
                re, im = carry[None, :], carry_i[None, :]
                v, w = v + times(p, re) - times(q, im), w + times(p, im) + times(q, re)
                total += 2.0 * (r * v - s * w)
            else:
                p, v = tl.associative_scan((p, v), 0, join)
                v += times(p, carry[None, :])
                total += r * v
            if SERIAL:
                end = row_of(v, TIME - 1, TIME)
                tl.store(of_next + row, end, mask=passes)
                if HAS_FINAL:
                    tl.store(final + n * fn, end, mask=ends)
                if COMPLEX:
                    end = row_of(w, TIME - 1, TIME)
                    tl.store(of_next + row + channels, end, mask=passes)
                    if HAS_FINAL:
                        tl.store(final + n * fn + 1, end, mask=ends)
        if HAS_Z:
            total *= activate(_tile(z, at_t, at_c, inside, zt, zc, WIDE), "silu")
        tl.store(y + at_t * yt + at_c * yc, total, mask=inside)
        if SERIAL:
            tl.debug_barrier()  # the states of the next chunk have been written


@triton.jit
def _of_channels(x, t, last, in_channels, xt):
    """A step of an array at the channels of a program, zero behind the last one."""
    return tl.load(x + t * xt, mask=in_channels & (t < last), other=0.0).to(tl.float32)


@triton.jit
def outputs_by_channel(
    u,
    delta,
    a,
    b_,
    c_,
    d,
    z,
    bias,
    start,
    before,  # (batch, chunks, states, channels)
    final,
    y,
    bounds,
    table,
    length,
    channels,
    states,
    in_group,
    group_tiles,
    channel_tiles,
    chunks,
    sequences,
    ub,
    ut,
    uc,
    db,
    dt_,
    dc,
    ac,
    an,
    bb,
    bt,
    bg,
    bn,
    cb,
    ct,
    cg,
    cn,
    dd,
    zb,
    zt,
    zc,
    bias_c,
    sb,
    sc,
    sn,
    ss,
    fb,
    fc,
    fn,
    fs,
    yb,
    yt,
    yc,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,  # steps whose samples are asked for at once, and before the ones ahead of them are used
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,  # as many as threads
    CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PACKED: tl.constexpr,
    SERIAL: tl.constexpr,
    KEEP: tl.constexpr,
):
    """``outputs`` of real states, one step after the other: for each state and step an exponential, three multiply-adds
    and a product."""
    lines = sequences if SERIAL else chunks
    b, place, group, _, c, in_channels = _place(lines, channel_tiles, group_tiles, in_group, CHANNELS)
    sequence, first_step, last_step, first, count = place_of(place, bounds, table, length, STEPS, SERIAL, PACKED)
    n = wide(0) + tl.arange(0, STATES)
    in_states = n < states
    inside = in_states[:, None] & in_channels[None, :]
    u += b * ub + c * uc
    delta += b * db + c * dc
    z += b * zb + c * zc
    y += b * yb + c * yc
    b_ += b * bb
    c_ += b * cb
    before += b * chunks * states * channels
    of_state = n[:, None] * channels + c[None, :]
    rate = _rate(a + c[None, :] * ac + n[:, None] * an, inside, tl.float32) * 1.4426950408889634
    shift, skip = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + c * bias_c, mask=in_channels, other=0.0).to(tl.float32)
    if HAS_D:
        skip = tl.load(d + c * dd, mask=in_channels, other=0.0).to(tl.float32)
    if CONSTANT_B:
        of_b = tl.load(b_ + c[None, :] * bg + n[:, None] * bn, mask=inside, other=0.0).to(tl.float32)
    if CONSTANT_C:
        of_c = tl.load(c_ + c[None, :] * cg + n[:, None] * cn, mask=inside, other=0.0).to(tl.float32)
    state = tl.zeros([STATES, CHANNELS], tl.float32)
    if SERIAL and HAS_START:
        at_start = start + b * sb + sequence * ss + c[None, :] * sc + n[:, None] * sn
        state += tl.load(at_start, mask=inside, other=0.0).to(tl.float32)
    ahead = ()
    for step in tl.static_range(UNROLL):
        t = first_step + step
        of_z = _of_channels(z, t, last_step, in_channels, zt) if HAS_Z else shift
        of_u = _of_channels(u, t, last_step, in_channels, ut)
        ahead = ahead + (of_u, _of_channels(delta, t, last_step, in_channels, dt_), of_z)
    for chunk in range(0, count):
        if not SERIAL:
            at_chunk = before + (first + chunk) * states * channels
            state = tl.load(at_chunk + of_state, mask=inside, other=0.0)
        elif KEEP:
            at_chunk = before + (first + chunk) * states * channels
            tl.store(at_chunk + of_state, state, mask=inside)
        begin = first_step + chunk * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        for at in range(begin, end, UNROLL):
            samples, ahead = ahead, ()
            for step in tl.static_range(UNROLL):
                t = wide(at) + UNROLL + step
                of_z = _of_channels(z, t, last_step, in_channels, zt) if HAS_Z else shift
                of_u = _of_channels(u, t, last_step, in_channels, ut)
                ahead = ahead + (of_u, _of_channels(delta, t, last_step, in_channels, dt_), of_z)
            results = ()
            for step in tl.static_range(UNROLL):
                t = wide(at) + step
                x, of_delta, of_z = samples[3 * step], samples[3 * step + 1] + shift, samples[3 * step + 2]
                if SOFTPLUS:
                    of_delta = softplus(of_delta)
                dt = tl.where(in_channels & (t < end), of_delta, 0.0)
                known = in_states & (t < end)
                if not CONSTANT_B:
                    of_b = tl.load(b_ + t * bt + group * bg + n * bn, mask=known, other=0.0).to(tl.float32)[:, None]
                if not CONSTANT_C:
                    of_c = tl.load(c_ + t * ct + group * cg + n * cn, mask=known, other=0.0).to(tl.float32)[:, None]
                state = tl.exp2(dt[None, :] * rate) * state + (dt * x)[None, :] * of_b
                total = tl.sum(of_c * state, 0) + skip * x
                if HAS_Z:
                    total *= activate(of_z, "silu")
                results = results + (total,)
            for step in tl.static_range(UNROLL):
                t = wide(at) + step
                tl.store(y + t * yt, results[step], mask=in_channels & (t < end))
    if SERIAL and HAS_FINAL:
        at_final = final + b * fb + sequence * fs + c[None, :] * fc + n[:, None] * fn
        tl.store(at_final, state, mask=inside)


@triton.jit
def gradients(
    u,
    delta,
    a,
    b_,
    c_,
    d,
    z,
    bias,
    before,  # (batch, chunks, states, parts, channels)
    behind,  # the same of gradients; SERIAL two for each sequence in turn
    dfinal,
    dy,
    du,
    ddelta,
    dz,
    da,  # (chunks, batch, channels, states, parts)
    db_,  # (channel tiles of a group, batch, length, groups, states, parts), or where constant as da
    dc_,
    dd,  # (chunks, batch, channels)
    dbias,
    dinitial,  # SERIAL; (batch, sequences, channels, states, parts)
    bounds,
    table,
    length,
    channels,
    states,
    batch,
    groups,
    in_group,
    group_tiles,
    channel_tiles,
    chunks,
    sequences,
    ub,
    ut,
    uc,
    db,
    dt_,
    dc,
    ac,
    an,
    bb,
    bt,
    bg,
    bn,
    cb,
    ct,
    cg,
    cn,
    d_c,
    zb,
    zt,
    zc,
    bias_c,
    fb,
    fc,
    fn,
    fs,
    gb,
    gt,
    gc,
    dub,
    dut,
    duc,
    ddb,
    ddt,
    ddc,
    dzb,
    dzt,
    dzc,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr,
    COMPLEX: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DFINAL: tl.constexpr,
    HAS_DINITIAL: tl.constexpr,
    PACKED: tl.constexpr,
    SERIAL: tl.constexpr,
    WIDE: tl.constexpr,
):
    lines = sequences if SERIAL else chunks
    b, place, group, shard, c, in_channels = _place(lines, channel_tiles, group_tiles, in_group, CHANNELS)
    sequence, first_step, last_step, first, count = place_of(place, bounds, table, length, STEPS, SERIAL, PACKED)
    parts: tl.constexpr = 2 if COMPLEX else 1
    step = states * parts * wide(channels)
    u += b * ub
    delta += b * db
    z += b * zb
    dy += b * gb
    du += b * dub
    ddelta += b * ddb
    dz += b * dzb
    a += c * ac
    b_ += b * bb
    c_ += b * cb
    before += b * chunks * step + c
    behind += b * (2 * sequences if SERIAL else chunks) * step + c
    dfinal += b * fb + c * fc + sequence * fs
    dinitial += ((b * sequences + sequence) * channels + c) * states * parts
    shift = tl.zeros([CHANNELS], WIDE)
    if HAS_BIAS:
        shift = tl.load(bias + c * bias_c, mask=in_channels, other=0.0).to(WIDE)
    skip = tl.zeros([CHANNELS], WIDE)
    if HAS_D:
        skip = tl.load(d + c * d_c, mask=in_channels, other=0.0).to(WIDE)
    if SERIAL and HAS_DINITIAL:
        if count == 0:
            for index in range(0, states):
                n = wide(index)
                for part in tl.static_range(parts):
                    carry = tl.zeros([CHANNELS], WIDE)
                    if HAS_DFINAL:
                        carry = tl.load(dfinal + n * fn + part, mask=in_channels, other=0.0).to(WIDE)
                    tl.store(dinitial + n * parts + part, carry, mask=in_channels)
    at_first = (tl.arange(0, STEPS) == 0)[:, None]
    for i in range(0, count):
        chunk = first + count - 1 - i
        begin = first_step + (count - 1 - i) * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        t = begin + tl.arange(0, STEPS)
        in_time = t < end
        at_t, at_c = t[:, None], c[None, :]
        inside = in_time[:, None] & in_channels[None, :]
        dt = _step_sizes(_tile(delta, at_t, at_c, inside, dt_, dc, WIDE), shift, inside, SOFTPLUS)
        # The steps before and behind each: scans then give the state before it, and the gradient that reaches it.
        earlier, later = inside & (at_first == 0), inside & (at_t + 1 < end)
        dt_before = _step_sizes(_tile(delta, at_t - 1, at_c, earlier, dt_, dc, WIDE), shift, earlier, SOFTPLUS)
        dt_behind = _step_sizes(_tile(delta, at_t + 1, at_c, later, dt_, dc, WIDE), shift, later, SOFTPLUS)
        x_before = dt_before * _tile(u, at_t - 1, at_c, earlier, ut, uc, WIDE)
        x = dt * _tile(u, at_t, at_c, inside, ut, uc, WIDE)
        f = _tile(dy, at_t, at_c, inside, gt, gc, WIDE)
        if HAS_Z:
            f *= activate(_tile(z, at_t, at_c, inside, zt, zc, WIDE), "silu")
        total = tl.zeros([STEPS, CHANNELS], WIDE)  # the output before it is gated
        to_x = tl.zeros([STEPS, CHANNELS], WIDE)  # sum_n Re(conj(B) g), the gradient of dt u
        to_dt = tl.zeros([STEPS, CHANNELS], WIDE)
        here, following = chunk, chunk
        if SERIAL:
            here, following = 2 * sequence + i % 2, 2 * sequence + (i + 1) % 2
        of_here, of_next = behind + here * step, behind + following * step
        of_state = before + chunk * step
        from_end = SERIAL & (i == 0)
        ends = in_channels & (i + 1 == count)
        passes = in_channels & (i + 1 < count)
        of_da = ((chunk * batch + b) * channels + c) * states * parts
        of_step = (((wide(shard) * batch + b) * length + t) * groups + group) * states * parts
        for index in range(0, states):
            n = wide(index)
            row = n * parts * wide(channels)
            rate = _rate(a + n * an, in_channels, WIDE)[None, :]
            state = tl.load(of_state + row, mask=in_channels, other=0.0).to(WIDE)[None, :]
            carry = tl.load(of_here + row, mask=in_channels & (from_end == 0), other=0.0).to(WIDE)
            if HAS_DFINAL and SERIAL:
                carry += tl.load(dfinal + n * fn, mask=in_channels & from_end, other=0.0).to(WIDE)
            v_b = _projected(b_, n, t, c, in_time, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
            v_c = _projected(c_, n, t, c, in_time, in_channels, group, ct, cg, cn, CONSTANT_C, WIDE)
            b_before = v_b
            if not CONSTANT_B:
                was = in_time & (t > begin)
                b_before = _projected(b_, n, t - 1, c, was, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
            if COMPLEX:
                angle = tl.load(a + n * an + 1, mask=in_channels, other=0.0).to(WIDE)[None, :]
                state_i = tl.load(of_state + row + channels, mask=in_channels, other=0.0).to(WIDE)[None, :]
                carry_i = tl.load(of_here + row + channels, mask=in_channels & (from_end == 0), other=0.0).to(WIDE)
                if HAS_DFINAL and SERIAL:
                    carry_i += tl.load(dfinal + n * fn + 1, mask=in_channels & from_end, other=0.0).to(WIDE)
                w_b = _projected(b_ + 1, n, t, c, in_time, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
                w_c = _projected(c_ + 1, n, t, c, in_time, in_channels, group, ct, cg, cn, CONSTANT_C, WIDE)
                i_before = w_b
                if not CONSTANT_B:
                    i_before = _projected(b_ + 1, n, t - 1, c, was, in_channels, group, bt, bg, bn, CONSTANT_B, WIDE)
                # The state before each step.
                p, q = _gate(dt_before * rate, dt_before * angle, COMPLEX)
                p, q, v, w = tl.associative_scan((p, q, x_before * b_before, x_before * i_before), 0, join_complex)
                v, w = v + times(p, state) - times(q, state_i), w + times(p, state_i) + times(q, state)
                # The gradient of the state behind it, conjugated gates from the end.
                p, q = _gate(dt_behind * rate, dt_behind * angle, COMPLEX)
                p, q, gr, gi = tl.associative_scan(
                    (p, -q, 2.0 * f * v_c, -2.0 * f * w_c), 0, join_complex, reverse=True
                )
                re, im = carry[None, :], carry_i[None, :]
                gr, gi = gr + times(p, re) - times(q, im), gi + times(p, im) + times(q, re)
                gr, gi = tl.where(inside, gr, 0.0), tl.where(inside, gi, 0.0)
                p, q = _gate(dt * rate, dt * angle, COMPLEX)
                hr, hi = times(p, v) - times(q, w) + x * v_b, times(p, w) + times(q, v) + x * w_b
                total += 2.0 * (v_c * hr - w_c * hi)
                cr, ci = times(p, gr) + times(q, gi), times(p, gi) - times(q, gr)  # carried to the step before
                rr, ri = cr * v + ci * w, ci * v - cr * w
                to_dt += rate * rr + angle * ri
                to_x += v_b * gr + w_b * gi
                tl.store(da + of_da + 2 * n, tl.sum(dt * rr, 0), mask=in_channels)
                tl.store(da + of_da + 2 * n + 1, tl.sum(dt * ri, 0), mask=in_channels)
                b_r, b_i, c_r, c_i = gr * x, gi * x, 2.0 * f * hr, -2.0 * f * hi
                if CONSTANT_B:
                    tl.store(db_ + of_da + 2 * n, tl.sum(b_r, 0), mask=in_channels)
                    tl.store(db_ + of_da + 2 * n + 1, tl.sum(b_i, 0), mask=in_channels)
                else:
                    tl.store(db_ + of_step + 2 * n, tl.sum(b_r, 1), mask=in_time)
                    tl.store(db_ + of_step + 2 * n + 1, tl.sum(b_i, 1), mask=in_time)
                if CONSTANT_C:
                    tl.store(dc_ + of_da + 2 * n, tl.sum(c_r, 0), mask=in_channels)
                    tl.store(dc_ + of_da + 2 * n + 1, tl.sum(c_i, 0), mask=in_channels)
                else:
                    tl.store(dc_ + of_step + 2 * n, tl.sum(c_r, 1), mask=in_time)
                    tl.store(dc_ + of_step + 2 * n + 1, tl.sum(c_i, 1), mask=in_time)
                if SERIAL:
                    front, front_i = row_of(cr, 0, STEPS), row_of(ci, 0, STEPS)
                    tl.store(of_next + row, front, mask=passes)
                    tl.store(of_next + row + channels, front_i, mask=passes)
                    if HAS_DINITIAL:
                        tl.store(dinitial + 2 * n, front, mask=ends)
                        tl.store(dinitial + 2 * n + 1, front_i, mask=ends)
            else:
                p, v = tl.associative_scan((tl.exp(dt_before * rate), x_before * b_before), 0, join)
                v += times(p, state)
                p, gr = tl.associative_scan((tl.exp(dt_behind * rate), f * v_c), 0, join, reverse=True)
                gr = tl.where(inside, gr + times(p, carry[None, :]), 0.0)
                p = tl.exp(dt * rate)
                hr = times(p, v) + x * v_b
                total += v_c * hr
                cr = times(p, gr)
                rr = cr * v
                to_dt += rate * rr
                to_x += v_b * gr
                tl.store(da + of_da + n, tl.sum(dt * rr, 0), mask=in_channels)
                if CONSTANT_B:
                    tl.store(db_ + of_da + n, tl.sum(gr * x, 0), mask=in_channels)
                else:
                    tl.store(db_ + of_step + n, tl.sum(gr * x, 1), mask=in_time)
                if CONSTANT_C:
                    tl.store(dc_ + of_da + n, tl.sum(f * hr, 0), mask=in_channels)
                else:
                    tl.store(dc_ + of_step + n, tl.sum(f * hr, 1), mask=in_time)
                if SERIAL:
                    front = row_of(cr, 0, STEPS)
                    tl.store(of_next + row, front, mask=passes)
                    if HAS_DINITIAL:
                        tl.store(dinitial + n, front, mask=ends)
        # Read once more, from the caches: registers are for what the states need.
        at_u = _tile(u, at_t, at_c, inside, ut, uc, WIDE)
        to_dt += at_u * to_x
        if SOFTPLUS:
            to_dt *= tl.sigmoid(_tile(delta, at_t, at_c, inside, dt_, dc, WIDE) + shift[None, :])
        to_dt = tl.where(inside, to_dt, 0.0)
        tl.store(du + at_t * dut + at_c * duc, dt * to_x + f * skip[None, :], mask=inside)
        tl.store(ddelta + at_t * ddt + at_c * ddc, to_dt, mask=inside)
        if HAS_Z:
            total += at_u * skip[None, :]
            total *= _tile(dy, at_t, at_c, inside, gt, gc, WIDE)
            total *= activation_gradient(_tile(z, at_t, at_c, inside, zt, zc, WIDE), "silu")
            tl.store(dz + at_t * dzt + at_c * dzc, total, mask=inside)
        of_channel = (chunk * batch + b) * channels + c
        if HAS_D:
            tl.store(dd + of_channel, tl.sum(f * at_u, 0), mask=in_channels)
        if HAS_BIAS:
            tl.store(dbias + of_channel, tl.sum(to_dt, 0), mask=in_channels)
        if SERIAL:
            tl.debug_barrier()
