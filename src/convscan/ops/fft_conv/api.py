"""fft_conv: signature, checks, the plan for an equation, and what compilation sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import choose, prepared_cache, register, settings
from ..._errors import message
from ..._layout import dtype_name, kind
from ..._library import define_composite, is_plain, likely_size
from . import equation as einsum
from .equation import TIME
from .methods import ROWS, Run
from .problem import EinsumProblem

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_configuration = _native.configuration
_prepared: dict[Any, Run] = prepared_cache()


def fft_conv(equation: str, x: Tensor, *args: Tensor) -> Tensor:
    """y = einsum(equation, x, *args), where the axis l of x and that of one operand are causally convolved.

    ``y[.., i, ..] = sum of x[.., i-k, ..] kernel[.., k, ..] (the others)`` over 0 <= k < K and the contracted axes.
    The equation gives every axis of x, of the operands and of the output a letter, in any order, as in
    ``torch.einsum``; ``l`` is time. Some that occur:

    * ``"bln,ln->bln"``: a filter for each channel
    * ``"bli,loi->blo"``: a filter for each pair of an input and an output channel
    * ``"blh,nl,nh,on->blo"``: a state-space layer: to N states, a filter for each, to the outputs

    Args:
        equation: x first, then the operands; ``l`` once in x, in exactly one operand (the kernel) and in the output.
            No letter twice in an operand, no ``...``; nothing is broadcast.
        x: the signal, L long along ``l``.
        args: the operands in the order of the equation. The kernel may have any number of taps K >= 0, also more
            than L; entry 0 multiplies the current sample.

    Returns:
        y, as long as x, of the dtype of x. Its memory order is not specified.

    dtypes: real: float32, float64, bfloat16, float16. Half types are computed in float32; where the operands have
    wider types than x, so is the arithmetic. Complex tensors are refused: take real and imaginary parts as an axis.

    Raises:
        ValueError: an equation without sense, naming the axis, or a shape or device that does not fit it.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.

    Cost: that of the cheapest order of contractions, convolving with the native engine channel by channel
    (``channelwise``), by sums over the taps (``direct``), or by products in the frequency domain (``spectral``), with
    transforms of L + K points and more, so that nothing wraps; ``explain`` tells which. Where no gradient is needed,
    the work goes through a few entries of the batch at a time, in a few MiB beside the spectra of the kernels.
    Differentiable any number of times with respect to every tensor.

    Reference: D. G. A. Smith, J. Gray, opt_einsum, JOSS 3(26), 2018, for contraction orders.

    >>> import torch, convscan
    >>> x, kernel = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[1.0]], [[10.0]]])
    >>> convscan.fft_conv("bli,loi->blo", x, kernel).flatten().tolist()
    [1.0, 12.0, 23.0]
    """
    if torch.compiler.is_compiling():
        # One operator, so that nothing of the choice of a plan is traced.
        return cast(Tensor, _operator(equation, x, args))
    return _compute(equation, x, args)


def _compute(equation: str, x: Tensor, args: Sequence[Tensor]) -> Tensor:
    key: Any = None
    run: Run | None = None
    try:
        chunked = is_plain(x, *args)
        key = (equation, chunked, _configuration(), settings(), *map(kind, (x, *args)))
        run = _prepared.get(key)
    except (AttributeError, TypeError):
        key = None  # no tensor, of which the checks below speak, or a size that may change
    if run is None:
        problem = _problem(equation, x, args)
        if 0 in (problem.length, problem.taps) or any(size == 0 for _, size in problem.sizes):
            return _empty_sum(problem, x, args)
        run = choose("fft_conv", problem).prepare(problem)
        if key is not None:
            _prepared[key] = run
    return run(x, args)


def _problem(equation: str, x: Tensor, args: Sequence[Tensor]) -> EinsumProblem:
    """Checks everything."""
    if not isinstance(equation, str):
        remedy = "Call fft_conv(equation, x, *args)"
        raise TypeError(message(einsum.NAME, "equation must be a str", type(equation).__name__, remedy))
    parsed = einsum.parse(equation)
    einsum.check_tensors(x, args)
    sizes = einsum.sizes(parsed, [x.shape, *(t.shape for t in args)])
    named = {einsum.argument(place): tensor for place, tensor in enumerate((x, *args))}
    compute = _checks.common_dtype(einsum.NAME, DTYPES, **named)
    return EinsumProblem(
        equation=parsed,
        sizes=tuple(sorted((axis, likely_size(size)) for axis, size in sizes.items())),
        length=likely_size(x.shape[parsed.signal.index(TIME)]),
        taps=likely_size(args[parsed.kernel].shape[parsed.operands[parsed.kernel].index(TIME)]),
        dtype=dtype_name(x.dtype),
        compute=dtype_name(torch.float64 if compute == torch.float64 else torch.float32),
        device=x.device.type,
        chunked=is_plain(x, *args),
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _empty_sum(problem: EinsumProblem, x: Tensor, args: Sequence[Tensor]) -> Tensor:
    """Zeros, as the sum over nothing, which depend on every tensor without reading a number of it."""
    lengths = dict(problem.sizes) | {TIME: problem.length}
    nothing = sum((t.flatten()[:0].sum() for t in args), x.flatten()[:0].sum())
    return nothing.to(x.dtype).expand([lengths[axis] for axis in problem.equation.output]).clone()


def _describe(equation: str, x: Tensor, *args: Tensor) -> EinsumProblem:
    """The problem of a call of ``fft_conv``, for ``explain``."""
    return _problem(equation, x, args)


_operator = define_composite("fft_conv(str equation, Tensor x, Tensor[] args) -> Tensor", _compute)
register("fft_conv", ROWS, _describe)
