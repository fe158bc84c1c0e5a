"""The arguments of a convolution and of its gradients: checks, and the problems that selection and kernels know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._errors import message
from ..._layout import Leading, Triple, dtype_name, fold
from ..._targets import processor
from .problem import ConvProblem, FilterGradientProblem, Kept, arithmetic, kept_for

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "silu", "gelu")
PRECISIONS = ("default", "high")
# Of x, h, bias, state, pre_gate, post_gate, the kept spectra where there are some, y and, where sequences are packed,
# boundaries.
Run = Callable[..., None]


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


def without_spectrum(prepare: Callable[[ConvProblem], Run]) -> Callable[[ConvProblem], Run]:
    """Prepares functions that take the spectrum where one is kept, of such as do not read it."""

    def prepared(problem: ConvProblem) -> Run:
        run = prepare(problem)
        return run if problem.kept is None else lambda *tensors: run(*tensors[:6], *tensors[7:])

    return prepared


def with_spectrum(form: str, prepare: Callable[[ConvProblem], Run]) -> Callable[[ConvProblem], Run]:
    """Prepares functions that take the spectrum where one is kept, of such as read it, as ``spectrum``, if it is one of
    theirs."""

    def prepared(problem: ConvProblem) -> Run:
        if kept_for(form, problem) is None:
            return without_spectrum(prepare)(problem)
        run = prepare(problem)
        return lambda *tensors: run(*tensors[:6], *tensors[7:], spectrum=tensors[6])

    return prepared


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


def _leading_strides(tensor: Tensor, own: int, x: Tensor) -> tuple[int, ...]:
    """Strides along the leading axes of x of a tensor with ``own`` axes behind those that it has or broadcasts over."""
    return tensor.expand(*x.shape[:-2], *tensor.shape[tensor.ndim - own :]).stride()[: x.ndim - 2]


def _folded(x: Tensor, tensors: Sequence[tuple[Tensor | None, int]]) -> tuple[Leading, list[Triple | None]]:
    """The leading axes of x and of tensors with so many axes of their own, and the strides (batch, time, channel) of
    each, None where there is no tensor or no time. What is not there goes where x goes."""
    leading = fold(
        x.shape[:-2], [_leading_strides(x if t is None else t, 2 if t is None else own, x) for t, own in tensors]
    )
    steps = [
        None if tensor is None or own < 2 else (batch, tensor.stride(-2), tensor.stride(-1))
        for (tensor, own), batch in zip(tensors, leading.strides, strict=True)
    ]
    return leading, steps


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
    leading, steps = _folded(x, tensors)
    (length, channels), filters = x.shape[-2:], h.shape[-1]
    return ConvProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=length,
        channels=channels,
        taps=h.shape[-2],
        x=cast(Triple, steps[0]),
        h=(h.stride(-2), h.stride(-1) if filters > 1 else 0),
        y=cast(Triple, steps[6]),
        bias=None if bias is None else (leading.strides[2], bias.stride(-1)),
        state=steps[3],
        activation=activation,
        transposed=transposed,
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(x.device),
        precision=precision,
        kept=kept,
        origin=origin,
        h_batch=leading.strides[1] if h.ndim > 2 else 0,
        group=channels // filters if filters > 1 else 1,
        pre_gate=steps[4],
        post_gate=steps[5],
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


def kept_of(spectrum: Tensor | None) -> Kept | None:
    """What a kept spectrum is, which the shape of each form tells."""
    if spectrum is None:
        return None
    _, *sizes = spectrum.shape
    is_bfloat16 = spectrum.dtype == torch.bfloat16
    if len(sizes) == 1:
        return Kept(sizes[0] // 2, is_bfloat16)
    if len(sizes) == 3:
        return Kept(sizes[1] * sizes[2], is_bfloat16, form="triton_fft_passes")
    if sizes[1] == 2:
        return Kept(sizes[0] - 1, is_bfloat16, form="torch_fft")
    return Kept(sizes[1], is_bfloat16, form="triton_fft")


def gradient_dtype(x: Tensor, precision: str) -> torch.dtype:
    """The gradients of filters have the type of the arithmetic."""
    wide = x.dtype == torch.float64 or arithmetic(dtype_name(x.dtype), precision) == "wide_float32"
    return torch.float64 if wide else torch.float32


def memory_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient: time contiguous where x is, else channels contiguous, leading axes in order."""
    if abs(x.stride(-2)) == 1 and abs(x.stride(-1)) != 1:
        return torch.empty(*x.shape[:-2], x.shape[-1], x.shape[-2], dtype=dtype or x.dtype, device=x.device).mT
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def filter_memory(like: Tensor, x: Tensor, taps: int, precision: str, leading: Sequence[int] = ()) -> Tensor:
    """Memory for the gradient of a filter per channel, time contiguous where ``like`` is."""
    dtype, channels = gradient_dtype(x, precision), x.shape[-1]
    if like.stride(-2) == 1 and like.stride(-1) != 1:
        return x.new_empty((*leading, channels, taps), dtype=dtype).mT
    return x.new_empty((*leading, taps, channels), dtype=dtype)


def filter_gradient_problem(
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
    leading, steps = _folded(x, tensors)
    return FilterGradientProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=x.shape[-1],
        taps=dh.shape[-2],
        x=cast(Triple, steps[0]),
        dz=cast(Triple, steps[1]),
        state=steps[2],
        offsets=leading.offsets,
        threads=_native.thread_count(),
        dh=(dh.stride(-2), dh.stride(-1)),
        isa=processor(x.device),
        precision=precision,
        origin=origin,
        x_gate=steps[3],
        dz_gate=steps[4],
        per_batch=leading.strides[5] if per_batch else 0,
        sums_turns=not per_batch,
        sequences=0 if boundaries is None else len(boundaries) - 1,
        longest=_longest(boundaries),
        state_sequence=0 if past is None or boundaries is None else past.stride(-3),
    )


def empty_filter_gradient(
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
    return filter_memory(x, x, taps, precision, x.shape[:-2] if per_batch else ())
