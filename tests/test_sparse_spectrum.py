"""Convolutions with a part of the filters' spectra: the same as masking the whole."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import FilterSpectrum, _native, causal_conv


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return oracle.Draw(seed + sum(shape)).normal(*shape, dtype=dtype)


def parts(taps: int, length: int) -> list[Any]:
    count = len(FilterSpectrum.frequencies(taps, length))
    draw = oracle.Draw(count)
    classes = [FilterSpectrum.residues(taps, length, modulus) for modulus in (4, 8)]
    scattered = draw.normal(count) > 1
    return [0.25, 0.1, (0.1, 0.2), (0.4, 0.5), classes[0] == 0, classes[0] == 3, classes[1] % 3 == 1, scattered, 1.0]


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_equals_masking_the_whole_spectrum(dtype: torch.dtype, isa: str) -> None:
    # Of a result that is rounded once, and of its sums. The definition is summed up in float64 itself.
    u = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    summed = 2e-14 if dtype == torch.float64 else 2.0**-23
    for length, taps, channels in ((300, 300, 3), (500, 20, 17), (700, 900, 33), (1, 1, 1)):
        x, h = normal(2, length, channels, dtype=dtype), normal(taps, channels, dtype=dtype)
        if length == 500:
            x, h = x.mT.contiguous().mT, h[:, :1]
        for keep in parts(taps, length):
            filters = FilterSpectrum(h, length, keep=keep)
            answers = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                answers.append(causal_conv(x, filters))
            assert torch.equal(*answers)
            assert filters.keep is not None
            expected = oracle.masked(x, h[:length], filters.keep)
            scale = x.double().norm(dim=1) * h[:length].double().norm(dim=0)
            bound = u * expected.abs() + summed * scale[:, None]
            assert torch.all((answers[0].double() - expected).abs() <= bound), (length, taps, filters)
            assert not torch.all(expected.abs() <= bound)


def test_all_of_it_is_the_convolution() -> None:
    x, h = normal(2, 200, 3), normal(50, 3)
    torch.testing.assert_close(
        causal_conv(x, FilterSpectrum(h, 200, keep=1.0)), causal_conv(x, h), rtol=1e-4, atol=1e-4
    )


def test_options_of_the_call() -> None:
    x, h, bias = normal(2, 3, 200, 4).transpose(0, 1), normal(150, 4), normal(4)
    filters = FilterSpectrum(h, 200, keep=0.3, storage=torch.bfloat16)
    assert filters.keep is not None
    z = oracle.masked(x, h, filters.keep) + bias.double()
    y = causal_conv(x, filters, bias=bias, activation="silu", out=torch.empty_like(x))
    torch.testing.assert_close(y.double(), torch.nn.functional.silu(z), rtol=0.02, atol=0.1)
    y = causal_conv(x, filters, bias=bias, activation="gelu", precision="high")
    torch.testing.assert_close(y.double(), torch.nn.functional.gelu(z), rtol=0.02, atol=0.1)
    gates = normal(3, 2, 200, 4), normal(3, 2, 200, 4, seed=1)
    y = causal_conv(x, filters, bias=bias, pre_gate=gates[0], post_gate=gates[1])
    z = gates[1].double() * (oracle.masked(gates[0] * x, h, filters.keep) + bias.double())
    torch.testing.assert_close(y.double(), z, rtol=0.02, atol=0.2)
    exact = FilterSpectrum(h, 200, keep=0.3)
    error = causal_conv(x, exact, precision="high").double() - oracle.masked(x, h, filters.keep)
    assert float(error.abs().max()) < 1e-5
    assert causal_conv(x[..., :0, :], filters).shape == (3, 2, 0, 4)
    assert causal_conv(x[:, :0], filters).shape == (3, 0, 200, 4)
    assert "kept" in str(convscan.explain("causal_conv_sparse", exact, x))


def test_filters_of_groups() -> None:
    """One for some channels, natively and as compilation sees it, with its gradient."""
    x, h = normal(2, 50, 6).requires_grad_(), normal(30, 3).requires_grad_()
    filters, dy = FilterSpectrum(h, 50, keep=0.4), normal(2, 50, 6, seed=1)
    assert filters.keep is not None
    exact = oracle.masked(x, h.repeat_interleave(2, 1), filters.keep)
    expected = (exact, *torch.autograd.grad(exact, (x, h), dy.double()))
    for call in (causal_conv, torch.compile(causal_conv, backend="aot_eager")):
        y = call(x, filters)
        for got, wanted in zip((y, *torch.autograd.grad(y, (x, h), dy)), expected, strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-4, atol=1e-4)


def test_the_part_and_the_filters_may_change(isa: str) -> None:
    x = normal(60, 3)
    filters = FilterSpectrum(torch.nn.Parameter(normal(20, 3)), 60, keep=0.2)
    assert filters.keep is not None
    for change in (
        lambda: None,
        lambda: filters.h.mul_(2),
        lambda: filters.keep.logical_not_(),
        lambda: filters.load_state_dict({"h": normal(20, 3, seed=4)}),
        lambda: _native.set_isa(_native.isa_names()[0]),
    ):
        with torch.no_grad():
            change()
        y = causal_conv(x, filters)
        torch.testing.assert_close(y.double(), oracle.masked(x, filters.h, filters.keep), rtol=1e-4, atol=1e-4)
        kept = filters._kept
        causal_conv(x, filters)
        assert filters._kept is kept
    for twin in (pickle.loads(pickle.dumps(filters)), copy.deepcopy(filters)):
        assert torch.equal(causal_conv(x, twin), causal_conv(x, filters))
    assert list(filters.state_dict()) == ["h"]
    assert repr(filters).endswith("keep=0.801)")


def test_derivatives() -> None:
    shapes = ((2, 5, 2), (3, 2))
    arguments = tuple(normal(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)

    def function(x: Tensor, h: Tensor) -> Tensor:
        return causal_conv(x, FilterSpectrum(h, 5, keep=(0.05, 0.3)), activation="silu")

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)
    x, h = normal(2, 400, 3).requires_grad_(), normal(300, 3).requires_grad_()
    filters = FilterSpectrum(h, 400, keep=0.25)
    assert filters.keep is not None
    dy = normal(2, 400, 3, seed=3)
    found = torch.autograd.grad(causal_conv(x, filters), (x, h), dy)
    expected = torch.autograd.grad(oracle.masked(x, h, filters.keep), (x, h), dy.double())
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


class Layer(torch.nn.Module):
    def __init__(self, filters: FilterSpectrum) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv(x, self.filters)


def test_transforms_and_compilation() -> None:
    x, h = normal(4, 9, 3, dtype=torch.float64), normal(6, 3, dtype=torch.float64)
    filters = FilterSpectrum(torch.nn.Parameter(h), 9, keep=0.5)
    layer, assert_close = Layer(filters), torch.testing.assert_close
    expected = layer(x)
    assert_close(torch.vmap(layer)(x), expected)
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
    assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    assert_close(torch.func.functional_call(layer, {"filters.h": 2 * h}, (x,)), 2 * expected)
    tangent = torch.func.jvp(lambda h: torch.func.functional_call(layer, {"filters.h": h}, (x,)), (h,), (h,))[1]
    assert_close(tangent, expected)
    assert layer.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        (0.0, "keep must be a part in (0, 1], or (low, high) with 0 <= low < high <= 0.5, or a bool tensor; got 0.0"),
        (1.5, "keep must be a part in (0, 1]"),
        ((0.3, 0.2), "keep must be a part in (0, 1], or (low, high)"),
        (torch.ones(7, dtype=torch.bool), "keep must be a bool tensor of the shape (M,) = (512,); got torch.bool (7,)"),
        (torch.ones(512), "keep must be a bool tensor of the shape (M,) = (512,); got torch.float32 (512,)"),
    ],
)
def test_errors_say_what_to_do(keep: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("FilterSpectrum: " + text)):
        FilterSpectrum(torch.ones(3, 2), 50, keep=keep)


def test_errors_of_calls() -> None:
    filters = FilterSpectrum(torch.ones(3, 2), 50, keep=0.5)
    with pytest.raises(ValueError, match="causal_conv: initial_state must be None where the FilterSpectrum"):
        causal_conv(torch.ones(5, 2), filters, initial_state=torch.ones(2, 2))
    with pytest.raises(ValueError, match="explain: h must have its whole spectrum"):
        convscan.explain(causal_conv, torch.ones(5, 2), filters)
    with pytest.raises(ValueError, match="causal_conv: x must have at most L = 50 samples"):
        causal_conv(torch.ones(51, 2), filters)
    with pytest.raises(ValueError, match=re.escape("FilterSpectrum: modulus must divide M = 512; got 3")):
        FilterSpectrum.residues(3, 50, 3)
