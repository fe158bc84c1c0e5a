"""Convolutions by transforms in three passes, judged by the oracle of all implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import convscan
import oracle
from convscan.ops.causal_conv import reference
from convscan.ops.causal_conv.triton import fft_passes

NAME = "triton_fft_passes"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest transforms that products of 16 allow: 16 columns of 256 rows."""
    monkeypatch.setattr(fft_passes, "LONGEST", 256)
    monkeypatch.setattr(fft_passes, "_points", lambda problem: 4096)


def problem(length: int, taps: int, dtype: torch.dtype, order: str, channels: int = 1) -> oracle.Convolution:
    draw = oracle.Draw(length)
    x, pre, post = (oracle.in_order(draw.normal(1, length, channels, dtype=dtype), order) for _ in range(3))
    h = (draw.normal(taps, channels) / taps**0.5).to(dtype)
    bias, state = draw.normal(channels, dtype=dtype), draw.normal(1, taps - 1, channels, dtype=dtype)
    return oracle.Convolution(x, h, bias, "silu", state, pre, post)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("length", "taps", "order"),
    [(3000, 900, "time contiguous"), (8500, 300, "channels contiguous"), (20, 1000, "every second channel")],
)
def test_convolution(length: int, taps: int, order: str, dtype: torch.dtype) -> None:
    """One block, several that overlap, and filters longer than the signal, with all that a convolution can have."""
    p = problem(length, taps, dtype, order)
    with convscan.force(NAME):
        y = convscan.causal_conv(p.x, p.h, **p.options())
        assert torch.equal(y, convscan.causal_conv(p.x, p.h, **p.options()))
    p.check(y, is_transform=True)
    with pytest.raises(oracle.Mismatch):
        p.check(torch.zeros_like(y), is_transform=True)
    with pytest.raises(oracle.Mismatch):
        p.check(y.roll(1, 1), is_transform=True)


@pytest.mark.usefixtures("small")
def test_parts_of_channels_and_shared_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_passes, "_PART_BYTES", 8 * 4096)
    p = problem(600, 500, torch.float32, "time contiguous", channels=2)
    for filters in (2, 1):
        one = replace(p, h=p.h[:, :filters].repeat_interleave(2 // filters, 1))
        with convscan.force(NAME):
            one.check(convscan.causal_conv(p.x, p.h[:, :filters], **p.options()), is_transform=True)


@pytest.mark.usefixtures("small")
def test_transpose_and_origin() -> None:
    p = problem(1000, 700, torch.float32, "time contiguous")
    with convscan.force(NAME):
        dx = torch.ops.convscan.causal_conv.default(
            p.x, p.h, None, None, p.pre_gate, p.post_gate, None, None, 300, True, "default", None
        )
    exact = reference.causal_conv(p.x, p.h, transposed=True, pre_gate=p.pre_gate, post_gate=p.post_gate, origin=300)
    assert torch.all((dx - exact).abs() <= 1e-5 * (1 + exact.abs().amax()))


def test_its_own_choice_of_transform() -> None:
    """Just longer than what a program holds."""
    p = replace(problem(4500, 4400, torch.float32, "time contiguous"), state=None)
    described = convscan.explain("causal_conv", p.x, p.h, **p.options()).problem
    plan = fft_passes._Plan(described)
    assert (plan.points, plan.columns, plan.rest, plan.blocks) == (8192, 16, 512, 1)
    with convscan.force(NAME):
        p.check(convscan.causal_conv(p.x, p.h, **p.options()), is_transform=True)


def test_what_it_refuses() -> None:
    def reasons(length: int, taps: int, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
        x, h = torch.empty(1, length, 1, dtype=dtype), torch.empty(taps, 1, dtype=dtype)
        candidates = convscan.explain("causal_conv", x, h).candidates
        return next(row for row in candidates if row.name == NAME).reasons

    assert reasons(1 << 18, 1 << 18) == ()
    assert reasons(1 << 19, 1 << 19) == ("does transforms of up to 262144 points",)
    assert reasons(9000, 9000, torch.float64) == ("multiplies in float32 only",)
