"""causal_conv: signature, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls, empty_like, in_huge_pages, run_prepared
from ..._dispatch import Cost, Implementation, Settings, choose, register, settings
from ..._errors import message
from ..._layout import dtype_name, fold
from ..._library import below_autograd, define, derivative, is_plain, is_traced, is_watched, needs_gradient
from . import cpu, reference
from .problem import ConvProblem, FilterGradientProblem, GradientProblem, Kept, arithmetic
from .spectrum import FilterSpectrum

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "silu", "gelu")
PRECISIONS = ("default", "high")

_calls = Calls("causal_conv")
_prepared = _calls.prepared


def causal_conv(
    x: Tensor,
    h: Tensor | FilterSpectrum,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> Tensor:
    """y[i,n] = activation(sum_j h[i-j,n] x[j,n] + bias[n]), summed over 0 <= i-j < K.

    A causal convolution along time, each channel with its own filter; h[0] multiplies the current sample. Samples
    before the first one are zero, or those of ``initial_state``. The filter may be longer than the signal.

    Args:
        x: (..., L, D) with any number of leading axes, in any memory order: a (..., D, L) tensor seen through
            ``transpose(-1, -2)`` is not copied, and the result has the same order. L and every other size may be 0.
        h: (K, D), K >= 1, in any memory order; or (K, 1), one filter for all channels; or a ``FilterSpectrum`` of
            either, which keeps the filter's transform for the next call.
        bias: (D,), added before the activation.
        activation: None, ``"silu"`` or ``"gelu"`` (with erf), fused.
        initial_state: (..., K-1, D), the samples before x, oldest first; leading axes as x.
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

    Reference: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, ch. 2 and 8.

    >>> import torch, convscan
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> convscan.causal_conv(x, torch.tensor([[1.0], [10.0]])).flatten().tolist()
    [1.0, 12.0, 23.0]
    """
    if not is_traced():
        variant = activation if precision == "default" else (activation, precision)
        y = run_prepared(_prepared, variant, x, h, bias, initial_state, out)
        if y is not None:
            return y
    return _checked(x, h, bias, activation, initial_state, precision, out)


def _checked(
    x: Tensor,
    h: Tensor | FilterSpectrum,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    precision: str,
    out: Tensor | None,
) -> Tensor:
    """Checks, promotes dtypes and calls the operator that is registered with PyTorch."""
    filters, h = (h, h.h) if isinstance(h, FilterSpectrum) else (None, h)
    dtype = _check(x, h, bias, activation, state, precision)
    spectrum = None
    if out is not None:
        _checks.output("causal_conv", out, x, dtype, needs_gradient(x, h, bias, state))
    x, h = x.to(dtype), h.to(dtype)
    if filters is not None and _can_keep(filters, x, state):
        h = h[: filters.length]
        spectrum = filters.spectrum(h, arithmetic(dtype_name(dtype), precision))
    bias = None if bias is None else bias.to(dtype)
    state = None if state is None else state.to(dtype)
    if out is not None and is_plain(x, h, bias, state, out):
        _run(x, h, bias, activation, state, False, precision, spectrum, out)
        return out
    y: Tensor = _operator(x, h, bias, state, activation, False, precision, spectrum)
    return y if out is None else out.copy_(y)


def _can_keep(filters: FilterSpectrum, x: Tensor, state: Tensor | None) -> bool:
    """Whether this call uses the kept spectrum, which has the first ``length`` taps."""
    if x.shape[-2] > filters.length:
        expectation = f"x must have at most L = {filters.length} samples, the length of the FilterSpectrum"
        remedy = "Make it for the longest signal, or give its h"
        raise ValueError(message("causal_conv", expectation, x.shape[-2], remedy))
    reaches_beyond = state is not None and filters.h.shape[0] > filters.length
    return x.is_cpu and not reaches_beyond and not is_watched()


def _check(
    x: Tensor, h: Tensor, bias: Tensor | None, activation: str | None, state: Tensor | None, precision: str
) -> torch.dtype:
    name = "causal_conv"
    _checks.signal(name, "x", x)
    _checks.tensor_like(name, "h", h, x)
    channels = x.shape[-1]
    # No `in`: of symbolic sizes it knows only whether they are one object.
    if h.ndim != 2 or h.shape[0] == 0 or (h.shape[1] != 1 and h.shape[1] != channels):
        expectation = f"h must have the shape (K, D) = (K, {channels}) or (K, 1), K >= 1"
        remedy = "h[0] multiplies the current sample; nn.Conv1d's weight w of shape (D, 1, K) is w[:, 0].flip(-1).T"
        raise ValueError(message(name, expectation, _checks.shape_text(h.shape), remedy))
    if activation not in ACTIVATIONS:
        raise ValueError(message(name, "activation must be None, 'silu' or 'gelu'", repr(activation)))
    if precision not in PRECISIONS:
        raise ValueError(message(name, "precision must be 'default' or 'high'", repr(precision)))
    if bias is not None:
        _checks.tensor_like(name, "bias", bias, x)
        _checks.has_shape(name, "bias", bias, (channels,), "(D,)")
    if state is not None:
        _checks.tensor_like(name, "initial_state", state, x)
        expected = (*x.shape[:-2], h.shape[0] - 1, channels)
        _checks.has_shape(name, "initial_state", state, expected, "(..., K-1, D)")
    return _checks.common_dtype(name, DTYPES, x=x, h=h, bias=bias, initial_state=state)


# ---- problem and call ----


def _problem(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    transposed: bool,
    precision: str,
    kept: Kept | None,
    y: Tensor,
) -> ConvProblem:
    past = state if state is not None and state.shape[-2] > 0 else None
    tensors = (x, x if past is None else past, y)
    leading = fold(x.shape[:-2], [tensor.stride()[:-2] for tensor in tensors])
    (length, channels), taps = x.shape[-2:], h.shape[0]
    steps = [(batch, t.stride(-2), t.stride(-1)) for batch, t in zip(leading.strides, tensors, strict=True)]
    return ConvProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=length,
        channels=channels,
        taps=taps,
        x=steps[0],
        h=(h.stride(0), h.stride(1) if h.shape[1] > 1 else 0),
        y=steps[2],
        bias=None if bias is None else bias.stride(0),
        state=None if past is None else steps[1],
        activation=activation,
        transposed=transposed,
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
        precision=precision,
        kept=kept,
    )


def _describe(
    x: Tensor,
    h: Tensor | FilterSpectrum,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    precision: str = "default",
    out: Tensor | None = None,
) -> ConvProblem:
    """The problem of a call of ``causal_conv``, for ``explain``."""
    filters, h = (h, h.h) if isinstance(h, FilterSpectrum) else (None, h)
    dtype = _check(x, h, bias, activation, initial_state, precision)
    kept = None
    if filters is not None and _can_keep(filters, x, initial_state):
        h, kept = h[: filters.length], filters.plan(arithmetic(dtype_name(dtype), precision))
    y = torch.empty_like(x, dtype=dtype) if out is None else out
    problem = _problem(x, h, bias, activation, initial_state, False, precision, kept, y)
    return problem._replace(dtype=dtype_name(dtype))


def _kept(spectrum: Tensor | None) -> Kept | None:
    return None if spectrum is None else Kept(spectrum.shape[1] // 2, spectrum.dtype == torch.bfloat16)


def _run(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    state: Tensor | None,
    transposed: bool,
    precision: str,
    spectrum: Tensor | None,
    y: Tensor,
) -> None:
    variant = activation if precision == "default" else (activation, precision)
    kept = _kept(spectrum)
    _calls.run(
        ("transposed", variant) if transposed else variant,
        *((x, h, bias, state, y) if spectrum is None else (x, h, bias, state, spectrum, y)),
        problem=lambda: _problem(x, h, bias, activation, state, transposed, precision, kept, y),
        strict=not transposed,
    )


def _kernel(
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    activation: str | None,
    transposed: bool,
    precision: str,
    spectrum: Tensor | None,
) -> Tensor:
    y = empty_like(x)
    _run(x, h, bias, activation, state, transposed, precision, spectrum, y)
    return y


def _gradient_dtype(x: Tensor, precision: str) -> torch.dtype:
    """The gradients of filters have the type of the arithmetic."""
    wide = x.dtype == torch.float64 or arithmetic(dtype_name(x.dtype), precision) == "wide_float32"
    return torch.float64 if wide else torch.float32


def _filter_gradient_kernel(x: Tensor, dz: Tensor, state: Tensor | None, taps: int, precision: str) -> Tensor:
    dh = in_huge_pages(_filter_gradient_fake(x, dz, state, taps, precision))
    problem = _describe_filter_gradient(x, dz, state, dh, precision)
    choose("causal_conv_filter_gradient", problem, strict=False).prepare(problem)(x, dz, state, dh)
    return dh


def _describe_filter_gradient(
    x: Tensor, dz: Tensor, state: Tensor | None, dh: Tensor, precision: str
) -> FilterGradientProblem:
    past = state if state is not None and state.shape[-2] > 0 else None
    tensors = (x, dz, x if past is None else past)
    leading = fold(x.shape[:-2], [tensor.stride()[:-2] for tensor in tensors])
    steps = [(batch, t.stride(-2), t.stride(-1)) for batch, t in zip(leading.strides, tensors, strict=True)]
    return FilterGradientProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=x.shape[-1],
        taps=dh.shape[0],
        x=steps[0],
        dz=steps[1],
        state=None if past is None else steps[2],
        offsets=leading.offsets,
        dh=(dh.stride(0), dh.stride(1)),
        threads=_native.thread_count(),
        isa=_native.isa(),
        precision=precision,
    )


def _describe_gradients(
    x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, kept: Kept | None, dx: Tensor, dh: Tensor
) -> GradientProblem:
    past = x if state is None or state.shape[-2] == 0 else state
    now = settings()
    return GradientProblem(
        transposed=_problem(dz, h, None, None, None, True, precision, kept, dx),
        filter=_describe_filter_gradient(x, dz, state, dh, precision),
        offsets=fold(x.shape[:-2], [tensor.stride()[:-2] for tensor in (x, dz, past, dx)]).offsets,
        forced=None if now is None else now.forced,
    )


def _gradients_ask(problem: GradientProblem) -> Settings:
    """An implementation that is asked for computes each gradient by itself, if it is not the one that does both."""
    return Settings(None if problem.forced in (None, "fft") else "separate")


def _gradients_kernel(
    x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, spectrum: Tensor | None
) -> tuple[Tensor, Tensor]:
    dx, dh = _gradients_fake(x, h, dz, state, precision, spectrum)
    in_huge_pages(dx)
    in_huge_pages(dh)
    problem = _describe_gradients(x, h, dz, state, precision, _kept(spectrum), dx, dh)
    choose("causal_conv_gradients", problem, strict=False).prepare(problem)(x, h, dz, state, spectrum, dx, dh)
    return dx, dh


# ---- derivatives: the Toeplitz matrix T(h), its transpose, and their derivative with respect to h ----


def _activation_gradient(activation: str | None, dy: Tensor, z: Tensor) -> Tensor:
    """dy activation'(z); of differentiable operators where somebody may differentiate it."""
    if activation is None:
        return dy
    if activation == "gelu":
        return cast(Tensor, torch.ops.aten.gelu_backward.default(dy, z))
    if torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0:
        s = torch.sigmoid(z)
        return dy * s * (1 + z * (1 - s))
    return cast(Tensor, torch.ops.aten.silu_backward.default(dy, z))


def _state_gradient(dz: Tensor, h: Tensor, steps: int, precision: str) -> Tensor:
    """dstate[j] = sum_{i<=j} dz[i] h[K-1-j+i]: the flipped filter over the first K-1 samples of dz."""
    length = dz.shape[-2]
    head = torch.nn.functional.pad(dz, (0, 0, 0, steps - length)) if length < steps else dz.narrow(-2, 0, steps)
    if steps == 0:
        return head
    return cast(Tensor, _operator(head, h.flip(0)[:steps], None, None, None, False, precision, None))


def _reduce_filter(dh: Tensor, h: Tensor) -> Tensor:
    """The gradient of a filter per channel as that of h: summed where one filter serves all, in the dtype of h."""
    if h.shape[1] != dh.shape[1]:
        dh = dh.sum(1, keepdim=True)
    return dh.to(h.dtype)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        activation: str | None,
        transposed: bool,
        precision: str,
        spectrum: Tensor | None,
    ) -> Tensor:
        with below_autograd():
            return cast(Tensor, _operator(x, h, bias, state, activation, transposed, precision, spectrum))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, h, bias, state, ctx.activation, ctx.transposed, ctx.precision, spectrum = inputs
        ctx.save_for_backward(x, h, bias, state, spectrum)
        ctx.save_for_forward(x, h, bias, state, spectrum)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 8
        x, h, bias, state, spectrum = ctx.saved_tensors
        how = (ctx.precision, spectrum)
        dz = dy
        if ctx.activation is not None:
            dz = _activation_gradient(ctx.activation, dy, _operator(x, h, bias, state, None, ctx.transposed, *how))
        dx = dh = dbias = dstate = None
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and not ctx.transposed:
            dx, dh = _gradients(x, h, dz, state, *how)
            dh = _reduce_filter(dh, h)
        elif ctx.needs_input_grad[0]:
            dx = _operator(dz, h, None, None, None, not ctx.transposed, *how)
        if ctx.needs_input_grad[1] and dh is None:
            # With the transpose, y[i] = sum_k h[k] x[i+k]: x and dz change places.
            signal, gradient = (dz, x) if ctx.transposed else (x, dz)
            dh = _reduce_filter(_filter_gradient(signal, gradient, state, h.shape[0], ctx.precision), h)
        if ctx.needs_input_grad[2]:
            dbias = dz.sum(tuple(range(dz.ndim - 1)))
        if ctx.needs_input_grad[3]:
            dstate = _state_gradient(dz, h, h.shape[0] - 1, ctx.precision)
        return dx, dh, dbias, dstate, None, None, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, th: Tensor | None, tbias: Tensor | None, tstate: Tensor | None, *_: None
    ) -> Tensor | None:
        x, h, bias, state, spectrum = ctx.saved_tensors
        how = (ctx.transposed, ctx.precision)
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            terms.append(_operator(torch.zeros_like(x) if tx is None else tx, h, None, tstate, None, *how, spectrum))
        if th is not None:
            terms.append(_operator(x, th, None, state, None, *how, None))
        if tbias is not None:
            terms.append(tbias.expand(x.shape))
        if not terms:
            return None
        tangent = sum(terms[1:], terms[0])
        if ctx.activation is not None:
            z = _operator(x, h, bias, state, None, *how, spectrum)
            tangent = _activation_gradient(ctx.activation, tangent, z)
        return tangent


class _FilterGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, dz: Tensor, state: Tensor | None, taps: int, precision: str
    ) -> Tensor:
        with below_autograd():
            return cast(Tensor, _filter_gradient(x, dz, state, taps, precision))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, dz, state, ctx.taps, ctx.precision = inputs
        ctx.save_for_backward(x, dz, state)
        ctx.save_for_forward(x, dz, state)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if gradient is None:
            return (None,) * 5
        x, dz, state = ctx.saved_tensors
        h = gradient.to(x.dtype)
        how = (ctx.precision, None)
        dx = _operator(dz, h, None, None, None, True, *how) if ctx.needs_input_grad[0] else None
        ddz = _operator(x, h, None, state, None, False, *how) if ctx.needs_input_grad[1] else None
        dstate = _state_gradient(dz, h, ctx.taps - 1, ctx.precision) if ctx.needs_input_grad[2] else None
        return dx, ddz, dstate, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, tdz: Tensor | None, tstate: Tensor | None, *_: None
    ) -> Tensor | None:
        x, dz, state = ctx.saved_tensors
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            tx = torch.zeros_like(x) if tx is None else tx
            terms.append(_filter_gradient(tx, dz, tstate, ctx.taps, ctx.precision))
        if tdz is not None:
            terms.append(_filter_gradient(x, tdz, state, ctx.taps, ctx.precision))
        return sum(terms[1:], terms[0]) if terms else None


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, spectrum: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return cast(tuple[Tensor, Tensor], _gradients(x, h, dz, state, precision, spectrum))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, h, dz, state, ctx.precision, spectrum = inputs
        ctx.save_for_backward(x, h, dz, state, spectrum)
        ctx.save_for_forward(x, h, dz, state, spectrum)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gdx: Tensor | None, gdh: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, h, dz, state, spectrum = ctx.saved_tensors
        how = (ctx.precision, None)
        need_x, need_h, need_dz, need_state = ctx.needs_input_grad[:4]
        gx = gh = gstate = None
        terms: list[Tensor] = []  # of the gradient of dz
        if gdx is not None:
            if need_h:
                gh = _reduce_filter(_filter_gradient(gdx, dz, None, h.shape[0], ctx.precision), h)
            if need_dz:
                terms.append(_operator(gdx, h, None, None, None, False, ctx.precision, spectrum))
        if gdh is not None:
            taps = gdh.to(x.dtype)
            gx = _operator(dz, taps, None, None, None, True, *how) if need_x else None
            gstate = _state_gradient(dz, taps, h.shape[0] - 1, ctx.precision) if need_state else None
            if need_dz:
                terms.append(_operator(x, taps, None, state, None, False, *how))
        gdz = sum(terms[1:], terms[0]) if terms else None
        return gx, gh, gdz, gstate, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, th: Tensor | None, tdz: Tensor | None, tstate: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        x, h, dz, state, spectrum = ctx.saved_tensors
        dx, dh = torch.zeros_like(x), _filter_gradient_fake(x, dz, state, h.shape[0], ctx.precision).zero_()
        if tdz is not None:
            dx = dx + _operator(tdz, h, None, None, None, True, ctx.precision, spectrum)
            dh = dh + _filter_gradient(x, tdz, state, h.shape[0], ctx.precision)
        if th is not None:
            dx = dx + _operator(dz, th, None, None, None, True, ctx.precision, None)
        if tx is not None or tstate is not None:
            tx = torch.zeros_like(x) if tx is None else tx
            dh = dh + _filter_gradient(tx, dz, tstate, h.shape[0], ctx.precision)
        return dx, dh


# ---- vmap: one more leading axis, or, where filters differ, the mapped axis folded into the channels ----


def _leading_axis(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _into_channels(tensor: Tensor, axis: int | None, size: int) -> Tensor:
    """(..., D) with a mapped axis anywhere as (..., size * D)."""
    shape = tensor.shape
    wide = tensor.unsqueeze(-2).expand(*shape[:-1], size, shape[-1]) if axis is None else tensor.movedim(axis, -2)
    return wide.flatten(-2)


def _vmap(
    info: Any,
    axes: tuple[int | None, ...],
    x: Tensor,
    h: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    activation: str | None,
    transposed: bool,
    precision: str,
    spectrum: Tensor | None,
) -> tuple[Tensor, int]:
    size = info.batch_size
    if axes[1] is None and axes[2] is None:
        x = _leading_axis(x, axes[0], size)
        state = None if state is None else _leading_axis(state, axes[3], size)
        return _operator(x, h, bias, state, activation, transposed, precision, spectrum), 0
    x = _into_channels(x, axes[0], size)
    channels = x.shape[-1] // size
    h = h.unsqueeze(-2).expand(-1, size, -1) if axes[1] is None else h.movedim(axes[1], -2)
    y = _operator(
        x,
        h.expand(-1, -1, channels).flatten(-2),
        None if bias is None else _into_channels(bias, axes[2], size),
        None if state is None else _into_channels(state, axes[3], size),
        activation,
        transposed,
        precision,
        None,  # spectra are those of the filters that were not folded
    ).unflatten(-1, (size, channels))
    return y, y.ndim - 2


def _filter_gradient_vmap(
    info: Any, axes: tuple[int | None, ...], x: Tensor, dz: Tensor, state: Tensor | None, taps: int, precision: str
) -> tuple[Tensor, int]:
    size = info.batch_size
    wide = [_into_channels(x, axes[0], size), _into_channels(dz, axes[1], size)]
    past = None if state is None else _into_channels(state, axes[2], size)
    dh = _filter_gradient(*wide, past, taps, precision)
    return dh.unflatten(-1, (size, dh.shape[-1] // size)), 1


def _filter_gradient_fake(x: Tensor, dz: Tensor, state: Tensor | None, taps: int, precision: str) -> Tensor:
    return _filter_memory(x, x, taps, precision)


def _filter_memory(like: Tensor, x: Tensor, taps: int, precision: str) -> Tensor:
    """Memory for the gradient of a filter per channel, time contiguous where ``like`` is."""
    dtype, channels = _gradient_dtype(x, precision), x.shape[-1]
    if like.stride(-2) == 1 and like.stride(-1) != 1:
        return x.new_empty((channels, taps), dtype=dtype).mT
    return x.new_empty((taps, channels), dtype=dtype)


def _gradients_fake(
    x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, spectrum: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _filter_memory(h, x, h.shape[0], precision)


def _gradients_vmap(
    info: Any,
    axes: tuple[int | None, ...],
    x: Tensor,
    h: Tensor,
    dz: Tensor,
    state: Tensor | None,
    precision: str,
    spectrum: Tensor | None,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    taps = h.shape[1 if axes[1] == 0 else 0]
    dx, dx_axis = _vmap(info, (axes[2], axes[1], None, None), dz, h, None, None, None, True, precision, spectrum)
    dh, dh_axis = _filter_gradient_vmap(info, (axes[0], axes[2], axes[3]), x, dz, state, taps, precision)
    return (dx, dh), (dx_axis, dh_axis)


_operator = define(
    "causal_conv(Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, str? activation, bool transposed,"
    " str precision, Tensor? spectrum) -> Tensor",
    _kernel,
    fake=lambda x, h, bias, initial_state, activation, transposed, precision, spectrum: torch.empty_like(x),
    autograd=derivative(_CausalConv),
    vmap=_vmap,
)
_filter_gradient = define(
    "causal_conv_filter_gradient(Tensor x, Tensor dz, Tensor? initial_state, int taps, str precision) -> Tensor",
    _filter_gradient_kernel,
    fake=_filter_gradient_fake,
    autograd=derivative(_FilterGradient),
    vmap=_filter_gradient_vmap,
)


_gradients = define(
    "causal_conv_gradients(Tensor x, Tensor h, Tensor dz, Tensor? initial_state, str precision, Tensor? spectrum)"
    " -> (Tensor, Tensor)",
    _gradients_kernel,
    fake=_gradients_fake,
    autograd=derivative(_Gradients),
    vmap=_gradients_vmap,
)


# ---- registry ----


def _prepare_reference(problem: ConvProblem) -> cpu.Run | cpu.RunKept:
    def run(x: Tensor, h: Tensor, bias: Tensor | None, state: Tensor | None, y: Tensor) -> None:
        y.copy_(reference.causal_conv(x, h, bias, problem.activation, state, problem.transposed))

    return run if problem.kept is None else cpu.with_spectrum(run)


def _prepare_gradient_reference(problem: FilterGradientProblem) -> cpu.RunGradient:
    def run(x: Tensor, dz: Tensor, state: Tensor | None, dh: Tensor) -> None:
        dh.copy_(reference.filter_gradient(x, dz, state, problem.taps))

    return run


def _reference_cost(problem: ConvProblem | FilterGradientProblem) -> Cost:
    # A PyTorch operator per tap on float64 copies of the signals: three passes of 8 bytes an element each.
    elements = problem.turns * problem.batch * problem.length * problem.channels
    taps = min(problem.taps, max(1, problem.length))
    return Cost(2e-5 * (1 + taps) + 3e-9 * elements * taps, 8 * 3 * elements)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)
_GRADIENT_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, _prepare_gradient_reference
)

register("causal_conv", (*cpu.ROWS, _REFERENCE), _describe)
register("causal_conv_filter_gradient", (*cpu.GRADIENT_ROWS, _GRADIENT_REFERENCE), _describe_filter_gradient)
register("causal_conv_gradients", cpu.BOTH_ROWS, _describe_gradients, _gradients_ask)
