"""convolve and toeplitz_matmul: two-sided, circular and Toeplitz, against their definitions."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import _native, causal_conv, convolve, toeplitz_matmul
from convscan.ops.convolve import reference
from convscan.ops.toeplitz_matmul import reference as toeplitz_reference
from test_api_causal_conv import normal

ROWS = [name for name in oracle.rows("convolve") if name != "reference"]


def double_loop(x: Tensor, h: Tensor, origin: int) -> Tensor:
    """sum_j h[i-j+origin] x[j] by one product with the matrix of all h[i-j+origin]."""
    length, taps = x.shape[-2], h.shape[0]
    k = torch.arange(length)[:, None] - torch.arange(length) + origin
    matrix = torch.where(((k >= 0) & (k < taps))[..., None], h[k.clamp(0, taps - 1)], 0.0)
    return torch.einsum("ijd,jd->id", matrix, x)


@pytest.mark.parametrize("name", ROWS)
def test_small_lengths_taps_and_origins(name: str) -> None:
    """Some of those that the native tests go through one by one."""
    for length, taps in itertools.product((1, 2, 7, 17, 40), (1, 2, 5, 16, 39)):
        x, h = normal(length, 2), normal(taps, 2)
        for origin in sorted({0, taps // 3, taps - 1}):
            if name == "recurrence" and origin > 0:
                continue
            with convscan.force(name):
                y = convolve(x, h, origin=origin)
            assert torch.allclose(y, double_loop(x, h, origin), rtol=1e-9, atol=1e-9), (length, taps, origin)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_longer_ones(name: str, dtype: torch.dtype) -> None:
    for length, taps, origin in ((257, 513, 256), (509, 33, 16), (129, 400, 300)):
        for x in (normal(2, length, 18, dtype=dtype), normal(2, 5, length, dtype=dtype).mT):
            h = normal(taps, x.shape[-1], dtype=dtype) / taps**0.5
            if name == "recurrence":
                continue
            with convscan.force(name):
                y = convolve(x, h, origin=origin)
            expected = reference.convolve(x, h, origin)
            tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 2, 7, 31, 97, 509])
def test_circular_at_any_length(length: int) -> None:
    for taps in (1, 2, 5, length, length + 1, 3 * length + 2):
        for origin in sorted({0, taps // 2, taps - 1}):
            x, h = normal(2, length, 3), normal(taps, 3)
            y = convolve(x, h, origin=origin, circular=True)
            torch.testing.assert_close(y, reference.convolve(x, h, origin, circular=True), rtol=1e-9, atol=1e-9)
    spectrum = torch.fft.fft(normal(length, 3), dim=0) * torch.fft.fft(normal(length, 3, seed=1), dim=0)
    y = convolve(normal(length, 3), normal(length, 3, seed=1), circular=True)
    torch.testing.assert_close(y, torch.fft.ifft(spectrum, dim=0).real, rtol=1e-9, atol=1e-9)


def test_origins_are_what_they_are_called() -> None:
    x, h = normal(2, 20, 3), normal(5, 3)
    torch.testing.assert_close(convolve(x, h), causal_conv(x, h))
    torch.testing.assert_close(convolve(x, h, origin=4), causal_conv(x.flip(1), h.flip(0)).flip(1))
    same = torch.nn.functional.conv1d(x.mT, h.flip(0).T[:, None], padding="same", groups=3).mT
    torch.testing.assert_close(convolve(x, h, origin=2), same)


@pytest.mark.parametrize("circular", [False, True])
def test_gates_bias_and_activation(circular: bool) -> None:
    x, h, bias, pre, post = normal(2, 9, 3), normal(5, 3), normal(3), normal(9, 3, seed=1), normal(2, 9, 3, seed=2)
    y = convolve(x, h, origin=2, circular=circular, bias=bias, activation="silu", pre_gate=pre, post_gate=post)
    z = post * (reference.convolve(pre * x, h, 2, circular) + bias)
    torch.testing.assert_close(y, torch.nn.functional.silu(z))


def test_packed_and_in_place() -> None:
    x, h, cu_seqlens = normal(2, 20, 3), normal(5, 3), torch.tensor([0, 3, 3, 11, 20])
    expected = torch.cat([convolve(x[:, i:j], h, origin=2) for i, j in ((0, 3), (3, 11), (11, 20))], 1)
    torch.testing.assert_close(convolve(x, h, origin=2, cu_seqlens=cu_seqlens), expected)
    for circular in (False, True):
        expected, memory = convolve(x, h, origin=0, circular=circular), x.clone()
        assert convolve(memory, h, circular=circular, out=memory) is memory
        torch.testing.assert_close(memory, expected)


@pytest.mark.parametrize(("origin", "circular", "taps"), [(1, False, 7), (1, True, 3)])
def test_derivatives(origin: int, circular: bool, taps: int) -> None:
    arguments = (normal(2, 4, 2, grad=True), normal(taps, 2, grad=True), normal(4, 2, seed=1, grad=True))

    def function(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
        return convolve(x, h, origin=origin, circular=circular, pre_gate=gate, post_gate=gate)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)
    per_sample = torch.vmap(lambda x, h: convolve(x, h, origin=origin, circular=circular))
    x, h = normal(3, 4, 2), normal(3, taps, 2)
    each = [convolve(a, b, origin=origin, circular=circular) for a, b in zip(x, h, strict=True)]
    torch.testing.assert_close(per_sample(x, h), torch.stack(each))


@pytest.mark.parametrize("name", ["direct", "fft"])
@pytest.mark.parametrize(("length", "taps", "origin"), [(300, 41, 20), (300, 599, 299), (64, 200, 150), (700, 33, 32)])
def test_gradients_of_long_ones(name: str, length: int, taps: int, origin: int) -> None:
    for x in (normal(2, length, 18), normal(2, 3, length).mT):
        x, h = x.clone().requires_grad_(), normal(taps, x.shape[-1], grad=True)
        dy = normal(*x.shape, seed=4)
        with convscan.force(name):
            got = torch.autograd.grad(convolve(x, h, origin=origin), (x, h), dy)
        wanted = torch.autograd.grad(reference.convolve(x, h, origin), (x, h), dy)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_compile_and_empty() -> None:
    x, h = normal(2, 7, 3, grad=True), normal(5, 3, grad=True)
    for circular in (False, True):

        def function(x: Tensor, h: Tensor, circular: bool = circular) -> Tensor:
            return convolve(x, h, origin=2, circular=circular)

        if circular:
            y = torch.compile(function, fullgraph=True, backend="aot_eager")(x, h)
            torch.testing.assert_close(y, function(x, h))
        assert function(x[:, :0], h).shape == (2, 0, 3)
        assert function(x[:0], h).shape == (0, 7, 3)
    assert convscan.explain(convolve, x, h, origin=2).chosen in ROWS


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"origin": 4}, "convolve: origin must be one of the K = 4 taps, counted from 0; got 4"),
        ({"origin": -1}, "convolve: origin must be one of the K = 4 taps, counted from 0; got -1"),
        (
            {"circular": True, "cu_seqlens": torch.tensor([0, 7])},
            "convolve: circular must be False with cu_seqlens; got True",
        ),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        convolve(torch.ones(2, 7, 3), torch.ones(4, 3), **arguments)


# ---- toeplitz_matmul ----


@pytest.mark.parametrize(
    ("of_sides", "of_x"),
    [((), ()), ((), (2,)), ((3,), (3,)), ((3,), (2, 3)), ((2, 3), (2, 3)), ((3,), (2, 1)), ((3,), ())],
)
@pytest.mark.parametrize("length", [1, 2, 33, 300])
def test_product_with_the_matrix(of_sides: tuple[int, ...], of_x: tuple[int, ...], length: int) -> None:
    column, row, X = normal(*of_sides, length), normal(*of_sides, length, seed=1), normal(*of_x, length, 5)
    torch.testing.assert_close(
        toeplitz_matmul(column, row, X), toeplitz_reference.toeplitz_matmul(column, row, X), rtol=1e-9, atol=1e-9
    )


def test_product_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    column, row, X = normal(50), normal(50, seed=1), normal(50, 4)
    expected = torch.from_numpy(linalg.matmul_toeplitz((column.numpy(), row.numpy()), X.numpy()))
    torch.testing.assert_close(toeplitz_matmul(column, row, X), expected)


def test_product_derivatives_and_transforms() -> None:
    column, row, X = normal(3, 4, grad=True), normal(3, 4, seed=1, grad=True), normal(2, 3, 4, 2, grad=True)
    assert torch.autograd.gradcheck(toeplitz_matmul, (column, row, X), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(toeplitz_matmul, (column, row, X))
    mapped = torch.vmap(toeplitz_matmul, in_dims=(0, 0, 1), out_dims=1)(column, row, X)
    torch.testing.assert_close(mapped, toeplitz_matmul(column, row, X))
    half = toeplitz_matmul(column.bfloat16(), row.bfloat16(), X.bfloat16())
    torch.testing.assert_close(half.double(), toeplitz_matmul(column, row, X), rtol=0.05, atol=0.05)


def test_product_of_nothing_and_errors() -> None:
    assert toeplitz_matmul(torch.ones(0), torch.ones(0), torch.ones(2, 0, 3)).shape == (2, 0, 3)
    assert toeplitz_matmul(torch.ones(4), torch.ones(4), torch.ones(0, 4, 3)).shape == (0, 4, 3)
    with pytest.raises(ValueError, match=re.escape("row must have the shape (..., L) = (..., 4); got (3,)")):
        toeplitz_matmul(torch.ones(4), torch.ones(3), torch.ones(4, 2))
    with pytest.raises(ValueError, match=re.escape("the leading axes of column, row and X must broadcast; got (2,)")):
        toeplitz_matmul(torch.ones(2, 4), torch.ones(3, 4), torch.ones(4, 2))
    with pytest.raises(TypeError, match=re.escape("column must be a torch.Tensor")):
        toeplitz_matmul([1.0], torch.ones(1), torch.ones(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(threads: int) -> None:
    assert _native.thread_count() >= 1
    x, h = normal(1, 5000, 40, dtype=torch.float32), normal(5000, 40, dtype=torch.float32)
    answers = []
    for count in (threads, 3 - threads):
        torch.set_num_threads(count)
        answers.append([convolve(x, h[:taps], origin=taps // 2) for taps in (5, 60, 5000)])
    assert all(itertools.starmap(torch.equal, zip(*answers, strict=True)))
