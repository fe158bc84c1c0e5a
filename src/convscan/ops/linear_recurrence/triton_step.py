"""A step of a recurrence, y = a s + x, with the state s that becomes y, on a GPU."""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import wide


@triton.jit
def step(
    x,
    a,
    state,
    y,
    channels,
    channel_tiles,
    xb,
    xc,
    ab,
    ac,
    sb,
    sc,
    yb,
    yc,
    CHANNELS: tl.constexpr,
    COMPLEX: tl.constexpr,  # real and imaginary parts lie beside each other
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    c = wide(program % channel_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    b = wide(program // channel_tiles)
    inside = c < channels
    x += b * xb + c * xc
    a += b * ab + c * ac
    state += b * sb + c * sc
    y += b * yb + c * yc
    u, w, s = (tl.load(x, mask=inside).to(WIDE), tl.load(a, mask=inside).to(WIDE), tl.load(state, mask=inside).to(WIDE))
    total = w * s + u
    if COMPLEX:
        v, z, r = tl.load(x + 1, mask=inside), tl.load(a + 1, mask=inside), tl.load(state + 1, mask=inside)
        total -= z * r
        imaginary = w * r + z * s + v
        tl.store(state + 1, imaginary, mask=inside)
        tl.store(y + 1, imaginary, mask=inside)
    tl.store(state, total, mask=inside)
    tl.store(y, total, mask=inside)
