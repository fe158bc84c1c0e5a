"""Spectra of filters that are kept for kernels of GPUs: in the order of each, made once, read by every call."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import convscan
import oracle
from convscan import FilterSpectrum, _gpu, causal_conv
from convscan.nn._kept import KeptFilters
from convscan.ops.causal_conv import forms, reference
from convscan.ops.causal_conv.cases import Case
from convscan.ops.causal_conv.triton import fft, fft_passes
from convscan.profiler import ours, session


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return oracle.Draw(seed + sum(shape)).normal(*shape, dtype=dtype)


@pytest.fixture(params=forms.NAMES)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each form in turn, of transforms in passes the smallest."""
    monkeypatch.setattr(fft_passes, "LONGEST", 256)
    monkeypatch.setattr(fft_passes, "_points", lambda problem: 4096)
    with convscan.force(request.param):
        yield request.param
    forms._made.clear()


def made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects the filters that are transformed from here on, whoever does it."""
    found: list[Tensor] = []
    for name in forms.NAMES:
        original = forms._SPECTRA[name]

        def seen(problem: Any, original: Any = original) -> Any:
            points, make = original(problem)
            return points, lambda h: found.append(h) or make(h)

        monkeypatch.setitem(forms._SPECTRA, name, seen)
    transform = fft.FftPlan.spectra
    monkeypatch.setattr(fft.FftPlan, "spectra", lambda plan, p, h: found.append(h) or transform(plan, p, h))
    forms._made.clear()
    return found


# ---- values ----


# Interpreted, transforms in passes take seconds for a channel.
QUICK = pytest.mark.parametrize("form", ["triton_fft", "torch_fft"], indirect=True)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *(("torch_fft", dtype) for dtype in oracle.REAL),
        *(("triton_fft", dtype) for dtype in oracle.REAL if dtype != torch.float64),
        ("triton_fft_passes", torch.bfloat16),
    ],
    indirect=["form"],
)
def test_whatever_the_call(form: str, dtype: torch.dtype) -> None:
    """One spectrum for signals of other lengths, numbers and memory orders, gated and with a state."""
    in_passes = form == "triton_fft_passes"
    filters_of = 1 if in_passes else 2
    h = (normal(150, filters_of) / 12).to(dtype)
    filters, kept = FilterSpectrum(h, 300), None
    orders = ("channels contiguous", "time contiguous", "every second channel")
    for index, order in enumerate(orders[1:2] if in_passes else orders):
        channels = 2 * filters_of
        x, gate = (oracle.in_order(normal(1, 300 - index, channels, dtype=dtype, seed=i), order) for i in range(2))
        state, bias = normal(1, 149, channels, dtype=dtype), normal(channels, dtype=dtype)
        wide = h.repeat_interleave(2, 1)
        calls = [
            oracle.Convolution(x, wide, bias, "silu", state, gate, x),
            oracle.Convolution(x, wide, None, None, None, None, None),
        ]
        for p in calls[:1] if in_passes else calls:
            p.check(causal_conv(p.x, filters, **p.options()), is_transform=True)
        assert filters._kept is not None
        assert kept is None or filters._kept is kept
        kept = filters._kept


@QUICK
def test_shared_filters_leading_axes_and_longer_ones(form: str) -> None:
    for h, length in ((normal(40, 1) / 6, 30), (normal(4, 40).mT / 6, 50), (normal(9, 4) / 3, 60)):
        x = normal(3, 2, 30, 4).transpose(0, 1)  # leading axes that do not merge
        if form == "torch_fft":
            x = x[0]
        y = causal_conv(x, FilterSpectrum(h, length))
        exact = reference.causal_conv(x, h.expand(h.shape[0], 4))
        assert float((y - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


def test_rounding_to_bfloat16(form: str) -> None:
    x, h = normal(1, 500, 1), normal(500, 1)
    whole, rounded = FilterSpectrum(h, 500), FilterSpectrum(h, 500, storage=torch.bfloat16)
    exact, y = causal_conv(x, whole), causal_conv(x, rounded)
    assert 0.0004 < float((y - exact).norm() / exact.norm()) < 0.0018
    assert 2 * rounded.nbytes == whole.nbytes > 0


def test_every_kernel_takes_a_spectrum() -> None:
    x, h = normal(1, 70, 3), normal(20, 3)
    filters = FilterSpectrum(h, 70)
    exact = reference.causal_conv(x, h)
    for name, other in itertools.product(("triton_direct", "triton_rolling", "triton_toeplitz"), forms.NAMES[::2]):
        with convscan.force(other):
            spectrum = filters.spectrum(h, "float32")
        with convscan.force(name):
            y = torch.ops.convscan.causal_conv.default(
                x, h, None, None, None, None, None, None, 0, False, "default", spectrum
            )
        assert float((y - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


# ---- what is kept, and until when ----


@QUICK
def test_filters_are_transformed_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformed = made(monkeypatch)
    x, h = normal(1, 50, 1), normal(20, 1)
    filters = FilterSpectrum(h, 50)
    for change in (lambda: None, lambda: h.mul_(2), lambda: setattr(filters, "h", normal(20, 1, seed=3))):
        change()
        transformed.clear()
        for _ in range(2):
            y = causal_conv(x, filters)
        assert {one.data_ptr() for one in transformed} == {filters.h.data_ptr()}
        exact = reference.causal_conv(x, filters.h)
        assert float((y - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    transformed.clear()
    with convscan.force("fft"):  # the CPU's own
        y = causal_conv(x, filters)
    assert float((y - exact).abs().max()) <= 1e-5 * float(exact.abs().max())
    assert not transformed


def test_what_is_captured_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph makes its own spectrum where there is none, and holds the one that it reads."""
    with convscan.force("torch_fft"):
        _capture(monkeypatch)


def _capture(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h = normal(1, 50, 2), normal(20, 2)
    filters = FilterSpectrum(h, 50)
    capturing = [True]
    for module in (_gpu, convscan.ops.causal_conv.spectrum, convscan.nn._kept):
        monkeypatch.setattr(module, "is_capturing", lambda tensor: capturing[0])
    y = causal_conv(x, filters)
    assert filters._kept is None
    capturing[0] = False
    assert torch.equal(causal_conv(x, filters), y)
    assert filters._kept is not None
    before = filters._kept[2].tensor
    capturing[0] = True
    assert torch.equal(causal_conv(x, filters), y)
    capturing[0] = False
    h.mul_(2)
    causal_conv(x, filters)
    assert [one is before for one in filters._captured] == [True]
    assert copy.deepcopy(filters)._captured == []


def test_layers_keep_nothing_that_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, kept = torch.nn.Linear(2, 20, bias=False).requires_grad_(False).eval(), KeptFilters()
    capturing = [True]
    monkeypatch.setattr(convscan.nn._kept, "is_capturing", lambda tensor: capturing[0])

    def filters() -> Any:
        return kept.filters(layer, 50, None, lambda: [layer.weight])[0]

    with torch.no_grad():
        assert isinstance(filters(), Tensor)
        assert kept._entry is None
        capturing[0] = False
        first = filters()
        assert isinstance(first, FilterSpectrum)
        capturing[0] = True
        assert filters() is first
        layer.weight.mul_(2)
        assert isinstance(filters(), Tensor)
    assert kept._captured == [[first]]


class Stream:
    """A stream that notes what it waits for."""

    def __init__(self) -> None:
        self.waited: list[Any] = []

    def record_event(self) -> str:
        return "made"

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)


def test_other_streams_wait_until_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice:
        is_cuda, device = True, "cuda"

        def __init__(self) -> None:
            self.recorded: list[Any] = []

        def record_stream(self, stream: Any) -> None:
            self.recorded.append(stream)

    own, other, now, capturing = Stream(), Stream(), [None], [False]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    tensor, now[0] = OnDevice(), own
    shared = _gpu.Shared(tensor)  # type: ignore[arg-type]
    assert shared.read() is tensor
    assert own.waited == []
    now[0] = other
    assert shared.read() is tensor
    assert other.waited == ["made"]
    assert tensor.recorded == [other]
    capturing[0] = True
    assert shared.read() is tensor
    assert other.waited == ["made"]


# ---- derivatives ----


def test_derivatives_read_the_spectrum(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass, or one after the other: filters are not transformed again, and gradients are those without it."""
    x, h, gate = (normal(*shape).requires_grad_() for shape in ((1, 40, 1), (30, 1), (1, 40, 1)))
    filters, dy = FilterSpectrum(h, 40), normal(1, 40, 1, seed=5)
    causal_conv(x, filters)
    transformed = made(monkeypatch)
    for options in ({}, {"activation": "silu", "post_gate": gate}):
        inputs = (x, h, gate) if options else (x, h)
        found = torch.autograd.grad(causal_conv(x, filters, **options), inputs, dy)  # type: ignore[arg-type]
        assert not transformed
        with convscan.force("reference"):
            expected = torch.autograd.grad(causal_conv(x, h, **options), inputs, dy)  # type: ignore[arg-type]
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    # Derivatives with respect to x are those of the rounded filter.
    rounded = FilterSpectrum(h.detach(), 40, storage=torch.bfloat16)
    one = torch.zeros(1, 40, 1)
    one[:, 0] = 1
    response = causal_conv(one, rounded)
    (dx,) = torch.autograd.grad(causal_conv(x, rounded), x, dy)
    expected = reference.causal_conv(dy, response[0], transposed=True).float()
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=0.02)


# ---- without a device ----


def on_gpu(length: int, channels: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    shape = (2, channels, length)
    return torch.empty(shape, device="cuda", dtype=dtype).mT, torch.empty(length, channels, device="cuda")


@pytest.mark.parametrize(
    ("length", "name"), [(2048, "triton_fft"), (16384, "triton_fft_passes"), (1 << 24, "torch_fft")]
)
def test_the_form_is_that_of_the_fastest_transform(length: int, name: str) -> None:
    with FakeTensorMode():
        x, h = on_gpu(length)
        filters = FilterSpectrum(h, length)
        plan = filters.plan("float32")
        assert plan is not None
        assert plan.form == name
        kept, plain = (convscan.explain(causal_conv, x, one) for one in (filters, h))
        assert kept.chosen == plain.chosen == name
        assert "spectrum kept" in str(kept)
        prices = [next(c.cost for c in one.candidates if c.name == name) for one in (kept, plain)]
        assert prices[0] is not None
        assert prices[1] is not None
        assert prices[0].seconds < prices[1].seconds
        wide = filters.plan("wide_float32")
        assert wide is not None
        assert wide.form == "torch_fft"


def test_faked_calls_are_those_of_the_filter() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, filters: FilterSpectrum) -> None:
            super().__init__()
            self.filters = filters

        def forward(self, x: Tensor) -> Tensor:
            return causal_conv(x, self.filters)

    with FakeTensorMode():
        x, h = on_gpu(100)
        filters = FilterSpectrum(h, 100)
        y = causal_conv(x, filters)
        assert (y.device.type, y.shape, y.stride(), filters.nbytes) == ("cuda", x.shape, x.stride(), 0)
        exported = torch.export.export(Layer(filters), (x,), strict=False)
        with pytest.raises(ValueError, match="causal_conv: h must be on the device of x, cpu; got cuda"):
            causal_conv(torch.ones(2, 100, 64), filters)
    assert any("convscan.causal_conv" in str(node.target) for node in exported.graph.nodes)


def test_the_profiler_has_a_row_for_it() -> None:
    problem = session.problem_of("causal_conv", Case("few", "test", 2, 64, 6, 60), 1)
    with FakeTensorMode():
        x, h = on_gpu(2048)
        faked = replace(problem, inputs={**problem.inputs, "x": x, "h": h})
        row = next(peer for peer in ours.peers("causal_conv") if peer.name == "convscan, spectrum kept")
        assert not row.why_not(faked)
        few = replace(problem, inputs={**problem.inputs, "x": x, "h": h.narrow(0, 0, 4)})
        assert row.why_not(few) == ["keeps nothing that would be used"]
