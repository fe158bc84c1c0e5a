"""convolve: two-sided and circular convolutions, by the engine of causal_conv."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._calls import run_prepared
from ..._dispatch import register
from ..._errors import message
from ..._library import is_traced
from ..causal_conv import api as engine
from ..causal_conv.api import Operands
from ..causal_conv.operator import ROWS
from ..causal_conv.problem import ConvProblem


def convolve(
    x: Tensor,
    h: Tensor,
    *,
    origin: int = 0,
    circular: bool = False,
    bias: Tensor | None = None,
    activation: str | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> Tensor:
    """y[i,n] = activation(post_gate[i,n] (sum_j h[i-j+origin,n] u[j,n] + bias[n])), u = pre_gate x.

    A convolution that may look ahead: h[origin] multiplies the current sample, taps before it later samples. With the
    origin 0 it is ``causal_conv``, with K-1 anti-causal, with (K-1)//2 centred ("same"); K = 2L-1 and the origin L-1
    reach from every sample to every other. Samples beyond both ends are zero, or, if ``circular``, those of the other.

    Args:
        x: (..., L, D) in any memory order, as of ``causal_conv``.
        h: (K, D), (K, 1), (K, H) or with the leading axes of x, as of ``causal_conv``.
        origin: which tap multiplies the current sample, 0 <= origin < K.
        circular: whether x has the period L; any L, and any K, whose taps wrap as often as they have to. Not packed.
            Samples with a gate are then stored, in the type of their product.
        bias, activation, pre_gate, post_gate, cu_seqlens, precision, out: as of ``causal_conv``.

    Returns:
        y, with the shape and memory order of x.

    dtypes: as of ``causal_conv``.

    Raises:
        ValueError: a shape, device, activation or precision that does not fit, an origin that is no tap, ``out`` that
            partly overlaps an input, or ``circular`` with ``cu_seqlens``.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        RuntimeError: ``out`` where a gradient is needed.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: that of ``causal_conv``. A circular one has its last K-1 samples, at most L, before the first, and copies x
    where its origin is not 0. Differentiable any number of times in both modes.

    Reference: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, ch. 2 and 8.

    >>> import torch, convscan
    >>> x, h = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [10.0], [100.0]])
    >>> convscan.convolve(x, h, origin=1).flatten().tolist()
    [12.0, 123.0, 230.0]
    >>> convscan.convolve(x, h, circular=True).flatten().tolist()
    [231.0, 312.0, 123.0]
    """
    if cu_seqlens is None and not circular and not is_traced():
        default = origin == 0 and precision == "default"
        variant = activation if default else (activation, origin, False, precision)
        y = run_prepared(engine.prepared, variant, x, h, bias, None, pre_gate, post_gate, out)
        if y is not None:
            return y
    operands = Operands(x, h, bias, None, pre_gate, post_gate, cu_seqlens, activation, origin, False, precision)
    return engine.checked("convolve", _canonical(operands, circular, out), out)


def _canonical(operands: Operands, circular: bool, out: Tensor | None) -> Operands:
    """The same convolution as one that is not circular."""
    engine.check("convolve", operands)
    x, h, origin = operands.x, operands.h, operands.origin
    if not (isinstance(origin, int | torch.SymInt) and 0 <= origin < h.shape[-2]):
        raise ValueError(
            message("convolve", f"origin must be one of the K = {h.shape[-2]} taps, counted from 0", origin)
        )
    if not circular:
        return operands
    if operands.cu_seqlens is not None:
        remedy = "Call it for each sequence, or pad them to one length"
        raise ValueError(message("convolve", "circular must be False with cu_seqlens", circular, remedy))
    length = x.shape[-2]
    if length == 0:
        return operands
    if h.shape[-2] > length:
        h = _wrapped(h, length)
    u = x if operands.pre_gate is None else operands.pre_gate * x
    if origin % length != 0:
        u = u.roll(-(origin % length), -2)
    # What precedes the first sample are the last ones.
    steps = h.shape[-2] - 1
    past = u.narrow(-2, length - steps, steps)
    return operands._replace(x=u, h=h, pre_gate=None, state=past if out is None else past.clone(), origin=0)


def _wrapped(h: Tensor, period: int) -> Tensor:
    """Taps a period apart meet the same sample: their sums, ``period`` of them."""
    turns = -(-h.shape[-2] // period)
    padded = torch.nn.functional.pad(h, (0, 0, 0, turns * period - h.shape[-2]))
    return padded.reshape(*h.shape[:-2], turns, period, h.shape[-1]).sum(-3)


def _describe(
    x: Tensor,
    h: Tensor,
    *,
    origin: int = 0,
    circular: bool = False,
    bias: Tensor | None = None,
    activation: str | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> ConvProblem:
    operands = Operands(x, h, bias, None, pre_gate, post_gate, cu_seqlens, activation, origin, False, precision)
    return engine.describe_call(_canonical(operands, circular, out), out, "convolve")


register("convolve", ROWS, _describe)
