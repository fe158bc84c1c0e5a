"""causal_conv as a PyTorch operator: shapes, memory orders, errors, derivatives, transforms, compilation."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from convscan import causal_conv
from convscan.ops.causal_conv import reference


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def sample(
    *, shape: tuple[int, ...] = (2, 7, 3), taps: int = 4, grad: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, h = normal(*shape, grad=grad), normal(taps, shape[-1], grad=grad)
    return x, h, normal(shape[-1], grad=grad), normal(*shape[:-2], taps - 1, shape[-1], grad=grad)


def call(x: Tensor, h: Tensor, bias: Tensor, state: Tensor, activation: str | None = "silu") -> Tensor:
    return causal_conv(x, h, bias=bias, activation=activation, initial_state=state)


# ---- values, shapes, memory order ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize(("length", "taps"), [(0, 3), (1, 1), (1, 4), (9, 1), (9, 4), (5, 12), (40, 33)])
def test_matches_the_definition(dtype: torch.dtype, leading: tuple[int, ...], length: int, taps: int) -> None:
    x, h = normal(*leading, length, 5, dtype=dtype), normal(taps, 5, dtype=dtype)
    bias, state = normal(5, dtype=dtype), normal(*leading, taps - 1, 5, dtype=dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for activation, b, s in itertools.product((None, "silu", "gelu"), (None, bias), (None, state)):
        y = causal_conv(x, h, bias=b, activation=activation, initial_state=s)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        expected = reference.causal_conv(x, h, b, activation, s)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_memory_order_is_kept() -> None:
    x, h = normal(2, 3, 50, dtype=torch.float32).transpose(-1, -2), normal(4, 3, dtype=torch.float32)
    assert causal_conv(x, h).stride() == x.stride()
    for view in (x, x[:, ::2], x[..., 1:], x[:, 3:40], x.expand(2, 2, 50, 3), normal(2, 5, 50, 3)[:, 1:3].float()):
        filters = h[:, : view.shape[-1]]
        expected = reference.causal_conv(view, filters)
        torch.testing.assert_close(causal_conv(view, filters).double(), expected, rtol=1e-5, atol=1e-5)


def test_leading_axes_that_do_not_merge() -> None:
    x = normal(4, 3, 2, 11, 5).transpose(0, 2)[:, 1:]
    h, state = normal(3, 5), normal(3, 2, 4, 2, 5).permute(1, 0, 2, 3, 4)[:, 1:]
    y = causal_conv(x, h, initial_state=state)
    torch.testing.assert_close(y, reference.causal_conv(x, h, initial_state=state))


def test_one_filter_for_all_channels() -> None:
    x, h = normal(2, 9, 4, grad=True), normal(3, 1, grad=True)
    torch.testing.assert_close(causal_conv(x, h), causal_conv(x, h.expand(3, 4)))
    assert torch.autograd.gradcheck(causal_conv, (x, h))
    filters_in_time_order = normal(4, 3).T
    torch.testing.assert_close(causal_conv(x, filters_in_time_order), reference.causal_conv(x, filters_in_time_order))


def test_dtypes_are_promoted() -> None:
    x, h = normal(5, 2, dtype=torch.bfloat16), normal(3, 2, dtype=torch.float32)
    y = causal_conv(x, h)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, causal_conv(x.float(), h))


# ---- out ----


@pytest.mark.parametrize("time_contiguous", [False, True])
def test_out_may_be_the_input(time_contiguous: bool) -> None:
    x, h = normal(2, 40, 6, dtype=torch.float32), normal(5, 6, dtype=torch.float32)
    x = x.transpose(-1, -2).contiguous().transpose(-1, -2) if time_contiguous else x
    expected = causal_conv(x, h)
    memory = torch.empty_like(x)
    for _ in range(2):  # prepared, then remembered
        assert causal_conv(x, h, out=memory) is memory
        assert torch.equal(memory, expected)
    assert causal_conv(x, h, out=x) is x
    torch.testing.assert_close(x, expected)


def test_out_in_another_memory_order() -> None:
    x, h = normal(2, 6, 4), normal(3, 4)
    out = torch.empty(2, 4, 6, dtype=torch.float64).transpose(-1, -2)
    causal_conv(x, h, out=out)
    torch.testing.assert_close(out, causal_conv(x, h))


def test_out_that_partly_overlaps_is_refused() -> None:
    memory, h = normal(9, 2), normal(3, 2)
    with pytest.raises(ValueError, match=r"causal_conv: out must be x itself or memory that no input"):
        causal_conv(memory[:8], h, out=memory[1:])


# ---- errors ----

X, H = torch.ones(2, 7, 3), torch.ones(4, 3)
SHAPES = "h must have the shape (K, D) = (K, 3), (K, 1) or (K, H), H a divisor of D, K >= 1, or (..., K, D)"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor; got list. Convert it with torch.as_tensor(x)"),
        ({"x": torch.ones(3)}, ValueError, "x must have the shape (..., L, D); got (3,). Add the missing axis"),
        ({"x": X.int()}, TypeError, "x must have one of the dtypes float32, float64, bfloat16, float16; got int32"),
        ({"h": None}, TypeError, "h must be a torch.Tensor; got NoneType"),
        (
            {"h": torch.ones(3)},
            ValueError,
            f"{SHAPES}; got (3,)",
        ),
        (
            {"h": torch.ones(4, 2)},
            ValueError,
            f"{SHAPES}; got (4, 2)",
        ),
        (
            {"h": torch.ones(0, 3)},
            ValueError,
            f"{SHAPES}; got (0, 3)",
        ),
        ({"h": H.to("meta")}, ValueError, "h must be on the device of x, cpu; got meta. Move it with h.to(x.device)"),
        ({"h": H.to(torch.complex64)}, TypeError, "h must have one of the dtypes"),
        ({"activation": "relu"}, ValueError, "activation must be None, 'silu' or 'gelu'; got 'relu'"),
        ({"precision": "low"}, ValueError, "precision must be 'default' or 'high'; got 'low'"),
        ({"bias": torch.ones(2)}, ValueError, "bias must have the shape (D,) = (3,); got (2,)"),
        (
            {"initial_state": X},
            ValueError,
            "initial_state must have the shape (..., K-1, D) = (2, 3, 3); got (2, 7, 3)",
        ),
        ({"out": torch.ones(7, 3)}, ValueError, "out must have the shape of x = (2, 7, 3); got (7, 3)"),
        ({"out": X.double()}, TypeError, "out must have the dtype of the result, float32; got float64"),
        ({"h": H.clone().requires_grad_(), "out": X.clone()}, RuntimeError, "out cannot be given where a gradient is"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape("causal_conv: " + text)):
        causal_conv(**({"x": X, "h": H} | arguments))


# ---- derivatives ----


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize(("shape", "taps"), [((2, 5, 2), 3), ((2, 2), 4), ((3, 1), 1)])
def test_first_and_second_derivatives(activation: str | None, shape: tuple[int, ...], taps: int) -> None:
    arguments = sample(shape=shape, taps=taps)

    def function(*tensors: Tensor) -> Tensor:
        return call(*tensors, activation=activation)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True)


def test_gradients_in_either_memory_order_and_with_folded_axes() -> None:
    for x in (normal(2, 3, 6).transpose(1, 2), normal(3, 2, 6, 3).transpose(0, 1)[:, 1:]):
        leaf = x.detach().requires_grad_()
        assert torch.autograd.gradcheck(causal_conv, (leaf, normal(4, 3, grad=True)))


def test_half_gradients_are_summed_in_float32() -> None:
    x, h = normal(4, 300, 3, dtype=torch.bfloat16), normal(4, 3, dtype=torch.bfloat16, grad=True)
    causal_conv(x, h).sum().backward()
    expected = reference.filter_gradient(x, torch.ones_like(x), None, 4)
    assert h.grad is not None
    assert h.grad.dtype == torch.bfloat16
    torch.testing.assert_close(h.grad.double(), expected, rtol=1e-2, atol=1e-2)


def test_nothing_is_saved_but_inputs() -> None:
    x, h, bias, state = sample()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x, h, bias, state)
    assert set(saved) <= {t.data_ptr() for t in (x, h, bias, state)}


# ---- function transforms ----

AXES = list(itertools.product((0, 1, None), (0, 1, None), (0, None), (0, 2, None)))[:-1]  # not all None


@pytest.mark.parametrize("mapped", AXES)
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    arguments = [
        tensor.detach() if axis is None else torch.stack([tensor.detach(), tensor.detach() + 1, -tensor.detach()], axis)
        for tensor, axis in zip(sample(), mapped, strict=True)
    ]
    y = torch.vmap(call, in_dims=mapped)(*arguments)
    for i in range(3):
        each = [t if axis is None else t.select(axis, i) for t, axis in zip(arguments, mapped, strict=True)]
        torch.testing.assert_close(y[i], call(*each))


def test_vmap_of_one_filter_for_all_channels() -> None:
    x, filters = normal(2, 7, 3), normal(5, 4, 1)
    y = torch.vmap(causal_conv, in_dims=(None, 0))(x, filters)
    torch.testing.assert_close(y, torch.stack([causal_conv(x, h) for h in filters]))


def test_gradients_per_sample() -> None:
    x, h, bias, state = (tensor.detach() for tensor in sample(shape=(4, 7, 3)))

    def loss(h: Tensor, x: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return call(x, h, bias, state).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    gradients = torch.vmap(gradient, in_dims=(None, 0, None, 0))(h, x, bias, state)
    for i in range(4):
        for batched, single in zip(gradients, gradient(h, x[i], bias, state[i]), strict=True):
            torch.testing.assert_close(batched[i], single)


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_jacobians_and_hessians_agree(activation: str | None) -> None:
    x, h, bias, state = (tensor.detach() for tensor in sample(shape=(4, 2), taps=3))

    def function(h: Tensor) -> Tensor:
        return call(x, h, bias, state, activation)

    def energy(h: Tensor) -> Tensor:
        return function(h).pow(3).sum()

    torch.testing.assert_close(torch.func.jacfwd(function)(h), torch.func.jacrev(function)(h))
    hessian = torch.autograd.functional.hessian(energy, h)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(energy))(h), hessian)
    torch.testing.assert_close(torch.func.hessian(energy)(h), hessian)


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_jvp_matches_a_difference(activation: str | None) -> None:
    arguments = tuple(tensor.detach() for tensor in sample())
    tangents = tuple(normal(*tensor.shape, seed=9) for tensor in arguments)

    def function(*tensors: Tensor) -> Tensor:
        return call(*tensors, activation=activation)

    _, tangent = torch.func.jvp(function, arguments, tangents)
    step = 1e-6
    above = function(*(t + step * d for t, d in zip(arguments, tangents, strict=True)))
    below = function(*(t - step * d for t, d in zip(arguments, tangents, strict=True)))
    torch.testing.assert_close(tangent, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


# ---- compilation and export ----


def test_compile() -> None:
    arguments = sample()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(call(*arguments).sum(), arguments)
    y = compiled(*arguments)
    torch.testing.assert_close(y, call(*arguments))
    for got, wanted in zip(torch.autograd.grad(y.sum(), arguments), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_compile_with_dynamic_shapes_and_out() -> None:
    def function(x: Tensor, h: Tensor, out: Tensor) -> Tensor:
        return causal_conv(x, h, out=out)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 9):
        x, h = normal(2, length, 3), normal(4, 3)
        torch.testing.assert_close(compiled(x, h, torch.empty_like(x)), causal_conv(x, h))


class Module(torch.nn.Module):
    def forward(self, x: Tensor, h: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        return call(x, h, bias, state)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    arguments = tuple(tensor.detach() for tensor in sample())
    exported = torch.export.export(Module(), arguments, strict=strict)
    torch.testing.assert_close(exported.module()(*arguments), call(*arguments))
    assert any("convscan.causal_conv" in str(node.target) for node in exported.graph.nodes)


def test_opcheck() -> None:
    x, h, bias, state = sample()
    in_time_order = x.transpose(-1, -2).contiguous().transpose(-1, -2).detach()
    for arguments in [
        (x, h, bias, state, None, None, None, "silu", 0, False, "default", None),
        (x, h, None, None, None, None, None, None, 0, True, "default", None),
        (in_time_order, h, None, None, None, None, None, None, 0, False, "default", None),
        (x.detach().float(), h.detach().float(), None, None, None, None, None, None, 0, False, "high", None),
    ]:
        torch.library.opcheck(torch.ops.convscan.causal_conv.default, arguments)
    gradient, rest = torch.ops.convscan.causal_conv_filter_gradient.default, (None, None, None, 4, 0, False)
    torch.library.opcheck(gradient, (x, x.detach(), state, *rest, "default"))
    single = x.detach().float()
    torch.library.opcheck(gradient, (single, single, None, *rest, "high"))


def test_meta_tensors_have_shapes_only() -> None:
    assert causal_conv(X.to("meta"), H.to("meta")).shape == X.shape


def test_split_and_carry_equals_whole() -> None:
    x, h, _, state = sample(shape=(2, 20, 3), grad=False)
    past = torch.cat([state, x[:, :8]], 1)[:, -3:]
    first = causal_conv(x[:, :8], h, initial_state=state)
    second = causal_conv(x[:, 8:], h, initial_state=past)
    torch.testing.assert_close(torch.cat([first, second], 1), causal_conv(x, h, initial_state=state))
