"""Parts of filters' spectra on GPUs: what is not kept is not computed, and the result is that of the whole masked."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import FilterSpectrum, _gpu, causal_conv
from convscan.ops.causal_conv import sparse
from convscan.ops.causal_conv.negacyclic import ascending
from convscan.ops.causal_conv.triton import fft, fft_part, fft_passes


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return oracle.Draw(seed + sum(shape)).normal(*shape, dtype=dtype)


def plan_of(filters: FilterSpectrum, channels: int = 768, dtype: torch.dtype = torch.float32) -> sparse.SparseProblem:
    """The problem of eight signals on a device that is not there."""
    x = torch.empty(8, channels, filters.length, dtype=dtype, device="meta").mT
    with convscan.force("triton_fft"):
        problem = sparse._problem(filters, x)
    return problem._replace(conv=problem.conv._replace(device="cuda", isa="NVIDIA H200"))


# ---- values ----

FORMS = ("triton_fft", "torch_fft")
# Of a result that is rounded once; and of the sums in it, in parts of the norms of signal and filter.
ROUNDED = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUMMED = {torch.float64: 2e-14}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in FORMS for dtype in oracle.REAL if (name, dtype) != ("triton_fft", torch.float64)],
)
def test_equals_masking_the_whole_spectrum(name: str, dtype: torch.dtype) -> None:
    for length, taps, channels in ((300, 300, 2), (500, 20, 2), (600, 900, 1)):
        x, h = normal(1, length, channels, dtype=dtype), normal(taps, channels, dtype=dtype)
        if length == 500:
            x, h = x.mT.contiguous().mT, h[:, :1]
        classes = FilterSpectrum.residues(taps, length, 8)
        for keep in (0.25, (0.1, 0.2), classes == 3, (classes % 4 == 1) & (normal(len(classes)) > -1), 1.0):
            filters = FilterSpectrum(h, length, keep=keep)
            with convscan.force(name):
                y = causal_conv(x, filters)
            kept = filters.keep
            assert kept is not None
            exact = oracle.masked(x, h[:length], kept)
            scale = x.double().norm(dim=1) * h[:length].double().norm(dim=0)
            # Of bfloat16 steps of the kernel read 11 bits.
            summed = 2.0**-10 if (name, dtype) == ("triton_fft", torch.bfloat16) else SUMMED.get(dtype, 2.0**-23)
            bound = ROUNDED[dtype] * exact.abs() + summed * scale[:, None]
            assert torch.all((y.double() - exact).abs() <= bound), (length, taps, filters)
            for wrong in (torch.zeros_like(exact), exact.roll(1, 1)):
                assert not torch.all((wrong - exact).abs() <= bound)


@pytest.mark.parametrize(("points", "modulus"), [(512, 16), (1024, 4), (2048, 2), (4096, 4), (4096, 16)])
def test_every_transform(points: int, modulus: int) -> None:
    """Against the CPU's own in float64, which tests/test_sparse_spectrum.py holds against the definition."""
    x, h = normal(1, points, 1), normal(points, 1) / points**0.5
    classes = FilterSpectrum.residues(points, points, modulus)
    low = torch.arange(points) < points / 2
    for keep in (classes == modulus - 1, low & (classes == 0)):
        with convscan.force("triton_fft"):
            y = causal_conv(x, FilterSpectrum(h, points, keep=keep))
        exact = causal_conv(x.double(), FilterSpectrum(h.double(), points, keep=keep))
        assert float((y - exact).abs().max()) <= 4e-6 * float(exact.abs().max())


def test_rows_of_transforms_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residues that are dropped are neither written nor read; of others some frequencies may be dropped too."""
    x, h = normal(2, 8192, 1)[:, :8000], normal(8000, 1) / 90
    classes = FilterSpectrum.residues(8000, 8000, 8)
    assert len(classes) == 8192
    for keep, rows in ((classes == 3, 2), ((classes % 4 == 1) & (normal(8192) > 0), 4)):
        filters = FilterSpectrum(h, 8000, keep=keep, storage=None if rows == 2 else torch.bfloat16)
        with convscan.force("triton_fft_passes"):
            y = causal_conv(x[:1], filters)
        assert filters._kept is not None
        assert filters._kept[2].tensor.shape == (1, 2, rows, 512)
        exact = causal_conv(x[:1].double(), FilterSpectrum(h.double(), 8000, keep=keep))
        assert float((y - exact).abs().max()) <= (4e-6 if rows == 2 else 0.01) * float(exact.abs().max())
    # Its transpose, and a part of which every residue has something.
    dy = normal(1, 600, 1)
    monkeypatch.setattr(fft_part, "LONGEST", 256)
    monkeypatch.setattr(fft_part, "columns_of", lambda points: 16)
    monkeypatch.setattr(fft_passes, "columns_of", lambda points: 16)
    monkeypatch.setattr(fft_passes, "LONGEST", 256)
    x = normal(1, 4000, 1).requires_grad_()
    some = FilterSpectrum(normal(4000, 1) / 60, 4000, keep=(0.1, 0.3))
    assert some.keep is not None
    with convscan.force("triton_fft_passes"):
        y = causal_conv(x, some)
        (dx,) = torch.autograd.grad(y[:, :600], x, dy)
        assert some._kept is not None
        assert some._kept[2].tensor.shape == (1, 2, 16, 256)
    with convscan.force("fft"):
        z = causal_conv(x, some)
        (exact,) = torch.autograd.grad(z[:, :600], x, dy)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dx, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_options_of_the_call(name: str) -> None:
    """Leading axes that do not merge, shared filters, gates, rounding, and what an activation makes of the sums."""
    x, bias = normal(2, 3, 200, 4).transpose(0, 1), normal(4)
    gates = normal(3, 2, 200, 4), normal(3, 2, 200, 4, seed=1)
    for h in (normal(150, 4), normal(150, 1), normal(150, 2)):
        exact, rounded = FilterSpectrum(h, 200, keep=0.3), FilterSpectrum(h, 200, keep=0.3, storage=torch.bfloat16)
        assert exact.keep is not None
        z = oracle.masked(gates[0] * x, h.repeat_interleave(4 // h.shape[1], 1), exact.keep)
        z = torch.nn.functional.silu(gates[1].double() * (z + bias.double()))
        with convscan.force(name):
            for filters, error in ((exact, 1e-4), (rounded, 0.2)):
                options: dict[str, Any] = {"bias": bias, "activation": "silu"}
                y = causal_conv(x, filters, pre_gate=gates[0], post_gate=gates[1], **options)
                assert float((y - z).abs().max()) <= error
        assert exact.nbytes == 2 * rounded.nbytes > 0


def test_derivatives() -> None:
    x, h, dy = normal(1, 300, 4).requires_grad_(), normal(300, 2).requires_grad_(), normal(1, 300, 4, seed=3)
    filters = FilterSpectrum(h, 300, keep=FilterSpectrum.residues(300, 300, 4) == 1)
    assert filters.keep is not None
    expected = torch.autograd.grad(oracle.masked(x, h.repeat_interleave(2, 1), filters.keep), (x, h), dy.double())
    for name in (*FORMS, "fft"):
        with convscan.force(name):
            found = torch.autograd.grad(causal_conv(x, filters), (x, h), dy)
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_the_part_and_the_filters_may_change() -> None:
    x, filters = normal(1, 60, 2), FilterSpectrum(normal(20, 2), 60, keep=0.2)
    keep = filters.keep
    assert keep is not None
    for change in (lambda: None, lambda: filters.h.mul_(2), lambda: keep.logical_not_(), lambda: keep[:5].fill_(True)):
        change()
        with convscan.force("triton_fft"):
            y, kept = causal_conv(x, filters), filters._kept
            causal_conv(x, filters)
        assert filters._kept is kept
        torch.testing.assert_close(y.double(), oracle.masked(x, filters.h, keep), rtol=1e-4, atol=1e-4)


# ---- what is computed ----


@pytest.mark.parametrize("points", [512, 1024, 2048, 4096])
def test_digits_have_every_frequency_that_is_kept(points: int) -> None:
    draw = oracle.Draw(points)
    _, n2, n3 = fft.factors(points)
    for begin, end, every in ((0, 1, 1), (points // 8, points // 4, 1), (3, points, 4), (5, points // 2, 8)):
        flags = torch.zeros(points, dtype=torch.bool)
        flags[begin:end:every] = True
        part = fft_part.part_of(flags)
        found = fft_part.frequencies_of(part, points)
        assert len(found) == len(part.first) * len(part.last) * (n2 if n3 > 1 else 1)
        assert len(set(found.tolist())) == len(found)
        assert flags[found].sum() == flags.sum()
        assert len(part.first) & (len(part.first) - 1) == len(part.last) & (len(part.last) - 1) == 0
    scattered = draw.normal(points) > 0
    assert len(fft_part.frequencies_of(fft_part.part_of(scattered), points)) == points
    assert len(fft_part.part_of(torch.zeros(points, dtype=torch.bool)).first) == 2


def test_blocks_of_a_band_lie_as_the_frequencies_do() -> None:
    """The lowest quarter and its conjugates are sixteen of 64 blocks, none of which it fills by one frequency."""
    flags = (torch.arange(2048) < 512)[ascending(2048)]
    assert len(fft_part.part_of(flags).last) == 16
    assert len(fft_part.part_of(flags).first) == 32


@pytest.mark.parametrize(
    ("points", "keep", "digits", "at_most"),
    [
        (4096, 4, (4, 16), 0.41),
        (4096, 16, (2, 16), 0.31),
        (2048, 8, (4, 64), 0.25),
        (2048, 0.25, (32, 16), 0.41),
        (4096, 0.25, (16, 4), 1.0),
    ],
)
def test_dropped_blocks_are_not_computed(
    points: int, keep: float, digits: tuple[int, int], at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the launch, in products, in memory and in what is predicted: of every ``keep``-th frequency, or the lowest."""
    h = torch.ones(points, 768)
    flags = FilterSpectrum.residues(points, points, int(keep)) == 0 if keep > 1 else keep
    some, every = (plan_of(FilterSpectrum(h, points, keep=one)) for one in (flags, 1.0))
    plans = [fft.FftPlan(one.conv) for one in (some, every)]
    flops = [plan.flops(is_real=True) for plan in plans]
    assert flops[0] <= at_most * flops[1]
    assert plans[0].frequencies == digits[0] * digits[1] * (16 if points == 4096 else 1)
    row = next(row for row in sparse.ROWS if row.name == "triton_fft")
    times = [row.cost(one).seconds for one in (some, every)]
    assert times[0] < 0.65 * times[1] if at_most < 1 else times[0] <= times[1]
    x = torch.empty(1, 768, points, device="meta").mT
    with _gpu.recorded() as launches:
        row.prepare(some)(x, torch.empty(768, 2, plans[0].frequencies, device="meta"), x)
    (launch,) = launches
    assert (launch.constants["FIRST"], launch.constants["LAST"], launch.constants["IS_REAL"]) == (*digits, True)


def test_dropped_rows_are_not_moved() -> None:
    h, classes = torch.ones(16384, 256), FilterSpectrum.residues(16384, 16384, 4)
    row, times, moved = next(row for row in sparse.ROWS if row.name == "triton_fft_passes"), [], []
    for keep in (classes == 2, torch.ones_like(classes, dtype=torch.bool)):
        some = plan_of(FilterSpectrum(h, 16384, keep=keep), channels=256)
        cost = row.cost(some)
        times.append(cost.seconds)
        moved.append(cost.moved_bytes)
        plan = fft_passes.PassesPlan(some.conv)
        x = torch.empty(1, 256, 16384, device="meta").mT
        with _gpu.recorded() as launches:
            row.prepare(some)(x, torch.empty(256, 2, plan.kept_rows, plan.rest, device="meta"), x)
        names = {launch.kernel.__name__: launch for launch in launches}
        assert plan.kept_rows == int(keep.float().mean() * plan.columns)
        assert names["columns"].constants["KEPT"] == names["columns_back"].constants["KEPT"] == plan.kept_rows
        assert names["rows"].constants["N"] == plan.kept_rows
        planes = names["rows"].args[0]
        assert planes.shape[-2:] == (plan.kept_rows, plan.rest)
    # Samples and results are moved as before, what lies between to a quarter.
    assert moved[0] < 0.5 * moved[1]
    assert times[0] < 0.6 * times[1]


def test_what_no_kernel_computes_goes_to_pytorch() -> None:
    """Lengths that are no power of two or longer than registers hold, and types without tensor cores."""
    for taps, dtype, precision in ((700, torch.float32, "high"), (300, torch.float64, "default"), (1400, None, "")):
        x, h = normal(1, 700, 2, dtype=dtype or torch.float32), normal(taps, 2, dtype=dtype or torch.float32)
        filters = FilterSpectrum(h, 1400 if dtype is None else 700, keep=0.3)
        with convscan.force("triton_fft"):
            y = causal_conv(x, filters, precision=precision or "default")
            kept = filters.plan("float32" if dtype is None else "wide_float32" if precision == "high" else "float64")
        assert kept is not None
        assert kept.form == "torch_fft"
        assert filters.keep is not None
        exact = oracle.masked(x, h, filters.keep)
        assert float((y - exact).abs().max()) <= (1e-4 if dtype is None else 1e-5)
    text = str(convscan.explain("causal_conv_sparse", FilterSpectrum(h, 1400, keep=0.3), x))
    assert re.search(r"\* fft +cpu", text)
    assert "reads spectra in an order of its own" in text


# ---- a whole block ----


@pytest.mark.parametrize(("length", "taps"), [(256, 256), (300, 100), (512, 513)])
def test_signals_of_half_a_block_are_real(length: int, taps: int) -> None:
    """One block whose samples are real parts alone has no products of imaginary ones, whatever is fused."""
    x, h, gate, bias = normal(1, length, 2), normal(taps, 2) / taps**0.5, normal(1, length, 2, seed=1), normal(2)
    p = oracle.Convolution(x, h, bias, "gelu", None, gate, x)
    with convscan.force("triton_fft"):
        p.check(causal_conv(p.x, p.h, **p.options()), is_transform=True)
    described = convscan.explain("causal_conv", x, h).problem
    plan = fft.FftPlan(described)
    assert (plan.is_first, plan.is_real) == (True, length <= plan.points)
    with_state = described._replace(state=(0, 2, 1))
    assert not fft.FftPlan(with_state).is_first
    products = 8.0 * plan.points * sum(n for n in plan.factors if n > 1)
    assert plan.flops(is_real=True) < plan.flops(is_real=False) == products * plan.passes
