"""Packed sequences and shared filters of causal_conv: each sequence for itself, each filter for those that share it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import causal_conv
from test_api_causal_conv import normal

ROWS = oracle.rows("causal_conv")
BOUNDARIES = ([0, 60], [0, 0, 60, 60], [0, 20, 40, 60], [0, 1, 2, 3, 19, 19, 52, 60])


def one_by_one(x: Tensor, h: Tensor, boundaries: list[int], state: Tensor | None) -> Tensor:
    """Each sequence in a call of its own."""
    parts = [
        causal_conv(x[..., i:j, :], h, initial_state=None if state is None else state[..., s, :, :])
        for s, (i, j) in enumerate(pairwise(boundaries))
    ]
    return torch.cat(parts, -2)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("boundaries", BOUNDARIES)
def test_packed_is_one_by_one(name: str, boundaries: list[int]) -> None:
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    for x, taps in ((normal(60, 17), 4), (normal(2, 60, 3), 33), (normal(2, 3, 60).mT, 80), (normal(1, 60, 40), 17)):
        h, state = normal(taps, x.shape[-1]), normal(*x.shape[:-2], len(boundaries) - 1, taps - 1, x.shape[-1])
        for past in (None, state):
            with convscan.force(name):
                y = causal_conv(x, h, initial_state=past, cu_seqlens=cu_seqlens)
            torch.testing.assert_close(y, one_by_one(x, h, boundaries, past))


@pytest.mark.parametrize("name", ROWS)
def test_nothing_leaks_over_a_boundary(name: str) -> None:
    x, h, cu_seqlens = torch.zeros(64, 3), torch.ones(40, 3), torch.tensor([0, 16, 48, 64])
    x[16:48] = torch.inf
    with convscan.force(name):
        y = causal_conv(x, h, cu_seqlens=cu_seqlens)
    assert torch.all(y[:16] == 0)
    assert torch.all(y[48:] == 0)


def test_many_short_sequences_in_place_and_threads() -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 40, (300,), generator=generator)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    x, h = normal(int(cu_seqlens[-1]), 24, dtype=torch.float32), normal(4, 24, dtype=torch.float32)
    expected = one_by_one(x, h, cu_seqlens.tolist(), None)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = x.clone()
        assert causal_conv(y, h, cu_seqlens=cu_seqlens, out=y) is y
        assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["direct", "fft"])
def test_derivatives(name: str) -> None:
    cu_seqlens = torch.tensor([0, 2, 2, 5])
    arguments = (normal(2, 5, 2, grad=True), normal(3, 2, grad=True), normal(2, 3, 2, 2, grad=True))

    def function(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
        return causal_conv(x, h, initial_state=state, cu_seqlens=cu_seqlens, activation="silu", post_gate=x)

    with convscan.force(name):
        assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("name", ["direct", "fft"])
def test_gradients_are_those_of_each_sequence(name: str) -> None:
    boundaries = [0, 100, 117, 117, 300]
    x, h, dy = normal(2, 300, 18, grad=True), normal(30, 18, grad=True), normal(2, 300, 18, seed=2)
    with convscan.force(name):
        got = torch.autograd.grad(causal_conv(x, h, cu_seqlens=torch.tensor(boundaries)), (x, h), dy)
    wanted = torch.autograd.grad(one_by_one(x, h, boundaries, None), (x, h), dy)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled() -> None:
    def function(x: Tensor, h: Tensor, cu_seqlens: Tensor) -> Tensor:
        return causal_conv(x, h, cu_seqlens=cu_seqlens)

    x, h, cu_seqlens = normal(9, 3), normal(4, 3), torch.tensor([0, 4, 9])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, h, cu_seqlens), function(x, h, cu_seqlens))


@pytest.mark.parametrize(
    ("cu_seqlens", "state", "text"),
    [
        ([0, 4], None, "causal_conv: cu_seqlens must begin with 0 and end with L = 7; got 0 ... 4"),
        ([0, 5, 4, 7], None, "causal_conv: cu_seqlens must not decrease; got 4 after 5 at 2"),
        ([7], None, "causal_conv: cu_seqlens must have the shape (S+1,) for S >= 1 sequences; got (1,)"),
        ([0, 3, 7], (3, 3), "causal_conv: initial_state must have the shape (..., S, K-1, D) = (2, 3, 3); got (3, 3)"),
    ],
)
def test_errors_say_what_to_do(cu_seqlens: list[int], state: tuple[int, ...] | None, text: str) -> None:
    past = None if state is None else torch.ones(state)
    with pytest.raises(ValueError, match=re.escape(text)):
        causal_conv(torch.ones(7, 3), torch.ones(4, 3), cu_seqlens=torch.tensor(cu_seqlens), initial_state=past)


# ---- filters ----

FILTERS = ((5, 12), (5, 1), (5, 4), (3, 5, 12), (3, 5, 1), (1, 5, 6), (3, 5, 3))


def expanded(h: Tensor, x: Tensor) -> list[Tensor]:
    """The filters of every channel, (K, D), for each sequence of x (B, L, D)."""
    full = h.repeat_interleave(x.shape[-1] // h.shape[-1], -1)
    return [full if h.ndim == 2 else full[b % h.shape[0]] for b in range(x.shape[0])]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shape", FILTERS)
def test_shared_filters_and_filters_of_each_sequence(name: str, shape: tuple[int, ...]) -> None:
    for x in (normal(3, 40, 12), normal(3, 12, 40).mT):
        for h in (normal(*shape), normal(*shape[:-2], shape[-1], shape[-2]).mT):
            with convscan.force(name):
                y = causal_conv(x, h)
            each = [causal_conv(x[b], filters) for b, filters in enumerate(expanded(h, x))]
            torch.testing.assert_close(y, torch.stack(each))


@pytest.mark.parametrize("name", ["direct", "toeplitz", "fft"])
def test_groups_of_many_channels(name: str) -> None:
    """More channels of one filter than a task has, and groups that end inside a vector."""
    for channels, filters in ((144, 1), (144, 3), (130, 26), (96, 48)):
        for x in (normal(2, 70, channels), normal(2, channels, 70).mT):
            h = normal(33, filters)
            with convscan.force(name):
                y = causal_conv(x, h)
            torch.testing.assert_close(y, causal_conv(x, h.repeat_interleave(channels // filters, -1)))


@pytest.mark.parametrize("shape", FILTERS[1:])
def test_gradients_are_summed_over_what_shares_a_filter(shape: tuple[int, ...]) -> None:
    x, h, dy = normal(3, 9, 12, grad=True), normal(*shape, grad=True), normal(3, 9, 12, seed=2)
    got = torch.autograd.grad(causal_conv(x, h), (x, h), dy)
    each = torch.stack([causal_conv(x[b], filters) for b, filters in enumerate(expanded(h, x))])
    for a, b in zip(got, torch.autograd.grad(each, (x, h), dy), strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_of_filters_of_each_sequence() -> None:
    arguments = (normal(2, 4, 4, grad=True), normal(2, 3, 2, grad=True))
    assert torch.autograd.gradcheck(causal_conv, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(causal_conv, arguments)
