"""linear_recurrence as a PyTorch operator: shapes, memory orders, errors, derivatives, transforms, compilation."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan import linear_recurrence
from convscan._calls import run_prepared
from convscan.ops.linear_recurrence import reference
from convscan.ops.linear_recurrence.api import _prepared

REAL = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.complex64: 2e-5}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype).requires_grad_(grad)


def gates(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    """Coefficients of magnitude below 1, of either sign or any phase."""
    wide = normal(*shape, seed=3, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    return (0.9 * wide / (0.5 + wide.abs())).to(dtype).requires_grad_(grad)


def sample(
    dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2, 6, 3), grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    start = normal(*shape[:-2], shape[-1], dtype=dtype, grad=grad)
    return normal(*shape, dtype=dtype, grad=grad), start, gates(*shape, dtype=dtype, grad=grad)


# ---- values, shapes, memory order ----


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64, torch.complex128])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_matches_the_definition(dtype: torch.dtype, leading: tuple[int, ...], length: int) -> None:
    x, start, a = sample(dtype, (*leading, length, 5), grad=False)
    coefficients = [
        a,
        gates(5, dtype=dtype),
        gates(length, 1, dtype=dtype),
        gates(dtype=dtype),
        gates(1, 5, dtype=dtype),
    ]
    tolerance = TOLERANCE.get(dtype, 1e-12)
    for reverse, y_init, a in itertools.product((False, True), (None, start), coefficients):
        y = linear_recurrence(x, y_init, a, reverse=reverse)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        expected = reference.linear_recurrence(x, y_init, a, reverse)
        torch.testing.assert_close(y.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)


def test_memory_order_is_kept() -> None:
    x, a = normal(2, 3, 50, dtype=torch.float32).mT, gates(2, 3, 50, dtype=torch.float32).mT
    assert linear_recurrence(x, None, a).stride() == x.stride()
    for x_view, a_view in [(x, a), (x[:, ::2], a[:, ::2]), (x[..., 1:], a[..., :-1]), (x, a.contiguous())]:
        expected = reference.linear_recurrence(x_view, None, a_view)
        torch.testing.assert_close(linear_recurrence(x_view, None, a_view).double(), expected, rtol=1e-5, atol=1e-5)


def test_leading_axes_that_do_not_merge() -> None:
    x = normal(4, 3, 2, 11, 5).transpose(0, 2)[:, 1:]
    for a in (gates(2, 2, 4, 11, 5), gates(2, 4, 1, 5), gates(4, 11, 5), gates(2, 1, 1, 1, 5)):
        start = normal(4, 2, 2, 5).transpose(0, 2)
        y = linear_recurrence(x, start, a)
        torch.testing.assert_close(y, reference.linear_recurrence(x, start, a))


def test_dtypes_are_promoted() -> None:
    x, _, a = sample(torch.float32, grad=False)
    y = linear_recurrence(x, None, a.to(torch.complex64))
    assert y.dtype == torch.complex64
    torch.testing.assert_close(y.real, linear_recurrence(x, None, a))
    assert linear_recurrence(x.bfloat16(), None, a).dtype == torch.float32


def test_lazy_conjugates_are_carried_out() -> None:
    x, start, a = sample(torch.complex64, grad=False)
    plain = linear_recurrence(x, start, a)  # remembers the call of this layout
    torch.testing.assert_close(linear_recurrence(x.conj(), start.conj(), a.conj()), plain.conj())
    out = torch.empty_like(x)
    linear_recurrence(x.conj(), start.conj(), a.conj(), out=out)
    torch.testing.assert_close(out, plain.conj().resolve_conj())


# ---- packed sequences ----

BOUNDS = [0, 0, 3, 4, 4, 9, 9]  # empty ones at both ends and inside, one of a single step


def packed_sample(
    dtype: torch.dtype = torch.float64, leading: tuple[int, ...] = (2,), grad: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, _, a = sample(dtype, (*leading, BOUNDS[-1], 3), grad=grad)
    return x, normal(*leading, len(BOUNDS) - 1, 3, dtype=dtype, grad=grad), a, torch.tensor(BOUNDS)


def one_by_one(x: Tensor, start: Tensor | None, a: Tensor, cu_seqlens: Tensor, reverse: bool = False) -> Tensor:
    """Every sequence by a call of its own."""
    a = a.expand(x.shape)
    parts = [slice(begin, end) for begin, end in itertools.pairwise(cu_seqlens.tolist())]
    pieces = [
        linear_recurrence(
            x[..., part, :], None if start is None else start[..., s, :], a[..., part, :], reverse=reverse
        )
        for s, part in enumerate(parts)
    ]
    return torch.cat(pieces, -2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("leading", [(), (2,), (2, 2), (0,)])
def test_packed_sequences_know_nothing_of_each_other(leading: tuple[int, ...], reverse: bool) -> None:
    x, start, a, cu_seqlens = packed_sample(leading=leading, grad=False)
    a[..., 3:4, :] = torch.inf  # what one step of one sequence does stays there
    for y_init, coefficients in itertools.product((None, start), (a, a[..., :1, :], gates(3))):
        y = linear_recurrence(x, y_init, coefficients, reverse=reverse, cu_seqlens=cu_seqlens)
        expected = one_by_one(x, y_init, coefficients, cu_seqlens, reverse)
        torch.testing.assert_close(y, expected, equal_nan=True)


def test_packed_boundaries_are_read_at_every_call() -> None:
    x, _, a, cu_seqlens = packed_sample(grad=False)
    linear_recurrence(x, None, a, cu_seqlens=cu_seqlens)
    cu_seqlens[2:5] = torch.tensor([1, 7, 8])
    y = linear_recurrence(x, None, a, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(y, one_by_one(x, None, a, cu_seqlens))
    wrong = cu_seqlens.clone()
    wrong[3] = 0
    with pytest.raises(ValueError, match="linear_recurrence: cu_seqlens must not decrease; got 0 after 1 at 3"):
        linear_recurrence(x, None, a, cu_seqlens=wrong)
    for bounds in ([0, 8], [1, 9], [0, 10]):
        with pytest.raises(ValueError, match="linear_recurrence: cu_seqlens must begin with 0 and end with L = 9"):
            linear_recurrence(x, None, a, cu_seqlens=torch.tensor(bounds))
    with convscan.force("reference"), pytest.raises(ValueError, match="linear_recurrence: cu_seqlens must not decr"):
        linear_recurrence(x, None, a, cu_seqlens=wrong)
    with pytest.raises(ValueError, match=r"linear_recurrence: y_init must have the shape \(..., S, D\) = \(2, 6, 3\)"):
        linear_recurrence(x, x[:, 0], a, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("coefficients", [(2, 9, 3), (3,)])
def test_packed_derivatives(dtype: torch.dtype, reverse: bool, coefficients: tuple[int, ...]) -> None:
    x, start, _, cu_seqlens = packed_sample(dtype)
    a = gates(*coefficients, dtype=dtype, grad=True)

    def function(x: Tensor, start: Tensor, a: Tensor) -> Tensor:
        return linear_recurrence(x, start, a, reverse=reverse, cu_seqlens=cu_seqlens)

    inputs = (x, start, a)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)
    weight = normal(2, 9, 3, seed=4, dtype=dtype)
    gradients = torch.autograd.grad(function(*inputs), inputs, weight)
    composed = torch.autograd.grad(function(*inputs), inputs, weight, create_graph=True)
    expected = torch.autograd.grad(one_by_one(*inputs, cu_seqlens, reverse), inputs, weight)
    for fused, recorded, wanted in zip(gradients, composed, expected, strict=True):
        torch.testing.assert_close(fused, wanted)
        torch.testing.assert_close(recorded, wanted)


def test_packed_transforms() -> None:
    x, start, a, cu_seqlens = (tensor.detach() for tensor in packed_sample(leading=(3,)))
    others = torch.stack([cu_seqlens, torch.tensor([0, 1, 2, 3, 4, 5, 9]), torch.tensor([0, 9, 9, 9, 9, 9, 9])])

    def loss(x: Tensor, start: Tensor, a: Tensor, cu_seqlens: Tensor) -> Tensor:
        return linear_recurrence(x, start, a, cu_seqlens=cu_seqlens).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    for bounds, axis in ((cu_seqlens, None), (others, 0)):
        results = torch.vmap(gradient, in_dims=(0, 0, 0, axis))(x, start, a, bounds)
        for i in range(3):
            singles = gradient(x[i], start[i], a[i], bounds if axis is None else bounds[i])
            for mapped, single in zip(results, singles, strict=True):
                torch.testing.assert_close(mapped[i], single)


def test_packed_compilation_and_export() -> None:
    x, start, a, cu_seqlens = packed_sample()

    class Packed(torch.nn.Module):
        def forward(self, x: Tensor, start: Tensor, a: Tensor, cu_seqlens: Tensor) -> Tensor:
            return linear_recurrence(x, start, a, cu_seqlens=cu_seqlens)

    expected = one_by_one(x, start, a, cu_seqlens)
    y = torch.compile(Packed(), fullgraph=True, backend="aot_eager", dynamic=True)(x, start, a, cu_seqlens)
    torch.testing.assert_close(y, expected)
    wanted = torch.autograd.grad(expected.sum(), (x, start, a))
    for got, want in zip(torch.autograd.grad(y.sum(), (x, start, a)), wanted, strict=True):
        torch.testing.assert_close(got, want)
    arguments = (x.detach(), start.detach(), a.detach(), cu_seqlens)
    torch.testing.assert_close(torch.export.export(Packed(), arguments).module()(*arguments), expected)
    operator = torch.ops.convscan.linear_recurrence.default
    torch.library.opcheck(operator, (x, start, a, cu_seqlens, False))
    gradient = torch.ops.convscan.linear_recurrence_gradient.default
    y = operator(*arguments, True)
    torch.library.opcheck(gradient, (x.detach(), start.detach(), a.detach(), y, cu_seqlens, True, True, True))


# ---- out ----


@pytest.mark.parametrize("time_contiguous", [False, True])
def test_out_may_be_the_input(time_contiguous: bool) -> None:
    x, start, a = sample(torch.float32, (2, 40, 6), grad=False)
    x = x.mT.contiguous().mT if time_contiguous else x
    expected = linear_recurrence(x, start, a)
    memory = torch.empty_like(x)
    for _ in range(2):  # prepared, then remembered
        assert linear_recurrence(x, start, a, out=memory) is memory
        assert torch.equal(memory, expected)
    assert linear_recurrence(x, start, a, out=x) is x
    torch.testing.assert_close(x, expected)


def test_constant_coefficients_take_the_prepared_way() -> None:
    x, y_init, a = normal(2, 5, 3), normal(2, 3), normal(3)
    y = linear_recurrence(x, y_init, a)
    again = run_prepared(_prepared, False, x, y_init, a, None, None)
    assert again is not None, "a call with coefficients (D,) was not remembered"
    assert torch.equal(again, y)
    torch.testing.assert_close(y, reference.linear_recurrence(x, y_init, a.expand(x.shape), False))


def test_out_that_partly_overlaps_is_refused() -> None:
    memory, a = normal(9, 2), gates(8, 2)
    with pytest.raises(ValueError, match=r"linear_recurrence: out must be x itself or memory that no input"):
        linear_recurrence(memory[:8], None, a, out=memory[1:])


# ---- errors ----

X, A = torch.ones(2, 7, 3), torch.ones(7, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": 1.0}, TypeError, "x must be a torch.Tensor; got float. Convert it with torch.as_tensor(x)"),
        ({"x": torch.ones(3)}, ValueError, "x must have the shape (..., L, D); got (3,). Add the missing axis"),
        ({"x": X.long()}, TypeError, "x must have one of the dtypes float32, float64, bfloat16, float16, complex64, c"),
        ({"a": 0.5}, TypeError, "a must be a torch.Tensor; got float. Convert it with torch.as_tensor(a)"),
        ({"a": torch.ones(2, 5, 3)}, ValueError, "a must broadcast to the shape of x, (2, 7, 3); got (2, 5, 3)"),
        ({"a": torch.ones(1, 2, 7, 3)}, ValueError, "a must broadcast to the shape of x, (2, 7, 3); got (1, 2, 7, 3)"),
        ({"a": A.to("meta")}, ValueError, "a must be on the device of x, cpu; got meta. Move it with a.to(x.device)"),
        ({"y_init": torch.ones(3)}, ValueError, "y_init must have the shape (..., D) = (2, 3); got (3,)"),
        ({"y_init": torch.ones(2, 3).bool()}, TypeError, "y_init must have one of the dtypes"),
        ({"out": torch.ones(7, 3)}, ValueError, "out must have the shape of x = (2, 7, 3); got (7, 3)"),
        ({"out": X.double()}, TypeError, "out must have the dtype of the result, float32; got float64"),
        ({"a": A.clone().requires_grad_(), "out": X.clone()}, RuntimeError, "out cannot be given where a gradient is"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape("linear_recurrence: " + text)):
        linear_recurrence(**({"x": X, "y_init": None, "a": A} | arguments))


# ---- derivatives ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("coefficients", [(2, 4, 2), (2,), (4, 1), (2, 1, 2), (1, 4, 2)])
def test_first_and_second_derivatives(dtype: torch.dtype, reverse: bool, coefficients: tuple[int, ...]) -> None:
    x, start, _ = sample(dtype, (2, 4, 2))
    a = gates(*coefficients, dtype=dtype, grad=True)

    def function(x: Tensor, start: Tensor, a: Tensor) -> Tensor:
        return linear_recurrence(x, start, a, reverse=reverse)

    assert torch.autograd.gradcheck(function, (x, start, a), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, (x, start, a), check_fwd_over_rev=True)


@pytest.mark.parametrize("length", [1, 3])
def test_derivatives_without_an_initial_value(length: int) -> None:
    x, _, a = sample(shape=(length, 2))
    assert torch.autograd.gradcheck(lambda x, a: linear_recurrence(x, None, a), (x, a), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, a: linear_recurrence(x, None, a), (x, a))


def test_gradients_with_folded_axes() -> None:
    x = normal(3, 2, 4, 3).transpose(0, 1)[:, 1:].detach().requires_grad_()
    for shape in ((2, 1, 4, 3), (2, 4, 3), (3,), (2, 2, 4, 3)):
        assert torch.autograd.gradcheck(lambda x, a: linear_recurrence(x, None, a), (x, gates(*shape, grad=True)))


def test_empty_signals_have_gradients() -> None:
    for shape in ((0, 4, 3), (2, 0, 3)):
        x, start, a = sample(shape=shape)
        linear_recurrence(x, start, a).sum().backward()
        assert start.grad is not None
        assert torch.equal(start.grad, torch.zeros_like(start))


def test_nothing_is_saved_but_inputs_and_output() -> None:
    x, start, a = sample()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = linear_recurrence(x, start, a)
    assert set(saved) <= {t.data_ptr() for t in (start, a, y)}


# ---- function transforms ----


@pytest.mark.parametrize("mapped", list(itertools.product((0, 1, None), (0, None), (0, 2, None)))[:-1])
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    arguments = [
        tensor.detach() if axis is None else torch.stack([tensor.detach(), 0.5 * tensor.detach()], axis)
        for tensor, axis in zip(sample(), mapped, strict=True)
    ]
    y = torch.vmap(linear_recurrence, in_dims=mapped)(*arguments)
    for i in range(2):
        each = [t if axis is None else t.select(axis, i) for t, axis in zip(arguments, mapped, strict=True)]
        torch.testing.assert_close(y[i], linear_recurrence(*each))


@pytest.mark.parametrize("constant", [False, True])
def test_gradients_per_sample(constant: bool) -> None:
    x, start, a = (tensor.detach() for tensor in sample(shape=(4, 6, 3)))
    a = a[0, 0] if constant else a[0]

    def loss(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
        return linear_recurrence(x, start, a).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    gradients = torch.vmap(gradient, in_dims=(None, 0, 0))(a, x, start)
    for i in range(4):
        for batched, single in zip(gradients, gradient(a, x[i], start[i]), strict=True):
            torch.testing.assert_close(batched[i], single)


def test_jacobians_and_hessians_agree() -> None:
    x, start, a = (tensor.detach() for tensor in sample(shape=(4, 2)))

    def function(a: Tensor) -> Tensor:
        return linear_recurrence(x, start, a)

    def energy(a: Tensor) -> Tensor:
        return function(a).pow(3).sum()

    torch.testing.assert_close(torch.func.jacfwd(function)(a), torch.func.jacrev(function)(a))
    hessian = torch.autograd.functional.hessian(energy, a)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(energy))(a), hessian)
    torch.testing.assert_close(torch.func.hessian(energy)(a), hessian)


# ---- compilation and export ----


@pytest.mark.parametrize("reverse", [False, True])
def test_compile(reverse: bool) -> None:
    x, start, _ = sample()
    for a in (gates(2, 6, 3, grad=True), gates(3, grad=True)):

        def function(x: Tensor, start: Tensor, a: Tensor) -> Tensor:
            return linear_recurrence(x, start, a, reverse=reverse)

        y = torch.compile(function, fullgraph=True, backend="aot_eager")(x, start, a)
        torch.testing.assert_close(y, function(x, start, a))
        expected = torch.autograd.grad(function(x, start, a).sum(), (x, start, a))
        for got, wanted in zip(torch.autograd.grad(y.sum(), (x, start, a)), expected, strict=True):
            torch.testing.assert_close(got, wanted)


class Module(torch.nn.Module):
    def forward(self, x: Tensor, start: Tensor, a: Tensor) -> Tensor:
        return linear_recurrence(x, start, a)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    arguments = tuple(tensor.detach() for tensor in sample())
    exported = torch.export.export(Module(), arguments, strict=strict)
    torch.testing.assert_close(exported.module()(*arguments), linear_recurrence(*arguments))
    assert any("convscan.linear_recurrence" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_opcheck(dtype: torch.dtype) -> None:
    x, start, a = sample(dtype)
    operator = torch.ops.convscan.linear_recurrence.default
    torch.library.opcheck(operator, (x, start, a, None, False))
    torch.library.opcheck(operator, (x, None, gates(1, 1, 3, dtype=dtype, grad=True), None, True))
    gradient = torch.ops.convscan.linear_recurrence_gradient.default
    y = operator(x, start, a, None, False).detach()
    torch.library.opcheck(gradient, (x.detach(), start.detach(), a.detach(), y, None, False, True, True))
