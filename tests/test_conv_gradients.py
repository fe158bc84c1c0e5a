"""The gradients of a convolution without gates from one operator: its values, and its own derivatives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import FilterSpectrum, causal_conv
from convscan.ops.causal_conv import reference

ROWS = oracle.rows("causal_conv_backward")


def gradients(
    x: Tensor, h: Tensor, dz: Tensor, state: Tensor | None, precision: str = "default", spectrum: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Of x, h and the state where there is one."""
    rest = (None, state, None, None, None, spectrum, None, 0, precision, [True, True, False, True, False, False])
    dx, dh, _, dstate, *_ = torch.ops.convscan.causal_conv_backward.default(dz, x, h, *rest)
    return (dx, dh) if state is None else (dx, dh, dstate)


def check(p: oracle.Convolution, dz: Tensor, dx: Tensor, dh: Tensor) -> None:
    """Each within 8 log2(M) roundoffs of the product of what the channel's sums have in norm."""
    u = oracle.roundoff(p.x.dtype)
    h = p.h.double().expand(-1, p.x.shape[2])
    samples, gradient = replace(p, pre_gate=None).extended(torch.float64), dz.double()
    width = 8 * u * math.log2(2 * samples.shape[1] + 2)
    stored = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dx.dtype, 0.0)
    exact = reference.causal_conv(gradient, h, transposed=True)
    bound = width * (h.norm(dim=0) * gradient.norm(dim=1))[:, None] + stored * exact.abs() + 2.0**-24 * (stored > 0)
    assert torch.all((dx.double() - exact).abs() <= bound), f"dx: {p}"
    exact, sums = reference.filter_gradient(p.x, dz, p.state, p.h.shape[0]), samples.norm(dim=1) * gradient.norm(dim=1)
    bound = width * sums.sum(0)
    if p.h.shape[1] == 1:
        exact, bound = exact.sum(1, keepdim=True), bound.sum()
    bound = bound + stored * exact.abs() + 2.0**-24 * (stored > 0)
    assert torch.all((dh.double() - exact).abs() <= bound), f"dh: {p}"


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_on_problems_of_hostile_sizes(name: str, dtype: torch.dtype, isa: str) -> None:
    draw = oracle.Draw(11)
    for index, p in enumerate(oracle.convolutions(dtype, count=40, seed=10, limit=500_000)):
        dz = oracle.in_order(draw.normal(*p.x.shape, dtype=dtype), oracle.ORDERS[index % 3])
        spectrum = None
        if index % 3 == 0 and p.h.shape[0] <= p.x.shape[1]:
            kind = {torch.float64: "float64", torch.float32: "float32"}.get(dtype, str(dtype).removeprefix("torch."))
            spectrum = FilterSpectrum(p.h, p.x.shape[1]).spectrum(p.h, kind)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with convscan.force(name):
                answers.append(gradients(p.x, p.h, dz, p.state, "default", spectrum)[:2])
        (dx, dh), (dx_again, dh_again) = answers
        check(p, dz, dx, dh)
        assert torch.equal(dx, dx_again), f"dx depends on the number of threads: {p}"
        assert torch.equal(dh, dh_again), f"dh depends on the number of threads: {p}"


def test_leading_axes_that_do_not_merge() -> None:
    draw = oracle.Draw(12)
    x = draw.normal(4, 3, 2, 300, 5).transpose(0, 2)[:, 1:].requires_grad_()
    h, state = draw.normal(200, 5).requires_grad_(), draw.normal(2, 2, 4, 199, 5).requires_grad_()
    for name in ROWS:
        with convscan.force(name):
            y = causal_conv(x, h, initial_state=state)
            found = torch.autograd.grad(y, (x, h, state), y.detach())
        rows = [t.detach().reshape(-1, *t.shape[-2:]) for t in (x, state, y)]
        torch.testing.assert_close(found[0].reshape(rows[0].shape), reference.causal_conv(rows[2], h, transposed=True))
        torch.testing.assert_close(found[1], reference.filter_gradient(rows[0], rows[2], rows[1], 200))


def test_memory_order_of_the_filter_is_kept() -> None:
    x = torch.randn(2, 64, 5).requires_grad_()
    for h in (torch.randn(40, 5), torch.randn(5, 40).mT):
        h.requires_grad_()
        dh = torch.autograd.grad(causal_conv(x, h).sum(), (x, h))[1]
        assert dh.stride() == h.stride()


@pytest.mark.parametrize("precision", ["default", "high"])
def test_derivatives_of_gradients(precision: str) -> None:
    draw = oracle.Draw(13)
    shapes = ((2, 6, 2), (4, 2), (2, 6, 2), (2, 3, 2))
    arguments = tuple(draw.normal(*shape).requires_grad_() for shape in shapes)

    def function(x: Tensor, h: Tensor, dz: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        with convscan.force("fft"):
            return gradients(x, h, dz, state, precision)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)
    x, h, dz, state = arguments
    rest = (None, None, None, None, None, 0, precision, [True, True, False, True, False, False])
    for of_h, of_state in ((h, state), (h[:, :1].detach().requires_grad_(), None)):
        torch.library.opcheck(torch.ops.convscan.causal_conv_backward.default, (dz, x, of_h, None, of_state, *rest))


@pytest.mark.parametrize("mapped", [(0, None, None, None), (1, 0, None, 2), (None, 1, 0, None), (None, None, 2, None)])
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    draw = oracle.Draw(14)
    shapes = ((2, 6, 3), (4, 3), (2, 6, 3), (2, 3, 3))
    arguments = [
        draw.normal(*shape) if axis is None else torch.stack([draw.normal(*shape) for _ in range(3)], axis)
        for shape, axis in zip(shapes, mapped, strict=True)
    ]

    together = torch.vmap(gradients, in_dims=mapped)(*arguments)
    for i in range(3):
        each = [t if axis is None else t.select(axis, i) for t, axis in zip(arguments, mapped, strict=True)]
        for got, wanted in zip(together, gradients(*each), strict=True):
            torch.testing.assert_close(got[i], wanted)
