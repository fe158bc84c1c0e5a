"""fft_conv: any equation with one convolved axis, by every method, against sums over the lags in float64."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import convscan
from convscan import fft_conv
from convscan.ops.fft_conv import execute, reference
from convscan.profiler.measure import memory_is_measurable

METHODS = ("channelwise", "direct", "spectral")
LAYER = "blh,nl,nh,on->blo"
EQUATIONS = ("bli,loi->blo", "bln,ln->bln", LAYER, "l,l->l", "hbl,gol,ho->bolg", "bgli,goli->bglo", "bli,l,i->lb")
SIZES = {"b": 2, "i": 3, "o": 4, "n": 5, "h": 3, "g": 2}


def tensors(
    equation: str, length: int, taps: int, *, sizes: dict[str, int] = SIZES, seed: int = 0, **options: Any
) -> list[Tensor]:
    """Normal numbers for x and the operands of an equation."""
    generator = torch.Generator().manual_seed(seed)
    options = {"dtype": torch.float64} | options
    grad = options.pop("requires_grad", False)
    found = []
    for place, axes in enumerate(equation.split("->")[0].split(",")):
        shape = [sizes[axis] if axis != "l" else taps if place else length for axis in axes]
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(**options)
        found.append(tensor.requires_grad_(grad))
    return found


def close(y: Tensor, expected: Tensor) -> None:
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


def test_the_reference_is_the_definition() -> None:
    x, kernel, b, c = tensors(LAYER, 5, 7)
    y = torch.zeros(2, 5, 4, dtype=torch.float64)
    for batch, i, h, n, o in itertools.product(range(2), range(5), range(3), range(5), range(4)):
        for k in range(i + 1):
            y[batch, i, o] += x[batch, i - k, h] * kernel[n, k] * b[n, h] * c[o, n]
    torch.testing.assert_close(reference.fft_conv(LAYER, x, (kernel, b, c)), y)


@pytest.mark.parametrize("method", [*METHODS, "reference", None])
@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize(("length", "taps"), [(9, 4), (5, 9), (1, 1), (7, 1), (40, 33)])
def test_named_equations(equation: str, length: int, taps: int, method: str | None) -> None:
    x, *args = tensors(equation, length, taps)
    expected = reference.fft_conv(equation, x, args)
    if method is None:
        close(fft_conv(equation, x, *args), expected)
        return
    with convscan.force(method):
        close(fft_conv(equation, x, *args), expected)
        close(fft_conv(equation, x.clone().requires_grad_(), *args).detach(), expected)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """One convolved axis, up to two operands beside the kernel, every order of letters, any letters in the output."""
    letters = st.lists(st.sampled_from("abcd"), unique=True, max_size=3)
    terms = [[*draw(letters), "l"], [*draw(letters), "l"], *draw(st.lists(letters, max_size=2))]
    known = sorted({axis for term in terms for axis in term} - {"l"})
    output = [*draw(st.lists(st.sampled_from(known), unique=True) if known else st.just([])), "l"]
    x, *operands = ["".join(draw(st.permutations(term))) for term in terms]
    operands = draw(st.permutations(operands))
    sizes = {axis: draw(st.integers(1, 3)) for axis in "abcd"}
    return f"{','.join([x, *operands])}->{''.join(draw(st.permutations(output)))}", sizes


@pytest.mark.parametrize("method", METHODS)
@given(drawn=equations(), length=st.integers(1, 12), taps=st.integers(1, 16), recorded=st.booleans())
def test_random_equations(
    method: str, drawn: tuple[str, dict[str, int]], length: int, taps: int, recorded: bool
) -> None:
    equation, sizes = drawn
    x, *args = tensors(equation, length, taps, sizes=sizes, seed=length * taps)
    expected = reference.fft_conv(equation, x, args)
    with convscan.force(method):
        close(fft_conv(equation, x.requires_grad_(recorded), *args).detach(), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_few_entries_of_the_batch_at_a_time(equation: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "CHUNK_BYTES", 1)
    x, *args = tensors(equation, 9, 6, sizes=SIZES | {"b": 5})
    with convscan.force(method):
        problem = convscan.explain("fft_conv", equation, x, *args).problem
        assert execute.batch_axis(problem) in "b"
        close(fft_conv(equation, x, *args), reference.fft_conv(equation, x, args))


def test_inputs_are_left_alone_in_any_memory_order() -> None:
    for equation in EQUATIONS:
        for arrange in (
            lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
            lambda t: torch.stack([t, t], -1)[..., 0],
            lambda t: t.flip(0),
        ):
            x, *args = map(arrange, tensors(equation, 9, 4))
            before = [t.clone() for t in (x, *args)]
            for method in METHODS:
                with convscan.force(method):
                    close(fft_conv(equation, x, *args), reference.fft_conv(equation, x, args))
            assert all(torch.equal(old, new) for old, new in zip(before, (x, *args), strict=True))


def test_the_input_is_never_worked_on_in_place() -> None:
    for equation in ("bl,l->bl", "bln,ln->bln"):
        x, kernel = tensors(equation, 300, 300)
        before = x.clone()
        for method in METHODS:
            with convscan.force(method):
                fft_conv(equation, x, kernel)
        assert torch.equal(x, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("equation", ["bli,loi->blo", "bln,ln->bln", LAYER])
def test_gradients_of_every_tensor(equation: str, method: str) -> None:
    inputs = tensors(equation, 5, 3, requires_grad=True)
    with convscan.force(method):
        assert torch.autograd.gradcheck(
            lambda *t: fft_conv(equation, *t), inputs, check_forward_ad=True, fast_mode=True
        )
        if equation != LAYER:
            assert torch.autograd.gradgradcheck(lambda *t: fft_conv(equation, *t), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("equation", ["bli,loi->blo", "bln,ln->bln", LAYER])
def test_dtypes(equation: str, method: str, dtype: torch.dtype) -> None:
    x, *args = tensors(equation, 40, 40, dtype=dtype)
    with convscan.force(method):
        y = fft_conv(equation, x, *args)
        mixed = fft_conv(equation, x, *(t.double() for t in args))
    expected = reference.fft_conv(equation, x, args)
    assert y.dtype == mixed.dtype == dtype
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    for answer in (y, mixed):
        assert float((answer.double() - expected).norm() / expected.norm()) < bound


class Convolution(torch.nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, *inputs: Tensor) -> Tensor:
        return fft_conv(self.equation, *inputs)


@pytest.mark.parametrize("equation", ["bli,loi->blo", "bln,ln->bln", LAYER])
def test_compiled_and_exported(equation: str) -> None:
    inputs = tensors(equation, 20, 6, requires_grad=True)
    expected = fft_conv(equation, *inputs)
    compiled = torch.compile(Convolution(equation), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    gradients = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    for got, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(got, wanted)
    batch = torch.export.Dim("batch")
    shapes = (({0: batch}, *({} for _ in inputs[1:])),)
    program = torch.export.export(Convolution(equation), tuple(inputs), dynamic_shapes=shapes)
    longer = torch.cat([inputs[0]] * 3)
    torch.testing.assert_close(program.module()(longer, *inputs[1:]), fft_conv(equation, longer, *inputs[1:]))


@pytest.mark.parametrize("equation", ["bli,loi->blo", "bln,ln->bln", LAYER])
def test_vmap(equation: str) -> None:
    inputs = tensors(equation, 9, 4)
    doubled = [torch.stack([t, 2 * t]) for t in inputs]
    expected = torch.stack([fft_conv(equation, *(t[turn] for t in doubled)) for turn in (0, 1)])
    close(torch.vmap(lambda *t: fft_conv(equation, *t))(*doubled), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_long_kernel_does_not_wrap(method: str) -> None:
    x, kernel = torch.zeros(1, 8, 1), torch.ones(40, 1, 1)
    x[0, 5] = 1
    with convscan.force(method):
        y = fft_conv("bli,loi->blo", x, kernel)
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize("changed", ["b", "i", "o", "l of x", "l of the kernel"])
def test_nothing_to_sum(changed: str) -> None:
    sizes = SIZES | {changed: 0}
    inputs = tensors(
        "bli,loi->blo", 0 if "x" in changed else 5, 0 if "kernel" in changed else 3, sizes=sizes, requires_grad=True
    )
    y = fft_conv("bli,loi->blo", *inputs)
    assert y.shape == (sizes["b"], 0 if "x" in changed else 5, sizes["o"])
    assert not y.any()
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in inputs)


def test_the_choice_is_explained() -> None:
    per_channel = convscan.explain(fft_conv, "bln,ln->bln", torch.ones(2, 1000, 8), torch.ones(1000, 8))
    assert per_channel.chosen == "channelwise"
    long = convscan.explain(fft_conv, "bli,loi->blo", torch.ones(8, 2048, 32), torch.ones(128, 32, 32))
    assert long.chosen == "spectral"
    short = convscan.explain(fft_conv, "bli,loi->blo", torch.ones(8, 500, 32), torch.ones(3, 32, 32))
    assert short.chosen == "direct"
    assert "bli,loi->blo, b=8 i=32 o=32 L=500 K=3 float32" in str(short)
    assert {"flops", "moved"} < set(str(short).splitlines()[1].split())
    assert "flops" not in str(convscan.explain("causal_conv", torch.ones(8, 2), torch.ones(3, 2)))


@pytest.mark.skipif(not memory_is_measurable(), reason="this kernel cannot reset the high-water mark")
@pytest.mark.parametrize("method", ["channelwise", "spectral"])
def test_workspace_is_bounded_by_what_is_predicted(method: str) -> None:
    from convscan.profiler import measure, peer

    inputs = tensors(LAYER, 1024, 1024, sizes={"b": 32, "h": 32, "n": 64, "o": 32}, dtype=torch.float32)
    convscan.set_num_threads(1)
    with convscan.force(method), torch.no_grad():
        candidates = convscan.explain(fft_conv, LAYER, *inputs).candidates
        predicted = next(c.cost.workspace_bytes for c in candidates if c.name == method and c.cost)
        output = 4 * 32 * 1024 * 32
        found = measure.peak_bytes(peer.Prepared(lambda: fft_conv(LAYER, *inputs), lambda y: (y,)), output)
    assert found is not None
    # glibc's allocator takes up to 2.7 times what aligned tensors of changing sizes need.
    assert found < 3 * predicted + 4 * measure.MEMORY_RESOLUTION


X, KERNEL = torch.ones(2, 7, 3), torch.ones(4, 5, 3)


@pytest.mark.parametrize(
    ("equation", "inputs", "error", "text"),
    [
        ("bli,loi", (X, KERNEL), ValueError, "must be 'x axes,kernel axes,...->output axes'; got 'bli,loi'"),
        ("bli->bli", (X,), ValueError, "must be 'x axes,kernel axes,...->output axes'"),
        ("bi,loi->blo", (X, KERNEL), ValueError, "the convolved axis 'l' must be an axis of x; got 'bi,loi->blo'"),
        ("bli,koi->blo", (X, KERNEL), ValueError, "'l' must be an axis of one operand beside x; got none in"),
        ("bli,lo,li->blo", (X, KERNEL, X), ValueError, "one operand beside x; got args[0] and args[1] in"),
        ("bli,loi->bo", (X, KERNEL), ValueError, "'l' must be an axis of the output; got 'bli,loi->bo'"),
        ("bll,loi->blo", (X, KERNEL), ValueError, "every axis must occur once in x; got 'l' twice in"),
        ("bli,lii->bli", (X, KERNEL), ValueError, "once in args[0]; got 'i' twice in 'bli,lii->bli'. Take the diagon"),
        ("bli,loi->bloo", (X, KERNEL), ValueError, "once in the output; got 'o' twice"),
        ("bli,loi->blq", (X, KERNEL), ValueError, "every axis of the output must be an axis of an input; got 'q'"),
        ("...li,loi->...lo", (X, KERNEL), ValueError, "the axes of x must be letters; got '.' in"),
        ("bli,loi->blo", (X,), ValueError, "the equation 'bli,loi->blo' has 2 inputs; got 1 tensors with x"),
        ("bli,loi->blo", (X[0], KERNEL), ValueError, "x must have 3 axes, 'bli'; got (7, 3)"),
        ("bli,loi->blo", (X, KERNEL[0]), ValueError, "args[0] must have 3 axes, 'loi'; got (5, 3)"),
        ("bli,loi->blo", (X, KERNEL[..., :2]), ValueError, "the axis 'i' has 3 entries in x; got 2 in args[0]. Only l"),
        (3, (X, KERNEL), TypeError, "equation must be a str; got int. Call fft_conv(equation, x, *args)"),
        ("bli,loi->blo", (X, [1.0]), TypeError, "args[0] must be a torch.Tensor; got list"),
        ("bli,loi->blo", ([1.0], KERNEL), TypeError, "x must be a torch.Tensor; got list"),
        ("bli,loi->blo", (X, KERNEL.cfloat()), TypeError, "args[0] must have one of the dtypes float32, float64"),
        ("bli,loi->blo", (X.int(), KERNEL), TypeError, "x must have one of the dtypes"),
        ("bli,loi->blo", (X, KERNEL.to("meta")), ValueError, "args[0] must be on the device of x, cpu; got meta"),
    ],
)
def test_errors(equation: Any, inputs: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        fft_conv(equation, *inputs)
    assert str(caught.value).startswith("fft_conv: ")
