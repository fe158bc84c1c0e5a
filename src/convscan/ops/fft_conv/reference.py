"""The definition, one lag at a time in float64: the truth in tests, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fft_conv(equation: str, x: Tensor, args: Sequence[Tensor]) -> Tensor:
    """y[.., i, ..] = sum_k einsum(x[.., i-k, ..], args with the kernel's l at k)."""
    inputs, output = equation.replace(" ", "").split("->")
    signal, *operands = inputs.split(",")
    kernel = next(place for place, axes in enumerate(operands) if "l" in axes)
    # One lag at a time the kernel has no l, and the einsum is an ordinary one with the time of x kept.
    lag = ",".join([signal, *(axes.replace("l", "") for axes in operands)]) + "->" + output
    wide = [operand.double() for operand in args]
    along, time, taps = signal.index("l"), operands[kernel].index("l"), args[kernel].shape[operands[kernel].index("l")]
    x, length = x.double(), x.shape[along]
    sizes = {axis: size for axes, t in zip([signal, *operands], [x, *args], strict=True)
             for axis, size in zip(axes, t.shape, strict=True) if axis != "l"}  # fmt: skip
    y = x.new_zeros([length if axis == "l" else sizes[axis] for axis in output])
    for k in range(min(taps, length)):
        tap = [w.select(time, k) if place == kernel else w for place, w in enumerate(wide)]
        y.narrow(output.index("l"), k, length - k).add_(torch.einsum(lag, x.narrow(along, 0, length - k), *tap))
    return y
