"""What causal convolutions and linear recurrences satisfy, whatever the numbers: every implementation, random sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import convscan
import oracle
from convscan import causal_conv, linear_recurrence

CONVOLUTIONS = oracle.rows("causal_conv")
RECURRENCES = oracle.rows("linear_recurrence")

sizes = {
    "batch": st.integers(1, 3),
    "length": st.integers(1, 150),
    "channels": st.integers(1, 20),
    "seed": st.integers(0, 2**16),
}
taps = st.integers(1, 200)


def close(actual: Tensor, expected: Tensor, scale: Tensor | float = 1.0) -> None:
    """Equal up to rounding in double precision."""
    assert actual.shape == expected.shape
    bound = 1e-12 * (float(torch.as_tensor(scale).abs().max()) + 1)
    assert actual.numel() == 0 or float((actual - expected).abs().max()) <= bound


def conv_inputs(batch: int, length: int, channels: int, taps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = oracle.Draw(seed)
    x, h = draw.normal(batch, length, channels), draw.normal(taps, channels)
    return x, h, draw.normal(batch, taps - 1, channels)


def scan_inputs(
    name: str, batch: int, length: int, channels: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    draw = oracle.Draw(seed)
    a = oracle.coefficients(draw, seed % 3, batch, length, channels, dtype=dtype)
    x, start = draw.normal(batch, length, channels, dtype=dtype), draw.normal(batch, channels, dtype=dtype)
    if name == "parallel":  # which runs along time
        x = oracle.in_order(x, "time contiguous")
        a = oracle.in_order(a.expand(x.shape), "time contiguous")
    return x, start, a


@pytest.mark.parametrize("name", CONVOLUTIONS)
@given(taps=taps, cut=st.floats(0, 1), **sizes)
def test_convolution_is_causal(name: str, cut: float, **shape: int) -> None:
    x, h, state = conv_inputs(**shape)
    start = int(cut * shape["length"])
    future = x.clone()
    future[:, start:] += 1
    with convscan.force(name):
        y, z = causal_conv(x, h, initial_state=state), causal_conv(future, h, initial_state=state)
    close(y[:, :start], z[:, :start], shape["taps"] * 10)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@given(taps=taps, **sizes)
def test_convolution_is_linear_in_signal_and_filter(name: str, **shape: int) -> None:
    x, h, state = conv_inputs(**shape)
    x2, h2, state2 = conv_inputs(**{**shape, "seed": shape["seed"] + 1})

    def conv(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
        with convscan.force(name):
            return causal_conv(x, h, initial_state=state)

    scale = 20 * shape["taps"]
    close(conv(2 * x - 3 * x2, h, 2 * state - 3 * state2), 2 * conv(x, h, state) - 3 * conv(x2, h, state2), scale)
    close(conv(x, 2 * h - 3 * h2, state), 2 * conv(x, h, state) - 3 * conv(x, h2, state), scale)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@given(taps=taps, delay=st.integers(0, 40), **sizes)
def test_convolution_commutes_with_a_delay(name: str, delay: int, **shape: int) -> None:
    x, h, _ = conv_inputs(**shape)
    late = torch.cat([x.new_zeros(x.shape[0], delay, x.shape[2]), x], 1)
    with convscan.force(name):
        close(causal_conv(late, h)[:, delay:], causal_conv(x, h), 10 * shape["taps"])


@pytest.mark.parametrize("name", CONVOLUTIONS)
@given(taps=taps, cut=st.floats(0, 1), **sizes)
def test_convolution_in_two_parts(name: str, cut: float, **shape: int) -> None:
    """The state of the second part is the last K - 1 samples before it."""
    x, h, state = conv_inputs(**shape)
    middle = int(cut * shape["length"])
    before = torch.cat([state, x[:, :middle]], 1)
    carried = before[:, before.shape[1] - state.shape[1] :]
    with convscan.force(name):
        whole = causal_conv(x, h, initial_state=state)
        first = causal_conv(x[:, :middle], h, initial_state=state)
        second = causal_conv(x[:, middle:], h, initial_state=carried)
    close(torch.cat([first, second], 1), whole, 10 * shape["taps"])


@pytest.mark.parametrize("name", CONVOLUTIONS)
@given(taps=taps, **sizes)
def test_backward_of_a_convolution_is_its_adjoint(name: str, **shape: int) -> None:
    """⟨A x, w⟩ = ⟨x, A* w⟩ for each linear argument."""
    arguments = [tensor.requires_grad_() for tensor in conv_inputs(**shape)]
    x, h, state = arguments
    with convscan.force(name):
        y = causal_conv(x, h, initial_state=state)
        w = oracle.Draw(shape["seed"] + 2).normal(*y.shape)
        dx, dh, dstate = torch.autograd.grad(y, arguments, w)
        zero_state, zero_x = torch.zeros_like(state), torch.zeros_like(x)
        scale = 100 * shape["taps"] * shape["length"]
        close((causal_conv(x, h, initial_state=zero_state) * w).sum(), (x * dx).sum(), scale)
        close((causal_conv(zero_x, h, initial_state=state) * w).sum(), (state * dstate).sum(), scale)
        close((y * w).sum(), (h * dh).sum(), scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
@given(reverse=st.booleans(), cut=st.floats(0, 1), **sizes)
def test_recurrence_in_two_parts(name: str, dtype: torch.dtype, reverse: bool, cut: float, **shape: int) -> None:
    """The last value of the first part starts the second."""
    x, start, a = scan_inputs(name, dtype=dtype, **shape)
    middle = int(cut * shape["length"])
    parts = [slice(0, middle), slice(middle, None)]
    with convscan.force(name):
        whole = linear_recurrence(x, start, a, reverse=reverse)
        outputs: list[Any] = [None, None]
        carried = start
        for index in (1, 0) if reverse else (0, 1):
            y = linear_recurrence(x[:, parts[index]], carried, a[:, parts[index]], reverse=reverse)
            outputs[index] = y
            if y.shape[1] > 0:
                carried = y[:, 0 if reverse else -1]
    close(torch.cat(outputs, 1), whole, 1000)


@pytest.mark.parametrize("name", RECURRENCES)
@given(reverse=st.booleans(), **sizes)
def test_recurrence_is_linear_in_signal_and_start(name: str, reverse: bool, **shape: int) -> None:
    x, start, a = scan_inputs(name, **shape)
    x2, start2, _ = scan_inputs(name, **{**shape, "seed": shape["seed"] + 1})

    def scan(x: Tensor, start: Tensor) -> Tensor:
        with convscan.force(name):
            return linear_recurrence(x, start, a, reverse=reverse)

    expected = 2 * scan(x, start) - 3 * scan(x2, start2)
    close(scan(2 * x - 3 * x2, 2 * start - 3 * start2), expected, 1000)


@pytest.mark.parametrize("name", RECURRENCES)
@given(cut=st.floats(0, 1), **sizes)
def test_recurrence_is_causal_and_reverses(name: str, cut: float, **shape: int) -> None:
    assume(name != "parallel" or shape["length"] > 1)  # copies of one step may lie in either order
    x, start, a = scan_inputs(name, **shape)
    middle = int(cut * shape["length"])
    x2, a2 = x.clone(), a.clone()
    x2[:, middle:] += 1
    a2[:, middle:] *= -1
    with convscan.force(name):
        y = linear_recurrence(x, start, a)
        close(linear_recurrence(x2, start, a2)[:, :middle], y[:, :middle], 1000)
        close(linear_recurrence(x.flip(1), start, a.flip(1), reverse=True).flip(1), y, 1000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", RECURRENCES)
@given(reverse=st.booleans(), **sizes)
def test_backward_of_a_recurrence_is_its_adjoint(name: str, dtype: torch.dtype, reverse: bool, **shape: int) -> None:
    x, start, a = scan_inputs(name, dtype=dtype, **shape)
    x.requires_grad_()
    start.requires_grad_()
    with convscan.force(name):
        y = linear_recurrence(x, start, a, reverse=reverse)
        w = oracle.Draw(shape["seed"] + 2).normal(*y.shape, dtype=dtype)
        dx, dstart = torch.autograd.grad(y, (x, start), w)
    inner = (y * w.conj()).sum()
    close(inner, (x * dx.conj()).sum() + (start * dstart.conj()).sum(), 1000 * shape["length"])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_with_an_impulse_is_the_filter(name: str) -> None:
    for length, count in ((64, 64), (100, 7), (5, 12)):
        h = oracle.Draw(1).normal(count, 3)
        x = torch.zeros(length, 3, dtype=torch.float64)
        x[0] = 1
        with convscan.force(name):
            y = causal_conv(x, h)
        expected = torch.cat([h, h.new_zeros(length, 3)])[:length]
        close(y, expected)


def test_recurrence_with_constant_coefficients_is_a_convolution_with_powers() -> None:
    x = oracle.Draw(2).normal(2, 90, 5)
    a = torch.tensor([0.9, -0.5, 0.0, 1.0, 0.99], dtype=torch.float64)
    powers = a ** torch.arange(90)[:, None]
    close(linear_recurrence(x, None, a), causal_conv(x, powers), 100)
