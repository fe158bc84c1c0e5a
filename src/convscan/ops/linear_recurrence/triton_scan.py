"""y[t] = a[t] y[t-1] + x[t] on a GPU, every sample read and written once.

A program has a tile of time and channels in registers. It scans the tile from zero, (product of a, state), publishes
both at the tile's end for its successors, looks back for the state before it, and adds product times state. What the
loop over time would do one after the other is done by all programs at once; only states wait for each other.

Looking back is decoupled (Merrill and Garland, Single-pass parallel prefix scan with decoupled look-back, 2016), in a
form whose result does not depend on when programs run: tiles are grouped by WINDOW, a program combines the tiles of its
own group that lie before it, in order, and the state that the last tile of the group before has published. A value is
its own signal: memory begins as a pattern of bits that no result has, and words of 64 bits are written whole, so that
nothing needs a fence. Programs with lower numbers start first, and theirs is all that a program waits for.

Time runs backwards where the caller hands over negative strides. With GRADIENT, x is the gradient of the result, a is
taken conjugated and one step late, and of y, the result, comes da[t] = g[t] conj(y[t-1]): in the direction of this
scan, the next one. Complex numbers are pairs, with twice the strides.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import join, join_complex, row_of, times, wide


@triton.jit
def _publish(words, a, y, plane, mask, WIDE: tl.constexpr):
    """a and y as words that are not all ones: no number is, but some that are none."""
    a = tl.where(a == a, a, float("nan"))
    y = tl.where(y == y, y, float("nan"))
    if tl.float32 == WIDE:
        low = a.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        tl.store(words, low | (y.to(tl.int32, bitcast=True).to(tl.int64) << 32), mask=mask)
    else:
        tl.store(words, a.to(tl.int64, bitcast=True), mask=mask)
        tl.store(words + plane, y.to(tl.int64, bitcast=True), mask=mask)


@triton.jit
def _poll(words, mask):
    """Words of a (rows, channels) tile, once all have been published."""
    found = tl.load(words, mask=mask, other=0, volatile=True)
    while tl.max(tl.max((found == -1).to(tl.int32), 1), 0) > 0:
        found = tl.load(words, mask=mask, other=0, volatile=True)
    return found


@triton.jit
def _read(words, plane, mask, WIDE: tl.constexpr):
    """What was published: a, which is 1 where the mask is off, and y."""
    if tl.float32 == WIDE:
        found = _poll(words, mask)
        a = (found & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        y = (found >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        a = _poll(words, mask).to(tl.float64, bitcast=True)
        y = _poll(words + plane, mask).to(tl.float64, bitcast=True)
    return tl.where(mask, a, 1.0), tl.where(mask, y, 0.0)


@triton.jit
def scan(
    x,
    a,
    start,
    y,
    forward,  # with GRADIENT, the result of the recurrence
    da,
    dstart,
    words,  # (tiles + groups, batch, planes, channels)
    bounds,
    sequence_of,
    length,
    channels,
    batch,
    tiles,
    channel_tiles,
    xb,
    xt,
    xc,
    ab,
    at,
    ac,
    sb,
    ss,
    sc,
    yb,
    yt,
    yc,
    fb,
    ft,
    fc,
    pb,
    pt,
    pc,
    qb,
    qs,
    qc,
    TIME: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    COMPLEX: tl.constexpr,
    HAS_START: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    GRADIENT: tl.constexpr,
    HAS_DA: tl.constexpr,
    HAS_DSTART: tl.constexpr,
    SINGLE: tl.constexpr,  # one tile of time
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    # Programs of earlier tiles have lower numbers.
    ct = program % channel_tiles
    b = (program // channel_tiles) % batch
    tile = program // (channel_tiles * batch)
    c1 = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
    t1 = wide(tile * TIME + tl.arange(0, TIME))
    c, t = c1[None, :], t1[:, None]
    in_channels = c1 < channels
    inside = (t < length) & in_channels[None, :]
    first, last = t == 0, t == length - 1
    s = t * 0
    if PACKED:
        step = t1
        if BACKWARDS:
            step = length - 1 - t1
        s1 = tl.load(sequence_of + step, mask=t1 < length, other=0).to(tl.int64)
        low = tl.load(bounds + s1)
        high = tl.load(bounds + s1 + 1) - 1
        if BACKWARDS:
            first, last = (step == high)[:, None], (step == low)[:, None]
        else:
            first, last = (step == low)[:, None], (step == high)[:, None]
        s = s1[:, None]
    at_batch = wide(b)
    x += at_batch * xb + t * xt + c * xc
    a += at_batch * ab + t * at + c * ac
    start += at_batch * sb + c * sc
    y += at_batch * yb + t * yt + c * yc
    back = a
    here = inside
    if GRADIENT:
        back = a - at
        here = inside & (t > 0)
    v = tl.load(x, mask=inside, other=0.0).to(WIDE)
    p = tl.load(back, mask=here, other=1.0).to(WIDE)
    if COMPLEX:
        w = tl.load(x + 1, mask=inside, other=0.0).to(WIDE)
        q = tl.load(back + 1, mask=here, other=0.0).to(WIDE)
        if GRADIENT:
            q = -q
    # The first step of a sequence takes nothing from the step before.
    if not GRADIENT:
        if HAS_START:
            begins = first & inside
            r = tl.load(start + s * ss, mask=begins, other=0.0).to(WIDE)
            if COMPLEX:
                i = tl.load(start + s * ss + 1, mask=begins, other=0.0).to(WIDE)
                v += tl.where(begins, p * r - q * i, 0.0)
                w += tl.where(begins, p * i + q * r, 0.0)
            else:
                v += tl.where(begins, p * r, 0.0)
    p = tl.where(first, 0.0, p)
    if COMPLEX:
        q = tl.where(first, 0.0, q)
        p, q, v, w = tl.associative_scan((p, q, v, w), 0, join_complex)
    else:
        p, v = tl.associative_scan((p, v), 0, join)
    if not SINGLE:
        plane = wide(channels)
        planes: tl.constexpr = (2 if COMPLEX else 1) * (1 if tl.float32 == WIDE else 2)
        step_of_words = plane * planes * batch
        pair: tl.constexpr = 1 if tl.float32 == WIDE else 2
        mine = words + (at_batch * planes) * plane + c1
        group = tile // WINDOW
        end = row_of(v, TIME - 1, TIME)
        product = row_of(p, TIME - 1, TIME)
        _publish(mine + tile * step_of_words, product, end, plane, in_channels, WIDE)
        if COMPLEX:
            end_i = row_of(w, TIME - 1, TIME)
            product_i = row_of(q, TIME - 1, TIME)
            _publish(mine + tile * step_of_words + pair * plane, product_i, end_i, plane, in_channels, WIDE)
        if tile > 0:
            # The tiles of this group that lie before this one, in order, on the state at the end of the group before.
            row = tl.arange(0, WINDOW)
            member = wide(group * WINDOW + row)
            known = (member < tile)[:, None] & in_channels[None, :]
            of_group = mine[None, :] + member[:, None] * step_of_words
            pw, vw = _read(of_group, plane, known, WIDE)
            before = (mine + (tiles + wide(group) - 1) * step_of_words)[None, :]
            ready = in_channels[None, :] & (group > 0)
            _, carry = _read(before, plane, ready, WIDE)
            if COMPLEX:
                qw, ww = _read(of_group + pair * plane, plane, known, WIDE)
                qw = tl.where(known, qw, 0.0)
                _, carry_i = _read(before + pair * plane, plane, ready, WIDE)
                pw, qw, vw, ww = tl.associative_scan((pw, qw, vw, ww), 0, join_complex)
                pl, ql = row_of(pw, WINDOW - 1, WINDOW)[None, :], row_of(qw, WINDOW - 1, WINDOW)[None, :]
                vl, wl = row_of(vw, WINDOW - 1, WINDOW)[None, :], row_of(ww, WINDOW - 1, WINDOW)[None, :]
                carry, carry_i = (
                    vl + times(pl, carry) - times(ql, carry_i),
                    wl + times(pl, carry_i) + times(ql, carry),
                )
                v, w = (
                    v + times(p, carry) - times(q, carry_i),
                    w + times(p, carry_i) + times(q, carry),
                )
            else:
                pw, vw = tl.associative_scan((pw, vw), 0, join)
                carry = row_of(vw, WINDOW - 1, WINDOW)[None, :] + times(row_of(pw, WINDOW - 1, WINDOW)[None, :], carry)
                v += times(p, carry)
        if tile % WINDOW == WINDOW - 1:
            state = mine + (tiles + wide(group)) * step_of_words
            end = row_of(v, TIME - 1, TIME)
            _publish(state, end * 0.0, end, plane, in_channels, WIDE)
            if COMPLEX:
                end = row_of(w, TIME - 1, TIME)
                _publish(state + pair * plane, end * 0.0, end, plane, in_channels, WIDE)
    tl.store(y, v, mask=inside)
    if COMPLEX:
        tl.store(y + 1, w, mask=inside)
    if GRADIENT:
        if HAS_DA:
            forward += at_batch * fb + (t + 1) * ft + c * fc
            da += at_batch * pb + t * pt + c * pc
            previous = inside & (last == 0)
            e = tl.load(forward, mask=previous, other=0.0).to(WIDE)
            if COMPLEX:
                f = tl.load(forward + 1, mask=previous, other=0.0).to(WIDE)
            if HAS_START:
                e += tl.load(start + s * ss, mask=inside & last, other=0.0).to(WIDE)
                if COMPLEX:
                    f += tl.load(start + s * ss + 1, mask=inside & last, other=0.0).to(WIDE)
            if COMPLEX:
                tl.store(da, v * e + w * f, mask=inside)
                tl.store(da + 1, w * e - v * f, mask=inside)
            else:
                tl.store(da, v * e, mask=inside)
        if HAS_DSTART:
            dstart += at_batch * qb + s * qs + c * qc
            ends = inside & last
            e = tl.load(a, mask=ends, other=0.0).to(WIDE)
            if COMPLEX:
                f = tl.load(a + 1, mask=ends, other=0.0).to(WIDE)
                tl.store(dstart, e * v + f * w, mask=ends)
                tl.store(dstart + 1, e * w - f * v, mask=ends)
            else:
                tl.store(dstart, e * v, mask=ends)
