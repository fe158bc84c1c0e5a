"""The recurrence's Triton kernel, judged by the oracle of all implementations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import convscan
import oracle
from convscan.ops.linear_recurrence import reference, triton

NAME = "triton_scan"


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles make short signals look back, over groups too."""
    small = {"channels": 8, "numbers": 64, "window": 4, "warps": 1}
    monkeypatch.setattr(triton, "configuration", lambda gpu, kernel: small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_tiles_as_tuned(dtype: torch.dtype) -> None:
    for p in oracle.recurrences(dtype, count=4, seed=1, limit=1500):
        with convscan.force(NAME):
            p.check(convscan.linear_recurrence(p.x, p.y_init, p.a, reverse=p.reverse))


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
def test_recurrence(dtype: torch.dtype, tiles: None) -> None:
    for p in oracle.recurrences(dtype, count=5, seed=2, limit=500):
        with convscan.force(NAME):
            y = convscan.linear_recurrence(p.x, p.y_init, p.a, reverse=p.reverse)
            again = convscan.linear_recurrence(p.x, p.y_init, p.a, reverse=p.reverse)
        p.check(y)
        assert torch.equal(y, again)


@pytest.mark.parametrize("impostor", oracle.RECURRENCE_IMPOSTORS)
def test_the_oracle_sees_wrong_answers_here_too(impostor: str) -> None:
    caught = 0
    for p in oracle.recurrences(torch.float32, count=10, seed=2, limit=500):
        wrong, truth = oracle.RECURRENCE_IMPOSTORS[impostor](p), p.truth()
        if not (wrong - truth).norm() < 0.02 * truth.norm():
            with pytest.raises(oracle.Mismatch):
                p.check(wrong.float())
            caught += 1
    assert caught > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_packed(dtype: torch.dtype, tiles: None) -> None:
    draw = oracle.Draw(8)
    bounds = [0, 0, 1, 7, 7, 40, 52, 52]
    cu_seqlens = torch.tensor(bounds)
    for order, reverse in (("channels contiguous", False), ("time contiguous", True)):
        x = oracle.in_order(draw.normal(2, 52, 5, dtype=dtype), order)
        a = oracle.coefficients(draw, 2, 2, 52, 5, dtype=dtype)
        start = draw.normal(2, len(bounds) - 1, 5, dtype=dtype)
        with convscan.force(NAME):
            y = convscan.linear_recurrence(x, start, a, reverse=reverse, cu_seqlens=cu_seqlens)
        for s, (begin, end) in enumerate(pairwise(bounds)):
            part = slice(begin, end)
            oracle.Recurrence(x[:, part], start[:, s], a[:, part], reverse).check(y[:, part])


def test_nothing_leaks_over_a_boundary(tiles: None) -> None:
    x = torch.zeros(60, 3)
    x[20:40] = torch.inf
    with convscan.force(NAME):
        y = convscan.linear_recurrence(x, None, torch.ones(60, 3), cu_seqlens=torch.tensor([0, 20, 40, 60]))
    assert torch.all(y[:20] == 0)
    assert torch.all(y[40:] == 0)
    assert torch.all(y[20:40] == torch.inf)


def test_overflown_products_meet_nothing(tiles: None) -> None:
    """Coefficients whose product is infinite, before the signal begins."""
    x = torch.zeros(300, 2)
    x[299] = 1.0
    with convscan.force(NAME):
        y = convscan.linear_recurrence(x, None, torch.full((300, 2), 8.0))
    assert torch.equal(y, x)


def test_not_a_number_is_passed_on(tiles: None) -> None:
    """Also the pattern of bits that stands for what has not been published."""
    x = torch.ones(50, 2)
    x[3] = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    with convscan.force(NAME):
        y = convscan.linear_recurrence(x, None, torch.full((50, 2), 0.5))
    assert torch.all(y[:3].isfinite())
    assert torch.all(y[3:].isnan())


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
def test_gradient(dtype: torch.dtype, tiles: None) -> None:
    draw = oracle.Draw(3)
    kernel = torch.ops.convscan.linear_recurrence_gradient.default
    stored = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(dtype, 0.0)
    for index, p in enumerate(oracle.recurrences(dtype, count=3, seed=4, limit=400)):
        y = p.truth().to(dtype)
        dy = oracle.in_order(draw.normal(*y.shape, dtype=dtype), oracle.ORDERS[index % 3])
        with convscan.force(NAME):
            found = kernel(dy, p.y_init, p.a, y, None, p.reverse, True, p.y_init is not None)
        dx, da, dstart = reference.gradient(dy, p.y_init, p.a, y, p.reverse)
        shape = (1,) * (3 - p.a.ndim) + tuple(p.a.shape)
        da = da.sum_to_size(shape).reshape(p.a.shape)
        # What the sums are made of, in magnitude: as of the recurrence, from the end.
        size = reference.gradient(dy.abs(), None, p.a.abs(), y.abs(), p.reverse)
        scales = (size[0].amax(1, keepdim=True), size[1].sum_to_size(shape).reshape(p.a.shape), size[2])
        for one, exact, scale in zip(found, (dx, da, dstart), scales, strict=True):
            if one.numel() or p.y_init is not None:
                bound = (stored + 32 * oracle.roundoff(dtype)) * (scale.abs() + exact.abs()) + 1e-7 * (stored > 0)
                assert ((oracle.wide(one) - exact).abs() <= bound).all(), str(p)


def test_gradient_of_packed_sequences(tiles: None) -> None:
    draw = oracle.Draw(5)
    bounds = torch.tensor([0, 4, 4, 5, 30, 37])
    x, a = draw.normal(2, 37, 3).requires_grad_(), torch.sigmoid(draw.normal(2, 37, 3)).requires_grad_()
    start, dy = draw.normal(2, 5, 3).requires_grad_(), draw.normal(2, 37, 3)
    for reverse in (False, True):
        grads = []
        for name in (NAME, "reference"):
            with convscan.force(name):
                y = convscan.linear_recurrence(x, start, a, reverse=reverse, cu_seqlens=bounds)
                grads.append(torch.autograd.grad(y, (x, start, a), dy))
        for one, exact in zip(*grads, strict=True):
            torch.testing.assert_close(one, exact)


def test_public_function_and_its_derivatives() -> None:
    draw = oracle.Draw(6)
    x = draw.normal(3, 2, 11, 4).transpose(0, 1)[:, 1:].requires_grad_()
    start, a = draw.normal(2, 2, 4).requires_grad_(), torch.sigmoid(draw.normal(4)).requires_grad_()
    with convscan.force(NAME):
        assert torch.autograd.gradcheck(convscan.linear_recurrence, (x, start, a), fast_mode=True)
        assert torch.autograd.gradgradcheck(convscan.linear_recurrence, (x, start, a), fast_mode=True)


def test_in_place_empty_and_single() -> None:
    for p in oracle.recurrences(torch.float32, count=4, seed=5, limit=500):
        x = p.x.clone()
        with convscan.force(NAME):
            assert convscan.linear_recurrence(x, p.y_init, p.a, reverse=p.reverse, out=x) is x
        p.check(x)
    for shape in ((0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 1, 1)):
        x = torch.ones(shape)
        with convscan.force(NAME):
            y = convscan.linear_recurrence(x, None, torch.ones(shape[2]))
        assert torch.equal(y, x.cumsum(1))
