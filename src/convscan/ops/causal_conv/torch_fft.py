"""Convolution by PyTorch's own transforms on a GPU (cuFFT, rocFFT): any length, any number of taps.

What runs where a transform does not fit a program's registers. Rows of time are transformed a part at a time, so that
the memory for transforms stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._layout import order
from ...tuning.gpu import Work, cost
from .arguments import Run, with_spectrum
from .problem import ConvProblem, FilterGradientProblem, compute_bytes, compute_type, kept_for
from .triton.arguments import refusals, unit

FORM = "torch_fft"  # of kept spectra: (filters, points + 1, 2), the real and the imaginary part of each frequency
_PART_BYTES = 1 << 30  # of transforms at a time


def _next_length(n: int) -> int:
    """The least even product of 2, 3, 5 and 7 that is not below n, with few factors but 2."""
    odds = (sevens * fives * threes for sevens in (1, 7) for fives in (1, 5, 25) for threes in (1, 3, 9, 27))
    return min(odd << max(1, (max(1, -(-n // odd)) - 1).bit_length()) for odd in odds)


def _points(problem: ConvProblem | FilterGradientProblem) -> int:
    kept = kept_for(FORM, problem)
    return _next_length(problem.length + problem.taps) if kept is None else 2 * kept.points


def _refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = refusals(problem)
    if problem.sequences:
        reasons.append("takes no packed sequences")
    if problem.offsets is not None:
        reasons.append("takes leading axes that merge into one only")
    return reasons


def _transform_cost(problem: ConvProblem | FilterGradientProblem, transforms: int) -> Cost:
    item = float(compute_bytes(problem))
    points = _points(problem)
    rows = problem.batch * problem.channels
    # Each transform reads and writes its rows, twice where they are longer than a program holds; the product three
    # times; samples are copied to be contiguous, in float32 and padded, and back.
    passes = 2 * (1 if points <= 1 << 14 else 2 if points <= 1 << 26 else 3)
    moved = item * points * rows * (transforms * passes + 3 + 2 + (2 if order(problem.x) == "channel" else 0))
    flops = transforms * rows * 2.5 * points * math.log2(points)
    if isinstance(problem, ConvProblem) and problem.kept is None:  # the filters', transformed and written
        filters = problem.filters * (problem.batch if problem.h_batch else 1)
        moved += item * points * filters * (passes + 1)
        flops += filters * 2.5 * points * math.log2(points)
    steps = (Work(moved / 4, flops / 4, unit(problem)),) * 4
    workspace = min(_PART_BYTES, item * points * rows * 3) + item * points * problem.channels
    return cost(problem.device, problem.isa, workspace, *steps)


def _rows(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """(batch, channels, time), of any leading axes."""
    return tensor.flatten(0, -3).mT.to(kind) if tensor.ndim > 2 else tensor.mT.to(kind)[None]


def _parts(rows: int, points: int, item: int) -> int:
    """How many channels at a time."""
    return max(1, min(rows, _PART_BYTES // max(1, 3 * item * points)))


def _gated(x: Tensor, gate: Tensor | None, kind: torch.dtype) -> Tensor:
    return x.to(kind) if gate is None else x.to(kind) * gate.to(kind)


def _of_channels(spectra: Tensor, part: slice, problem: ConvProblem) -> Tensor:
    """Those of the filters of some channels."""
    if len(spectra) == 1 or len(spectra) == problem.channels:
        return spectra if len(spectra) == 1 else spectra[part]
    channels = torch.arange(part.start, min(part.stop, problem.channels), device=spectra.device)
    return spectra.index_select(0, channels // problem.group)


def spectra(problem: ConvProblem) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Half the points of the transform that a problem takes, and what makes the filters' spectra for it."""
    kind, points = compute_type(problem), _points(problem)
    return points // 2, lambda h: torch.view_as_real(torch.fft.rfft(h.mT.to(kind), points))


def _prepare(problem: ConvProblem) -> Run:
    kind, points = compute_type(problem), _points(problem)
    taps, length = problem.taps, problem.length

    def run(
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        y: Tensor,
        boundaries: Tensor | None = None,
        spectrum: Tensor | None = None,
    ) -> None:
        if y.numel() == 0:
            return
        u = _rows(_gated(x, pre_gate, kind), kind)
        filters = h.to(kind)
        filters = filters.repeat_interleave(x.shape[-1] // filters.shape[-1], -1)
        filters = _rows(filters.expand(*x.shape[:-2], *filters.shape[-2:]) if h.ndim > 2 else filters, kind)
        past = None if state is None or problem.state is None else _rows(state, kind)
        # With the transpose, y[i] = sum_k h[k] u[i+k-origin]: a correlation.
        first = taps - 1 - problem.origin if problem.transposed else problem.origin
        # Kept spectra are those of h; their conjugates make a correlation whose sums begin without a shift.
        kept = spectrum if problem.origin == 0 else None
        first = first if kept is None else 0
        filters = filters.flip(-1) if problem.transposed else filters
        z = torch.empty_like(u)
        step = _parts(u.shape[1], u.shape[0] * points, kind.itemsize)
        for begin in range(0, u.shape[1], step):
            part = slice(begin, begin + step)
            if kept is None:
                factors = torch.fft.rfft(filters[:, part], points)
            else:
                factors = torch.view_as_complex(_of_channels(kept, part, problem).to(kind))
                factors = factors.conj() if problem.transposed else factors
            sums = torch.fft.irfft(torch.fft.rfft(u[:, part], points).mul_(factors), points)
            z[:, part] = sums[..., first : first + length]
            if past is not None and taps > 1:
                # What the samples before leave behind: the end of their convolution, as far as it reaches.
                count = _next_length(2 * taps - 2 + taps - 1)
                left = torch.fft.irfft(
                    torch.fft.rfft(past[:, part], count) * torch.fft.rfft(filters[:, part], count), count
                )
                reached = min(length, taps - 1)
                z[:, part, :reached] += left[..., taps - 1 : taps - 1 + reached]
        result = z.mT.reshape(x.shape)
        if bias is not None:
            result = result + bias.to(kind).unsqueeze(-2)
        if post_gate is not None:
            result = result * post_gate.to(kind)
        if problem.activation == "silu":
            result = torch.nn.functional.silu(result)
        if problem.activation == "gelu":
            result = torch.nn.functional.gelu(result)
        y.copy_(result)

    return run


def _prepare_gradient(problem: FilterGradientProblem) -> Run:
    kind, points = compute_type(problem), _next_length(problem.length + 2 * problem.taps)
    taps = problem.taps

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        if x.numel() == 0:
            dh.zero_()
            return
        u, g = _rows(_gated(x, x_gate, kind), kind), _rows(_gated(dz, dz_gate, kind), kind)
        before = u.new_zeros(u.shape[0], u.shape[1], taps - 1)
        if state is not None and problem.state is not None:
            before = _rows(state, kind)
        step = _parts(u.shape[1], u.shape[0] * points, kind.itemsize)
        for begin in range(0, u.shape[1], step):
            part = slice(begin, begin + step)
            samples = torch.cat([before[:, part], u[:, part]], -1)
            product = torch.fft.rfft(samples, points) * torch.fft.rfft(g[:, part], points).conj()
            if dh.ndim == 2:
                product = product.sum(0, keepdim=True)
            # Lag l of samples behind dz has dh[K - 1 - l + origin].
            lags = torch.fft.irfft(product, points)
            wanted = (taps - 1 + problem.origin - torch.arange(taps, device=x.device)) % points
            found = lags[..., wanted].mT
            dh[..., part] = found[0] if dh.ndim == 2 else found.reshape(*dh.shape[:-1], found.shape[-1])

    return run


ROWS: tuple[Implementation, ...] = (
    Implementation(
        "torch_fft", "triton", _refusals, lambda problem: _transform_cost(problem, 2), with_spectrum(FORM, _prepare)
    ),
)
GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("torch_fft", "triton", _refusals, lambda problem: _transform_cost(problem, 2), _prepare_gradient),
)
