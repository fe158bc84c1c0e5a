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
