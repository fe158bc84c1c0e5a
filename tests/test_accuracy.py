"""Errors of long convolutions in float32: beside PyTorch's, SciPy's and ducc0's, and at the longest lengths."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
import torch
from ducc0 import fft as ducc0_fft
from torch import Tensor

import convscan
import oracle

CHANNELS = 32


def torch_fft(x: Tensor, h: Tensor) -> Tensor:
    points = 1 << (len(x) + len(h) - 2).bit_length()
    spectrum = torch.fft.rfft(x, points, dim=0) * torch.fft.rfft(h, points, dim=0)
    return torch.fft.irfft(spectrum, points, dim=0)[: len(x)]


def scipy_fft(x: Tensor, h: Tensor) -> Tensor:
    return torch.from_numpy(scipy.signal.fftconvolve(x.numpy(), h.numpy(), axes=0)[: len(x)])


def ducc0(x: Tensor, h: Tensor) -> Tensor:
    points = ducc0_fft.good_size(len(x) + len(h) - 1, True)

    def spectrum(samples: Tensor) -> np.ndarray:
        padded = np.zeros((points, samples.shape[1]), np.float32)
        padded[: len(samples)] = samples
        return ducc0_fft.r2c(padded, axes=(0,))  # type: ignore[no-any-return]

    y = ducc0_fft.c2r(spectrum(x) * spectrum(h), axes=(0,), lastsize=points, forward=False, inorm=2)
    return torch.from_numpy(y[: len(x)])


def white(draw: oracle.Draw, length: int) -> Tensor:
    return draw.normal(length, CHANNELS)


def smooth(draw: oracle.Draw, length: int) -> Tensor:
    """A slow sine in each channel, of one to as many periods as there are channels."""
    cycles = torch.arange(1, CHANNELS + 1) * torch.linspace(0, 1, length, dtype=torch.float64)[:, None]
    return torch.sin(2 * math.pi * (cycles + draw.normal(CHANNELS)))


def large_mean(draw: oracle.Draw, length: int) -> Tensor:
    return 1000 + draw.normal(length, CHANNELS)


def decaying(draw: oracle.Draw, length: int) -> Tensor:
    """White noise under an exponential that falls by eight orders of magnitude."""
    return draw.normal(length, CHANNELS) * torch.logspace(0, -8, length, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("length", "taps"), [(1024, 1024), (8192, 300), (8192, 8192), (10007, 10007), (8200, 8210)])
@pytest.mark.parametrize("signal", [white, smooth, large_mean])
@pytest.mark.parametrize("filters", [white, decaying])
def test_errors_are_within_half_as_much_again_as_the_best_of_others(
    length: int, taps: int, signal: Callable[..., Tensor], filters: Callable[..., Tensor]
) -> None:
    draw = oracle.Draw(length + taps)
    x, h = signal(draw, length).float(), filters(draw, taps).float()
    truth = torch_fft(x.double(), h.double())

    def error(y: Tensor) -> float:
        return float((y.double() - truth).square().mean().sqrt())

    others = {way.__name__: error(way(x, h)) for way in (torch_fft, scipy_fft, ducc0)}
    for samples in (x, x.T.contiguous().T):
        with convscan.force("fft"):
            ours = error(convscan.causal_conv(samples, h))
        assert ours <= 1.5 * min(others.values()), (ours, others)


@pytest.mark.parametrize(("length", "taps"), [(4111, 4105), (4097, 4097), (5000, 3250), (8300, 8200), (16500, 16450)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_a_little_longer_than_a_transform_covers(length: int, taps: int, dtype: torch.dtype, isa: str) -> None:
    """What wraps around meets the first outputs, which are sums: beside those over all taps, in float64."""
    draw = oracle.Draw(length)
    x, pre, post = (draw.normal(2, length, 17, dtype=dtype) for _ in range(3))
    h, bias = draw.normal(taps, 17, dtype=dtype), draw.normal(17, dtype=dtype)
    wide = [tensor.double() for tensor in (x, h, bias, pre, post)]
    for has_gates in (False, True):
        options = [
            {"bias": b, "activation": "silu", "pre_gate": g, "post_gate": p} if has_gates else {}
            for b, g, p in ((bias, pre, post), tuple(wide[2:]))
        ]
        with convscan.force("direct"):
            truth = convscan.causal_conv(*wide[:2], **options[1])
        size = float(truth[:, -1000:].abs().max())
        for samples in (x, x.mT.contiguous().mT):
            with convscan.force("fft"):
                y = convscan.causal_conv(samples, h, **options[0])
                in_place = samples.clone()
                assert torch.equal(convscan.causal_conv(in_place, h, out=in_place, **options[0]), y)
            allowed = size * (1e-5 if dtype == torch.float32 else 1e-13 if dtype == torch.float64 else 2**-8)
            assert float((y.double() - truth).abs().max()) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "taps", "channels", "filters"),
    [
        (1, 16384, 16384, 1, "each"),
        (1, 20000, 15000, 3, "each"),
        (1, 16450, 16450, 1, "each"),
        (2, 33000, 33000, 3, "shared"),
        (3, 16384, 16000, 1, "batch"),
        (1, 1 << 19, 1 << 19, 2, "each"),
    ],
)
def test_threads_that_share_a_row(
    batch: int, length: int, taps: int, channels: int, filters: str, dtype: torch.dtype, isa: str
) -> None:
    """Rows too few or too long to have one each: one thread's results to the bit, within what is predicted."""
    draw = oracle.Draw(length + channels)
    x, pre, post = (draw.normal(batch, length, channels, dtype=dtype) for _ in range(3))
    shape = {"each": (taps, channels), "shared": (taps, 1), "batch": (batch, taps, channels)}[filters]
    h, state = draw.normal(*shape, dtype=dtype) / 128, draw.normal(batch, taps - 1, channels, dtype=dtype)
    kept = convscan.FilterSpectrum(h, length) if filters == "each" else None
    calls = [
        lambda x, out: convscan.causal_conv(x, h, out=out),
        lambda x, out: convscan.causal_conv(x, h, pre_gate=pre, post_gate=post, activation="silu", out=out),
        lambda x, out: convscan.causal_conv(x, h, initial_state=state, out=out),
    ]
    if kept is not None:
        calls.append(lambda x, out: convscan.causal_conv(x, kept, out=out))
    for call in calls[: 1 if length > 100_000 else None]:
        for samples in (x, x.mT.contiguous().mT):
            with torch.no_grad(), convscan.force("fft"):
                torch.set_num_threads(1)
                alone = call(samples, torch.empty_like(samples))
                torch.set_num_threads(2)
                convscan.reset_peak_workspace()
                assert torch.equal(call(samples, torch.empty_like(samples)), alone)
                if call is calls[0]:
                    rows = convscan.explain("causal_conv", samples, h).candidates
                    predicted = next(row.cost.workspace_bytes for row in rows if row.name == "fft" and row.cost)
                    assert convscan.workspace_memory().peak <= predicted
                in_place = samples.clone()
                assert torch.equal(call(in_place, in_place), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "taps"), [(1 << 22, 1 << 22), ((1 << 24) - 4097, 4097), (1 << 23, 1 << 23)])
def test_millions_of_samples_and_taps(length: int, taps: int) -> None:
    """Up to 2^24 samples and taps together, within 16 bytes of workspace a point of the transform, of all threads."""
    draw = oracle.Draw(length)
    x, h = draw.normal(length, 1).float(), draw.normal(taps, 1).float() / math.sqrt(taps)
    convscan.reset_peak_workspace()
    y = convscan.causal_conv(x, h)
    assert convscan.workspace_memory().peak <= 9 * (length + taps) + (4 << 20)
    truth = torch_fft(x.double(), h.double())
    points = math.log2(length + taps)
    allowed = 4 * oracle.roundoff(torch.float32) * points * float(x.double().norm(dim=0) * h.double().norm(dim=0))
    assert float((y.double() - truth).abs().max()) <= allowed
    assert float((y.double() - truth).square().mean().sqrt()) <= 5e-7 * float(truth.square().mean().sqrt())
