"""Every gradient of a short convolution in one pass, against the definition differentiated by autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import _gpu

NAMES = ("triton_rolling", "triton_direct")
FIELDS = ("x", "h", "bias", "state", "pre_gate", "post_gate")


def truth(p: oracle.Convolution, dy: Tensor) -> list[Tensor | None]:
    """By autograd through a sum over taps, in double precision."""
    wide = {name: oracle.wide(t).requires_grad_() for name in FIELDS if (t := getattr(p, name)) is not None}
    q = replace(p, **wide)
    y = q.end(oracle._sum(q.extended(torch.float64), q.h))
    found = torch.autograd.grad(y, list(wide.values()), dy.double())
    by_name = dict(zip(wide, found, strict=True))
    return [by_name.get(name) for name in FIELDS]


def fused(p: oracle.Convolution, dy: Tensor, name: str, cu_seqlens: Tensor | None = None) -> list[Tensor | None] | None:
    tensors = [None if t is None else t.detach().requires_grad_() for t in (getattr(p, name) for name in FIELDS)]
    x, h, bias, state, pre, post = tensors
    with convscan.force(name):
        options = {"bias": bias, "initial_state": state, "pre_gate": pre, "post_gate": post, "cu_seqlens": cu_seqlens}
        y = convscan.causal_conv(x, h, activation=p.activation, **options)
        found = iter(torch.autograd.grad(y, [t for t in tensors if t is not None], dy))
    return [None if t is None else next(found) for t in tensors]


def check(found: list[Tensor | None], expected: list[Tensor | None], what: str) -> None:
    for name, one, exact in zip(FIELDS, found, expected, strict=True):
        if one is None:
            assert exact is None
            continue
        assert exact is not None
        stored = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(one.dtype, 0.0)
        bound = stored * exact.abs() + (200 * oracle.roundoff(one.dtype) + stored / 50) * exact.abs().max()
        assert ((one.double() - exact).abs() <= bound + 1e-7 * (stored > 0)).all(), f"{name}: {what}"


def problems(dtype: torch.dtype, name: str, count: int) -> list[oracle.Convolution]:
    """Those that the implementation takes."""
    found = []
    for p in oracle.convolutions(dtype, count=count, seed=12, limit=20_000):
        p = replace(p, h=p.h[:8], state=None if p.state is None else p.state[:, : min(8, p.h.shape[0]) - 1])
        if name == "triton_rolling" and (p.x.stride(-1) != 1 or p.h.shape[0] < 2):
            continue
        found.append(p)
    return found


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_gradient(name: str, dtype: torch.dtype) -> None:
    draw = oracle.Draw(13)
    ran = 0
    for p in problems(dtype, name, 9):
        dy = draw.normal(*p.x.shape, dtype=dtype)
        check(fused(p, dy, name), truth(p, dy), f"{p}")
        ran += 1
    assert ran >= 2


def test_gradients_of_packed_sequences() -> None:
    draw = oracle.Draw(14)
    bounds = [0, 3, 3, 4, 30, 41]
    for order in ("channels contiguous", "time contiguous"):
        x = oracle.in_order(draw.normal(2, 41, 6), order)
        h, state, gate = draw.normal(4, 6), draw.normal(2, 5, 3, 6), draw.normal(2, 41, 6)
        p = oracle.Convolution(x, h, activation="silu", state=state, post_gate=gate)
        dy = draw.normal(2, 41, 6)
        found = fused(p, dy, "triton_direct", torch.tensor(bounds))
        leaves = [t.detach().requires_grad_() for t in (x, h, state, gate)]
        with convscan.force("reference"):
            y = convscan.causal_conv(
                leaves[0], leaves[1], initial_state=leaves[2], post_gate=leaves[3], activation="silu",
                cu_seqlens=torch.tensor(bounds),
            )  # fmt: skip
            dx, dh, dstate, dpost = torch.autograd.grad(y, leaves, dy)
        check(found, [dx, dh, None, dstate, None, dpost], order)


def test_the_pass_is_taken_and_is_deterministic() -> None:
    """One kernel computes them all, where nobody differentiates the gradient."""
    x, h = torch.randn(2, 50, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    with convscan.force("triton_rolling"):
        y = convscan.causal_conv(x, h, activation="silu")
        with _gpu.recorded() as launches:
            torch.autograd.grad(y, (x, h), y.detach(), retain_graph=True)
        first = torch.autograd.grad(y, (x, h), y.detach(), retain_graph=True)
        again = torch.autograd.grad(y, (x, h), y.detach())
    assert [one.kernel.fn.__name__ for one in launches] == ["rolling"]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_impostors_are_seen() -> None:
    p = problems(torch.float32, "triton_direct", 12)[3]
    dy = torch.randn(p.x.shape)
    exact = truth(p, dy)
    for wrong in (torch.zeros_like(exact[0]), exact[0].roll(1, 1), exact[0].roll(1, 0) * 0.99):
        with pytest.raises(AssertionError):
            check([wrong.float(), *exact[1:]], exact, "")
    assert exact[1] is not None
    with pytest.raises(AssertionError):
        check([exact[0], exact[1].flip(0), *exact[2:]], exact, "")
