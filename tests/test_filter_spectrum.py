"""Kept spectra of filters, and convolutions of float32 computed in float64."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import FilterSpectrum, _native, causal_conv, nn
from convscan.ops.causal_conv import reference


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return oracle.Draw(seed + sum(shape)).normal(*shape, dtype=dtype)


# ---- values ----


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_kept_spectra_on_problems_of_hostile_sizes(dtype: torch.dtype, isa: str) -> None:
    for p in oracle.convolutions(dtype, count=40, seed=7):
        taps, length = p.h.shape[0], p.x.shape[1]
        filters = FilterSpectrum(p.h, length + taps % 3 * 40)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with convscan.force("fft"):
                answers.append(causal_conv(p.x, filters, **p.options()))
        p.check(answers[0], is_transform=True)
        assert torch.equal(*answers), f"kept spectra depend on the number of threads: {p}"


@pytest.mark.parametrize("name", oracle.rows("causal_conv"))
def test_every_implementation_takes_a_spectrum(name: str) -> None:
    x, h = normal(2, 70, 5), normal(20, 5)
    with convscan.force(name):
        y = causal_conv(x, FilterSpectrum(h, 70))
    torch.testing.assert_close(y.double(), reference.causal_conv(x, h), rtol=1e-4, atol=1e-4)


def test_shorter_signals_states_and_one_filter_for_all(isa: str) -> None:
    for h, length in itertools.product((normal(300, 4), normal(300, 1), normal(4, 90).mT), (200, 2000)):
        filters, state = FilterSpectrum(h, length), normal(2, h.shape[0] - 1, 4)
        for steps in (1, 17, 200):
            x = normal(2, steps, 4)
            with convscan.force("fft"):
                for past in (None, state):
                    y = causal_conv(x, filters, initial_state=past)
                    expected = reference.causal_conv(x, h, initial_state=past)
                    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
                y = causal_conv(x, filters, out=x)
                assert y is x
                assert causal_conv(x[:, :0], filters).shape == (2, 0, 4)


def test_rounding_to_bfloat16_errs_as_documented() -> None:
    x, h = normal(1, 4096, 8), normal(4096, 8)
    whole, rounded = FilterSpectrum(h, 4096), FilterSpectrum(h, 4096, storage=torch.bfloat16)
    exact, y = causal_conv(x, whole), causal_conv(x, rounded)
    assert 0.001 < float((y - exact).norm() / exact.norm()) < 0.0018
    assert 2 * rounded.nbytes == whole.nbytes == 8 * 8 * 4096


# ---- what is kept, and until when ----


def made_anew(filters: FilterSpectrum, x: Tensor, call: Any) -> bool:
    """Whether ``call`` makes the next convolution transform the filters again; checks that convolution."""
    kept = filters._kept
    call()
    with convscan.force("fft"):
        torch.testing.assert_close(causal_conv(x, filters), causal_conv(x, filters.h.detach()), rtol=1e-4, atol=1e-4)
    return filters._kept is not kept


def test_the_spectrum_follows_its_filters(isa: str) -> None:
    x = normal(1, 50, 3)
    filters = FilterSpectrum(torch.nn.Parameter(normal(20, 3)), 50)
    assert made_anew(filters, x, lambda: None)
    assert not made_anew(filters, x, lambda: None)
    with torch.no_grad():
        assert made_anew(filters, x, lambda: filters.h.mul_(2))
        assert made_anew(filters, x, lambda: filters.h[3].zero_())
    assert made_anew(filters, x, lambda: filters.load_state_dict({"h": normal(20, 3, seed=5)}))
    assert made_anew(filters, x, lambda: setattr(filters, "h", torch.nn.Parameter(normal(20, 3, seed=6))))
    assert made_anew(filters, x, lambda: setattr(filters.h, "data", normal(20, 3, seed=7)))
    assert made_anew(filters, x, lambda: filters.double().float())
    optimiser = torch.optim.SGD(filters.parameters(), lr=0.1)
    causal_conv(x, filters).square().sum().backward()
    assert made_anew(filters, x, optimiser.step)
    other = next((name for name in _native.isa_names() if name != isa), isa)
    assert made_anew(filters, x, lambda: _native.set_isa(other)) == (other != isa)


def test_a_spectrum_that_is_there_is_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checks, dispatcher and promotion; what they would refuse or make anew still meets them."""
    x, h = normal(2, 70, 5), normal(20, 5)
    filters, out = FilterSpectrum(h, 70), torch.empty(2, 70, 5)
    with convscan.force("fft"):
        y = causal_conv(x, filters)
        assert torch.equal(causal_conv(x, filters, out=out), y)
        monkeypatch.setattr(convscan.ops.causal_conv.api, "checked", lambda *_: None)
        again = causal_conv(x, filters)
        assert torch.equal(again, y)
        assert causal_conv(x, filters, out=out.zero_()) is out
        assert torch.equal(out, y)
        assert causal_conv(normal(2, 71, 5), filters) is None
        assert causal_conv(x.double(), filters) is None
        h.mul_(2)
        assert causal_conv(x, filters) is None
        with torch.enable_grad():
            assert causal_conv(x, FilterSpectrum(torch.nn.Parameter(h), 70)) is None


def test_inference_tensors_are_not_trusted() -> None:
    with torch.inference_mode():
        x, h = normal(50, 3), normal(20, 3)
        filters = FilterSpectrum(h, 50)
        for _ in range(2):
            with convscan.force("fft"):
                torch.testing.assert_close(causal_conv(x, filters), causal_conv(x, h), rtol=1e-5, atol=1e-5)
            h.mul_(2)


def test_pickles_copies_and_state_dicts_have_the_filters_only() -> None:
    x, filters = normal(50, 3), FilterSpectrum(normal(20, 3), 50, storage=torch.bfloat16)
    with convscan.force("fft"):
        y = causal_conv(x, filters)
        assert filters.nbytes > 0
        for twin in (pickle.loads(pickle.dumps(filters)), copy.deepcopy(filters)):
            assert twin.nbytes == 0
            assert torch.equal(causal_conv(x, twin), y)
    assert list(filters.state_dict()) == ["h"]
    assert repr(filters) == "FilterSpectrum(K=20, D=3, length=50, storage=torch.bfloat16)"
    assert filters.to("meta").h.is_meta
    assert causal_conv(x.to("meta"), filters).shape == x.shape


# ---- derivatives and transforms ----


@pytest.mark.parametrize("activation", [None, "silu"])
def test_derivatives(activation: str | None) -> None:
    shapes = ((3, 9, 2), (6, 2), (2,), (3, 5, 2))
    arguments = tuple(normal(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    made: list[FilterSpectrum] = []

    def function(x: Tensor, h: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        made.append(FilterSpectrum(h, 9))  # anew: the check changes h behind the back of its version
        with convscan.force("fft"):
            return causal_conv(x, made[-1], bias=bias, activation=activation, initial_state=state)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)
    assert any(filters.nbytes > 0 for filters in made)


def test_a_buffer_of_a_longer_graph_gets_its_gradient() -> None:
    weight = normal(8, 3).requires_grad_()
    filters = FilterSpectrum(torch.tanh(weight), 20)
    causal_conv(normal(20, 3), filters).sum().backward()
    assert weight.grad is not None


def test_transforms_and_compilation() -> None:
    x, h = normal(4, 9, 3, dtype=torch.float64), normal(6, 3, dtype=torch.float64)
    filters, expected = FilterSpectrum(torch.nn.Parameter(h), 9), reference.causal_conv(x, h)

    def function(x: Tensor) -> Tensor:
        return causal_conv(x, filters)

    with convscan.force("fft"):
        torch.testing.assert_close(function(x), expected)
        torch.testing.assert_close(torch.vmap(function)(x), expected)
        torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), expected)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(Layer(filters), parameters, (x,)).square().sum()

    gradient = torch.func.grad(loss)({"filters.h": h})["filters.h"]
    torch.testing.assert_close(gradient, torch.func.grad(lambda h: causal_conv(x, h).square().sum())(h))
    for strict in (False, True):
        exported = torch.export.export(Layer(filters), (x,), strict=strict)
        torch.testing.assert_close(exported.module()(x), expected)


class Layer(torch.nn.Module):
    def __init__(self, filters: FilterSpectrum) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv(x, self.filters)


def test_opcheck_with_a_spectrum() -> None:
    x, h = normal(2, 9, 3).requires_grad_(), normal(6, 3).requires_grad_()
    filters = FilterSpectrum(h, 9)
    spectrum = filters.spectrum(h, "float32")
    for transposed in (False, True):
        arguments = (x, h, None, None, None, None, None, None, 0, transposed, "default", spectrum)
        torch.library.opcheck(torch.ops.convscan.causal_conv.default, arguments)


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1.0], 5), TypeError, "h must be a real floating point torch.Tensor; got list"),
        ((torch.ones(3, 2).int(), 5), TypeError, "h must be a real floating point torch.Tensor; got torch.int32"),
        ((torch.ones(3), 5), ValueError, "h must have the shape (K, D) or (K, 1), K >= 1; got (3,)"),
        ((torch.ones(0, 3), 5), ValueError, "h must have the shape (K, D) or (K, 1), K >= 1; got (0, 3)"),
        ((torch.ones(3, 2), 0), ValueError, "length must be at least 1; got 0"),
    ],
)
def test_errors_say_what_to_do(arguments: tuple[Any, int], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape("FilterSpectrum: " + text)):
        FilterSpectrum(*arguments)


def test_errors_of_calls() -> None:
    with pytest.raises(ValueError, match=r"FilterSpectrum: storage must be None or torch.bfloat16; got torch.float16"):
        FilterSpectrum(torch.ones(3, 2), 5, storage=torch.float16)
    text = "causal_conv: x must have at most L = 5 samples, the length of the FilterSpectrum; got 6. Make it for"
    with pytest.raises(ValueError, match=re.escape(text)):
        causal_conv(torch.ones(6, 2), FilterSpectrum(torch.ones(3, 2), 5))
    with pytest.raises(
        ValueError, match=re.escape("causal_conv: h must have the shape (K, D) = (K, 2), (K, 1) or (K, H)")
    ):
        causal_conv(torch.ones(4, 2), FilterSpectrum(torch.ones(3, 4), 5))


# ---- precision ----


def high(p: oracle.Convolution, name: str) -> Tensor:
    with convscan.force(name):
        return causal_conv(p.x, p.h, precision="high", **p.options())


@pytest.mark.parametrize("name", oracle.rows("causal_conv"))
def test_high_precision_rounds_once(name: str, isa: str) -> None:
    for p in oracle.convolutions(torch.float32, count=25, seed=8):
        truth = p.truth()
        error = (high(p, name).double() - truth).abs()
        assert torch.all(error <= 2.0**-24 * 1.0001 * truth.abs() + 1e-13 * p.scale()[:, None]), f"{name}: {p}"


def test_ones_with_ones_are_exact() -> None:
    ones = torch.ones(65536, 2)
    with convscan.force("fft"):
        y = causal_conv(ones, ones, precision="high")
        kept = causal_conv(ones, FilterSpectrum(ones, 65536), precision="high")
        coarse = causal_conv(ones, ones)
    exact = torch.arange(1.0, 65537.0)[:, None]
    assert float((y - exact).abs().max()) < 1e-3
    assert float((kept - exact).abs().max()) < 1e-3
    assert float((coarse - exact).abs().max()) > 1e-2  # what the option is for


def test_high_precision_of_derivatives() -> None:
    x, h, dy = (1 + normal(4, 3000, 2)).requires_grad_(), (1 + normal(3000, 2)).requires_grad_(), 1 + normal(4, 3000, 2)
    single = torch.autograd.grad(causal_conv(x, h, precision="high"), (x, h), dy)
    double = torch.autograd.grad(causal_conv(x.double(), h.double()), (x, h), dy.double())
    for got, wanted in zip(single, double, strict=True):
        assert float(((got - wanted) / wanted).abs().max()) <= 2**-24 * 1.01
    again = torch.autograd.grad(
        causal_conv(x, h, precision="high"), (x, h), dy, create_graph=True, materialize_grads=True
    )
    assert torch.autograd.grad(again[0].sum() + again[1].sum(), h)[0].dtype == torch.float32


def test_high_precision_of_other_dtypes_is_the_default() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x, h = normal(40, 3, dtype=dtype), normal(9, 3, dtype=dtype)
        assert torch.equal(causal_conv(x, h, precision="high"), causal_conv(x, h))


def test_the_price_is_explained() -> None:
    x = torch.ones(4096, 64)
    prices = {}
    for precision in ("default", "high"):
        explanation = convscan.explain(causal_conv, x, x, precision=precision)
        prices[precision] = next(c.cost for c in explanation.candidates if c.name == "fft")
    assert prices["high"] is not None
    assert prices["default"] is not None
    assert 1.5 < prices["high"].seconds / prices["default"].seconds < 2.5
    assert prices["high"].workspace_bytes <= 2 * prices["default"].workspace_bytes
    assert "computed in float64" in str(convscan.explain(causal_conv, x, x, precision="high"))
    text = str(convscan.explain(causal_conv, x, FilterSpectrum(x, 4096)))
    assert "spectrum kept" in text
    assert math.isfinite(prices["high"].seconds)


# ---- layers ----

LAYERS = {
    "LongConv": lambda: nn.LongConv(4, 64, smooth_time=1),
    "ImplicitLongConv": lambda: nn.ImplicitLongConv(4, 64, width=8),
    "FFTConvS4": lambda: nn.FFTConvS4(4, channels=2, transposed=False, d_state=4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_layers_keep_their_filters_until_they_change(name: str, mode: Any) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name]().eval(), normal(2, 50, 4)

    def check() -> bool:
        """Whether the filters were made anew; the result is that of a layer that keeps nothing."""
        entry = layer._kept._entry
        fresh = copy.deepcopy(layer)
        with convscan.force("fft"):
            with torch.enable_grad():
                expected = fresh(x)[0]
            with mode():
                y = layer(x)[0]
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert fresh._kept._entry is None
        return layer._kept._entry is not entry

    assert check()
    assert not check()
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.mul_(1.01)
        assert check()
    layer.load_state_dict(LAYERS[name]().state_dict())
    assert check()
    layer.train().eval()
    assert check()
    x = x[:, :30]
    assert check()
    if name == "LongConv":
        layer.squash = 0.1
        assert check()
    assert not check()
    pickle.loads(pickle.dumps(layer))
