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
@pytest.mark.parametrize(("length", "channels"), [(600, 2), (9000, 1)])
def test_parts_of_channels_and_rows_and_shared_filters(
    monkeypatch: pytest.MonkeyPatch, length: int, channels: int
) -> None:
    monkeypatch.setattr(fft_passes, "_PART_BYTES", 8 * 4096)
    p = problem(length, 500, torch.float32, "channels contiguous", channels)
    for filters in {channels, 1}:
        one = replace(p, h=p.h[:, :filters].repeat_interleave(channels // filters, 1))
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


@pytest.mark.parametrize(("columns", "dtype"), [(32, torch.float32), (64, torch.bfloat16)])
def test_signals_that_fill_a_transform(monkeypatch: pytest.MonkeyPatch, columns: int, dtype: torch.dtype) -> None:
    points = 256 * columns
    monkeypatch.setattr(fft_passes, "LONGEST", 256)
    monkeypatch.setattr(fft_passes, "_points", lambda problem: points)
    p = replace(problem(points + 3, points - 3, dtype, "time contiguous"), state=None, pre_gate=None)
    described = convscan.explain("causal_conv", p.x, p.h, **p.options()).problem
    plan = fft_passes.PassesPlan(described)
    assert (plan.columns, plan.rest, plan.blocks) == (columns, 256, 1)
    with convscan.force(NAME):
        p.check(convscan.causal_conv(p.x, p.h, **p.options()), is_transform=True)


@pytest.mark.parametrize("columns", fft_passes._COLUMNS)
def test_every_kind_of_column(columns: int) -> None:
    """Of one factor and of two: their transforms against PyTorch's, and back to the samples; few rows are enough."""
    draw, rest, further = oracle.Draw(columns), 16, 5
    points = columns * rest
    x = draw.normal(1, 2 * points - further, 1, dtype=torch.float32)
    described = convscan.explain("causal_conv", x, x[0, : x.shape[1] // 2]).problem
    plan = fft_passes.PassesPlan(described)
    plan.points, plan.columns, plan.rest, plan.tile, plan.tiles = points, columns, rest, 8, 2
    plan.further, plan.behind, plan.blocks = 2 * points, further, 1
    passes = fft_passes.Passes(plan, x, False)
    planes, y, shape = passes.memory(1, 1), torch.zeros_like(x), (1, 1, 0, 0)
    passes.columns((x, x, x, planes), shape, x.shape[1], 0, (0, 1, 0, *[0] * 6))
    n = torch.arange(points)
    samples = torch.cat([torch.zeros(further), x.flatten()]).double()
    weighted = torch.complex(samples[:points], samples[points:]) * torch.exp(0.5j * torch.pi * n.double() / points)
    k, column = torch.arange(columns)[:, None], torch.arange(rest)[None, :]
    twiddles = torch.exp(-2j * torch.pi * (k * column).double() / points)
    exact = torch.fft.fft(weighted.reshape(columns, rest), dim=0) * twiddles
    found = torch.complex(*planes[0, 0].double())
    assert (found - exact).norm() <= 1e-6 * exact.norm()
    sizes = (x.shape[1], 2 * points, further)
    passes.columns_back(planes, (x, x, y), shape, sizes, (0, 0, 0, 0, 0, 0, 1, 0), HAS_BIAS=False, HAS_POST=False)
    assert (y / columns - x).norm() <= 1e-6 * x.norm()
    assert (y / columns - x.roll(1, 1)).norm() > 1e-6 * x.norm()


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.*NaN|invalid value:RuntimeWarning")
def test_numbers_of_any_size() -> None:
    """Tensor cores multiply float16, whose range samples need not have: nor what is not a number."""
    draw = oracle.Draw(1)
    x, h = draw.normal(1, 300, 1, dtype=torch.float32), draw.normal(200, 1, dtype=torch.float32)
    with convscan.force(NAME):
        y = convscan.causal_conv(x, h)
        for scale in (1e30, 1e-30):
            assert torch.allclose(convscan.causal_conv(x * scale, h / scale), y, rtol=1e-4, atol=1e-4)
        x[0, 0] = torch.inf
        assert convscan.causal_conv(x, h).isnan().any()


def test_its_own_choice_of_transform() -> None:
    """Just longer than what a program holds."""
    p = replace(problem(4500, 4400, torch.float32, "time contiguous"), state=None)
    described = convscan.explain("causal_conv", p.x, p.h, **p.options()).problem
    plan = fft_passes.PassesPlan(described)
    assert (plan.points, plan.columns, plan.rest, plan.blocks) == (8192, 16, 512, 1)
    with convscan.force(NAME):
        p.check(convscan.causal_conv(p.x, p.h, **p.options()), is_transform=True)


def test_what_it_refuses() -> None:
    def reasons(length: int, taps: int, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
        x, h = torch.empty(1, length, 1, dtype=dtype), torch.empty(taps, 1, dtype=dtype)
        candidates = convscan.explain("causal_conv", x, h).candidates
        return next(row for row in candidates if row.name == NAME).reasons

    assert reasons(1 << 18, 1 << 18) == ()
    assert reasons(1 << 22, 1 << 22) == ()
    assert reasons(1 << 23, 1 << 23) == ("does transforms of up to 4194304 points",)
    assert reasons(9000, 9000, torch.float64) == ("multiplies in float32 only",)
