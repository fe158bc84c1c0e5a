"""The convolution as products of matrices, and what tensor cores make of float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan.ops.causal_conv import reference
from convscan.ops.causal_conv.triton import toeplitz

NAME = "triton_toeplitz"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks make short filters reach over several."""
    chosen = {"n": 16, "rows": 16, "taps": 64, "warps": 1, "stages": 1}
    monkeypatch.setattr(toeplitz, "configuration", lambda gpu, kernel: chosen)


def problems(dtype: torch.dtype, count: int) -> list[oracle.Convolution]:
    found = oracle.convolutions(dtype, count=60, seed=3, limit=60_000)
    return [p for p in found if p.h.shape[0] > 8 and p.x.shape[0] * p.x.shape[2] <= 12][:count]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_convolution(dtype: torch.dtype, small: None) -> None:
    for p in problems(dtype, 6):
        with convscan.force(NAME):
            p.check(convscan.causal_conv(p.x, p.h, **p.options()), is_transform=False)


def test_filter_gradient_and_transpose(small: None) -> None:
    for p in problems(torch.float32, 5):
        taps = p.h.shape[0]
        with convscan.force(NAME):
            dh = torch.ops.convscan.causal_conv_filter_gradient.default(
                p.x, p.x, p.state, p.pre_gate, p.post_gate, None, taps, 0, False, "default"
            )
            dx = torch.ops.convscan.causal_conv.default(
                p.x, p.h, None, None, p.post_gate, p.pre_gate, None, None, 2, True, "default", None
            )
        exact = reference.filter_gradient(p.x, p.x, p.state, taps, x_gate=p.pre_gate, dz_gate=p.post_gate)
        other = p.x.double() if p.post_gate is None else p.x.double() * p.post_gate.double()
        bound = 8 * oracle.roundoff(torch.float32) * (p.extended(torch.float64).norm(dim=1) * other.norm(dim=1)).sum(0)
        assert torch.all((dh.double() - exact).abs().amax(0) <= bound)
        exact = reference.causal_conv(p.x, p.h, transposed=True, pre_gate=p.post_gate, post_gate=p.pre_gate, origin=2)
        assert torch.all((dx - exact).abs() <= 1e-5 * exact.abs().amax())


def test_refusals() -> None:
    x, h = torch.ones(40, 2, dtype=torch.float64), torch.ones(20, 2, dtype=torch.float64)
    reasons = next(c for c in convscan.explain("causal_conv", x, h).candidates if c.name == NAME).reasons
    assert reasons == ("multiplies in float32 only",)


def cut(x: Tensor, bits: int) -> Tensor:
    """What a tensor core reads of float32: the other bits of the fraction do not exist."""
    return (x.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def rounded(x: Tensor) -> Tensor:
    """_triton._rounded in PyTorch."""
    return ((x.view(torch.int32) + 0x1000) & -8192).view(torch.float32)


@pytest.mark.parametrize("positive", [False, True])
def test_three_products_of_halves_are_as_exact_as_float32(positive: bool) -> None:
    """Emulated as tensor cores compute them, whose interpreter here is exact: 10 bits of the fraction, sums in float32.
    Cutting alone would be biased, which sums of positive numbers show."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, 512, generator=generator) for _ in range(2))
    x, y = (x.abs(), y.abs()) if positive else (x, y)
    exact = x.double() @ y.double().T
    scale = x.double().abs() @ y.double().abs().T

    def core(a: Tensor, b: Tensor) -> Tensor:
        return (cut(a, 10).double() @ cut(b, 10).double().T).float()

    high_x, high_y = rounded(x), rounded(y)
    assert torch.equal(cut(high_x, 10), high_x)
    three = core(x - high_x, high_y) + core(high_x, y - high_y) + core(high_x, high_y)
    unit = 2.0**-24
    assert torch.all((three - exact).abs() <= 4 * unit * scale)
    assert torch.any((core(x, y) - exact).abs() > 100 * unit * scale)  # which one product alone is not
    half_x, half_y = x.bfloat16().float() * y.bfloat16().float(), x.half().float()
    high = rounded(half_x)
    two = core(half_x - high, half_y) + core(high, half_y)
    # Exact products: what is left are the roundings of the two sums and of their own.
    assert torch.all((two - half_x.double() @ half_y.double().T).abs() <= 3 * unit * (half_x.abs() @ half_y.abs().T))
