"""The layers: what they compute, that chunks and steps give what the whole gives, and that PyTorch can treat them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from convscan import nn
from convscan.nn._layer import SequenceLayer

D, L = 6, 23

LAYERS: dict[str, Callable[..., SequenceLayer[Any]]] = {
    "short_conv": lambda **options: nn.ShortConv(D, 4, bias=True, **options),
    "short_conv_1_tap": lambda **options: nn.ShortConv(D, 1, **options),
    "linear_recurrence": lambda **options: nn.LinearRecurrence(D, tau_max=50, **options),
    "long_conv": lambda **options: nn.LongConv(
        D, 16, squash=0.002, smooth_time=1, smooth_frequency=2, init="double_exp", **options
    ),
    "long_conv_beyond_the_end": lambda **options: nn.LongConv(D, 40, squash=0.0, init="random", **options),
    "implicit_long_conv": lambda **options: nn.ImplicitLongConv(D, L, width=8, encoding_size=5, **options),
    "hyena": lambda **options: nn.Hyena(D, L, width=8, **options),
    "hyena_order_4": lambda **options: nn.Hyena(D, 9, order=4, width=8, depth=1, frequency=3.0, **options),
    "lru": lambda **options: nn.LRU(D, 5, r_min=0.4, r_max=0.99, **options),
    "rglru": lambda **options: nn.RGLRU(D, num_heads=3, **options),
    "s4_block": lambda **options: nn.S4Block(D, d_state=8, channels=2, **options),
    "s4_block_postnorm": lambda **options: nn.S4Block(D, prenorm=False, d_state=8, init="lin", **options),
    "s4_block_dplr": lambda **options: nn.S4Block(D, kernel="s4", d_state=8, **options),
}


# One of a class: compilation takes its time, and the other sizes are the same program.
CLASSES = ["short_conv", "linear_recurrence", "long_conv", "implicit_long_conv", "hyena", "lru", "rglru", "s4_block"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These sequences are tiny: two threads would spend the time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Callable[..., SequenceLayer[Any]]:
    torch.manual_seed(0)
    return LAYERS[request.param]


def samples(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


# ---- whole, chunks, steps ----


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("prepared", [False, True])
def test_steps_equal_the_whole(
    make: Callable[..., SequenceLayer[Any]], dtype: torch.dtype, bound: float, prepared: bool
) -> None:
    layer, x = make(dtype=dtype).eval(), samples(2, L, D, dtype=dtype)
    with torch.no_grad():
        whole, nothing = layer(x)
        if prepared:
            layer.setup_step()
        state, steps = layer.default_state(2), []
        for i in range(L):
            y, state = layer.step(x[:, i], state)
            steps.append(y)
    assert nothing is None
    assert whole.abs().max() > 1e-3
    assert relative(torch.stack(steps, 1), whole) < bound


@pytest.mark.parametrize(("cuts", "batch"), [((1, 1, 21), (2,)), ((20, 0, 3), (2, 3)), ((23,), ())])
def test_chunks_equal_the_whole(
    make: Callable[..., SequenceLayer[Any]], cuts: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    layer, x = make(dtype=torch.float64), samples(*batch, L, D)
    state, chunks = layer.default_state(*batch), []
    for chunk in x.split(cuts, -2):
        before = copy.deepcopy(torch.utils._pytree.tree_map(Tensor.detach, state))
        y, after = layer(chunk, state)
        torch.testing.assert_close(state, before, rtol=0, atol=0)  # states are values: nobody writes into them
        state = after
        chunks.append(y)
    assert relative(torch.cat(chunks, -2), layer(x)[0]) < 1e-12


def test_the_future_has_no_effect(make: Callable[..., SequenceLayer[Any]]) -> None:
    layer, x = make(dtype=torch.float64), samples(2, L, D)
    changed = torch.cat([x[:, :10], samples(2, L - 10, D) + 1], 1)
    y, z = layer(x)[0], layer(changed)[0]
    torch.testing.assert_close(y[:, :10], z[:, :10], rtol=1e-12, atol=1e-12)
    assert (y[:, 10] - z[:, 10]).abs().max() > 1e-6


def test_memory_order_is_free(make: Callable[..., SequenceLayer[Any]]) -> None:
    layer, x = make(dtype=torch.float64), samples(2, L, D)
    in_time_order = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(layer(in_time_order)[0], layer(x)[0])
    assert layer(x[:0])[0].shape == (0, L, D)
    assert layer(x[:, :0])[0].shape == (2, 0, D)


def test_a_filter_kept_for_steps_is_dropped_where_it_would_be_stale() -> None:
    layer, x = nn.LongConv(D, 16).eval(), samples(1, L, D, dtype=torch.float32)
    layer.setup_step()
    layer(x)[0].sum().backward()  # with gradients the filter is computed
    assert layer.weight.grad is not None
    with torch.no_grad():
        before = layer(x)[0]
        layer.weight.mul_(2)
        assert torch.equal(layer(x)[0], before)
        layer.setup_step()
        assert not torch.equal(layer(x)[0], before)
        layer.train()
        layer.weight.mul_(2)
        assert not torch.equal(layer(x)[0], before)
        assert layer.step_filter is None


# ---- definitions ----


def conv(x: Tensor, h: Tensor) -> Tensor:
    """sum_k h[k] x[i-k] by definition."""
    return torch.stack([sum(h[k] * x[:, i - k] for k in range(min(i + 1, len(h)))) for i in range(x.shape[1])], 1)


def test_short_conv_by_definition() -> None:
    layer, x = nn.ShortConv(D, 3, bias=True, dtype=torch.float64), samples(2, L, D)
    B, C, v = layer.in_proj(x).split(D, -1)
    expected = layer.out_proj(C * (conv(B * v, layer.weight) + layer.bias))
    torch.testing.assert_close(layer(x)[0], expected)


def test_linear_recurrence_by_definition() -> None:
    layer, x = nn.LinearRecurrence(D, 2, 200, dtype=torch.float64), samples(2, L, D)
    a = torch.exp(-torch.exp(layer.log_rate))
    torch.testing.assert_close(-1 / torch.log(a[[0, -1]]), torch.tensor([2.0, 200.0], dtype=torch.float64))
    s, expected = torch.zeros(2, D, dtype=torch.float64), []
    for i in range(L):
        s = a * s + x[:, i]
        expected.append(s)
    torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1))


def test_lru_by_definition() -> None:
    layer, x = nn.LRU(D, 5, dtype=torch.float64), samples(2, L, D)
    eigenvalues = torch.exp(torch.complex(-torch.exp(layer.nu_log), torch.exp(layer.theta_log)))
    B = torch.complex(*layer.B) * torch.exp(layer.gamma_log)[:, None]
    s, expected = torch.zeros(2, 5, dtype=torch.complex128), []
    for i in range(L):
        s = eigenvalues * s + x[:, i].to(s.dtype) @ B.T
        expected.append((s @ torch.complex(*layer.C).T).real + layer.D * x[:, i])
    torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1))


def test_rglru_by_definition() -> None:
    layer, x = nn.RGLRU(D, 2, dtype=torch.float64), samples(2, L, D)
    y, expected = torch.zeros(2, D, dtype=torch.float64), []
    gates = [torch.block_diag(*gate.weight) for gate in (layer.recurrence_gate, layer.input_gate)]
    for i in range(L):
        r, g = (torch.sigmoid(x[:, i] @ W) for W in gates)
        a = torch.sigmoid(layer.Lambda) ** (8 * r)
        y = a * y + torch.sqrt(1 - a**2) * g * x[:, i]
        expected.append(y)
    torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1))


def test_rglru_with_a_gate_closed_to_the_last_bit_has_gradients() -> None:
    layer, x = nn.RGLRU(D), samples(2, L, D, dtype=torch.float32)
    with torch.no_grad():
        layer.recurrence_gate.bias.fill_(-200)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_hyena_by_definition() -> None:
    layer, x = nn.Hyena(D, L, order=3, width=8, dtype=torch.float64), samples(2, L, D)
    smooth = conv(layer.in_proj(x), layer.short_weight) + layer.short_bias
    x0, x1, x2, v = smooth.split(D, -1)
    h, skip = layer.long.filter().split(D, -1), layer.long.skip.split(D)
    z = v * x2
    z = conv(z, h[0]) + skip[0] * z
    z = z * x1
    z = conv(z, h[1]) + skip[1] * z
    torch.testing.assert_close(layer(x)[0], layer.out_proj(x0 * z))


@pytest.mark.parametrize("prenorm", [False, True])
def test_s4_block_by_definition(prenorm: bool) -> None:
    block, x = nn.S4Block(D, prenorm=prenorm, channels=2, d_state=8, dtype=torch.float64), samples(2, L, D)
    with torch.no_grad():
        block.norm.weight.add_(samples(D))
    z = block.s4(block.norm(x) if prenorm else x)[0]
    z = torch.nn.functional.gelu(torch.cat([z[:, 0], z[:, 1]], 1)).transpose(1, 2) @ block.output.weight.T
    value, gate = (z + block.output.bias).split(D, -1)
    y = x + value * torch.sigmoid(gate)
    torch.testing.assert_close(block(x)[0], y if prenorm else block.norm(y))


def test_s4_block_drops_out_in_training_only() -> None:
    block, x = nn.S4Block(D, dropout=0.5, d_state=8), samples(2, L, D, dtype=torch.float32)
    assert not torch.equal(block(x)[0], block(x)[0])
    assert (block(x)[0] == x).float().mean() > 0.3
    assert torch.equal(block.eval()(x)[0], block(x)[0])


def test_implicit_filter_by_definition() -> None:
    K, width = 12, 8
    layer = nn.ImplicitLongConv(D, K, width=width, encoding_size=7, shift=0.1, frequency=2.0, dtype=torch.float64)
    with torch.no_grad():
        layer.frequency.add_(samples(width))
    for k in range(K):
        angles = [2 * math.pi * k / K * f for f in (1e-4, (1e-4 + 2) / 2, 2.0)]
        encoding = [k / (K - 1), *map(math.cos, angles), *(-math.sin(angle) for angle in angles)]
        z = torch.tensor(encoding, dtype=torch.float64)
        for linear in layer.network[:-1]:
            z = torch.sin(layer.frequency * (linear.weight @ z + linear.bias))
        for n in range(D):
            delta = -math.log(0.01) * (1 / 1.5 + n / (D - 1) * (1 / 0.3 - 1 / 1.5))
            expected = (layer.network[-1].weight @ z)[n] * (math.exp(-k / (K - 1) * delta) + 0.1)
            torch.testing.assert_close(layer.filter()[k, n], expected)
    torch.testing.assert_close(layer.filter(5), layer.filter()[:5])


def test_squashing_is_a_soft_threshold() -> None:
    layer = nn.LongConv(D, 9, squash=0.01, skip=False)
    expected = torch.sign(layer.weight) * (layer.weight.abs() - 0.01).clamp_min(0)
    torch.testing.assert_close(layer.filter(), expected)
    assert (layer.filter() == 0).any()


def test_smoothing_in_time_is_a_moving_average() -> None:
    layer = nn.LongConv(D, 9, squash=0.0, smooth_time=2, skip=False, dtype=torch.float64)
    padded = torch.nn.functional.pad(layer.weight, (0, 0, 2, 2))
    torch.testing.assert_close(layer.filter(), sum(padded[j : j + 9] for j in range(5)) / 5)


def test_smoothing_in_frequency_is_a_moving_average_of_the_spectrum() -> None:
    K, w = 9, 2
    layer = nn.LongConv(D, K, squash=0.0, smooth_frequency=w, skip=False, dtype=torch.float64)
    spectrum = torch.fft.fft(layer.weight, 2 * K, dim=0)
    mean = sum(spectrum.roll(j, 0) for j in range(-w, w + 1)) / (2 * w + 1)
    smooth = torch.fft.ifft(mean, dim=0)[:K].real
    torch.testing.assert_close(layer.filter(), smooth)


def test_taps_are_dropped_in_training_only() -> None:
    layer = nn.LongConv(D, 50, squash=0.0, drop_kernel=0.5)
    assert 0.2 < float((layer.filter() == 0).float().mean()) < 0.8
    torch.testing.assert_close(layer.eval().filter(), layer.weight)


# ---- published initialisations ----


@torch.no_grad()
def test_initial_values_are_the_published_ones() -> None:
    torch.manual_seed(0)
    lru = nn.LRU(400, 4000, r_min=0.8, r_max=0.99, max_phase=0.3)
    radius, phase = lru.eigenvalues().abs(), lru.eigenvalues().angle()
    assert radius.min() >= 0.8
    assert radius.max() <= 0.99
    area = (radius**2 - 0.8**2) / (0.99**2 - 0.8**2)
    assert abs(float(area.mean()) - 0.5) < 0.02
    assert abs(float(area.var()) - 1 / 12) < 0.01
    assert phase.min() > 0
    assert phase.max() <= 0.3
    assert abs(float(phase.mean()) - 0.15) < 0.01
    torch.testing.assert_close(torch.exp(lru.gamma_log), torch.sqrt(1 - radius**2), rtol=1e-4, atol=1e-4)
    assert abs(float(lru.B.std()) * math.sqrt(2 * 400) - 1) < 0.01
    assert abs(float(lru.C.std()) * math.sqrt(4000) - 1) < 0.01

    rglru = nn.RGLRU(4000, 40)
    slowest = torch.sigmoid(rglru.Lambda) ** 8
    assert slowest.min() >= 0.9 - 1e-5
    assert slowest.max() <= 0.999 + 1e-5
    assert abs(float(slowest.mean()) - 0.9495) < 0.002
    assert abs(float(rglru.input_gate.weight.std()) * 10 - 1) < 0.01
    assert not rglru.input_gate.bias.any()

    long = nn.LongConv(200, 500)
    assert abs(float(long.weight[0].std()) - 0.02) < 0.003
    last = 0.02 * math.exp(-499 / 500 * 100 ** (199 / 200))
    assert float(long.weight[-1, -1].abs()) < 6 * last
    assert abs(float(nn.LongConv(200, 500, init="random").weight.std()) - 0.002) < 1e-4

    hyena = nn.Hyena(8, 64, order=3)
    assert hyena.short_weight.shape == (3, 32)
    assert hyena.in_proj.weight.shape == (32, 8)
    assert hyena.short_weight.abs().max() <= 1 / math.sqrt(3)
    assert torch.equal(hyena.long.frequency, torch.ones(64))
    assert nn.ShortConv(8, 4).weight.abs().max() <= 0.5


# ---- PyTorch ----


def test_gradients(make: Callable[..., SequenceLayer[Any]]) -> None:
    layer, x = make(dtype=torch.float64), samples(1, 5, D).requires_grad_()
    state = torch.utils._pytree.tree_map(lambda t: torch.randn_like(t).requires_grad_(), layer.default_state(1))
    leaves, structure = torch.utils._pytree.tree_flatten(state)

    def function(x: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        y, after = layer(x, torch.utils._pytree.tree_unflatten(leaves, structure))
        return (y, *torch.utils._pytree.tree_leaves(after))

    assert torch.autograd.gradcheck(function, (x, *leaves), fast_mode=True)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    names = [name for name, _ in layer.named_parameters()]

    def of_parameters(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x.detach(),))[0]

    assert torch.autograd.gradcheck(of_parameters, tuple(parameters), fast_mode=True)


def test_state_dict_makes_the_same_layer(make: Callable[..., SequenceLayer[Any]]) -> None:
    layer, other, x = make(), make(), samples(2, L, D, dtype=torch.float32)
    assert not torch.equal(layer(x)[0], other(x)[0]) or isinstance(layer, nn.LinearRecurrence)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    layer.setup_step()  # leaves no trace in the state dict
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], other(x)[0])


def test_dtype_and_device_moves(make: Callable[..., SequenceLayer[Any]]) -> None:
    layer, x = make(), samples(2, L, D)
    single = layer(x.float())[0]
    torch.testing.assert_close(layer.double()(x)[0].float(), single, rtol=1e-4, atol=1e-5)
    half, half_state = layer.to(torch.bfloat16)(x.bfloat16(), layer.default_state(2))
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), single) < 0.1
    step, _ = layer.step(x[:, 0].bfloat16(), half_state)
    assert step.dtype == torch.bfloat16
    meta = layer.to("meta")
    y, state = meta(x.bfloat16().to("meta"), meta.default_state(2))
    assert {t.device.type for t in torch.utils._pytree.tree_leaves((y, state))} == {"meta"}


@pytest.mark.parametrize("name", CLASSES)
def test_compile(name: str) -> None:
    layer, x = LAYERS[name](dtype=torch.float64), samples(2, L, D)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    state = layer.default_state(2)
    expected = torch.autograd.grad(layer(x, state)[0].sum(), list(layer.parameters()))
    y, after = compiled(x, state)
    torch.testing.assert_close((y, after), layer(x, state))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), list(layer.parameters())), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["linear_recurrence", "long_conv"])
def test_compile_with_dynamic_shapes(name: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, length in ((2, 23), (3, 11)):
        x, state = samples(batch, length, D), layer.default_state(batch)
        torch.testing.assert_close(compiled(x, state), layer(x, state))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CLASSES)
def test_export_of_any_length(name: str) -> None:
    layer, x = LAYERS[name](dtype=torch.float64).eval(), samples(2, L, D)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": free})
    for batch, length in ((2, L), (3, 40), (4, 11)):
        x = samples(batch, length, D)
        torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


@pytest.mark.parametrize("name", CLASSES)
def test_export_with_a_state(name: str) -> None:
    layer, x = LAYERS[name](dtype=torch.float64).eval(), samples(2, L, D)
    program = torch.export.export(layer, (x, layer.default_state(2)))
    torch.testing.assert_close(program.module()(x, layer.default_state(2)), layer(x, layer.default_state(2)))


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nn.ShortConv(0), "ShortConv: d_model must be at least 1; got 0"),
        (lambda: nn.ShortConv(4, 0), "ShortConv: kernel_size must be at least 1; got 0"),
        (lambda: nn.LinearRecurrence(4, 5, 2), "LinearRecurrence: 0 < tau_min <= tau_max must hold; got (5, 2)"),
        (lambda: nn.LongConv(4, 8, squash=-1.0), "LongConv: squash must not be negative; got -1.0. 0 switches it off"),
        (lambda: nn.LongConv(4, 8, init="ones"), "LongConv: init must be one of ('double_exp', 'random'); got 'ones'"),
        (lambda: nn.LongConv(4, 8, smooth_time=-1), "LongConv: smooth_time must be at least 0; got -1"),
        (lambda: nn.ImplicitLongConv(4, 8, encoding_size=4), "ImplicitLongConv: encoding_size must be odd and at"),
        (lambda: nn.ImplicitLongConv(4, 8, target=2.0), "ImplicitLongConv: 0 < target < 1 and 0 < fast_decay <="),
        (lambda: nn.Hyena(4, 8, order=1), "Hyena: order must be at least 2; got 1"),
        (lambda: nn.LRU(4, r_min=0.9, r_max=0.8), "LRU: 0 <= r_min < r_max <= 1 and max_phase > 0 must hold; got"),
        (lambda: nn.RGLRU(6, 4), "RGLRU: d_model must be a multiple of num_heads, 4; got 6"),
        (lambda: nn.LRU(4)(torch.ones(2, 3, 5)), "LRU: x must have the shape (..., L, D) = (..., L, 4); got (2, 3, 5)"),
        (
            lambda: nn.ShortConv(4)(torch.ones(2, 3, 4), torch.zeros(1, 2, 4)),
            "ShortConv: state must have the shape (2, 2, 4); got (1, 2, 4). default_state(2,) makes one",
        ),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
