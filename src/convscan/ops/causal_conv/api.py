"""causal_conv: signature, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls, empty_like, in_huge_pages, run_prepared
from ..._dispatch import Cost, Implementation, Settings, choose, register, settings
from ..._errors import message
from ..._layout import Triple, dtype_name, fold
from ..._library import below_autograd, define, derivative, is_plain, is_traced, is_watched, needs_gradient
from ..._targets import processor
from . import cpu, reference, sparse, torch_fft, triton
from .problem import ConvProblem, FilterGradientProblem, GradientProblem, Kept, arithmetic
from .spectrum import FilterSpectrum

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "silu", "gelu")
PRECISIONS = ("default", "high")

_calls = Calls("causal_conv")
prepared = _calls.prepared


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
        y = run_prepared(prepared, variant, x, h, bias, initial_state, pre_gate, post_gate, out)
        if y is not None:
            return y
    filters, h = (h, h.h) if isinstance(h, FilterSpectrum) else (None, h)
    rest = (bias, initial_state, pre_gate, post_gate, cu_seqlens, activation, 0, False, precision)
    return checked("causal_conv", Operands(x, h, *rest), out, filters)


class Operands(NamedTuple):
    """What a call computes with: y[i] = activation(post_gate (sum_k h[k] (pre_gate x)[i+origin-k] + bias)), or
    [i+k-origin] with ``transposed``."""

    x: Tensor
    h: Tensor
    bias: Tensor | None = None
    state: Tensor | None = None
    pre_gate: Tensor | None = None
    post_gate: Tensor | None = None
    cu_seqlens: Tensor | None = None
    activation: str | None = None
    origin: int = 0
    transposed: bool = False
    precision: str = "default"
    spectrum: Tensor | None = None  # of h, where it is kept

    @property
    def floats(self) -> tuple[Tensor | None, ...]:
        """The tensors that may have gradients."""
        return self[:6]

    @property
    def variant(self) -> Any:
        """What a prepared call depends on beside its tensors."""
        if self.origin == 0 and not self.transposed and self.precision == "default":
            return self.activation
        return self.activation, self.origin, self.transposed, self.precision

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that a prepared function takes before the output."""
        return self.floats if self.spectrum is None else (*self.floats, self.spectrum)


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
    if filters is not None and _can_keep(filters, operands):
        h = operands.h[: filters.length]
        spectrum = filters.spectrum(h, arithmetic(dtype_name(dtype), operands.precision))
        operands = operands._replace(h=h, spectrum=spectrum)
    if out is not None and is_plain(*operands.floats, operands.cu_seqlens, out):
        _run(operands, out)
        return out
    y = _operator(*operands)
    return y if out is None else out.copy_(y)


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
    """Whether this call uses the kept spectrum, which has the first ``length`` taps."""
    if operands.cu_seqlens is not None:  # of sequences of any lengths, each with a transform of its own
        return False
    x, state = operands.x, operands.state
    _check_length(filters, x)
    reaches_beyond = state is not None and filters.h.shape[0] > filters.length
    return x.is_cpu and not reaches_beyond and not is_watched()


def _check_length(filters: FilterSpectrum, x: Tensor) -> None:
    if x.shape[-2] > filters.length:
        expectation = f"x must have at most L = {filters.length} samples, the length of the FilterSpectrum"
        remedy = "Make it for the longest signal, or give its h"
        raise ValueError(message("causal_conv", expectation, x.shape[-2], remedy))


def check(name: str, operands: Operands) -> torch.dtype:
    x, h, bias, state, pre_gate, post_gate, cu_seqlens, activation, _, _, precision, _ = operands
    _checks.signal(name, "x", x)
    _checks.tensor_like(name, "h", h, x)
    _check_filter(name, h, x)
    if activation not in ACTIVATIONS:
        raise ValueError(message(name, "activation must be None, 'silu' or 'gelu'", repr(activation)))
    if precision not in PRECISIONS:
        raise ValueError(message(name, "precision must be 'default' or 'high'", repr(precision)))
    channels = x.shape[-1]
    if bias is not None:
        _checks.tensor_like(name, "bias", bias, x)
        _checks.has_shape(name, "bias", bias, (channels,), "(D,)")
    for gate_name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None:
            _checks.tensor_like(name, gate_name, gate, x)
            _checks.broadcasts(name, gate_name, gate, x)
    sequences = () if cu_seqlens is None else (_checks.packed(name, cu_seqlens, x),)
    if state is not None:
        _checks.tensor_like(name, "initial_state", state, x)
        expected = (*x.shape[:-2], *sequences, h.shape[-2] - 1, channels)
        meaning = "(..., S, K-1, D)" if sequences else "(..., K-1, D)"
        _checks.has_shape(name, "initial_state", state, expected, meaning)
    return _checks.common_dtype(
        name, DTYPES, x=x, h=h, bias=bias, pre_gate=pre_gate, post_gate=post_gate, initial_state=state
    )


def _check_filter(name: str, h: Tensor, x: Tensor) -> None:
    """(K, D), (K, 1), (K, H), or any of them with leading axes."""
    channels = x.shape[-1]
    fits = h.ndim >= 2 and h.shape[-2] != 0
    # No `in`: of symbolic sizes it knows only whether they are one object.
    if fits and h.shape[-1] != 1 and h.shape[-1] != channels:
        fits = h.shape[-1] > 0 and channels % h.shape[-1] == 0
    if fits and h.ndim > 2:
        fits = h.ndim == x.ndim and all(
            of_h == 1 or of_h == of_x for of_h, of_x in zip(h.shape[:-2], x.shape[:-2], strict=True)
        )
    if not fits:
        shapes = f"(K, D) = (K, {channels}), (K, 1) or (K, H), H a divisor of D"
        expectation = f"h must have the shape {shapes}, K >= 1, or (..., K, D)"
        remedy = "h[0] multiplies the current sample; nn.Conv1d's weight w of shape (D, 1, K) is w[:, 0].flip(-1).T"
        raise ValueError(message(name, expectation, _checks.shape_text(h.shape), remedy))


# ---- problem and call ----


def _leading_strides(tensor: Tensor, own: int, x: Tensor) -> tuple[int, ...]:
    """Strides along the leading axes of x of a tensor with ``own`` axes behind those that it has or broadcasts over."""
    return tensor.expand(*x.shape[:-2], *tensor.shape[tensor.ndim - own :]).stride()[: x.ndim - 2]


def problem_of(
    operands: Operands, y: Tensor, boundaries: list[int] | None = None, kept: Kept | None = None
) -> ConvProblem:
    x, h, bias, state, pre_gate, post_gate, _, activation, origin, transposed, precision, _ = operands
    past = state if state is not None and state.shape[-2] > 0 else None
    gates = [None if gate is None else gate.expand(x.shape) for gate in (pre_gate, post_gate)]
    tensors = [
        (x, 2),
        (h, 2),
        (bias, 1),
        (past, 2 if boundaries is None else 3),
        *((gate, 2) for gate in gates),
        (y, 2),
    ]
    # What is not there goes where x goes.
    leading = fold(
        x.shape[:-2], [_leading_strides(x if t is None else t, 2 if t is None else own, x) for t, own in tensors]
    )
    batch_strides = leading.strides

    def steps(index: int) -> Triple | None:
        tensor, _ = tensors[index]
        return None if tensor is None else (batch_strides[index], tensor.stride(-2), tensor.stride(-1))

    (length, channels), filters = x.shape[-2:], h.shape[-1]
    return ConvProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=length,
        channels=channels,
        taps=h.shape[-2],
        x=cast(Triple, steps(0)),
        h=(h.stride(-2), h.stride(-1) if filters > 1 else 0),
        y=cast(Triple, steps(6)),
        bias=None if bias is None else (batch_strides[2], bias.stride(-1)),
        state=steps(3),
        activation=activation,
        transposed=transposed,
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(x.device),
        precision=precision,
        kept=kept,
        origin=origin,
        h_batch=batch_strides[1] if h.ndim > 2 else 0,
        group=channels // filters if filters > 1 else 1,
        pre_gate=steps(4),
        post_gate=steps(5),
        sequences=0 if boundaries is None else len(boundaries) - 1,
        longest=_longest(boundaries),
        state_sequence=0 if past is None or boundaries is None else past.stride(-3),
    )


def _longest(boundaries: list[int] | None) -> int:
    return 0 if boundaries is None else max(end - begin for begin, end in pairwise(boundaries))


def packed_boundaries(cu_seqlens: Tensor | None, length: int) -> tuple[list[int] | None, Tensor | None]:
    """The boundaries of packed sequences, as numbers and as native kernels read them."""
    if cu_seqlens is None:
        return None, None
    if not cu_seqlens.is_cpu:
        # Looking at them would wait for the device. Sequences of any lengths: one may be as long as all.
        return [0] + [length] * (cu_seqlens.shape[0] - 1), cu_seqlens.to(torch.int64).contiguous()
    boundaries = _checks.boundaries("causal_conv", cu_seqlens, length)
    return boundaries, cu_seqlens.to(torch.int64).contiguous()


def describe_call(
    operands: Operands, out: Tensor | None, name: str = "causal_conv", filters: FilterSpectrum | None = None
) -> ConvProblem:
    """The problem of a call, for ``explain``."""
    dtype = check(name, operands)
    kept = None
    if filters is not None and _can_keep(filters, operands):
        kept = filters.plan(arithmetic(dtype_name(dtype), operands.precision))
        operands = operands._replace(h=operands.h[: filters.length])
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
        expectation = "h must have its whole spectrum: there is one implementation for a part of it, fft"
        raise ValueError(message("explain", expectation, f"{filters.kept_part:.3g} of it"))
    rest = (bias, initial_state, pre_gate, post_gate, cu_seqlens, activation, 0, False, precision)
    return describe_call(Operands(x, h, *rest), out, filters=filters)


def _kept(spectrum: Tensor | None) -> Kept | None:
    return None if spectrum is None else Kept(spectrum.shape[1] // 2, spectrum.dtype == torch.bfloat16)


def _run(operands: Operands, y: Tensor) -> None:
    strict, spectrum = not operands.transposed, operands.spectrum
    if operands.cu_seqlens is None:
        kept = _kept(spectrum)
        _calls.run(
            operands.variant,
            *operands.tensors,
            y,
            problem=lambda: problem_of(operands, y, kept=kept),
            strict=strict,
        )
        return
    # Boundaries are values, which no prepared call may depend on.
    boundaries, packed = packed_boundaries(operands.cu_seqlens, y.shape[-2])
    problem = problem_of(operands, y, boundaries)
    choose("causal_conv", problem, strict=strict).prepare(problem)(*operands.floats, y, packed)


def _kernel(*operands: Any) -> Tensor:
    y = empty_like(operands[0])
    _run(Operands(*operands), y)
    return y


def _gradient_dtype(x: Tensor, precision: str) -> torch.dtype:
    """The gradients of filters have the type of the arithmetic."""
    wide = x.dtype == torch.float64 or arithmetic(dtype_name(x.dtype), precision) == "wide_float32"
    return torch.float64 if wide else torch.float32


def _filter_gradient_kernel(
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    taps: int,
    origin: int,
    per_batch: bool,
    precision: str,
) -> Tensor:
    shape = (x, dz, state, x_gate, dz_gate, cu_seqlens, taps, origin, per_batch, precision)
    dh = in_huge_pages(_filter_gradient_fake(*shape))
    boundaries, packed = packed_boundaries(cu_seqlens, x.shape[-2])
    problem = _describe_filter_gradient(x, dz, state, x_gate, dz_gate, dh, origin, boundaries, precision)
    run = choose("causal_conv_filter_gradient", problem, strict=False).prepare(problem)
    run(x, dz, state, x_gate, dz_gate, dh, packed)
    return dh


def _describe_filter_gradient(
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    dh: Tensor,
    origin: int = 0,
    boundaries: list[int] | None = None,
    precision: str = "default",
) -> FilterGradientProblem:
    past = state if state is not None and state.shape[-2] > 0 else None
    per_batch = dh.ndim > 2
    gates = [None if gate is None else gate.expand(x.shape) for gate in (x_gate, dz_gate)]
    tensors = [(x, 2), (dz, 2), (past, 2 if boundaries is None else 3), *((gate, 2) for gate in gates), (dh, 2)]
    leading = fold(
        x.shape[:-2], [_leading_strides(x if t is None else t, 2 if t is None else own, x) for t, own in tensors]
    )

    def steps(index: int) -> Triple | None:
        tensor, _ = tensors[index]
        return None if tensor is None else (leading.strides[index], tensor.stride(-2), tensor.stride(-1))

    return FilterGradientProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=x.shape[-1],
        taps=dh.shape[-2],
        x=cast(Triple, steps(0)),
        dz=cast(Triple, steps(1)),
        state=steps(2),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        dh=(dh.stride(-2), dh.stride(-1)),
        isa=processor(x.device),
        precision=precision,
        origin=origin,
        x_gate=steps(3),
        dz_gate=steps(4),
        per_batch=leading.strides[5] if per_batch else 0,
        sums_turns=not per_batch,
        sequences=0 if boundaries is None else len(boundaries) - 1,
        longest=_longest(boundaries),
        state_sequence=0 if past is None or boundaries is None else past.stride(-3),
    )


def _describe_gradients(
    x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str, kept: Kept | None, dx: Tensor, dh: Tensor
) -> GradientProblem:
    past = x if state is None or state.shape[-2] == 0 else state
    now = settings()
    return GradientProblem(
        transposed=problem_of(Operands(dz, h, transposed=True, precision=precision), dx, kept=kept),
        filter=_describe_filter_gradient(x, dz, state, None, None, dh, precision=precision),
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


def _state_gradient(dz: Tensor, h: Tensor, cu_seqlens: Tensor | None, precision: str) -> Tensor:
    """dstate[j] = sum_{i<=j} dz[i] h[K-1-j+i]: the flipped filter over the first K-1 samples of each sequence of dz."""
    steps, length = h.shape[-2] - 1, dz.shape[-2]
    if cu_seqlens is not None:
        at = cu_seqlens[:-1, None] + torch.arange(steps, device=dz.device)
        inside = (at < cu_seqlens[1:, None]).flatten()
        # One more row, of zeros, is what lies behind the end.
        padded = torch.nn.functional.pad(dz, (0, 0, 0, 1))
        head = padded.index_select(-2, torch.where(inside, at.flatten(), length)).reshape(
            *dz.shape[:-2], *at.shape, dz.shape[-1]
        )
        h = h if h.ndim == 2 else h.unsqueeze(-3)
    else:
        head = torch.nn.functional.pad(dz, (0, 0, 0, steps - length)) if length < steps else dz.narrow(-2, 0, steps)
    if steps == 0:
        return head
    return _convolve(head, h.flip(-2)[..., :steps, :], precision=precision)


def reduce_filter(dh: Tensor, h: Tensor) -> Tensor:
    """The gradient of a filter per channel as that of h: summed over what a filter serves, in the dtype of h."""
    if h.shape[-1] != dh.shape[-1]:
        dh = dh.reshape(*dh.shape[:-1], h.shape[-1], dh.shape[-1] // h.shape[-1]).sum(-1)
    return dh.sum_to_size(h.shape).to(h.dtype)


def _has_leading(h: Tensor) -> bool:
    """Whether filters differ along leading axes."""
    return h.ndim > 2


def _convolve(x: Tensor, h: Tensor, **others: Any) -> Tensor:
    return cast(Tensor, _operator(*Operands(x, h, **others)))


def _is_plain_filter(p: Operands) -> bool:
    """Whether both gradients may come from one pass: no gates, no boundaries, a filter for each channel or for all."""
    filters = p.h.shape[-1]
    alone = p.h.ndim == 2 and (filters == 1 or filters == p.x.shape[-1])
    plain = p.pre_gate is None and p.post_gate is None and p.cu_seqlens is None
    return alone and plain and not p.transposed and isinstance(p.origin, int) and p.origin == 0


def _times(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate


def _saved(ctx: Any) -> Operands:
    *tensors, spectrum = ctx.saved_tensors
    return Operands(*tensors, *ctx.rest)._replace(spectrum=spectrum)  # type: ignore[call-arg]


def composed_gradients(p: Operands, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, h, bias, initial_state, pre_gate and post_gate, where needed, each of convolutions."""
    needs_x, needs_h, needs_bias, needs_state, needs_pre, needs_post, *_ = needs
    dw, z = dy, None
    if p.activation is not None or needs_post:
        z = _operator(*p._replace(post_gate=None, activation=None))
    if p.activation is not None:
        dw = _activation_gradient(p.activation, dy, _times(cast(Tensor, z), p.post_gate))
    dx = dh = dbias = dstate = dpre = dpost = None
    back = p._replace(x=dw, bias=None, state=None, pre_gate=p.post_gate, activation=None)
    back = back._replace(transposed=not p.transposed)
    if needs_x and needs_h and _is_plain_filter(p):
        dx, dh = _gradients(p.x, p.h, dw, p.state, p.precision, p.spectrum)
        dh = reduce_filter(dh, p.h)
    elif needs_pre:
        du = _operator(*back._replace(post_gate=None))
        assert p.pre_gate is not None
        dx, dpre = du * p.pre_gate, (du * p.x).sum_to_size(p.pre_gate.shape)
    elif needs_x:
        dx = _operator(*back._replace(post_gate=p.pre_gate))
    if needs_post:
        assert p.post_gate is not None
        dpost = (dw * cast(Tensor, z)).sum_to_size(p.post_gate.shape)
    if needs_h and dh is None:
        sides = [(p.x, p.pre_gate), (dw, p.post_gate)]
        # With the transpose, y[i] = sum_k h[k] u[i+k]: samples and gradient change places.
        (signal, its_gate), (other, other_gate) = reversed(sides) if p.transposed else sides
        gradients = _filter_gradient(
            signal,
            other,
            p.state,
            its_gate,
            other_gate,
            p.cu_seqlens,
            p.h.shape[-2],
            p.origin,
            _has_leading(p.h),
            p.precision,
        )
        dh = reduce_filter(gradients, p.h)
    if needs_bias:
        assert p.bias is not None
        dbias = _times(dw, p.post_gate).sum(-2).sum_to_size(p.bias.shape)
    if needs_state:
        dstate = _state_gradient(_times(dw, p.post_gate), p.h, p.cu_seqlens, p.precision)
    return dx if needs_x else None, dh, dbias, dstate, dpre, dpost


class _CausalConv(torch.autograd.Function):
    """With u = pre_gate x, z = T(h) u + bias and w = post_gate z, y = activation(w). The transpose of a gated
    convolution is one with the gates exchanged."""

    @staticmethod
    def forward(*operands: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _operator(*operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = inputs[7:11]
        ctx.save_for_backward(*inputs[:7], inputs[11])
        ctx.save_for_forward(*inputs[:7], inputs[11])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 12
        from .backward import fused  # which describes its problems as this module does

        p = _saved(ctx)
        gradients = fused(p, dy)
        if gradients is None:
            gradients = composed_gradients(p, dy, ctx.needs_input_grad)
        needed = zip(ctx.needs_input_grad, gradients, strict=False)
        return (*(gradient if needs else None for needs, gradient in needed), *(None,) * 6)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:  # type: ignore[override]
        p = _saved(ctx)
        tx, th, tbias, tstate, tpre, tpost, *_ = tangents
        plain = p._replace(bias=None, state=None, activation=None)
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            terms.append(_operator(*plain._replace(x=torch.zeros_like(p.x) if tx is None else tx, state=tstate)))
        if tpre is not None:
            terms.append(_operator(*plain._replace(pre_gate=tpre)))
        if th is not None:
            terms.append(_operator(*plain._replace(h=th, state=p.state, spectrum=None)))
        if tbias is not None:
            terms.append(_times(tbias.unsqueeze(-2), p.post_gate).expand(p.x.shape))
        z = None
        if tpost is not None or p.activation is not None:
            z = _operator(*p._replace(post_gate=None, activation=None))
        if tpost is not None:
            terms.append(tpost * cast(Tensor, z))
        if not terms:
            return None
        tangent = sum(terms[1:], terms[0])
        if p.activation is not None:
            tangent = _activation_gradient(p.activation, tangent, _times(cast(Tensor, z), p.post_gate))
        return tangent


class _FilterGradient(torch.autograd.Function):
    """dh = sum of dz_gate dz and shifted x_gate x: linear in each of them."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # type: ignore[override]
        with below_autograd():
            return cast(Tensor, _filter_gradient(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = inputs[6:]
        ctx.save_for_backward(*inputs[:6])
        ctx.save_for_forward(*inputs[:6])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if gradient is None:
            return (None,) * 10
        x, dz, state, x_gate, dz_gate, cu_seqlens = ctx.saved_tensors
        _, origin, _, precision = ctx.rest
        needs_x, needs_dz, needs_state, needs_x_gate, needs_dz_gate, *_ = ctx.needs_input_grad
        common = {"cu_seqlens": cu_seqlens, "origin": origin, "precision": precision}
        h = gradient.to(x.dtype)
        dx = ddz = dstate = dx_gate = ddz_gate = None
        if needs_x_gate:
            du = _convolve(dz, h, pre_gate=dz_gate, transposed=True, **common)
            dx, dx_gate = du * x_gate, (du * x).sum_to_size(x_gate.shape)
        elif needs_x:
            dx = _convolve(dz, h, pre_gate=dz_gate, post_gate=x_gate, transposed=True, **common)
        if needs_dz_gate:
            z = _convolve(x, h, state=state, pre_gate=x_gate, **common)
            ddz, ddz_gate = z * dz_gate, (z * dz).sum_to_size(dz_gate.shape)
        elif needs_dz:
            ddz = _convolve(x, h, state=state, pre_gate=x_gate, post_gate=dz_gate, **common)
        if needs_state:
            dstate = _state_gradient(_times(dz, dz_gate), h, cu_seqlens, precision)
        dx, ddz = dx if needs_x else None, ddz if needs_dz else None
        return dx, ddz, dstate, dx_gate, ddz_gate, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:  # type: ignore[override]
        x, dz, state, x_gate, dz_gate, cu_seqlens = ctx.saved_tensors
        tx, tdz, tstate, tx_gate, tdz_gate, *_ = tangents
        rest = (cu_seqlens, *ctx.rest)
        terms: list[Tensor] = []
        if tx is not None or tstate is not None:
            terms.append(
                _filter_gradient(torch.zeros_like(x) if tx is None else tx, dz, tstate, x_gate, dz_gate, *rest)
            )
        if tdz is not None:
            terms.append(_filter_gradient(x, tdz, state, x_gate, dz_gate, *rest))
        if tx_gate is not None:
            terms.append(_filter_gradient(x, dz, None, tx_gate, dz_gate, *rest))
        if tdz_gate is not None:
            terms.append(_filter_gradient(x, dz, state, x_gate, tdz_gate, *rest))
        return sum(terms[1:], terms[0]) if terms else None


class _Gradients(torch.autograd.Function):
    """dx = transpose of T(h) dz and dh = sum of dz and shifted x, of a convolution without gates."""

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
        rest, precision = (None, None, None, h.shape[-2], 0, False, ctx.precision), ctx.precision
        need_x, need_h, need_dz, need_state = ctx.needs_input_grad[:4]
        gx = gh = gstate = None
        terms: list[Tensor] = []  # of the gradient of dz
        if gdx is not None:
            if need_h:
                gh = reduce_filter(_filter_gradient(gdx, dz, None, *rest), h)
            if need_dz:
                terms.append(_convolve(gdx, h, precision=precision, spectrum=spectrum))
        if gdh is not None:
            taps = gdh.to(x.dtype)
            gx = _convolve(dz, taps, transposed=True, precision=precision) if need_x else None
            gstate = _state_gradient(dz, taps, None, precision) if need_state else None
            if need_dz:
                terms.append(_convolve(x, taps, state=state, precision=precision))
        gdz = sum(terms[1:], terms[0]) if terms else None
        return gx, gh, gdz, gstate, None, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, tx: Tensor | None, th: Tensor | None, tdz: Tensor | None, tstate: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        x, h, dz, state, spectrum = ctx.saved_tensors
        rest, precision = (None, None, None, h.shape[-2], 0, False, ctx.precision), ctx.precision
        dx, dh = torch.zeros_like(x), _filter_gradient_fake(x, dz, state, *rest).zero_()
        if tdz is not None:
            dx = dx + _convolve(tdz, h, transposed=True, precision=precision, spectrum=spectrum)
            dh = dh + _filter_gradient(x, tdz, state, *rest)
        if th is not None:
            dx = dx + _convolve(dz, th, transposed=True, precision=precision)
        if tx is not None or tstate is not None:
            tx = torch.zeros_like(x) if tx is None else tx
            dh = dh + _filter_gradient(tx, dz, tstate, *rest)
        return dx, dh


# ---- vmap: one more leading axis ----


def _with_leading(tensor: Tensor | None, axis: int | None, size: int, own: int, leading: int) -> Tensor | None:
    """With the mapped axis in front of ``leading`` others, and ``own`` behind, where it has one; otherwise what
    broadcasts over it."""
    if tensor is None:
        return None
    if axis is None:
        # Filters have all leading axes or none.
        return tensor.unsqueeze(0) if leading > 0 and tensor.ndim == leading + own else tensor
    front = tensor.movedim(axis, 0)
    return front[(slice(None), *(None,) * (leading + own + 1 - front.ndim))]


def _all_leading(tensor: Tensor | None, axis: int | None, size: int) -> Tensor | None:
    """The same of a tensor that has all leading axes, with the mapped one in full."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def _not_mapped(axis: int | None) -> None:
    if axis is not None:
        expectation = "cu_seqlens must be the same for every element of a torch.vmap"
        raise ValueError(message("causal_conv", expectation, f"one with the mapped axis {axis}", "Call in a loop"))


def _vmap(info: Any, axes: tuple[int | None, ...], *operands: Any) -> tuple[Tensor, int]:
    p, size = Operands(*operands), info.batch_size
    _not_mapped(axes[6])
    x = cast(Tensor, _all_leading(p.x, axes[0], size))
    leading = x.ndim - 3
    y = _operator(
        *p._replace(
            x=x,
            h=cast(Tensor, _with_leading(p.h, axes[1], size, 2, leading)),
            bias=_with_leading(p.bias, axes[2], size, 1, leading),
            state=_all_leading(p.state, axes[3], size),
            pre_gate=_with_leading(p.pre_gate, axes[4], size, 2, leading),
            post_gate=_with_leading(p.post_gate, axes[5], size, 2, leading),
            spectrum=p.spectrum if axes[1] is None else None,
        )
    )
    return y, 0


def _filter_gradient_vmap(
    info: Any,
    axes: tuple[int | None, ...],
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    taps: int,
    origin: int,
    per_batch: bool,
    precision: str,
) -> tuple[Tensor, int]:
    _not_mapped(axes[5])
    signals = [_all_leading(tensor, axis, info.batch_size) for tensor, axis in zip((x, dz, state), axes, strict=False)]
    leading = cast(Tensor, signals[0]).ndim - 3
    gates = [
        _with_leading(gate, axis, info.batch_size, 2, leading)
        for gate, axis in zip((x_gate, dz_gate), axes[3:5], strict=True)
    ]
    dh: Tensor = _filter_gradient(*signals, *gates, cu_seqlens, taps, origin, True, precision)
    return (dh if per_batch or leading == 0 else dh.flatten(1, -3).sum(1)), 0


def _filter_gradient_fake(
    x: Tensor,
    dz: Tensor,
    state: Tensor | None,
    x_gate: Tensor | None,
    dz_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    taps: int,
    origin: int,
    per_batch: bool,
    precision: str,
) -> Tensor:
    return _filter_memory(x, x, taps, precision, x.shape[:-2] if per_batch else ())


def _filter_memory(like: Tensor, x: Tensor, taps: int, precision: str, leading: Sequence[int] = ()) -> Tensor:
    """Memory for the gradient of a filter per channel, time contiguous where ``like`` is."""
    dtype, channels = _gradient_dtype(x, precision), x.shape[-1]
    if like.stride(-2) == 1 and like.stride(-1) != 1:
        return x.new_empty((*leading, channels, taps), dtype=dtype).mT
    return x.new_empty((*leading, taps, channels), dtype=dtype)


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
    taps = (h if axes[1] is None else h.movedim(axes[1], 0)).shape[-2]
    back = Operands(dz, h, transposed=True, precision=precision, spectrum=spectrum)
    dx, dx_axis = _vmap(info, (axes[2], axes[1], *(None,) * 5), *back)
    of_dh = (axes[0], axes[2], axes[3], None, None, None)
    dh, dh_axis = _filter_gradient_vmap(info, of_dh, x, dz, state, None, None, None, taps, 0, False, precision)
    return (dx, dh), (dx_axis, dh_axis)


_operator = define(
    "causal_conv(Tensor x, Tensor h, Tensor? bias, Tensor? initial_state, Tensor? pre_gate, Tensor? post_gate, "
    "Tensor? cu_seqlens, str? activation, SymInt origin, bool transposed, str precision, Tensor? spectrum) -> Tensor",
    _kernel,
    fake=lambda x, *others: torch.empty_like(x),
    autograd=derivative(_CausalConv),
    vmap=_vmap,
)
_filter_gradient = define(
    "causal_conv_filter_gradient(Tensor x, Tensor dz, Tensor? initial_state, Tensor? x_gate, Tensor? dz_gate, "
    "Tensor? cu_seqlens, SymInt taps, SymInt origin, bool per_batch, str precision) -> Tensor",
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


def _prepare_reference(problem: ConvProblem) -> cpu.Run:
    def run(
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        y: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        y.copy_(
            reference.causal_conv(
                x,
                h,
                bias,
                problem.activation,
                state,
                problem.transposed,
                pre_gate=pre_gate,
                post_gate=post_gate,
                boundaries=None if boundaries is None else boundaries.tolist(),
                origin=problem.origin,
            )
        )

    return run if problem.kept is None else cpu.with_spectrum(run)


def _prepare_gradient_reference(problem: FilterGradientProblem) -> cpu.RunGradient:
    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        dh.copy_(
            reference.filter_gradient(
                x,
                dz,
                state,
                problem.taps,
                x_gate=x_gate,
                dz_gate=dz_gate,
                boundaries=None if boundaries is None else boundaries.tolist(),
                origin=problem.origin,
                per_batch=dh.ndim > 2,
            )
        )

    return run


def _reference_cost(problem: ConvProblem | FilterGradientProblem) -> Cost:
    # A PyTorch operator per tap on float64 copies of the signals: three passes of 8 bytes an element each.
    elements = problem.turns * problem.batch * problem.length * problem.channels
    taps = min(problem.taps, problem.origin + max(1, problem.length))
    return Cost(2e-5 * (1 + taps * max(1, problem.sequences)) + 3e-9 * elements * taps, 8 * 3 * elements)


_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)
_GRADIENT_REFERENCE = Implementation(
    "reference", "any", lambda problem: [], _reference_cost, _prepare_gradient_reference
)

ROWS = (*cpu.ROWS, *triton.ROWS, *torch_fft.ROWS, _REFERENCE)

register("causal_conv", ROWS, _describe)
register(
    "causal_conv_filter_gradient",
    (*cpu.GRADIENT_ROWS, *triton.GRADIENT_ROWS, *torch_fft.GRADIENT_ROWS, _GRADIENT_REFERENCE),
    _describe_filter_gradient,
)
register("causal_conv_gradients", cpu.BOTH_ROWS, _describe_gradients, _gradients_ask)
