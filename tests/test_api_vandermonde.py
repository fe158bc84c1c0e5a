"""vandermonde, its adjoint and cauchy: values on every instruction set, derivatives, compilation, errors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

import convscan
from convscan import cauchy, vandermonde
from convscan.ops.cauchy import cases as cauchy_cases
from convscan.ops.cauchy import reference as cauchy_reference
from convscan.ops.vandermonde import cases, reference
from convscan.ops.vandermonde.api import vandermonde_adjoint

COMPLEX = [torch.complex64, torch.complex128]
# Of the largest value; terms may cancel, and partial sums are rounded.
TOLERANCE = {torch.complex64: 5e-6, torch.complex128: 1e-14}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128, grad: bool = False) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    generator = torch.Generator().manual_seed(seed + 7 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype).requires_grad_(grad)


def stable(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128, grad: bool = False) -> Tensor:
    """Numbers inside the unit circle, some of them zero, tiny, on the circle or a little outside."""
    z = normal(*shape, seed=seed)
    a = z / (0.2 + z.abs())
    a = torch.where(normal(*shape, seed=seed + 1).real > 1.5, 0.0, a)
    a = torch.where(normal(*shape, seed=seed + 2).real > 1.5, 1e-30 * a, a)
    a = torch.where(normal(*shape, seed=seed + 3).real > 1.5, 1.0005 * z / z.abs(), a)
    return a.to(dtype).requires_grad_(grad)


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Off by at most ``tolerance`` times the largest value; NaN fails."""
    assert got.shape == expected.shape
    if got.numel():
        scale = expected.abs().max()
        error = (got.to(expected.dtype) - expected).abs()
        assert bool((error <= tolerance * scale).all()), f"off by {float((error / scale).max()):.3g} of the scale"


# ---- values ----


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_products_with_powers(order: int, dtype: torch.dtype, isa: str) -> None:
    lengths = (0, 1, 3, 24, 25, 95, 97, 129, 577, 1021)
    for seed, (length, terms) in enumerate(itertools.product(lengths, (1, 3, 64, 65))):
        rows = 1 + seed % 3
        c, a = normal(rows, terms, seed=seed, dtype=dtype), stable(rows, terms, seed=seed, dtype=dtype)
        g = normal(rows, length, seed=seed, dtype=dtype.to_real())
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = torch.ops.convscan.vandermonde(c, a, length, order)
            answers.append((y, torch.ops.convscan.vandermonde_adjoint(g, a, order)))
        tolerance = TOLERANCE[dtype] * (1 + order) * (100 if dtype == torch.complex128 else 1)
        assert_near(answers[0][0], reference.vandermonde(c, a, length, order), tolerance)
        assert_near(answers[0][1], reference.adjoint(g, a, order), 4 * tolerance)
        assert all(torch.equal(*pair) for pair in zip(*answers, strict=True)), "depends on the number of threads"


def test_error_does_not_grow_with_time() -> None:
    """Float32 near the unit circle over 65536 steps, against exact powers; float64 grows as the roundoff times l."""
    a = torch.polar(torch.tensor([1.0, 1 - 1e-6, 1.0 + 1e-6]), torch.tensor([1.5, 1e-4, 3.0]))
    steps = [0, 1, 4095, 30000, 65534, 65535]
    for dtype, tolerance in ((torch.complex64, 2e-7), (torch.complex128, 65536 * 2.0**-52)):
        nodes = a.to(dtype)
        y = torch.stack([vandermonde(torch.ones(1, dtype=dtype), nodes[i : i + 1], 65536) for i in range(3)])
        with mpmath.workdps(40):
            for i, l in itertools.product(range(3), steps):
                exact = complex(mpmath.mpc(complex(nodes[i])) ** l)
                assert abs(float(y[i, l]) - exact.real) <= tolerance * abs(exact)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_strides_and_broadcasting(dtype: torch.dtype) -> None:
    c = normal(5, 4, 2, 3, dtype=dtype).permute(1, 3, 2, 0)  # (4, 3, 2, 5)
    tolerance = 100 * TOLERANCE[dtype]
    for a in (stable(5, dtype=dtype), stable(3, 1, 5, dtype=dtype), stable(4, 1, 2, 10, dtype=dtype)[..., ::2]):
        y = vandermonde(c, a, 40)
        assert (y.shape, y.dtype) == ((4, 3, 2, 40), dtype.to_real())
        assert_near(y, reference.vandermonde(c, a, 40), tolerance)
        g = normal(3, 40, 2, dtype=dtype.to_real()).mT
        assert_near(vandermonde_adjoint(g, a), reference.adjoint(g, a), tolerance)
    shared = vandermonde_adjoint(torch.ones((), dtype=dtype.to_real()).expand(2, 7), stable(3, dtype=dtype))
    assert_near(shared, reference.adjoint(torch.ones(2, 7), stable(3, dtype=dtype)), tolerance)


def test_powers_may_be_more_precise_than_the_result() -> None:
    c, a = normal(3, dtype=torch.complex64, grad=True), torch.polar(torch.ones(3), torch.tensor([0.1, 1.0, 2.0]))
    a = a.to(torch.complex128) * (1 - 1e-12)
    a.requires_grad_()
    y = vandermonde(c, a, 30_000)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), vandermonde(c.to(a.dtype), a, 30_000), rtol=0, atol=2e-6)
    w = vandermonde_adjoint(y.detach(), a)
    assert w.dtype == torch.complex64
    torch.testing.assert_close(w.to(a.dtype), vandermonde_adjoint(y.detach().double(), a), rtol=2e-6, atol=2e-6)
    (y[:100].sum() + vandermonde_adjoint(y[:100], a).abs().sum()).backward()
    assert c.grad is not None
    assert a.grad is not None
    assert (c.grad.dtype, a.grad.dtype) == (torch.complex64, torch.complex128)


def test_empty_sums_and_real_arguments() -> None:
    assert torch.equal(vandermonde(torch.ones(2, 0), torch.ones(2, 0), 3), torch.zeros(2, 3))
    assert vandermonde(torch.ones(0, 2), torch.ones(2), 3).shape == (0, 3)
    assert torch.equal(vandermonde_adjoint(torch.ones(2, 0), torch.ones(3)), torch.zeros(2, 3) + 0j)
    assert torch.equal(cauchy(torch.ones(2, 0), torch.ones(3), torch.ones(0)), torch.zeros(2, 3) + 0j)
    assert cauchy(torch.ones(2), torch.ones(0), torch.zeros(2)).shape == (0,)
    y = vandermonde(torch.tensor([3.0], dtype=torch.float64), torch.tensor([-0.5]), 3)
    assert y.dtype == torch.float64
    assert y.tolist() == [3.0, -1.5, 0.75]


def test_nothing_but_finite_numbers() -> None:
    """Gradients at zero, far below the smallest normal number, and a little beyond 1."""
    for value in (0.0, 1e-38, 1e-45, 1e-20, 1.0005, -1.0005):
        a = torch.tensor([value + 0j, 0.5j], requires_grad=True)
        y = vandermonde(torch.ones(2) + 0j, a, 4000)
        y.sum().backward()
        assert a.grad is not None
        assert bool(y.isfinite().all() and a.grad.abs().isfinite().all())


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("power", [1, 2, 3])
def test_cauchy_products(power: int, dtype: torch.dtype, isa: str) -> None:
    sizes = itertools.product((1, 7, 16, 257), (1, 5, 129, 300), (1, 2, 3, 4, 6))
    for seed, (points, terms, sides) in enumerate(sizes):
        v = normal(sides, 2, terms, seed=seed, dtype=dtype)
        poles = -normal(2, terms, seed=seed).abs() - 0.1 + 1j * normal(2, terms, seed=seed).real
        z, poles = 1j * normal(points, seed=seed, dtype=dtype).real, poles.to(dtype)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(torch.ops.convscan.cauchy(v, z, poles, power))
        assert torch.equal(*answers), "depends on the number of threads"
        assert_near(answers[0], cauchy_reference.cauchy(v, z, poles, power), 2 * TOLERANCE[dtype])


def test_cauchy_strides_broadcasting_and_pairs() -> None:
    v, z = normal(6, 3, 4, 2).permute(3, 1, 2, 0), normal(4, 9, seed=1) + 20
    for poles in (normal(6, seed=2), normal(3, 1, 12, seed=2)[..., ::2], normal(2, 3, 4, 6, seed=2)):
        k = cauchy(v, z, poles)
        assert_near(k, cauchy_reference.cauchy(v, z, poles), 1e-14)
        both = cauchy(v, z, poles, conjugate_pairs=True)
        assert_near(both, k + cauchy_reference.cauchy(v.conj(), z, poles.conj()), 1e-14)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_kernels_of_models(case: cases.Case) -> None:
    arguments = cases.inputs(case)
    few = {"c": arguments["c"][::100], "a": arguments["a"][::100], "length": min(case.length, 2000)}
    assert_near(vandermonde(**few), reference.vandermonde(**few), 5e-6)
    assert convscan.explain(vandermonde, **few).chosen == "factored"
    assert case.bytes > 0 < case.flops


@pytest.mark.parametrize("case", cauchy_cases.CASES, ids=lambda case: case.name)
def test_generating_functions_of_models(case: cauchy_cases.Case) -> None:
    arguments = cauchy_cases.inputs(case)
    few = {"v": arguments["v"][:, ::100], "z": arguments["z"][::7], "poles": arguments["poles"][::100]}
    assert_near(cauchy(**few), cauchy_reference.cauchy(**few), 5e-6)
    assert convscan.explain(cauchy, **few).chosen == "direct"
    assert case.bytes > 0 < case.flops


def test_workspace_is_less_than_a_mebibyte_a_thread() -> None:
    torch.set_num_threads(1)
    c, a, z = normal(2, 64), stable(2, 64), 1j * normal(5000).real
    for run in (
        lambda: vandermonde(c, a, 100_000),
        lambda: vandermonde_adjoint(normal(2, 100_000, dtype=torch.float64), a),
        lambda: cauchy(c.expand(5, 2, 64), z, a - 2),
    ):
        convscan.reset_peak_workspace()
        run()
        assert 0 < convscan.workspace_memory().peak <= 1 << 20


def test_implementations_agree_and_explain_themselves() -> None:
    c, a, z = normal(3, 5), stable(3, 5), 1j * normal(20).real
    with convscan.force("reference"):
        expected = vandermonde(c, a, 20), vandermonde_adjoint(z.imag, a), cauchy(c, z, a - 2)
    assert_near(vandermonde(c, a, 20), expected[0], 1e-14)
    assert_near(vandermonde_adjoint(z.imag, a), expected[1], 1e-14)
    assert_near(cauchy(c, z, a - 2), expected[2], 1e-14)
    assert "rows=3 N=5 L=20 complex128" in str(convscan.explain(vandermonde, c, a, 20))
    assert "rows=3 N=5 L=20 complex128" in str(convscan.explain(vandermonde_adjoint, z.imag, a))
    text = str(convscan.explain("cauchy", c, z, a, conjugate_pairs=True))
    assert "sides=1 rows=3 N=10 points=20 complex128" in text


# ---- derivatives ----


def functions() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    c, a, g = normal(2, 1, 3, grad=True), stable(4, 3, seed=4, grad=True), normal(2, 5, dtype=torch.float64, grad=True)
    z, poles = (1j * normal(4, seed=5).real).requires_grad_(), (normal(2, 3, seed=6) - 3).detach().requires_grad_()
    return {
        "vandermonde": (lambda c, a: vandermonde(c, a, 5), (c, a)),
        "vandermonde_adjoint": (vandermonde_adjoint, (g, normal(3, grad=True))),
        "cauchy": (cauchy, (normal(3, 2, 3, grad=True), z, poles)),
        "cauchy of pairs": (lambda *x: cauchy(*x, conjugate_pairs=True), (normal(3, grad=True), z, poles)),
    }


@pytest.mark.parametrize("name", functions())
def test_first_and_second_derivatives(name: str) -> None:
    function, arguments = functions()[name]
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_derivative_at_zero() -> None:
    a = torch.zeros(1, dtype=torch.complex128, requires_grad=True)
    vandermonde(torch.ones(1, dtype=torch.float64), a, 5).sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [1.0]  # of 1 + a + a^2 + ...


def test_vmap() -> None:
    c, a = normal(4, 2, 3), stable(3, 4)
    y = torch.vmap(lambda c, a: vandermonde(c, a, 6), in_dims=(0, 1))(c, a)
    torch.testing.assert_close(y, torch.stack([vandermonde(c[i], a[:, i], 6) for i in range(4)]))
    g = normal(4, 2, 6, dtype=torch.float64)
    w = torch.vmap(vandermonde_adjoint, in_dims=(None, 1))(g, a)
    torch.testing.assert_close(w, torch.stack([vandermonde_adjoint(g, a[:, i]) for i in range(4)]))
    k = torch.vmap(cauchy, in_dims=(0, None, 1))(c, a[0] + 9, a)
    torch.testing.assert_close(k, torch.stack([cauchy(c[i], a[0] + 9, a[:, i]) for i in range(4)]))


@pytest.mark.parametrize("name", functions())
def test_compile(name: str) -> None:
    function, arguments = functions()[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got, wanted in (
        (compiled(*arguments), function(*arguments)),
        *zip(
            torch.autograd.grad(compiled(*arguments).abs().sum(), arguments),
            torch.autograd.grad(function(*arguments).abs().sum(), arguments),
            strict=True,
        ),
    ):
        torch.testing.assert_close(got, wanted)


def test_opcheck() -> None:
    c, a, z = normal(2, 3, grad=True), stable(4, 1, 3, grad=True), normal(5, seed=9) + 9
    torch.library.opcheck(torch.ops.convscan.vandermonde.default, (c, a, 7, 0))
    g = normal(2, 5, dtype=torch.float64, grad=True)
    torch.library.opcheck(torch.ops.convscan.vandermonde_adjoint.default, (g, a, 1))
    torch.library.opcheck(torch.ops.convscan.cauchy.default, (c, z, a, 1))


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: vandermonde(1.0, torch.ones(1), 2), TypeError, "vandermonde: c must be a torch.Tensor; got float"),
        (lambda: vandermonde(torch.ones(()), torch.ones(1), 2), ValueError, "c must have at least one axis; got ()"),
        (lambda: vandermonde(torch.ones(3), torch.ones(2), 2), ValueError, "a must have as many terms as c, 3; got 2"),
        (lambda: vandermonde(torch.ones(3), torch.ones(3), -1), ValueError, "length must not be negative; got -1"),
        (lambda: vandermonde(torch.ones(3).half(), torch.ones(3), 1), TypeError, "c must have one of the dtypes"),
        (lambda: vandermonde(torch.ones(2, 3), torch.ones(4, 3), 1), ValueError, "broadcast against those of c, (2,)"),
        (lambda: vandermonde_adjoint(torch.ones(3) + 0j, torch.ones(3)), TypeError, "g must be real; got complex64"),
        (lambda: cauchy(torch.ones(3), torch.ones(3), 2), TypeError, "cauchy: poles must be a torch.Tensor; got int"),
        (lambda: cauchy(torch.ones(3), torch.ones(3), torch.ones(2)), ValueError, "as many terms as v, 3; got 2"),
        (lambda: cauchy(torch.ones(2, 3), torch.ones(4, 3), torch.ones(3)), ValueError, "must broadcast; got (2, 3),"),
        (lambda: cauchy(torch.ones(3), torch.ones(()), torch.ones(3)), ValueError, "z must have at least one axis"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
