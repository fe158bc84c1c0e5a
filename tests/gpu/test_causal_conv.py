"""The convolution as a sum over taps on GPUs, judged by the oracle of all implementations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan.ops.causal_conv import reference

NAMES = ("triton_direct", "triton_rolling")
GRADIENTS = ("triton_direct",)


def convolve(p: oracle.Convolution, name: str) -> Tensor | None:
    """The implementation's answer, or None where it states why it cannot run the problem."""
    row = next(c for c in convscan.explain("causal_conv", p.x, p.h, **p.options()).candidates if c.name == name)
    if row.cost is None:
        assert row.reasons
        return None
    with convscan.force(name):
        return convscan.causal_conv(p.x, p.h, **p.options())


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_convolution(name: str, dtype: torch.dtype) -> None:
    ran = 0
    for p in oracle.convolutions(dtype, count=20, seed=1, limit=10_000):
        y = convolve(p, name)
        if y is not None:
            ran += 1
            p.check(y, is_transform=False)
    assert ran >= 4


@pytest.mark.parametrize("impostor", oracle.CONVOLUTION_IMPOSTORS)
def test_the_oracle_sees_wrong_answers_here_too(impostor: str) -> None:
    """On the very problems that the kernels are judged by."""
    caught = 0
    for p in oracle.convolutions(torch.float32, count=20, seed=1, limit=10_000):
        wrong = oracle.CONVOLUTION_IMPOSTORS[impostor](p)
        if (wrong - p.truth()).norm() > 0.02 * p.truth().norm():
            with pytest.raises(oracle.Mismatch):
                p.check(wrong.float(), is_transform=False)
            caught += 1
    assert caught > 0 or impostor == "computed in bfloat16"


def close(y: Tensor, exact: Tensor, sums: int) -> None:
    """Within what rounding to the type of y and that many additions in its arithmetic come to."""
    stored = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(y.dtype, 0.0)
    scale = exact.abs().max()
    assert ((y.double() - exact).abs() <= stored * exact.abs() + 8 * oracle.roundoff(y.dtype) * sums * scale).all()


@pytest.mark.parametrize(
    ("name", "time_contiguous"), [("triton_direct", False), ("triton_direct", True), ("triton_rolling", False)]
)
def test_both_directions_and_origins(name: str, time_contiguous: bool) -> None:
    draw = oracle.Draw(2)
    for taps, origin in ((3, 0), (4, 2), (5, 4)):
        x = draw.normal(2, 37, 33, dtype=torch.float32)
        x = oracle.in_order(x, "time contiguous" if time_contiguous else "channels contiguous")
        h, gate = draw.normal(taps, 33, dtype=torch.float32), draw.normal(37, 33, dtype=torch.float32)
        for transposed in (False, True):
            call = torch.ops.convscan.causal_conv.default
            with convscan.force(name):
                y = call(x, h, None, None, gate, None, None, None, origin, transposed, "default", None)
            exact = reference.causal_conv(x, h, transposed=transposed, pre_gate=gate, origin=origin)
            close(y, exact, taps)


def test_packed_sequences_and_their_states() -> None:
    draw = oracle.Draw(3)
    bounds = [0, 5, 5, 6, 40, 67]
    for taps, order in ((4, "channels contiguous"), (9, "time contiguous")):
        x = oracle.in_order(draw.normal(2, 67, 18, dtype=torch.float32), order)
        h, state = draw.normal(taps, 18, dtype=torch.float32), draw.normal(2, 5, taps - 1, 18, dtype=torch.float32)
        for past in (None, state):
            with convscan.force("triton_direct"):
                y = convscan.causal_conv(x, h, initial_state=past, cu_seqlens=torch.tensor(bounds))
            for s, (begin, end) in enumerate(pairwise(bounds)):
                one = oracle.Convolution(x[:, begin:end], h, state=None if past is None else past[:, s])
                one.check(y[:, begin:end], is_transform=False)
        with convscan.force("triton_direct"):
            packed = torch.tensor(bounds)
            y = torch.ops.convscan.causal_conv.default(
                x, h, None, None, None, None, packed, None, 0, True, "default", None
            )
        close(y, reference.causal_conv(x, h, transposed=True, boundaries=bounds), taps)


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_and_shared_filters(name: str) -> None:
    """Axes that do not merge, filters of groups of channels and of each sequence, in place."""
    draw = oracle.Draw(4)
    x = draw.normal(2, 3, 4, 20, 6, dtype=torch.float32).transpose(0, 2)[:, 1:]
    for h in (draw.normal(3, 6), draw.normal(3, 2), draw.normal(3, 1), draw.normal(4, 2, 2, 3, 6)):
        h = h.float()
        with convscan.force(name):
            y = convscan.causal_conv(x, h, activation="gelu")
            again = convscan.causal_conv(x, h, activation="gelu")
        assert torch.equal(y, again)
        filters = h if h.ndim == 2 else h.expand(4, 2, 2, 3, 6)
        exact = reference.causal_conv(x, filters, None, "gelu")
        close(y, exact, 3)


@pytest.mark.parametrize("name", NAMES)
def test_high_precision(name: str) -> None:
    x, h = torch.randn(1, 100, 32), torch.randn(20, 32)
    with convscan.force(name):
        y = convscan.causal_conv(x, h, precision="high")
    assert torch.equal(y, reference.causal_conv(x, h).float())


def test_in_place_is_safe() -> None:
    """A result in the memory of x: neighbouring programs still read it."""
    for p in oracle.convolutions(torch.float32, count=6, seed=5, limit=20_000):
        x = p.x.clone()
        with convscan.force("triton_direct"):
            convscan.causal_conv(x, p.h, out=x, **p.options())
        p.check(x, is_transform=False)


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_filter_gradient(name: str, dtype: torch.dtype) -> None:
    draw = oracle.Draw(6)
    gradient = torch.ops.convscan.causal_conv_filter_gradient.default
    for index, p in enumerate(oracle.convolutions(dtype, count=12, seed=7, limit=20_000)):
        dz = oracle.in_order(draw.normal(*p.x.shape, dtype=dtype), oracle.ORDERS[index % 3])
        taps, per_batch = p.h.shape[0], index % 4 == 3
        origin = min(index % 3, taps - 1) if p.state is None else 0
        with convscan.force(name):
            dh = gradient(p.x, dz, p.state, p.pre_gate, p.post_gate, None, taps, origin, per_batch, "default")
        options = {"x_gate": p.pre_gate, "dz_gate": p.post_gate, "origin": origin}
        exact = reference.filter_gradient(p.x, dz, p.state, taps, per_batch=per_batch, **options)
        u = p.extended(torch.float64).norm(dim=1)
        of_dz = (dz.double() if p.post_gate is None else dz.double() * p.post_gate.double()).norm(dim=1)
        bound = 8 * oracle.roundoff(dtype) * (u * of_dz if per_batch else (u * of_dz).sum(0))
        assert torch.all((dh.double() - exact).abs().amax(-2) <= bound), str(p)


def test_gradient_of_packed_filters() -> None:
    draw = oracle.Draw(8)
    x, dz = (draw.normal(2, 40, 5, dtype=torch.float32) for _ in range(2))
    state, bounds = draw.normal(2, 3, 3, 5, dtype=torch.float32), [0, 2, 25, 40]
    with convscan.force("triton_direct"):
        dh = torch.ops.convscan.causal_conv_filter_gradient.default(
            x, dz, state, None, None, torch.tensor(bounds), 4, 0, False, "default"
        )
    close(dh, reference.filter_gradient(x, dz, state, 4, boundaries=bounds), 40)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 1, 1)])
def test_empty_and_single(shape: tuple[int, int, int]) -> None:
    """By every implementation."""
    x = torch.ones(shape)
    for name in (row.name for row in convscan.implementations("causal_conv") if row.target == "triton"):
        y = convolve(oracle.Convolution(x, torch.ones(4, shape[2])), name)
        assert y is None or torch.allclose(y, x)
    for name in GRADIENTS:
        with convscan.force(name):
            dh = torch.ops.convscan.causal_conv_filter_gradient.default(
                x, x, None, None, None, None, 2, 0, False, "default"
            )
        assert torch.equal(dh, reference.filter_gradient(x, x, None, 2).float())


def test_derivatives_through_the_public_function() -> None:
    draw = oracle.Draw(9)
    given = [draw.normal(1, 11, 4), draw.normal(3, 4), draw.normal(4), draw.normal(1, 2, 4), draw.normal(1, 11, 4)]
    leaves = [tensor.requires_grad_() for tensor in given]

    def call(x: Tensor, h: Tensor, bias: Tensor, state: Tensor, gate: Tensor) -> Tensor:
        return convscan.causal_conv(x, h, bias=bias, initial_state=state, pre_gate=gate, activation="silu")

    with convscan.force("triton_direct"):
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    with convscan.force("reference"):
        expected = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    with convscan.force("triton_direct"):
        found = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_tap_and_a_shifted_one_have_closed_forms() -> None:
    x = torch.arange(1.0, 41.0).reshape(1, 20, 2).expand(1, 20, 2)
    h = torch.zeros(5, 2)
    h[4] = 2.0
    for name in NAMES:
        with convscan.force(name):
            y = convscan.causal_conv(x, h)
        assert torch.equal(y[:, 4:], 2 * x[:, :-4])
        assert torch.equal(y[:, :4], torch.zeros(1, 4, 2))


def test_replaced_problem_is_refused_with_reasons() -> None:
    p = next(oracle.convolutions(torch.float32, count=1, seed=1, limit=1000))
    problem = convscan.explain("causal_conv", p.x, p.h).problem._replace(device="mps")
    for row in convscan.implementations("causal_conv"):
        if row.target == "triton":
            assert "runs on cuda, not on mps" in row.why_not(problem)
