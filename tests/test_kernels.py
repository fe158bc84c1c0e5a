"""Every registered implementation on every kind of problem, in every dtype, order, instruction set and thread count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import _native
from convscan.ops.causal_conv import cases as conv_cases
from convscan.ops.linear_recurrence import cases as scan_cases

CONVOLUTIONS = oracle.rows("causal_conv")
RECURRENCES = oracle.rows("linear_recurrence")


def convolve(p: oracle.Convolution, name: str) -> Tensor | None:
    """The implementation's answer, or None where it states why it cannot run the problem."""
    call = p.options()
    row = next(c for c in convscan.explain("causal_conv", p.x, p.h, **call).candidates if c.name == name)
    if row.cost is None:
        assert row.reasons, f"{name} refuses {p} without a reason"
        return None
    with convscan.force(name):
        return convscan.causal_conv(p.x, p.h, **call)


def recur(p: oracle.Recurrence, name: str, cu_seqlens: Tensor | None = None) -> Tensor | None:
    """The implementation's answer, or None where it states why it cannot run the problem."""
    options = {"reverse": p.reverse, "cu_seqlens": cu_seqlens}
    candidates = convscan.explain("linear_recurrence", p.x, p.y_init, p.a, **options).candidates
    row = next(c for c in candidates if c.name == name)
    if row.cost is None:
        assert row.reasons, f"{name} refuses {p} without a reason"
        return None
    with convscan.force(name):
        return convscan.linear_recurrence(p.x, p.y_init, p.a, **options)


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


def unpacked(p: oracle.Recurrence, bounds: list[int]) -> Iterator[tuple[slice, oracle.Recurrence]]:
    """The sequences of a packed problem, whose y_init is (B, S, D), as problems of their own."""
    a = p.a.expand(p.x.shape)
    for s, part in enumerate(slice(begin, end) for begin, end in pairwise(bounds)):
        start = None if p.y_init is None else p.y_init[:, s]
        yield part, replace(p, x=p.x[:, part], y_init=start, a=a[:, part])


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
def test_packed_recurrence(name: str, dtype: torch.dtype, isa: str) -> None:
    draw, ran = oracle.Draw(8), 0
    for index, p in enumerate(oracle.recurrences(dtype, count=20, seed=9, limit=20_000)):
        batch, length, channels = p.x.shape
        # Of one step, empty, behind one another empty, at the ends too; one sequence.
        inner = sorted(draw.below(length + 1) for _ in range(index % 6))
        bounds = [0, *inner, *inner[:1], length]
        bounds.sort()
        start = None if p.y_init is None else draw.normal(batch, len(bounds) - 1, channels, dtype=dtype)
        p = replace(p, y_init=start)
        cu_seqlens = torch.tensor(bounds, dtype=(torch.int32, torch.int64)[index % 2])
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(recur(p, name, cu_seqlens))
        if answers[0] is None or answers[1] is None:
            continue
        ran += 1
        assert torch.equal(*answers), f"{name} depends on the number of threads: {p}"
        for part, sequence in unpacked(p, bounds):
            sequence.check(answers[0][:, part])
    assert ran > 0


@pytest.mark.parametrize("time_contiguous", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_across_tiles(channels: int, reverse: bool, time_contiguous: bool, isa: str) -> None:
    """The threads' tiles of time begin inside sequences; no coefficient decays, so that every state counts."""
    length, bounds = 60_000, [0, 5, 17_003, 17_003, 30_001, 30_720, 60_000]
    draw = oracle.Draw(10)
    x = oracle.in_order(draw.normal(1, length, channels, dtype=torch.float32), "channels contiguous")
    x = oracle.in_order(x, "time contiguous") if time_contiguous else x
    a = torch.ones(1, length, channels).copysign(draw.normal(1, length, channels))
    start = draw.normal(1, len(bounds) - 1, channels, dtype=torch.float32)
    answers = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with convscan.force("tiled"):
            y = convscan.linear_recurrence(x, start, a, reverse=reverse, cu_seqlens=torch.tensor(bounds))
        answers.append(y)
    assert all(torch.equal(answers[0], y) for y in answers)
    exact = convscan.linear_recurrence(
        x.double(), start.double(), a.double(), reverse=reverse, cu_seqlens=torch.tensor(bounds)
    )
    with convscan.force("sequential"):
        plain = convscan.linear_recurrence(x, start, a, reverse=reverse, cu_seqlens=torch.tensor(bounds))
    assert (answers[0] - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_accuracy_over_65536_steps(dtype: torch.dtype, isa: str) -> None:
    """Slow decay, growth that stays finite, exact zeros, changes of sign: the error is within twice the loop's."""
    length, each = 65536, 5
    draw = oracle.Draw(11)
    slow = [0.999 + 0.0011 * torch.sigmoid(2 * draw.normal(1, length, each)) for _ in range(3)]
    swinging = torch.where(torch.arange(length)[:, None] % 300 < 150, 1.25, 0.7).double().expand(1, length, each)
    a = torch.cat([slow[0], slow[1].copysign(draw.normal(1, length, each)), slow[2], swinging], -1)
    a[..., 2 * each : 3 * each] *= draw.normal(1, length, each) < 3
    a = (torch.polar(a, 3 * draw.normal(*a.shape)) if dtype.is_complex else a).to(dtype)
    x = draw.normal(*a.shape, dtype=dtype)
    with convscan.force("sequential"):
        truth = convscan.linear_recurrence(oracle.wide(x), None, oracle.wide(a))
    plain = (oracle.wide(loop_over_time(x, a)) - truth).abs().amax(1)
    for name in (name for name in RECURRENCES if name != "reference"):
        for order in ("channels contiguous", "time contiguous"):
            signal, coefficients = oracle.in_order(x, order), oracle.in_order(a, order)
            for step in (1, each):
                y = recur(oracle.Recurrence(signal[..., ::step], None, coefficients[..., ::step]), name)
                assert y is not None or (name, order) == ("parallel", "channels contiguous")
                if y is not None:
                    assert y.isfinite().all()
                    assert torch.all((y - truth[..., ::step]).abs().amax(1) <= 2 * plain[..., ::step]), (name, order)


def loop_over_time(x: Tensor, a: Tensor) -> Tensor:
    """A multiplication and an addition a step, each rounded to the type computed in."""
    kind = oracle.compute_type(x.dtype)
    coefficients, samples = a[0].to(kind).numpy(), x[0].to(kind).numpy()
    y = np.empty_like(samples)
    last = np.zeros_like(samples[0])
    for i in range(len(samples)):
        last = coefficients[i] * last + samples[i]
        y[i] = last
    return torch.from_numpy(y)[None].to(x.dtype)


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
        assert y is not None or name == "parallel"
        if y is not None:
            p.check(y)


@pytest.mark.parametrize("name", [name for name in RECURRENCES if name != "reference"])
def test_long_recurrence_of_few_channels(name: str, isa: str) -> None:
    """Constant coefficients have a closed form: y[i] = (1 - a^(i+1)) / (1 - a) for x = 1."""
    length = 300_000
    a = torch.tensor([0.5, 0.999, -0.75, 0.0])
    i = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    expected = (1 - a.double() ** i) / (1 - a.double())
    ran = 0
    for order in ("channels contiguous", "time contiguous"):
        x, coefficients = (oracle.in_order(t, order) for t in (torch.ones(1, length, 4), a.expand(1, length, 4)))
        y = recur(oracle.Recurrence(x, None, coefficients), name)
        if y is not None:
            ran += 1
            torch.testing.assert_close(y[0].double(), expected, rtol=2e-4, atol=0)
    assert ran > 0


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


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("order", ["time contiguous", "channels contiguous", "offset rows"])
def test_tens_of_taps_over_long_rows(order: str, dtype: torch.dtype, isa: str) -> None:
    """What is past the unrolled filters and short of transforms: along time such rows are a kernel of their own."""
    draw = oracle.Draw(8)
    width = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for taps in (17, 24, 31, 32, 33, 49, 64, 65):
        length, channels = 4096 + draw.below(300), draw.pick((1, 3, 16, 33))

        def signal(length: int = length, channels: int = channels) -> Tensor:
            return oracle.in_order(draw.normal(1, length, channels, dtype=dtype), order)

        def maybe(tensor: Tensor) -> Tensor | None:
            return tensor if draw.chance(2) else None

        x, h = signal(), draw.normal(taps, channels, dtype=dtype) / 8
        options = {
            "bias": maybe(draw.normal(channels, dtype=dtype)),
            "pre_gate": maybe(signal()),
            "post_gate": maybe(signal()),
            "initial_state": maybe(draw.normal(1, taps - 1, channels, dtype=dtype)),
        }
        wide = {name: None if one is None else one.double() for name, one in options.items()}
        with convscan.force("reference"):
            exact = convscan.causal_conv(x.double(), h.double(), activation="silu", **wide)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with convscan.force("direct"):
                answers.append(convscan.causal_conv(x, h, activation="silu", **options))
        assert torch.equal(*answers), f"K = {taps} depends on the number of threads"
        error = (answers[0].double() - exact).abs().max() / exact.abs().max()
        assert error < width, f"K = {taps}, {length} x {channels}: {error}"


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
            y = convscan.causal_conv(x, p.h, out=x, **p.options())
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
            if name == "parallel":
                a = p.a if p.a.ndim == 1 else oracle.in_order(p.a, "time contiguous")
                p = replace(p, x=oracle.in_order(p.x, "time contiguous"), a=a)
            y = recur(p, name)
            assert y is not None
            scale = p.loop(torch.float64, magnitudes=True)
            error = (y.double() - p.truth()).abs()
            assert torch.all(error <= 2**-24 * 4 * math.sqrt(length) * scale + 2.0**-144), str(p)


def test_instruction_sets_are_known() -> None:
    assert _native.isa() in _native.isa_names()
