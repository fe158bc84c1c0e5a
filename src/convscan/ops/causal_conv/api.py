"""causal_conv: signature and documentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _checks
from ..._calls import run_prepared
from ..._dispatch import register
from ..._errors import message
from ..._layout import dtype_name
from ..._library import is_plain, is_traced, is_watched, needs_gradient
from . import sparse
from .arguments import DTYPES as DTYPES
from .arguments import Operands as Operands
from .arguments import check as check
from .arguments import packed_boundaries, problem_of
from .operator import ROWS, calls, conv, run
from .problem import ConvProblem, arithmetic
from .spectrum import FilterSpectrum, first_taps

prepared = calls.prepared


def causal_conv(
    x: Tensor,
    h: Tensor | FilterSpectrum,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> Tensor:
    """y[i,n] = activation(post_gate[i,n] (sum_j h[i-j,n] u[j,n] + bias[n])), u = pre_gate x, over 0 <= i-j < K.

    A causal convolution along time, each channel with its own filter; h[0] multiplies the current sample. Samples
    before the first one are zero, or those of ``initial_state``. The filter may be longer than the signal. Gates, bias
    and activation are part of the first and the last pass over the samples: no product is stored.

    Args:
        x: (..., L, D) with any number of leading axes, in any memory order: a (..., D, L) tensor seen through
            ``transpose(-1, -2)`` is not copied, and the result has the same order. L and every other size may be 0.
        h: (K, D), K >= 1, in any memory order; (K, H) where D is a multiple of H, a filter for each D/H consecutive
            channels; (K, 1), one for all; or (..., K, D) with the leading axes of x, or 1, a filter for each sequence;
            or a ``FilterSpectrum`` of (K, D), (K, H) or (K, 1), which keeps the filter's transform for the next call.
        bias: (D,), added to the sum.
        activation: None, ``"silu"`` or ``"gelu"`` (with erf).
        pre_gate: factors of x, anything that broadcasts to the shape of x, in any memory order; not copied.
        post_gate: factors of the sum with its bias, likewise.
        initial_state: (..., K-1, D), the samples before x, oldest first; leading axes as x. They have had the gate:
            what a sequence hands on is the end of ``pre_gate * x``.
        cu_seqlens: (S+1,), int32 or int64, from 0 to L: sequence s has the steps cu_seqlens[s] <= t < cu_seqlens[s+1]
            and meets no sample of another. ``initial_state`` is then (..., S, K-1, D). On a GPU the values are not
            checked, which would wait for the device.
        precision: ``"default"`` computes in the type of x; ``"high"`` computes float32 in float64 and rounds the result
            once, derivatives too, in about twice the time and workspace (``explain`` predicts it). Of other dtypes,
            both are the same.
        out: memory for the result, with the shape of x; it may be x itself. Not where a gradient is needed.

    Returns:
        y, with the shape and memory order of x.

    dtypes: float32, float64, bfloat16, float16. Different dtypes are promoted as in any PyTorch operator, which
    copies what has to change. Half types are computed in float32, float64 in float64.

    Raises:
        ValueError: a shape, device, activation or precision that does not fit, or ``out`` that partly overlaps an
            input.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        RuntimeError: ``out`` where a gradient is needed.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: the cheapest of a direct sum, O(L K) per channel, and an FFT, O(L log L) per channel; ``explain`` tells which
    and why. Differentiable any number of times in both modes; nothing but the inputs is kept for it.

    Reference: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, ch. 2 and 8; of the gates, M. Poli et
    al., Hyena Hierarchy, 2023, arXiv 2302.10866.

    >>> import torch, convscan
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> h = torch.tensor([[1.0], [10.0]])
    >>> convscan.causal_conv(x, h).flatten().tolist()
    [1.0, 12.0, 23.0]
    >>> convscan.causal_conv(x, h, post_gate=x).flatten().tolist()
    [1.0, 24.0, 69.0]
    """
    if cu_seqlens is None and not is_traced():
        variant = activation if precision == "default" else (activation, 0, False, precision)
        if not isinstance(h, FilterSpectrum):
            y = run_prepared(prepared, variant, x, h, bias, initial_state, pre_gate, post_gate, out)
        else:
            y = _run_kept(variant, x, h, bias, initial_state, pre_gate, post_gate, out)
        if y is not None:
            return y
    filters, h = (h, h.h) if isinstance(h, FilterSpectrum) else (None, h)
    rest = (bias, initial_state, pre_gate, post_gate, cu_seqlens, activation, 0, False, precision)
    return checked("causal_conv", Operands(x, h, *rest), out, filters)


def _run_kept(variant: Any, x: Tensor, filters: FilterSpectrum, *others: Tensor | None) -> Tensor | None:
    """A prepared call with a spectrum that is there already."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.dtype not in DTYPES or is_watched():
        return None
    precision = "default" if not isinstance(variant, tuple) else variant[-1]
    spectrum = filters.ready(x.shape[-2], arithmetic(dtype_name(x.dtype), precision))
    if spectrum is None:
        return None
    *inputs, out = others
    y: Tensor | None = run_prepared(prepared, variant, x, filters.h, *inputs, spectrum, out)
    return y


def checked(name: str, operands: Operands, out: Tensor | None, filters: FilterSpectrum | None = None) -> Tensor:
    """Checks, promotes dtypes and calls the operator that is registered with PyTorch."""
    dtype = check(name, operands)
    x = operands.x
    if out is not None:
        _checks.output(name, out, x, dtype, needs_gradient(*operands.floats))
    same = [None if tensor is None else tensor.to(dtype) for tensor in operands.floats]
    operands = Operands(*same, *operands[6:])  # type: ignore[arg-type, call-arg]
    if filters is not None and filters.keep is not None:
        y = _with_part(filters, operands)
        return y if out is None else out.copy_(y)
    if filters is not None and _can_keep(filters, operands) and not is_watched():
        h = first_taps(filters, operands.h)
        spectrum = filters.spectrum(h, arithmetic(dtype_name(dtype), operands.precision))
        operands = operands._replace(h=h, spectrum=spectrum)
    if out is not None and is_plain(*operands.floats, operands.cu_seqlens, out):
        run(operands, out)
        return out
    result: Tensor = conv(*operands)
    return result if out is None else out.copy_(result)


def _with_part(filters: FilterSpectrum, operands: Operands) -> Tensor:
    """The convolution with a part of the filters' spectra."""
    x, h, bias, state, pre_gate, post_gate, cu_seqlens, activation, *_ = operands
    _check_length(filters, x)
    for argument, tensor in (("initial_state", state), ("cu_seqlens", cu_seqlens)):
        if tensor is not None:
            expectation = f"{argument} must be None where the FilterSpectrum keeps a part of the frequencies"
            raise ValueError(message("causal_conv", expectation, _checks.shape_text(tensor.shape)))
    y = sparse.convolve(filters, x if pre_gate is None else pre_gate * x, h, operands.precision)
    y = y if bias is None else y + bias.unsqueeze(-2)
    y = y if post_gate is None else post_gate * y
    if activation == "silu":
        return torch.nn.functional.silu(y)
    return torch.nn.functional.gelu(y) if activation == "gelu" else y


def _can_keep(filters: FilterSpectrum, operands: Operands) -> bool:
    """Whether this call would use the kept spectrum, which has the first ``length`` taps, with nothing watching it."""
    if operands.cu_seqlens is not None:  # of sequences of any lengths, each with a transform of its own
        return False
    x, state = operands.x, operands.state
    _check_length(filters, x)
    reaches_beyond = state is not None and filters.h.shape[0] > filters.length
    return (x.is_cpu or x.is_cuda) and not reaches_beyond


def _check_length(filters: FilterSpectrum, x: Tensor) -> None:
    if x.shape[-2] > filters.length:
        expectation = f"x must have at most L = {filters.length} samples, the length of the FilterSpectrum"
        remedy = "Make it for the longest signal, or give its h"
        raise ValueError(message("causal_conv", expectation, x.shape[-2], remedy))


def describe_call(
    operands: Operands, out: Tensor | None, name: str = "causal_conv", filters: FilterSpectrum | None = None
) -> ConvProblem:
    """The problem of a call, for ``explain``."""
    dtype = check(name, operands)
    kept = None
    if filters is not None and _can_keep(filters, operands):
        kept = filters.plan(arithmetic(dtype_name(dtype), operands.precision))
        operands = operands._replace(h=first_taps(filters, operands.h))
    y = torch.empty_like(operands.x, dtype=dtype) if out is None else out
    boundaries, _ = packed_boundaries(operands.cu_seqlens, operands.x.shape[-2])
    return problem_of(operands, y, boundaries, kept)._replace(dtype=dtype_name(dtype))


def _describe(
    x: Tensor,
    h: Tensor | FilterSpectrum,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> ConvProblem:
    """The problem of a call of ``causal_conv``."""
    filters, h = (h, h.h) if isinstance(h, FilterSpectrum) else (None, h)
    if filters is not None and filters.keep is not None:
        remedy = 'Ask for "causal_conv_sparse", with the FilterSpectrum and x'
        expectation = "h must have its whole spectrum"
        raise ValueError(message("explain", expectation, f"{filters.kept_part:.3g} of it", remedy))
    rest = (bias, initial_state, pre_gate, post_gate, cu_seqlens, activation, 0, False, precision)
    return describe_call(Operands(x, h, *rest), out, filters=filters)


register("causal_conv", ROWS, _describe)
