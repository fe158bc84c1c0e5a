"""Convolutions by transforms: in registers by matrices, and PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan.ops.causal_conv import reference, torch_fft
from convscan.ops.causal_conv.triton import fft

NAMES = ("triton_fft", "torch_fft")


def problems(dtype: torch.dtype, count: int) -> list[oracle.Convolution]:
    found = oracle.convolutions(dtype, count=60, seed=3, limit=60_000)
    return [p for p in found if p.x.shape[0] * p.x.shape[2] <= 12][:count]


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_convolution(name: str, dtype: torch.dtype) -> None:
    if name == "triton_fft" and dtype == torch.float64:
        x, h = torch.ones(40, 2, dtype=dtype), torch.ones(20, 2, dtype=dtype)
        refused = next(c for c in convscan.explain("causal_conv", x, h).candidates if c.name == name)
        assert refused.reasons == ("multiplies in float32 only",)
        return
    for p in problems(dtype, 6):
        with convscan.force(name):
            p.check(convscan.causal_conv(p.x, p.h, **p.options()), is_transform=True)


@pytest.mark.parametrize("points", [256, 512, 1024, 2048, 4096])
def test_every_transform(points: int) -> None:
    """Filters about as long as half a block, over several blocks: a sum of squares weighs every frequency alike."""
    generator = torch.Generator().manual_seed(points)
    x = torch.randn(1, 2 * points + 100, 1, generator=generator)
    h = torch.randn(points - 3, 1, generator=generator) / points**0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fft, "_fft_points", lambda problem: points)
        with convscan.force("triton_fft"):
            y = convscan.causal_conv(x, h)
            dh = torch.ops.convscan.causal_conv_filter_gradient.default(
                x, x, None, None, None, None, h.shape[0], 0, False, "default"
            )
    u, energy = 2.0**-24, x.double().norm() * h.double().norm()
    exact = torch.fft.irfft(torch.fft.rfft(x.double(), 8 * points, dim=1) * torch.fft.rfft(h.double(), 8 * points, dim=0), dim=1)  # fmt: skip  # noqa: E501
    assert (y - exact[:, : x.shape[1]]).abs().max() <= 4 * u * math.log2(2 * points) * energy
    spectrum = torch.fft.rfft(x[0].double(), 8 * points, dim=0)
    exact = torch.fft.irfft(spectrum * spectrum.conj(), dim=0)[: h.shape[0]]
    assert (dh - exact).abs().max() <= 4 * u * math.log2(2 * points) * x.double().norm() ** 2


@pytest.mark.parametrize("name", NAMES)
def test_filter_gradient_transpose_and_origin(name: str) -> None:
    assert name in [row.name for row in convscan.implementations("causal_conv_filter_gradient")]
    for p in problems(torch.float32, 4):
        taps = p.h.shape[0]
        with convscan.force(name):
            dh = torch.ops.convscan.causal_conv_filter_gradient.default(
                p.x, p.x, p.state, p.pre_gate, p.post_gate, None, taps, 0, True, "default"
            )
            dx = torch.ops.convscan.causal_conv.default(
                p.x, p.h, None, None, p.post_gate, p.pre_gate, None, None, taps // 2, True, "default", None
            )
        exact = reference.filter_gradient(
            p.x, p.x, p.state, taps, x_gate=p.pre_gate, dz_gate=p.post_gate, per_batch=True
        )
        other = p.x.double() if p.post_gate is None else p.x.double() * p.post_gate.double()
        bound = 100 * oracle.roundoff(torch.float32) * (p.extended(torch.float64).norm(dim=1) * other.norm(dim=1))
        assert torch.all((dh.double() - exact).abs().amax(-2) <= bound + 1e-6)
        options = {"pre_gate": p.post_gate, "post_gate": p.pre_gate, "origin": taps // 2}
        exact = reference.causal_conv(p.x, p.h, transposed=True, **options)
        assert torch.all((dx - exact).abs() <= 1e-5 * (1 + exact.abs().amax()))


def test_filters_of_each_sequence_and_of_groups() -> None:
    draw = oracle.Draw(4)
    x = draw.normal(2, 50, 4, dtype=torch.float32)
    for h in (draw.normal(30, 2), draw.normal(30, 1), draw.normal(2, 30, 4), draw.normal(1, 30, 4)):
        h = h.float()
        filters = h if h.ndim == 2 else h.expand(2, 30, 4)
        for name in NAMES:
            with convscan.force(name):
                y = convscan.causal_conv(x, h)
            exact = reference.causal_conv(x, filters)
            assert torch.all((y - exact).abs() <= 1e-5 * exact.abs().amax())


def test_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h = torch.randn(1, 30, 2, requires_grad=True), torch.randn(20, 2, requires_grad=True)
    results = []
    for name in ("reference", *NAMES):
        with convscan.force(name):
            y = convscan.causal_conv(x, h, activation="silu")
            results.append(torch.autograd.grad(y, (x, h), y.detach()))
    for found in results[1:]:
        for one, exact in zip(found, results[0], strict=True):
            torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-4)


def test_parts_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all transforms together would not fit."""
    monkeypatch.setattr(torch_fft, "_PART_BYTES", 1)
    x, h = torch.randn(2, 60, 3), torch.randn(50, 3)
    with convscan.force("torch_fft"):
        y = convscan.causal_conv(x, h)
        dh = torch.ops.convscan.causal_conv_filter_gradient.default(
            x, x, None, None, None, None, 50, 0, False, "default"
        )
    torch.testing.assert_close(y.double(), reference.causal_conv(x, h), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dh.double(), reference.filter_gradient(x, x, None, 50), rtol=1e-5, atol=1e-4)


def test_lengths_have_small_factors() -> None:
    for n in (*range(1, 300), 4097, 65537, 1000003):
        found: int = torch_fft._next_length(n)
        assert n <= found <= max(2, 1.35 * n) or n < 20
        assert found % 2 == 0
        for factor in (2, 3, 5, 7):
            while found % factor == 0:
                found //= factor
        assert found == 1


def later(y: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)


def test_bound_of_transforms_sees_wrong_answers() -> None:
    for p in problems(torch.bfloat16, 6):
        for wrong in (torch.zeros_like(p.truth()), later(p.truth()), oracle._circular(p)):
            if (wrong - p.truth()).norm() > 0.05 * p.truth().norm():
                with pytest.raises(oracle.Mismatch):
                    p.check(wrong.bfloat16(), is_transform=True)
