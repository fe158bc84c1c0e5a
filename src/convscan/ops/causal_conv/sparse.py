"""Convolutions with filters of which only a part of the spectrum is kept: natively, and by PyTorch's own transforms.

Everything is modulo X^2M + 1: the transform of 2M real samples x is that of the M complex numbers
(x[n] + i x[n+M]) exp(iπ n / 2M), whose frequencies (k - 1/4) / M stand for themselves and their conjugates.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..._calls import Calls, empty_like
from ..._dispatch import Cost, Implementation, register
from ..._layout import Triple, dtype_name, fold
from ..._library import is_watched
from . import cpu
from .problem import ConvProblem, arithmetic
from .spectrum import FilterSpectrum, ascending, first_taps

# ---- by PyTorch ----


def _turns(count: int, like: Tensor) -> Tensor:
    kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    angle = torch.arange(count, dtype=torch.float64, device=like.device) * (math.pi / (2 * count))
    turns: Tensor = torch.polar(torch.ones_like(angle), angle).to(kind)[:, None]
    return turns


def _transform(x: Tensor, count: int) -> Tensor:
    """(..., L, D) to (..., M, D), in the order of k."""
    x = torch.nn.functional.pad(x, (0, 0, 0, 2 * count - x.shape[-2]))
    z: Tensor = torch.fft.fft(torch.complex(x[..., :count, :], x[..., count:, :]) * _turns(count, x), dim=-2)
    return z


def _inverse(z: Tensor, count: int, length: int) -> Tensor:
    z = torch.fft.ifft(z, dim=-2) * _turns(count, z.real).conj()
    return torch.cat([z.real, z.imag], -2)[..., :length, :]


def _product(a: Tensor, b: Tensor, keep: Tensor, length: int, precision: str) -> Tensor:
    """The first samples whose spectrum is that of a times that of b where keep says so; b's is conjugated."""
    count, dtype = keep.shape[0], a.dtype
    wide = torch.float64 if dtype == torch.float64 or precision == "high" else torch.float32
    part = keep[ascending(count).to(keep.device)].to(wide)[:, None]
    z = _transform(a.to(wide), count) * _transform(b.to(wide), count).conj() * part
    return _inverse(z, count, length)


def _convolve(x: Tensor, h: Tensor, keep: Tensor, transposed: bool, precision: str) -> Tensor:
    count, length = keep.shape[0], x.shape[-2]
    if transposed:
        return _product(x, h, keep, length, precision).to(x.dtype)
    wide = torch.float64 if x.dtype == torch.float64 or precision == "high" else torch.float32
    part = keep[ascending(count).to(keep.device)].to(wide)[:, None]
    z = _transform(x.to(wide), count) * (_transform(h.to(wide), count) * part)
    return _inverse(z, count, length).to(x.dtype)


def _filter_gradient(x: Tensor, dz: Tensor, h: Tensor, keep: Tensor, precision: str) -> Tensor:
    dh = _product(dz, x, keep, h.shape[0], precision).sum_to_size(h.shape[0], h.shape[1])
    return dh.to(h.dtype)


# ---- natively ----


class SparseProblem(NamedTuple):
    """A convolution, its transform, and the part of 8 spectra's numbers that is kept."""

    conv: ConvProblem
    eighths: int

    def __str__(self) -> str:
        return f"{self.conv}, of frequencies about {self.eighths} in 8 kept"


def _cost(problem: SparseProblem) -> Cost:
    whole = cpu.ROWS[[row.name for row in cpu.ROWS].index("fft")].cost(problem.conv)
    return Cost(whole.seconds * (4 + problem.eighths) / 12, whole.workspace_bytes)


ROWS = (Implementation("fft", "cpu", lambda problem: [], _cost, lambda problem: cpu.prepare_sparse(problem.conv)),)
_calls = Calls("causal_conv_sparse")


def _problem(filters: FilterSpectrum, x: Tensor, transposed: bool, precision: str, y: Tensor) -> SparseProblem:
    leading = fold(x.shape[:-2], [tensor.stride()[:-2] for tensor in (x, x, y)])
    (length, channels), h = x.shape[-2:], filters.h
    steps: list[Triple] = [
        (batch, t.stride(-2), t.stride(-1)) for batch, t in zip(leading.strides, (x, x, y), strict=True)
    ]
    conv = ConvProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=length,
        channels=channels,
        taps=min(h.shape[0], filters.length),
        x=steps[0],
        h=(1, 1 if h.shape[1] > 1 else 0),
        y=steps[2],
        bias=None,
        state=None,
        activation=None,
        transposed=transposed,
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
        precision=precision,
        kept=filters.plan(arithmetic(dtype_name(x.dtype), precision)),
        group=channels // h.shape[1] if h.shape[1] > 1 else 1,
    )
    return SparseProblem(conv, round(8 * filters.kept_part))


def _run(filters: FilterSpectrum, x: Tensor, spectra: Tensor, transposed: bool, precision: str) -> Tensor:
    y = empty_like(x)
    variant = (transposed, precision, filters.h.shape, filters.length, filters.storage)
    _calls.run(variant, x, spectra, y, problem=lambda: _problem(filters, x, transposed, precision, y), strict=False)
    return y


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor, h: Tensor, filters: FilterSpectrum, spectra: Tensor, transposed: bool, precision: str
    ) -> Tensor:
        return _run(filters, x, spectra, transposed, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, h, ctx.filters, spectra, ctx.transposed, ctx.precision = inputs
        ctx.save_for_backward(x, h, spectra, ctx.filters.keep)
        ctx.save_for_forward(x, h, spectra, ctx.filters.keep)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return (None,) * 6
        x, h, spectra, keep = ctx.saved_tensors
        dx = dh = None
        if ctx.needs_input_grad[0]:
            dx = _SparseConv.apply(dy, h, ctx.filters, spectra, not ctx.transposed, ctx.precision)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            signal, gradient = (dy, x) if ctx.transposed else (x, dy)
            dh = _filter_gradient(signal, gradient, h, keep, ctx.precision)
        return dx, dh, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, th: Tensor | None, *_: None) -> Tensor | None:  # type: ignore[override]
        x, h, _, keep = ctx.saved_tensors
        terms: list[Tensor] = []
        if tx is not None:
            terms.append(_convolve(tx, h, keep, ctx.transposed, ctx.precision))
        if th is not None:
            terms.append(_convolve(x, th, keep, ctx.transposed, ctx.precision))
        return sum(terms[1:], terms[0]) if terms else None


def convolve(filters: FilterSpectrum, x: Tensor, h: Tensor, precision: str) -> Tensor:
    """x with the kept part of the spectra of h, the taps of ``filters`` in the dtype of x."""
    h = first_taps(filters, h)
    keep = filters.keep
    assert keep is not None
    if x.numel() == 0:
        return x * h.sum()  # nothing, but with the gradients that nothing has
    if is_watched() or not x.is_cpu:
        return _convolve(x, h, keep, False, precision)
    spectra = filters.spectrum(h, arithmetic(dtype_name(x.dtype), precision))
    assert spectra is not None
    y: Tensor = _SparseConv.apply(x, h, filters, spectra, False, precision)  # type: ignore[no-untyped-call]
    return y


register("causal_conv_sparse", ROWS, _problem)
