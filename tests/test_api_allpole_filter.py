"""allpole_filter and fir_to_recurrence: values on every instruction set, derivatives, compilation, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import convscan
from convscan import allpole_filter, causal_conv, fir_to_recurrence
from convscan.ops.allpole_filter import cases, reference
from convscan.ops.allpole_filter.api import _operator

# Of the largest value: the filters below amplify a rounding a few times.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def coefficients(*shape: int, order_axis: int = -2, **options: object) -> Tensor:
    """Filters whose impulse response decays."""
    a = normal(*shape, **options) * (0.6 / shape[order_axis])  # type: ignore[arg-type]
    return a.detach().requires_grad_(bool(options.get("grad")))


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == expected.shape
    assert got.dtype == dtype
    if got.numel():
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert float(error) <= TOLERANCE[dtype], f"off by {float(error):.2g} of the largest value"


def arrangements(B: int, L: int, D: int, p: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """x and a in the memory orders that kernels tell apart."""
    x = normal(B, L, D, dtype=dtype)
    time_contiguous = x.mT.contiguous().mT
    per_row = coefficients(B, D, L, p, order_axis=-1, dtype=dtype).permute(0, 2, 3, 1)
    return {
        "constant": (x, coefficients(p, D, dtype=dtype)),
        "one for all": (x[..., ::2], coefficients(p, 1, dtype=dtype)),
        "varying": (x, coefficients(B, L, p, D, dtype=dtype)),
        "shared by sequences": (x, coefficients(L, p, D, dtype=dtype)),
        "one sequence's coefficients adjacent": (time_contiguous, per_row),
        "strided": (x.repeat_interleave(2, -1)[..., ::2], coefficients(B, L, 2 * p, D, dtype=dtype)[..., ::2, :] * 2),
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values(dtype: torch.dtype, isa: str) -> None:
    sizes = [(1, 5, 1, 1), (2, 0, 3, 2), (0, 4, 3, 2), (1, 1, 9, 4), (3, 20, 7, 3), (1, 40, 17, 2), (2, 23, 1, 19)]
    for (B, L, D, p), state in itertools.product(sizes, (False, True)):
        initial = normal(B, p, D, seed=3, dtype=dtype) if state else None
        for name, (x, a) in arrangements(B, L, D, p, dtype).items():
            start = None if initial is None else initial[..., : x.shape[-1]] if name != "one for all" else None
            y = allpole_filter(x, a, initial_state=start)
            assert_near(y, reference.allpole_filter(x, a, start), dtype)
            if not state:
                transposed = _operator(x, a[(None,) * (4 - a.ndim)], None, True)
                assert_near(transposed, reference.allpole_filter(x, a, None, True), dtype)


@pytest.mark.parametrize(
    ("shape", "order"), [((1, 300, 1), 33), ((2, 290, 5), 32), ((1, 513, 40), 8), ((9, 300, 1), 12)]
)
def test_several_tiles_and_split_and_carry(shape: tuple[int, int, int], order: int, isa: str) -> None:
    x, a, start = normal(*shape), coefficients(*shape[:2], order, shape[2]), normal(shape[0], order, shape[2])
    for at in (shape[1], 1, order - 1, 150):
        first = allpole_filter(x[:, :at], a[:, :at], initial_state=start)
        before = torch.cat([start, first], 1)[:, -order:]
        y = torch.cat([first, allpole_filter(x[:, at:], a[:, at:], initial_state=before)], 1)
        assert_near(y, reference.allpole_filter(x, a, start), torch.float64)


def test_any_order_runs_somewhere() -> None:
    x, a = normal(1, 3, 2), coefficients(1100, 2)
    assert_near(allpole_filter(x, a), reference.allpole_filter(x, a), torch.float64)
    assert convscan.explain(allpole_filter, x, a).chosen == "reference"
    assert convscan.explain(allpole_filter, x, a[:32]).chosen == "sequential"


def _loop(x: Tensor, a: Tensor) -> Tensor:
    """One sequence, (L,) and (L, p), in its own type."""
    order = a.shape[1]
    y = torch.zeros(order + len(x), dtype=x.dtype)
    newest_first = a.flip(1)
    for i in range(len(x)):
        y[order + i] = x[i] + newest_first[i] @ y[i : order + i]
    return y[order:]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 7, 16, 29])
def test_one_long_sequence(order: int, constant: bool, isa: str) -> None:
    """Which is divided into segments of time, or sums its older terms in vectors: as exact as the loop."""
    length = 4700
    arguments = cases.inputs(cases.Case("one", "test", 1, length, 1, order, constant), seed=order)
    x, a = arguments["x"], arguments["a"]
    each = a.reshape(-1, order).expand(length, order).contiguous()
    expected = _loop(x[0, :, 0].double(), each.double())
    error = float((_loop(x[0, :, 0], each).double() - expected).abs().max())
    bound = 4 * error + 4 * 2.0**-24 * float(expected.abs().max())
    y = allpole_filter(x, a)
    assert float((y[0, :, 0].double() - expected).abs().max()) <= bound
    first = allpole_filter(x[:, :100], a if constant else a[:, :100])
    rest = allpole_filter(x[:, 100:], a if constant else a[:, 100:], initial_state=first[:, -order:])
    assert float((rest[0, :, 0].double() - expected[100:]).abs().max()) <= bound
    in_place = x.clone()
    allpole_filter(in_place, a, out=in_place)
    assert torch.equal(in_place, y)
    transposed = _operator(x, a, None, True)
    from_end = reference.allpole_filter(x, a, None, True)
    assert float((transposed.double() - from_end).abs().max()) <= 4 * bound


@pytest.mark.parametrize(
    "a",
    [[1.0], [1.9998, -0.9999], [-1.0, 0.0, 0.5], [3.0]],
    ids=["sum", "resonance", "growth", "overflow"],
)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_one_long_sequence_that_does_not_decay(a: list[float], constant: bool, isa: str) -> None:
    length = 3200
    x = normal(1, length, 1, seed=5, dtype=torch.float32)
    coefficient = torch.tensor(a)[:, None]
    if not constant:
        coefficient = coefficient.expand(1, length, -1, -1).contiguous()
    y = allpole_filter(x, coefficient)[0, :, 0]
    each = torch.tensor(a).expand(length, -1).contiguous()
    expected = _loop(x[0, :, 0].double(), each.double())
    loop = _loop(x[0, :, 0], each)
    finite = loop.isfinite()
    assert torch.equal(y.isfinite(), finite)
    # What grows is held to its own size.
    scale = expected.abs().cummax(0).values
    error = ((loop.double() - expected).abs() / scale)[finite].max()
    assert float(((y.double() - expected).abs() / scale)[finite].max()) <= 4 * float(error) + 4 * 2.0**-24


def test_lfilter_agrees() -> None:
    signal = pytest.importorskip("scipy.signal")
    arguments = cases.inputs(cases.Case("resonances", "test", 1, 500, 3, 16, True))
    x, a = arguments["x"].double(), arguments["a"].double()
    y = allpole_filter(x, a)
    for n in range(3):
        expected = signal.lfilter([1.0], [1.0, *(-a[:, n]).tolist()], x[0, :, n].numpy())
        torch.testing.assert_close(y[0, :, n], torch.from_numpy(expected))


def test_results_do_not_depend_on_threads() -> None:
    x, a = normal(3, 700, 37, dtype=torch.float32), coefficients(3, 700, 5, 37, dtype=torch.float32)
    results = []
    for threads in (1, 2, 5):
        convscan.set_num_threads(threads)
        results.append(allpole_filter(x, a))
    assert all(torch.equal(results[0], y) for y in results)


@pytest.mark.parametrize("channels", [1, 3, 40])
def test_in_place(channels: int, isa: str) -> None:
    x, a = normal(2, 300, channels), coefficients(3, channels)
    expected = allpole_filter(x, a)
    with torch.no_grad():
        assert allpole_filter(x, a, out=x) is x
    assert torch.equal(x, expected)


# ---- derivatives and PyTorch ----


@pytest.mark.parametrize("shape", [(3, 2), (2, 5, 3, 2), (5, 3, 1)], ids=str)
def test_derivatives(shape: tuple[int, ...]) -> None:
    inputs = (normal(2, 5, 2, grad=True), coefficients(*shape, grad=True), normal(2, 3, 2, grad=True))

    def call(x: Tensor, a: Tensor, state: Tensor) -> Tensor:
        return allpole_filter(x, a, initial_state=state)

    torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)
    torch.autograd.gradcheck(
        lambda x, a: _operator(x, a[(None,) * (4 - a.ndim)], None, True), inputs[:2], check_forward_ad=True
    )


def test_gradients_of_short_sequences() -> None:
    for length in (0, 1, 2):
        inputs = (normal(2, length, 2, grad=True), coefficients(4, 2, grad=True), normal(2, 4, 2, grad=True))
        torch.autograd.gradcheck(lambda x, a, s: allpole_filter(x, a, initial_state=s), inputs)


def test_vmap() -> None:
    x, a, state = normal(4, 2, 6, 3), coefficients(4, 2, 3), normal(4, 2, 2, 3)
    got = torch.vmap(lambda x, a, s: allpole_filter(x, a, initial_state=s))(x, a, state)
    expected = torch.stack([allpole_filter(x[i], a[i], initial_state=state[i]) for i in range(4)])
    torch.testing.assert_close(got, expected)
    shared = torch.vmap(lambda x: allpole_filter(x, a[0]))(x)
    torch.testing.assert_close(shared, allpole_filter(x, a[0]))


class Filter(torch.nn.Module):
    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return allpole_filter(x, a)


def test_compile_and_export() -> None:
    x, a = normal(2, 9, 3, grad=True), coefficients(2, 3, grad=True)
    expected = allpole_filter(x, a)
    compiled = torch.compile(Filter(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, a), expected)
    for got, want in zip(
        torch.autograd.grad(compiled(x, a).square().sum(), (x, a)),
        torch.autograd.grad(expected.square().sum(), (x, a)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    open_sizes = {"x": {0: torch.export.Dim("B", min=1), 1: torch.export.Dim("L", min=2)}, "a": None}
    exported = torch.export.export(Filter(), (x, a), dynamic_shapes=open_sizes).module()
    longer = normal(5, 30, 3)
    torch.testing.assert_close(exported(longer, a), allpole_filter(longer, a))


def test_opcheck() -> None:
    x, a, state = normal(2, 5, 3, grad=True), coefficients(1, 1, 2, 3, grad=True), normal(2, 2, 3, grad=True)
    torch.library.opcheck(_operator, (x, a, state, False))
    torch.library.opcheck(_operator, (x, a.detach().expand(2, 5, 2, 3).clone().requires_grad_(), None, True))


X, A = torch.ones(2, 5, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: allpole_filter(1.0, A), TypeError, "x must be a torch.Tensor; got float"),  # type: ignore[arg-type]
        (lambda: allpole_filter(X[0, 0], A), ValueError, "x must have the shape (..., L, D); got (3,)"),
        (lambda: allpole_filter(X, A[0]), ValueError, "or broadcast to (..., L, p, D), (2, 5, p, 3); got (3,)"),
        (lambda: allpole_filter(X, A[:0]), ValueError, "a must have the shape (p, D), p >= 1"),
        (lambda: allpole_filter(X, A[:, :2]), ValueError, "got (4, 2)"),
        (lambda: allpole_filter(X, torch.ones(3, 4, 3)), ValueError, "(2, 5, p, 3); got (3, 4, 3)"),
        (lambda: allpole_filter(X, A.to(torch.complex64)), TypeError, "a must have one of the dtypes float32"),
        (lambda: allpole_filter(X, A, initial_state=X), ValueError, "(..., p, D) = (2, 4, 3); got (2, 5, 3)"),
        (lambda: allpole_filter(X, A, out=X[:1]), ValueError, "out must have the shape of x"),
        (lambda: fir_to_recurrence(X), ValueError, "h must have the shape (K, D), K >= 1; got (2, 5, 3)"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


# ---- filters as recurrences ----


@pytest.mark.parametrize("taps", [1, 2, 7, 20])
def test_a_finite_filter_is_a_recurrence(taps: int) -> None:
    """Exactly: of whole numbers, sums in any order are the same."""
    generator = torch.Generator().manual_seed(taps)
    x = torch.randint(-50, 50, (2, 13, 3), generator=generator).double()
    h = torch.randint(-50, 50, (taps, 3), generator=generator).double()
    A, B, C, D = fir_to_recurrence(h)
    state = torch.zeros(2, taps - 1, 3, dtype=torch.float64)
    rows = []
    for sample in x.unbind(1):
        rows.append((C * state).sum(1) + D * sample)
        state = torch.einsum("ij,bjn->bin", A, state) + B[:, None] * sample[:, None]
    assert torch.equal(torch.stack(rows, 1), causal_conv(x, h))


def test_an_allpole_filter_undoes_a_finite_one() -> None:
    x, a = normal(2, 50, 3), coefficients(4, 3)
    inverse = torch.cat([torch.ones(1, 3, dtype=torch.float64), -a])
    torch.testing.assert_close(causal_conv(allpole_filter(x, a), inverse), x)
