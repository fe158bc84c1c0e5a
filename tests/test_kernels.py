"""Every registered implementation on every kind of problem, in every dtype, order, instruction set and thread count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import _native
from convscan.ops.causal_conv import cases as conv_cases
from convscan.ops.linear_recurrence import cases as scan_cases

CONVOLUTIONS = [row.name for row in convscan.implementations("causal_conv")]
RECURRENCES = [row.name for row in convscan.implementations("linear_recurrence")]


def convolve(p: oracle.Convolution, name: str) -> Tensor | None:
    """The implementation's answer, or None where it states why it cannot run the problem."""
    call = {"bias": p.bias, "activation": p.activation, "initial_state": p.state}
    row = next(c for c in convscan.explain("causal_conv", p.x, p.h, **call).candidates if c.name == name)
    if row.cost is None:
        assert row.reasons, f"{name} refuses {p} without a reason"
        return None
    with convscan.force(name):
        return convscan.causal_conv(p.x, p.h, **call)


def recur(p: oracle.Recurrence, name: str) -> Tensor | None:
    """The implementation's answer, or None where it states why it cannot run the problem."""
    candidates = convscan.explain("linear_recurrence", p.x, p.y_init, p.a, reverse=p.reverse).candidates
    row = next(c for c in candidates if c.name == name)
    if row.cost is None:
        assert row.reasons, f"{name} refuses {p} without a reason"
        return None
    with convscan.force(name):
        return convscan.linear_recurrence(p.x, p.y_init, p.a, reverse=p.reverse)


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, dtype: torch.dtype, isa: str) -> None:
    ran = 0
    for p in oracle.convolutions(dtype, count=40, seed=1):
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = convolve(p, name)
            if y is None:
                continue
            answers.append(y)
        if answers:
            ran += 1
            p.check(answers[0], is_transform=name == "fft")
        assert all(torch.equal(answers[0], y) for y in answers), f"{name} depends on the number of threads: {p}"
    assert ran > 0


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrence(name: str, dtype: torch.dtype, isa: str) -> None:
    ran = 0
    for p in oracle.recurrences(dtype, count=40, seed=2):
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = recur(p, name)
            if y is None:
                continue
            answers.append(y)
        if answers:
            ran += 1
            p.check(answers[0])
        assert all(torch.equal(answers[0], y) for y in answers), f"{name} depends on the number of threads: {p}"
    assert ran > 0


def scaled(case: conv_cases.Case, products: int) -> conv_cases.Case:
    """The case with fewer channels, then fewer samples and taps in proportion, until a direct sum takes a moment."""
    while case.batch * case.length * case.channels * case.taps > products:
        if case.channels > 24:
            case = replace(case, channels=case.channels // 2)
        elif case.length > 1:
            case = replace(case, length=case.length // 2, taps=max(1, min(case.taps, case.taps // 2 + 2)))
        else:
            break
    return case


@pytest.mark.parametrize("case", conv_cases.CASES, ids=lambda case: case.name)
def test_convolutions_of_models(case: conv_cases.Case) -> None:
    small = scaled(case, 8_000_000)
    for name in CONVOLUTIONS:
        # A transform can afford the whole length, of a few channels.
        run = replace(case, channels=min(case.channels, 3)) if name == "fft" else small
        arguments = conv_cases.inputs(run)
        p = oracle.Convolution(
            arguments["x"], arguments["h"], activation=run.activation, state=arguments["initial_state"]
        )
        y = convolve(p, name)
        if y is not None:
            p.check(y, is_transform=name == "fft")


@pytest.mark.parametrize("case", scan_cases.CASES, ids=lambda case: case.name)
def test_recurrences_of_models(case: scan_cases.Case) -> None:
    small = replace(case, length=min(case.length, 3000), channels=min(case.channels, 200))
    arguments = scan_cases.inputs(small)
    p = oracle.Recurrence(**arguments)
    for name in RECURRENCES:
        y = recur(p, name)
        assert y is not None
        p.check(y)


@pytest.mark.parametrize("name", [name for name in RECURRENCES if name != "reference"])
def test_long_recurrence_of_few_channels(name: str, isa: str) -> None:
    """Constant coefficients have a closed form: y[i] = (1 - a^(i+1)) / (1 - a) for x = 1."""
    length = 300_000
    a = torch.tensor([0.5, 0.999, -0.75, 0.0])
    with convscan.force(name):
        y = convscan.linear_recurrence(torch.ones(length, 4), None, a.expand(length, 4).contiguous())
    i = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    expected = (1 - a.double() ** i) / (1 - a.double())
    torch.testing.assert_close(y.double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "reference"])
def test_long_convolution(name: str, isa: str) -> None:
    """A delay and an echo have a closed form, however long the filter."""
    length, taps, channels = (20_000, 900, 2) if name != "fft" else (131_072, 100_001, 2)
    x = oracle.Draw(3).normal(1, length, channels, dtype=torch.float32)
    h = torch.zeros(taps, channels)
    h[7, 0], h[-1, 0], h[0, 1] = 1.0, 0.5, -2.0
    with convscan.force(name):
        y = convscan.causal_conv(x, h)
    expected = torch.zeros_like(x)
    expected[:, 7:, 0] = x[:, :-7, 0]
    expected[:, taps - 1 :, 0] += 0.5 * x[:, : length - taps + 1, 0]
    expected[..., 1] = -2 * x[..., 1]
    error = (y - expected).abs().amax(1)
    assert torch.all(error <= 2**-24 * 4 * math.log2(length) * x.norm(dim=1) * h.norm(dim=0))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)])
def test_empty(shape: tuple[int, int, int], isa: str) -> None:
    x = torch.empty(shape)
    for name in CONVOLUTIONS:
        y = convolve(oracle.Convolution(x, torch.ones(4, shape[2])), name)
        assert y is None or y.shape == x.shape
    for name in RECURRENCES:
        y = recur(oracle.Recurrence(x, None, torch.ones(shape[2])), name)
        assert y is None or y.shape == x.shape


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_in_place(name: str, dtype: torch.dtype, isa: str) -> None:
    for p in oracle.convolutions(dtype, count=10, seed=4, limit=500_000):
        x = p.x.clone()
        if convolve(replace(p, x=x), name) is None:
            continue
        with convscan.force(name):
            y = convscan.causal_conv(x, p.h, bias=p.bias, activation=p.activation, initial_state=p.state, out=x)
        assert y is x
        p.check(x, is_transform=name == "fft")


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrence_in_place(name: str, dtype: torch.dtype, isa: str) -> None:
    for p in oracle.recurrences(dtype, count=10, seed=5, limit=10_000):
        x = p.x.clone()
        if recur(replace(p, x=x), name) is None:
            continue
        with convscan.force(name):
            y = convscan.linear_recurrence(x, p.y_init, p.a, reverse=p.reverse, out=x)
        assert y is x
        p.check(x)


@pytest.mark.parametrize("name", [name for name in RECURRENCES if name != "reference"])
def test_difficult_coefficients(name: str, isa: str) -> None:
    """Growth, exact zeros, changes of sign and tiny numbers, relative to each value's own magnitude."""
    draw = oracle.Draw(6)
    for length, channels in ((200, 33), (1000, 3), (129, 1)):
        x = draw.normal(2, length, channels, dtype=torch.float32)
        growing = (1.02 * torch.ones(2, length, channels)).copysign(draw.normal(2, length, channels))
        broken = torch.where(draw.normal(2, length, channels) > 1, 0.0, growing)
        tiny = x * 2.0**-130
        for p in (
            oracle.Recurrence(x, x[:, 0], growing),
            oracle.Recurrence(x, x[:, 0], broken),
            oracle.Recurrence(x, None, torch.zeros(channels)),
            oracle.Recurrence(x, x[:, 0], torch.ones(channels)),
            oracle.Recurrence(tiny, None, torch.full((channels,), 0.5)),
        ):
            y = recur(p, name)
            assert y is not None
            scale = p.loop(torch.float64, magnitudes=True)
            error = (y.double() - p.truth()).abs()
            assert torch.all(error <= 2**-24 * 4 * math.sqrt(length) * scale + 2.0**-144), str(p)


def test_instruction_sets_are_known() -> None:
    assert _native.isa() in _native.isa_names()
