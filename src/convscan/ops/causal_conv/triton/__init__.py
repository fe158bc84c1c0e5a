"""The Triton kernels of the convolution: what each can run, what it would cost, and how it is launched."""

from __future__ import annotations

from ...._dispatch import Implementation
from ..arguments import with_spectrum, without_spectrum
from . import fft, fft_passes
from .arguments import refusals
from .backward import backward_cost, backward_rolling_refusals, backward_tile_refusals, prepare_backward
from .direct import direct_cost, prepare_direct, prepare_rolling, rolling_cost, rolling_refusals
from .fft import fft_cost, fft_gradient_cost, fft_refusals, prepare_fft, prepare_fft_gradient
from .fft_backward import fft_backward_cost, fft_backward_refusals, prepare_fft_backward
from .fft_passes import passes_cost, passes_refusals, prepare_passes
from .fft_passes_backward import passes_backward_cost, passes_backward_refusals, prepare_passes_backward
from .gradient import gradient_cost, prepare_gradient
from .toeplitz import correlation_cost, prepare_correlation, prepare_toeplitz, toeplitz_cost, toeplitz_refusals

ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", refusals, direct_cost, without_spectrum(prepare_direct)),
    Implementation("triton_rolling", "triton", rolling_refusals, rolling_cost, without_spectrum(prepare_rolling)),
    Implementation("triton_toeplitz", "triton", toeplitz_refusals, toeplitz_cost, without_spectrum(prepare_toeplitz)),
    Implementation("triton_fft", "triton", fft_refusals, fft_cost, with_spectrum(fft.FORM, prepare_fft)),
    Implementation(
        "triton_fft_passes", "triton", passes_refusals, passes_cost, with_spectrum(fft_passes.FORM, prepare_passes)
    ),
)
GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", refusals, gradient_cost, prepare_gradient),
    Implementation("triton_toeplitz", "triton", toeplitz_refusals, correlation_cost, prepare_correlation),
    Implementation("triton_fft", "triton", fft_refusals, fft_gradient_cost, prepare_fft_gradient),
)
BACKWARD_ROWS: tuple[Implementation, ...] = (
    Implementation(
        "triton_rolling", "triton", backward_rolling_refusals, backward_cost("rolling"), prepare_backward("rolling")
    ),
    Implementation("triton_direct", "triton", backward_tile_refusals, backward_cost("tile"), prepare_backward("tile")),
    Implementation("triton_fft", "triton", fft_backward_refusals, fft_backward_cost, prepare_fft_backward),
    Implementation(
        "triton_fft_passes", "triton", passes_backward_refusals, passes_backward_cost, prepare_passes_backward
    ),
)
