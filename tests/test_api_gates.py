"""The gates of causal_conv: what they mean, which shapes and memory orders they may have, their derivatives."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor

import convscan
from convscan import causal_conv
from convscan.ops.causal_conv import reference
from test_api_causal_conv import normal

SHAPES = ((2, 7, 3), (7, 3), (3,), (7, 1), (2, 1, 3), (1, 1, 1))


def composed(
    x: Tensor, h: Tensor, bias: Tensor | None, pre: Tensor | None, post: Tensor | None, activation: str | None
) -> Tensor:
    """The same of PyTorch's own operators, a product at a time."""
    u = x if pre is None else pre * x
    z = sum(
        h[k] * torch.nn.functional.pad(u, (0, 0, k, 0))[..., : x.shape[-2], :] for k in range(h.shape[0])
    ) + torch.zeros_like(x)
    z = z if bias is None else z + bias
    z = z if post is None else post * z
    return {None: lambda z: z, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[activation](z)


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize(("before", "behind"), [*itertools.product((True, False), repeat=2)])
def test_gates_are_products_before_the_sum_and_behind_the_bias(
    before: bool, behind: bool, activation: str | None
) -> None:
    x, h, bias = normal(2, 7, 3), normal(4, 3), normal(3)
    pre, post = normal(2, 7, 3, seed=1) if before else None, normal(2, 7, 3, seed=2) if behind else None
    y = causal_conv(x, h, bias=bias, activation=activation, pre_gate=pre, post_gate=post)
    torch.testing.assert_close(y, composed(x, h, bias, pre, post, activation))


@pytest.mark.parametrize("shape", SHAPES)
def test_gates_that_broadcast(shape: tuple[int, ...]) -> None:
    x, h, gate = normal(2, 7, 3), normal(4, 3), normal(*shape, seed=3)
    for name in ("direct", "toeplitz", "fft", "recurrence", "reference"):
        with convscan.force(name):
            y = causal_conv(x, h, pre_gate=gate, post_gate=gate)
        torch.testing.assert_close(y, composed(x, h, None, gate, gate, None))


def test_the_state_has_had_the_gate() -> None:
    x, pre, h = normal(2, 20, 3), normal(2, 20, 3, seed=1), normal(4, 3)
    state = (pre * x)[:, 5:8]
    second = causal_conv(x[:, 8:], h, pre_gate=pre[:, 8:], initial_state=state)
    torch.testing.assert_close(second, causal_conv(x, h, pre_gate=pre)[:, 8:])


@pytest.mark.parametrize("taps", [4, 40, 300])
@pytest.mark.parametrize("time_contiguous", [False, True])
def test_in_place(time_contiguous: bool, taps: int) -> None:
    x, h = normal(2, 300, 34, dtype=torch.float32), normal(taps, 34, dtype=torch.float32)
    x = x.transpose(-1, -2).contiguous().transpose(-1, -2) if time_contiguous else x
    gates = {"pre_gate": torch.rand(2, 300, 34), "post_gate": torch.rand(2, 300, 34)}
    expected = causal_conv(x, h, **gates)
    with pytest.raises(ValueError, match="out must be x itself"):
        causal_conv(x, h, pre_gate=gates["pre_gate"], out=gates["pre_gate"])
    for _ in range(2):  # prepared, then remembered
        y = x.clone(memory_format=torch.preserve_format)
        assert causal_conv(y, h, out=y, **gates) is y
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_too_long_for_a_panel(dtype: torch.dtype) -> None:
    """Gates in the tiles that a transform makes of the output array."""
    x, h = normal(1, 24007, 18, dtype=dtype), normal(24007, 18, dtype=dtype) / 100
    pre, post, bias = normal(1, 24007, 18, seed=1, dtype=dtype), normal(24007, 18, dtype=dtype), normal(18, dtype=dtype)
    with convscan.force("fft"):
        y = causal_conv(x, h, bias=bias, activation="silu", pre_gate=pre, post_gate=post)
        z = causal_conv((x.double() * pre.double()), h.double(), bias=bias.double())
        expected = torch.nn.functional.silu(z * post.double())
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("shape", "activation"), [((2, 4, 2), "silu"), ((4, 2), None), ((2, 1, 2), None)])
def test_first_and_second_derivatives(shape: tuple[int, ...], activation: str | None) -> None:
    arguments = (
        normal(2, 4, 2, grad=True),
        normal(3, 2, grad=True),
        normal(2, grad=True),
        normal(2, 2, 2, grad=True),
        normal(*shape, seed=4, grad=True),
        normal(*shape, seed=5, grad=True),
    )

    def function(x: Tensor, h: Tensor, bias: Tensor, state: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return causal_conv(x, h, bias=bias, activation=activation, initial_state=state, pre_gate=pre, post_gate=post)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=activation is None)


@pytest.mark.parametrize("mapped", [*itertools.product((0, None), (0, 1, None), (0, None), (0, None))][:-1])
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    arguments = [
        tensor if axis is None else torch.stack([tensor, tensor + 1], axis)
        for tensor, axis in zip(
            (normal(2, 7, 3), normal(4, 3), normal(7, 3, seed=1), normal(7, 1, seed=2)), mapped, strict=True
        )
    ]

    def function(x: Tensor, h: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return causal_conv(x, h, pre_gate=pre, post_gate=post)

    y = torch.vmap(function, in_dims=mapped)(*arguments)
    for i in range(2):
        each = [t if axis is None else t.select(axis, i) for t, axis in zip(arguments, mapped, strict=True)]
        torch.testing.assert_close(y[i], function(*each))


def test_compile() -> None:
    def function(x: Tensor, h: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return causal_conv(x, h, pre_gate=pre, post_gate=post, activation="gelu")

    arguments = (normal(2, 7, 3, grad=True), normal(4, 3, grad=True), normal(7, 3, grad=True), normal(3, grad=True))
    y = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)(*arguments)
    torch.testing.assert_close(y, function(*arguments))
    for got, wanted in zip(
        torch.autograd.grad(y.sum(), arguments), torch.autograd.grad(function(*arguments).sum(), arguments), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_opcheck() -> None:
    x, h, gate = normal(2, 7, 3, grad=True), normal(4, 3, grad=True), normal(7, 1, grad=True)
    operands = (x, h, None, None, gate, gate.detach(), None, "silu", 1, False, "default", None)
    torch.library.opcheck(torch.ops.convscan.causal_conv.default, operands)
    torch.library.opcheck(
        torch.ops.convscan.causal_conv_filter_gradient.default,
        (x, x.detach(), None, gate, gate, None, 4, 1, True, "default"),
    )


def test_gates_that_do_not_fit_are_refused() -> None:
    x, h = torch.ones(2, 7, 3), torch.ones(4, 3)
    for gate in (torch.ones(2, 6, 3), torch.ones(2, 2, 7, 3)):
        text = f"causal_conv: post_gate must broadcast to the shape of x, (2, 7, 3); got {tuple(gate.shape)}"
        with pytest.raises(ValueError, match=re.escape(text)):
            causal_conv(x, h, post_gate=gate)


def test_half_types_are_multiplied_in_float32() -> None:
    x, pre, post = (normal(1, 200, 33, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3))
    h = normal(60, 33, dtype=torch.bfloat16)
    expected = reference.causal_conv(x, h, pre_gate=pre, post_gate=post)
    for name in ("direct", "toeplitz", "fft", "recurrence"):
        with convscan.force(name):
            y = causal_conv(x, h, pre_gate=pre, post_gate=post)
        # One rounding, of the result: half a unit in the last place of 8 bits.
        torch.testing.assert_close(y.double(), expected, rtol=2.0**-8, atol=1e-4)
