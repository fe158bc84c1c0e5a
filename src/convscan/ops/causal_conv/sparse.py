"""Convolutions with filters of which only a part of the spectrum is kept: natively, and by PyTorch's own transforms.

Everything is modulo X^2M + 1 (negacyclic.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _native
from ..._calls import Calls, empty_like
from ..._dispatch import Cost, Implementation, register
from ..._layout import dtype_name, fold
from ..._library import is_watched
from ..._targets import processor
from ...tuning.gpu import Work, cost
from . import cpu, torch_fft
from .arguments import Run
from .composed import reduce_filter
from .negacyclic import ascending, inverse, transform
from .problem import ConvProblem, arithmetic, compute_bytes, compute_type
from .spectrum import FilterSpectrum, first_taps
from .triton import fft, fft_passes
from .triton.arguments import unit

# ---- by PyTorch ----


def _for_each(h: Tensor, x: Tensor) -> Tensor:
    """The filter of each channel, or the one for all."""
    return h if h.shape[-1] == 1 else h.repeat_interleave(x.shape[-1] // h.shape[-1], -1)


def _product(a: Tensor, b: Tensor, keep: Tensor, length: int, precision: str, *, conjugated: bool) -> Tensor:
    """The first samples whose spectrum is that of a times that of b, or its conjugate, where keep says so."""
    count, dtype = keep.shape[0], a.dtype
    wide = torch.float64 if dtype == torch.float64 or precision == "high" else torch.float32
    part = keep[ascending(count).to(keep.device)].to(wide)[:, None]
    factors = transform(b.to(wide), count) * part
    return inverse(transform(a.to(wide), count) * (factors.conj() if conjugated else factors), count, length)


def _convolve(x: Tensor, h: Tensor, keep: Tensor, transposed: bool, precision: str) -> Tensor:
    return _product(x, _for_each(h, x), keep, x.shape[-2], precision, conjugated=transposed).to(x.dtype)


def _filter_gradient(x: Tensor, dz: Tensor, h: Tensor, keep: Tensor, precision: str) -> Tensor:
    return reduce_filter(_product(dz, x, keep, h.shape[0], precision, conjugated=True), h)


# ---- with spectra that are kept ----


class SparseProblem(NamedTuple):
    """A convolution, its transform, and the part of 8 spectra's numbers that is kept."""

    conv: ConvProblem
    eighths: int

    def __str__(self) -> str:
        return f"{self.conv}, of frequencies about {self.eighths} in 8 kept"


def _order_refusals(form: str) -> Callable[[SparseProblem], list[str]]:
    def why_not(problem: SparseProblem) -> list[str]:
        kept = problem.conv.kept
        return [] if kept is None or kept.form == form else ["reads spectra in an order of its own"]

    return why_not


def _native_cost(problem: SparseProblem) -> Cost:
    whole = next(row for row in cpu.ROWS if row.name == "fft").cost(problem.conv)
    return Cost(whole.seconds * (4 + problem.eighths) / 12, whole.workspace_bytes)


def _prepare_triton(prepare: Callable[[ConvProblem], Run]) -> Callable[[SparseProblem], Run]:
    def prepared(problem: SparseProblem) -> Run:
        run = prepare(problem.conv)
        return lambda x, spectra, y: run(x, spectra, None, None, None, None, y, spectrum=spectra)

    return prepared


def _torch_cost(problem: SparseProblem) -> Cost:
    conv = problem.conv
    assert conv.kept is not None
    item, points, rows = 2.0 * compute_bytes(conv), conv.kept.points, conv.batch * conv.turns * conv.channels
    # Two transforms in two passes each, four products and two copies, of complex numbers.
    moved, flops = item * points * rows * 2 * (4 + 4 + 2), 10 * points * rows * math.log2(points)
    steps = (Work(moved / 8, flops / 8, unit(conv)),) * 8
    return cost(conv.device, conv.isa, 4 * item * points * rows, *steps)


def _prepare_torch(problem: SparseProblem) -> Run:
    conv = problem.conv
    wide = compute_type(conv)

    def run(x: Tensor, spectra: Tensor, y: Tensor) -> None:
        count, length = spectra.shape[1], x.shape[-2]
        factors = _for_each(torch.view_as_complex(spectra.to(wide)).mT, x)
        z = transform(x.to(wide), count) * (factors.conj() if conv.transposed else factors)
        y.copy_(inverse(z, count, length))

    return run


ROWS = (
    Implementation(
        "fft", "cpu", _order_refusals("fft"), _native_cost, lambda problem: cpu.prepare_sparse(problem.conv)
    ),
    Implementation(
        "triton_fft",
        "triton",
        _order_refusals(fft.FORM),
        lambda problem: fft.fft_cost(problem.conv),
        _prepare_triton(fft.prepare_fft),
    ),
    Implementation(
        "triton_fft_passes",
        "triton",
        _order_refusals(fft_passes.FORM),
        lambda problem: fft_passes.passes_cost(problem.conv),
        _prepare_triton(fft_passes.prepare_passes),
    ),
    Implementation("torch_fft", "any", _order_refusals(torch_fft.FORM), _torch_cost, _prepare_torch),
)
_calls = Calls("causal_conv_sparse")


def _problem(
    filters: FilterSpectrum,
    x: Tensor,
    transposed: bool = False,
    precision: str = "default",
    y: Tensor | None = None,
) -> SparseProblem:
    y = torch.empty_like(x) if y is None else y
    # In the order of what a convolution takes; of what is not there, nothing moves.
    absent = (0,) * (x.ndim - 2)
    leading = fold(x.shape[:-2], [x.stride()[:-2], *(absent,) * 5, y.stride()[:-2]])
    (length, channels), h = x.shape[-2:], filters.h
    conv = ConvProblem(
        device=x.device.type,
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=length,
        channels=channels,
        taps=min(h.shape[0], filters.length),
        x=(leading.strides[0], x.stride(-2), x.stride(-1)),
        h=(1, 1 if h.shape[1] > 1 else 0),
        y=(leading.strides[6], y.stride(-2), y.stride(-1)),
        bias=None,
        state=None,
        activation=None,
        transposed=transposed,
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(x.device),
        precision=precision,
        kept=filters.plan(arithmetic(dtype_name(x.dtype), precision)),
        group=channels // h.shape[1] if h.shape[1] > 1 else 1,
    )
    return SparseProblem(conv, round(8 * filters.kept_part))


def _run(filters: FilterSpectrum, x: Tensor, spectra: Tensor, transposed: bool, precision: str) -> Tensor:
    y = empty_like(x)
    place = filters.form(arithmetic(dtype_name(x.dtype), precision))
    variant = (transposed, precision, filters.h.shape, filters.length, filters.storage, place)
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
    if is_watched() or not (x.is_cpu or x.is_cuda):
        return _convolve(x, h, keep, False, precision)
    spectra = filters.spectrum(h, arithmetic(dtype_name(x.dtype), precision))
    assert spectra is not None
    y: Tensor = _SparseConv.apply(x, h, filters, spectra, False, precision)  # type: ignore[no-untyped-call]
    return y


register("causal_conv_sparse", ROWS, _problem)
