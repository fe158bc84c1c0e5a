"""opt_ssm_forward: three strategies, one answer; the choice between them; layouts; memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import convscan
from convscan import opt_ssm_forward
from convscan.ops.opt_ssm_forward import problem as problems
from convscan.ops.opt_ssm_forward import reference
from convscan.ops.opt_ssm_forward.strategies import published_rule
from convscan.profiler.measure import memory_is_measurable

STRATEGIES: tuple[str | int, ...] = ("cost", "auto", 1, 2, 3)
NAMES = {1: "full_kernel", 2: "projected", 3: "fused"}


def layer(
    batch: int = 2, length: int = 9, inputs: int = 3, outputs: int = 4, states: int = 5, taps: int = 9, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + length + taps)
    grad = options.pop("requires_grad", False)
    options = {"dtype": torch.float64} | options
    shapes = ((batch, length, inputs), (taps, states), (states, inputs), (outputs, states))
    tensors = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    x, K, B_, C = (t.to(**options).requires_grad_(grad) for t in tensors)
    return x, K, B_, C


def close(y: Tensor, expected: Tensor) -> None:
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


def test_usage_example() -> None:
    B, L, H, N = 32, 1024, 64, 128
    output = opt_ssm_forward(torch.randn(B, L, H), torch.randn(L, N), torch.randn(N, H), torch.randn(H, N))
    assert output.shape == (B, L, H)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_diagonal_state_space_model_step_by_step(strategy: str | int) -> None:
    """The kernel of s[i] = a s[i-1] + B x[i], y[i] = C s[i] is a^l: the recurrence is another way to the answer."""
    x, _, B_, C = layer(length=70)
    a = torch.linspace(-0.9, 0.95, 5, dtype=torch.float64)
    s, expected = torch.zeros(2, 5, dtype=torch.float64), []
    for i in range(70):
        s = a * s + x[:, i] @ B_.T
        expected.append(s @ C.T)
    K = a ** torch.arange(70, dtype=torch.float64)[:, None]
    close(opt_ssm_forward(x, K, B_, C, strategy=strategy), torch.stack(expected, 1))


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=12)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 40),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    states=st.integers(1, 8),
    taps=st.integers(1, 60),
    transposed=st.booleans(),
    recorded=st.booleans(),
)
def test_strategies_agree(strategy: str | int, transposed: bool, recorded: bool, **sizes: int) -> None:
    x, K, B_, C = layer(**sizes)
    expected = reference.opt_ssm_forward(x, K, B_, C)
    kernel, layout = (K.T.contiguous(), "nl") if transposed else (K, "ln")
    y = opt_ssm_forward(x.requires_grad_(recorded), kernel, B_, C, strategy=strategy, kernel_layout=layout)
    close(y.detach(), expected)
    if sizes["taps"] != sizes["states"]:
        close(opt_ssm_forward(x, kernel, B_, C, strategy=strategy).detach(), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sizes", [{"batch": 1}, {"batch": 5}, {"batch": 3, "outputs": 7, "states": 9}])
def test_in_small_pieces(strategy: str | int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "LEAST_BUDGET_BYTES", 1)
    inputs = layer(length=40, taps=40, **sizes)
    close(opt_ssm_forward(*inputs, strategy=strategy), reference.opt_ssm_forward(*inputs))
    full = torch.einsum("ln,nh,on->loh", *inputs[1:])
    close(opt_ssm_forward(inputs[0], full), reference.opt_ssm_forward(*inputs))


def test_the_documented_layout_is_meant_where_both_fit() -> None:
    x, K, B_, C = layer(length=5, taps=5)
    expected = reference.opt_ssm_forward(x, K, B_, C)
    close(opt_ssm_forward(x, K, B_, C), expected)
    close(opt_ssm_forward(x, K.T, B_, C, kernel_layout="nl"), expected)
    assert convscan.explain(opt_ssm_forward, x, K, B_, C).problem.layout == "ln"


@pytest.mark.parametrize("strategy", ["cost", "auto", 1])
def test_full_kernel(strategy: str | int) -> None:
    x, K, B_, C = layer()
    full = torch.einsum("ln,nh,on->loh", K, B_, C)
    expected = reference.opt_ssm_forward(x, K, B_, C)
    close(reference.opt_ssm_forward(x, full, None, None), expected)
    close(opt_ssm_forward(x, full, None, None, strategy=strategy), expected)
    close(opt_ssm_forward(x, full, strategy=strategy), expected)


def test_leading_axes() -> None:
    x, K, B_, C = layer(batch=6)
    expected = reference.opt_ssm_forward(x, K, B_, C)
    close(opt_ssm_forward(x.reshape(2, 3, 9, 3), K, B_, C), expected.reshape(2, 3, 9, 4))
    close(opt_ssm_forward(x[0], K, B_, C), expected[0])


@pytest.mark.parametrize("name", ["batch", "length", "inputs", "outputs", "states", "taps"])
def test_nothing_to_sum(name: str) -> None:
    x, K, B_, C = layer(**{name: 0}, requires_grad=True)
    y = opt_ssm_forward(x, K, B_, C, kernel_layout="ln")
    assert y.shape == (*x.shape[:2], C.shape[0])
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_every_tensor(strategy: str | int) -> None:
    inputs = layer(length=5, taps=4, states=2, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: opt_ssm_forward(*t, strategy=strategy), inputs, check_forward_ad=True, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dtypes(strategy: str | int, dtype: torch.dtype) -> None:
    inputs = layer(length=60, taps=60, dtype=dtype)
    y, expected = opt_ssm_forward(*inputs, strategy=strategy), reference.opt_ssm_forward(*inputs)
    assert y.dtype == dtype
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    assert float((y.double() - expected).norm() / expected.norm()) < bound


class Layer(torch.nn.Module):
    def __init__(self, strategy: str | int) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, x: Tensor, K: Tensor, B_: Tensor, C: Tensor) -> Tensor:
        return opt_ssm_forward(x, K, B_, C, strategy=self.strategy)


@pytest.mark.parametrize("strategy", ["cost", 3])
def test_compiled_and_exported(strategy: str | int) -> None:
    inputs = layer(requires_grad=True)
    expected = opt_ssm_forward(*inputs)
    compiled = torch.compile(Layer(strategy), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Layer(strategy), inputs, dynamic_shapes=({0: batch}, None, None, None))
    longer = torch.cat([inputs[0]] * 3)
    torch.testing.assert_close(program.module()(longer, *inputs[1:]), torch.cat([expected] * 3))


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ((32, 64, 64, 128), "3"),  # 2/64 < 1/32 + 1/128, more states than inputs
        ((32, 64, 64, 16), "2"),
        ((32, 4, 4, 64), "1"),  # 2/4 > 1/32 + 1/64, 16 <= 64
        ((32, 16, 16, 64), "3"),  # 2/16 > 1/32 + 1/64, but 256 > 64
        ((4, 4, 4, 4), "2"),  # a tie: the inequality does not hold
        ((3, 6, 2, 3), "2"),  # a tie, 1/6 + 1/2 = 1/3 + 1/3, also where fractions are rounded
    ],
)
def test_the_published_rule(sizes: tuple[int, int, int, int], rule: str) -> None:
    batch, inputs, outputs, states = sizes
    arguments = layer(batch=batch, inputs=inputs, outputs=outputs, states=states, length=8)
    asked = convscan.explain(opt_ssm_forward, *arguments, strategy="auto")
    assert published_rule(asked.problem) == rule
    assert asked.chosen == NAMES[int(rule)]


def test_the_choice_is_explained() -> None:
    arguments = layer(batch=8, length=512, inputs=32, outputs=32, states=8, taps=512)
    found = {strategy: convscan.explain("opt_ssm_forward", *arguments, strategy=strategy) for strategy in STRATEGIES}
    for number, name in NAMES.items():
        assert found[number].chosen == name
    assert found["cost"].chosen == "projected"
    for explanation in found.values():
        costs = {c.name: c.cost for c in explanation.candidates}
        for name in NAMES.values():
            cost = costs[name]
            assert cost is not None
            assert (cost.flops or 0) > 0
            assert (cost.moved_bytes or 0) > 0
    assert "B=8 L=512 H_in=32 H_out=32 K=512 N=8, ln, float64, strategy cost" in str(found["cost"])
    with convscan.force("fused"):
        assert convscan.explain("opt_ssm_forward", *arguments).chosen == "fused"
        assert convscan.explain("opt_ssm_forward", *arguments, strategy=2).chosen == "projected"


def test_each_strategy_is_the_choice_somewhere() -> None:
    chosen = {
        convscan.explain(
            "opt_ssm_forward",
            torch.empty(b, length, h),
            torch.empty(length, n),
            torch.empty(n, h),
            torch.empty(o, n),
        ).chosen
        for b, length, h, o, n in ((32, 1024, 4, 4, 64), (32, 1024, 64, 64, 128), (16, 4096, 8, 8, 32))
    }
    assert {"full_kernel", "projected"} <= chosen


@pytest.mark.skipif(not memory_is_measurable(), reason="this kernel cannot reset the high-water mark")
@pytest.mark.parametrize(
    ("sizes", "strategy"),
    [
        ((32, 1024, 64, 64, 128), "cost"),
        ((32, 1024, 64, 64, 128), 2),
        ((32, 1024, 64, 64, 128), 3),
        ((96, 2048, 16, 16, 32), 1),
        ((4, 4096, 32, 32, 512), "cost"),
    ],
)
def test_one_extra_tensor_of_the_size_of_the_input(sizes: tuple[int, ...], strategy: str | int) -> None:
    from convscan.profiler import measure, peer

    batch, length, inputs, outputs, states = sizes
    arguments = layer(batch, length, inputs, outputs, states, length, dtype=torch.float32)
    convscan.set_num_threads(1)
    opt_ssm_forward(*arguments, strategy=strategy)  # loads the libraries behind PyTorch's operators
    run = peer.Prepared(lambda: opt_ssm_forward(*arguments, strategy=strategy), lambda y: (y,))
    found = measure.peak_bytes(run, 4 * batch * length * outputs)
    assert found is not None
    largest = 4 * length * max(batch * inputs, states)
    assert largest >= 8 << 20
    assert found <= largest + 4 * measure.MEMORY_RESOLUTION


X, K, B, C = torch.ones(2, 7, 3), torch.ones(7, 5), torch.ones(5, 3), torch.ones(4, 5)
FULL = torch.ones(7, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1.0], K, B, C), TypeError, "x must be a torch.Tensor; got list"),
        ((X[0, 0], K, B, C), ValueError, "x must have the shape (..., L, D); got (3,)"),
        ((X, None, B, C), TypeError, "K must be a torch.Tensor; got NoneType"),
        ((X, K, B.T, C), ValueError, "B_ must have the shape (N, H_in) = (N, 3); got (3, 5)"),
        ((X, K, B, C.T), ValueError, "C must have the shape (H_out, N) = (H_out, 5); got (5, 4)"),
        ((X, K[:, :4], B, C), ValueError, "K must have the shape (L, N) = (L, 5) or (N, L) = (5, L); got (7, 4)"),
        ((X, FULL, B, C), ValueError, "(L, N) or (N, L) beside B_ and C; got (7, 4, 3). Leave B_ and C out"),
        ((X, K), ValueError, "without B_ and C, K must be a full kernel (L, H_out, H_in) = (L, H_out, 3); got (7, 5)"),
        ((X, FULL[..., :2]), ValueError, "K must be a full kernel (L, H_out, H_in) = (L, H_out, 3); got (7, 4, 2)"),
        ((X, K, B), ValueError, "C must be given where B_ is; got None"),
        ((X, K, None, C), ValueError, "B_ must be given where C is; got None"),
        ((X, K.cfloat(), B, C), TypeError, "K must have one of the dtypes float32, float64, bfloat16, float16"),
        ((X, K, B.to("meta"), C), ValueError, "B_ must be on the device of x, cpu; got meta"),
    ],
)
def test_errors(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        opt_ssm_forward(*arguments)
    assert str(caught.value).startswith("opt_ssm_forward: ")


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((X, K, B, C), {"strategy": 4}, "strategy must be 'cost', 'auto', 1, 2 or 3; got 4"),
        ((X, K, B, C), {"kernel_layout": "lh"}, "kernel_layout must be 'ln' for K (L, N), 'nl' for K (N, L), or None"),
        ((X, K, B, C), {"kernel_layout": "nl"}, "K must have the shape (N, L) = (5, L); got (7, 5). It is laid out as"),
        ((X, FULL), {"strategy": 3}, "strategy 3 needs the states' kernel K (L, N) with B_ and C; got a full kernel"),
    ],
)
def test_errors_of_options(arguments: tuple[Any, ...], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"opt_ssm_forward: {text}")):
        opt_ssm_forward(*arguments, **options)
