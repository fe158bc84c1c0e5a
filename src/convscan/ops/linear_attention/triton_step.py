"""One step of linear attention with decay, or of the gated delta rule, in place on a GPU: what csrc/chunk/step.h does.

    S = diag(a) S + w k u^T,   y = scale S^T q / divisor

with u = v, or beta (v - (diag(a) S)^T k) for GATES "delta", which reads the state twice. A program has some columns of
one head's state, a block of keys at a time. Of "mlstm" the next n and m go to memory of their own, for all programs of
a head to see the former ones.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, softplus, wide


@triton.jit
def _decay(g, k, in_keys, uniform, gk, PER_KEY: tl.constexpr, WIDE: tl.constexpr):
    """exp(g) of some keys."""
    decay = uniform + tl.zeros_like(k).to(WIDE)
    if PER_KEY:
        decay = tl.exp(tl.load(g + k * gk, mask=in_keys, other=0.0).to(WIDE))
    return decay


@triton.jit
def step(
    v,
    state,
    q,
    k,
    g,  # "ssd": dt; "mlstm": the forget gate
    i,  # "mlstm": the input gate; "delta": beta; "ssd": A
    bias,
    skip,
    z,
    n,
    m,
    next_n,  # (batch, heads, keys)
    next_m,  # (batch, heads)
    y,
    scale,
    eps,
    in_group,
    heads,
    keys,
    values,
    blocks,
    vb,
    vh,
    vc,
    sb,
    sh,
    sk,
    sv,
    qb,
    qh,
    qk,
    kb,
    kh,
    kk,
    gb,
    gh,
    gk,
    ib,
    ih,
    bias_h,
    ph,
    pc,
    zb,
    zh,
    zc,
    nb,
    nh,
    nk,
    mb,
    mh,
    yb,
    yh,
    yc,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    GATES: tl.constexpr,
    PER_KEY: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_Z: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    block = program % blocks
    head = wide((program // blocks) % heads)
    b = wide(program // (blocks * heads))
    group = head // in_group
    at_v = wide(block) * VALUES + tl.arange(0, VALUES)
    in_values = at_v < values
    state += b * sb + head * sh + at_v[None, :] * sv
    q += b * qb + group * qh
    k += b * kb + group * kh
    g += b * gb + head * gh
    weight = tl.zeros([1], WIDE) + 1.0
    uniform = weight
    if GATES == "ssd":
        dt = tl.load(g).to(WIDE) + weight * 0.0
        if HAS_BIAS:
            dt += tl.load(bias + head * bias_h).to(WIDE)
        weight = softplus(dt) if SOFTPLUS else dt
        uniform = tl.exp(weight * tl.load(i + head * ih).to(WIDE))
    elif GATES == "mlstm":
        # Gates beyond 10^4 are as closed, or as open, as any.
        opened = tl.minimum(tl.maximum(tl.load(i + b * ib + head * ih).to(WIDE) + weight * 0.0, -1e4), 1e4)
        kept = -softplus(-(tl.load(g).to(WIDE) + weight * 0.0))
        kept = tl.maximum(kept, -1e4) + tl.load(m + b * mb + head * mh).to(WIDE)
        after = tl.maximum(kept, opened)
        weight, uniform = tl.exp(opened - after), tl.exp(kept - after)
    elif not PER_KEY:
        uniform = tl.exp(tl.load(g).to(WIDE) + weight * 0.0)
    of_v = tl.load(v + b * vb + head * vh + at_v * vc, mask=in_values, other=0.0).to(WIDE)
    written = of_v
    if GATES == "delta":
        answer = tl.zeros([VALUES], WIDE)
        for first in range(0, keys, KEYS):
            at_k = wide(first) + tl.arange(0, KEYS)
            in_keys = at_k < keys
            known = in_keys[:, None] & in_values[None, :]
            of_k = tl.load(k + at_k * kk, mask=in_keys, other=0.0).to(WIDE)
            of_k *= _decay(g, at_k, in_keys, uniform, gk, PER_KEY, WIDE)
            answer += tl.sum(of_k[:, None] * tl.load(state + at_k[:, None] * sk, mask=known, other=0.0), 0)
        written = (of_v - answer) * tl.load(i + b * ib + head * ih).to(WIDE)
    total = tl.zeros([VALUES], WIDE)
    summed = tl.zeros([1], WIDE)
    for first in range(0, keys, KEYS):
        at_k = wide(first) + tl.arange(0, KEYS)
        in_keys = at_k < keys
        known = in_keys[:, None] & in_values[None, :]
        of_k = weight * tl.load(k + at_k * kk, mask=in_keys, other=0.0).to(WIDE)
        of_q = tl.load(q + at_k * qk, mask=in_keys, other=0.0).to(WIDE)
        decay = _decay(g, at_k, in_keys, uniform, gk, PER_KEY, WIDE)
        at_state = state + at_k[:, None] * sk
        after_state = decay[:, None] * tl.load(at_state, mask=known, other=0.0) + of_k[:, None] * written[None, :]
        tl.store(at_state, after_state, mask=known)
        total += tl.sum(of_q[:, None] * after_state, 0)
        if GATES == "mlstm":
            of_n = tl.load(n + b * nb + head * nh + at_k * nk, mask=in_keys, other=0.0).to(WIDE)
            of_n = of_n * decay + of_k
            tl.store(next_n + (b * heads + head) * keys + at_k, of_n, mask=in_keys & (block == 0))
            summed += tl.sum(of_n * of_q, 0)
    total *= scale
    if GATES == "mlstm":
        # Where exp(-m) would overflow, y is zero long before.
        most: tl.constexpr = 700.0 if tl.float64 == WIDE else 80.0
        floor = tl.exp(tl.minimum(-after, most))
        total /= tl.maximum(tl.abs(summed * scale), floor) + eps
        at_m = next_m + b * heads + head + tl.arange(0, 1)
        tl.store(at_m, after, mask=block == 0)
    if HAS_SKIP:
        total += tl.load(skip + head * ph + at_v * pc, mask=in_values, other=0.0).to(WIDE) * of_v
    if HAS_Z:
        total *= activate(tl.load(z + b * zb + head * zh + at_v * zc, mask=in_values, other=0.0).to(WIDE), "silu")
    tl.store(y + b * yb + head * yh + at_v * yc, total, mask=in_values)
