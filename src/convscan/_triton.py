"""What Triton kernels have in common on the device."""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wide(value):
    """As 64 bits, for offsets: also of a stride of 1, which comes as a constant."""
    return value + tl.zeros([], tl.int64)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """activation(z)."""
    if ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    if ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def activation_gradient(z, ACTIVATION: tl.constexpr):
    """activation'(z)."""
    slope = z * 0.0 + 1.0
    if ACTIVATION == "silu":
        s = tl.sigmoid(z)
        slope = s * (1.0 + z * (1.0 - s))
    if ACTIVATION == "gelu":
        slope = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    return slope


@triton.jit
def _rounded(x):
    """x to the 11 bits that tensor cores read of float32, to nearest: what they cut off by themselves is biased."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def halves(x):
    """x as float16, and what is left of it in float16 too: 22 bits together, none of them below 2^-24."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def dot_halves(high_x, low_x, high_y, low_y, total):
    """total + x y of ``halves``, without the product of what is left of both; small products first."""
    return tl.dot(high_x, high_y, tl.dot(high_x, low_y, tl.dot(low_x, high_y, total)))


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """total + x y for a pair of matrices in float32, summed in float32.

    PRECISION says what a tensor core may make of them: ``"exact"`` float32; ``"three"`` the three larger of the four
    products of their halves, 2^-22 off; ``"left"`` the two halves of x times y, which has no more than 11 bits;
    ``"right"`` x, which has no more, times those of y;
    ``"one"`` both rounded to 11 bits; ``"half"`` both of a half type. ``"halves"`` and ``"nearest"`` are ``"three"``
    and ``"one"`` in float16, which tensor cores multiply twice as fast, for numbers within its range: what it leaves
    off of small ones is at most 2^-25.
    """
    if PRECISION == "exact":
        total = tl.dot(x, y, total, input_precision="ieee")
    elif PRECISION == "half":
        total = tl.dot(x, y, total)
    elif PRECISION == "nearest":
        total = tl.dot(x.to(tl.float16), y.to(tl.float16), total)
    elif PRECISION == "halves":
        high_x, low_x = halves(x)
        high_y, low_y = halves(y)
        total = dot_halves(high_x, low_x, high_y, low_y, total)
    elif PRECISION == "one":
        total = tl.dot(_rounded(x), _rounded(y), total, input_precision="tf32")
    elif PRECISION == "right":
        high_y = _rounded(y)
        low_y = y - high_y
        low_y = tl.where(low_y == low_y, low_y, 0.0)
        total = tl.dot(x, low_y, total, input_precision="tf32")
        total = tl.dot(x, high_y, total, input_precision="tf32")
    else:
        high_x = _rounded(x)
        low_x = x - high_x
        low_x = tl.where(low_x == low_x, low_x, 0.0)  # of infinity nothing is left
        if PRECISION == "left":
            total = tl.dot(low_x, y, total, input_precision="tf32")
            total = tl.dot(high_x, y, total, input_precision="tf32")
        else:
            high_y = _rounded(y)
            low_y = y - high_y
            low_y = tl.where(low_y == low_y, low_y, 0.0)
            # Small products first.
            total = tl.dot(low_x, high_y, total, input_precision="tf32")
            total = tl.dot(high_x, low_y, total, input_precision="tf32")
            total = tl.dot(high_x, high_y, total, input_precision="tf32")
    return total


# ---- recurrences ----


@triton.jit
def times(a, y):
    """a y, where zero is zero whatever the other is: a product of many that has overflown meets nothing, and where a
    sequence begins nothing comes from the one before."""
    return tl.where((y == 0.0) | (a == 0.0), 0.0, a * y)


@triton.jit
def join(a1, y1, a2, y2):
    """(product of a, state) of two parts that follow one another."""
    return a1 * a2, times(a2, y1) + y2


@triton.jit
def join_complex(a1, b1, y1, z1, a2, b2, y2, z2):
    """The same of complex numbers a + i b and y + i z."""
    return (
        a1 * a2 - b1 * b2,
        a1 * b2 + b1 * a2,
        times(a2, y1) - times(b2, z1) + y2,
        times(a2, z1) + times(b2, y1) + z2,
    )


@triton.jit
def row_of(values, index, TIME: tl.constexpr):
    """One row of a tile."""
    return tl.sum(tl.where(tl.arange(0, TIME)[:, None] == index, values, 0.0), 0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, its tails included."""
    z = tl.exp(-tl.abs(x))
    w = 1.0 + z
    # What rounding takes from 1 + z, the ratio gives back (Kahan).
    rest = tl.where(w == 1.0, z, tl.log(w) * (z / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.maximum(x, 0.0) + rest


@triton.jit
def head_of(blocks, heads, lines):
    """Of this program the block, the head, which of ``lines``, and the batch entry: blocks vary first."""
    program = tl.program_id(0)
    head = wide((program // blocks) % heads)
    return program % blocks, head, (program // (blocks * heads)) % lines, wide(program // (blocks * heads * lines))


@triton.jit
def place_of(program, bounds, table, length, STEPS: tl.constexpr, SERIAL: tl.constexpr, PACKED: tl.constexpr):
    """The sequence of a program, its steps, its first chunk among those of all sequences, and how many it has. SERIAL
    ones go through a sequence of ``bounds``, others through a chunk of ``table``, which ``_gpu.Chunks`` makes."""
    sequence, begin, end = wide(0), wide(0), wide(length)
    if SERIAL:
        if PACKED:
            sequence = wide(program)
            begin, end = tl.load(bounds + program), tl.load(bounds + program + 1)
        first, chunks = begin // STEPS + sequence, (end - begin + STEPS - 1) // STEPS
    else:
        first, chunks = wide(program), wide(1)
        begin = first * STEPS
        end = tl.minimum(begin + STEPS, end)
        if PACKED:
            sequence = tl.load(table + 3 * first)
            begin, end = tl.load(table + 3 * first + 1), tl.load(table + 3 * first + 2)
    return sequence, begin, end, first, chunks
