"""State-space layers: kernels against dense powers, forward against step, parameters, options, PyTorch's tools."""

from __future__ import annotations

import copy
import math
import re
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from convscan import nn
from convscan.nn._hippo import DIAGONAL_INITS, diagonal, diagonal_plus_low_rank, transition
from convscan.nn._state_space import TRANSFORMS, StateSpaceKernel

H, L = 6, 50


def samples(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def continuous(kernel: nn.S4D | nn.S4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt, A, B, C of every feature as dense complex matrices over all states, conjugates included."""
    dt = kernel.time_steps().detach()
    A = kernel.poles().to(torch.complex128).repeat(H // kernel.n_ssm, 1)
    B = kernel._complex(kernel.B).to(torch.complex128).repeat(H // kernel.n_ssm, 1)
    C = kernel._complex(kernel.C).to(torch.complex128)
    dense = torch.diag_embed(A)
    if not kernel.is_real:
        dt = dt.expand_as(A)
        dt, B, C = torch.cat([dt, dt], -1), torch.cat([B, B.conj()], -1), torch.cat([C, C.conj()], -1)
        dense = torch.diag_embed(torch.cat([A, A.conj()], -1))
    if isinstance(kernel, nn.S4):
        P = kernel._complex(kernel.P).repeat(1, H // kernel.n_ssm, 1)
        P = torch.cat([P, P.conj()], -1)
        dense = dense - torch.einsum("rhi,rhj->hij", P, P.conj())
    return dt, dense, B, C


def dense_kernel(kernel: nn.S4D | nn.S4, disc: str, length: int) -> Tensor:
    """C Abar^l Bbar by matrix exponentials or inverses, and one matrix power after the other."""
    dt, A, B, C = continuous(kernel)
    A, B = dt[..., None] * A, (dt * B)[..., None]
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    if disc == "zoh":
        augmented = torch.cat([torch.cat([A, B], -1), torch.zeros_like(A[:, :1, :1]).expand(H, 1, A.shape[-1] + 1)], -2)
        exponential = torch.linalg.matrix_exp(augmented)
        Abar, x = exponential[:, :-1, :-1], exponential[:, :-1, -1:]
    else:
        Abar = torch.linalg.solve(eye - A / 2, eye + A / 2)
        x = torch.linalg.solve(eye - A / 2, B)
    steps = []
    for _ in range(length):
        steps.append((C[..., None, :] @ x)[..., 0, 0])
        x = Abar @ x
    return torch.stack(steps, -1).real


OPTIONS: list[dict[str, Any]] = [
    {},
    {"disc": "bilinear", "init": "lin", "real_transform": "sigmoid"},
    {"init": "inv", "dt_tie": False, "n_ssm": 2},
    {"init": "legt", "real_transform": "softplus", "imag_transform": "exp", "dt_transform": "softplus"},
    {"init": "fourier", "real_transform": "none", "dt_fast": True, "disc": "bilinear"},
    {"init": "random", "real_transform": "relu", "imag_transform": "relu", "n_ssm": 1},
    {"is_real": True, "init": "random", "dt_min": 0.01, "dt_max": 0.02},
    {"is_real": True, "disc": "bilinear", "n_ssm": 3},
    {"kernel": "s4"},
    {"kernel": "s4", "init": "legt", "dt_tie": False, "n_ssm": 2, "real_transform": "softplus"},
    {"kernel": "s4", "init": "fourier", "rank": 2, "n_ssm": 1, "dt_transform": "softplus", "imag_transform": "relu"},
]


@pytest.fixture(params=OPTIONS, ids=lambda options: "-".join(map(str, options.values())) or "default")
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"kernel": "s4d", "d_state": 8, **request.param}


# ---- values ----


def test_kernels_equal_dense_matrix_powers(options: dict[str, Any]) -> None:
    disc = "bilinear" if options["kernel"] == "s4" else "zoh"
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        layer = nn.FFTConvS4(H, channels=2, dtype=dtype, **options)
        assert isinstance(layer.kernel, nn.S4 if options["kernel"] == "s4" else nn.S4D)
        K, nothing = layer.kernel(L)
        assert nothing is None
        assert K.dtype == dtype
        assert relative(K.double(), dense_kernel(layer.kernel, options.get("disc", disc), L)) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mode", [None, "linear", "dense", "diagonal", "not set up"])
def test_steps_and_chunks_equal_the_whole(
    options: dict[str, Any], mode: str | None, dtype: torch.dtype, bound: float
) -> None:
    if mode in ("linear", "dense") and options["kernel"] == "s4d":
        pytest.skip("S4D has the mode diagonal only")
    if mode == "diagonal" and options["kernel"] == "s4":
        options |= {"d_state": 6}  # whose eigenbasis is well-conditioned
    layer = nn.FFTConvS4(H, L // 2, channels=3, dtype=dtype, **options).eval()  # past l_max nothing is truncated
    x = samples(2, H, L, dtype=dtype)
    with torch.no_grad():
        whole, nothing = layer(x)
        if mode != "not set up":
            layer.setup_step(mode)
        state, steps = layer.default_state(2), []
        for i in range(L):
            y, state = layer.step(x[..., i], state)
            steps.append(y)
        assert nothing is None
        assert whole.abs().max() > 1e-2
        assert relative(torch.stack(steps, -1), whole) < bound
        chunks, carried = [], layer.default_state(2)
        for chunk in x.split([1, 0, 30, 19], -1):
            y, carried = layer(chunk, carried)
            chunks.append(y)
        assert relative(torch.cat(chunks, -1), whole) < bound
        assert relative(carried, state) < bound
        assert carried.dtype == state.dtype == layer.kernel.state_dtype


@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_many_steps_of_a_large_layer(kernel: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.FFTConvS4(16, channels=2, kernel=kernel).eval(), samples(1, 16, 1500, dtype=torch.float32)
    with torch.no_grad():
        layer.setup_step()
        whole, (state, steps) = layer(x)[0], (layer.default_state(1), [])
        for i in range(x.shape[-1]):
            y, state = layer.step(x[..., i], state)
            steps.append(y)
    assert relative(torch.stack(steps, -1), whole) < 1e-5


@pytest.mark.parametrize("init", ["legs", "legt", "fourier"])
def test_the_contour_reaches_every_length(init: str) -> None:
    """The same kernel whatever length is asked for, also of slow poles that have not decayed at the end."""
    torch.manual_seed(0)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        kernel = nn.S4(H, d_state=64, init=init, dtype=dtype, dt_min=1e-4, dt_max=1e-1)
        longest = kernel(3000)[0]
        for length in (1, 2, 3, 5, 127, 1000):
            assert relative(kernel(length)[0], longest[..., :length]) < bound
    assert kernel(0)[0].shape == (1, H, 0)


def test_an_ill_conditioned_eigenbasis_is_refused() -> None:
    layer = nn.FFTConvS4(H, kernel="s4", d_state=64)
    text = "S4: Abar must have an eigenbasis of condition 1e+08 or less for mode='diagonal'; got"
    with pytest.raises(ValueError, match=re.escape(text)):
        layer.setup_step("diagonal")
    assert layer.kernel.mode == "linear"


def test_rate_rescales_the_time_step(options: dict[str, Any]) -> None:
    layer = nn.FFTConvS4(H, dtype=torch.float64, **options)
    faster = copy.deepcopy(layer)
    dt = 3 * layer.kernel.time_steps().detach()
    inverse = TRANSFORMS[options.get("dt_transform", "exp")][1](dt)
    with torch.no_grad():
        faster.kernel.inv_dt.copy_(torch.asinh(inverse) if options.get("dt_fast") else inverse)
    x, state = samples(2, H, L), 1 + layer.default_state(2)
    for got, wanted in zip(layer(x, state, rate=3.0), faster(x, state), strict=True):
        torch.testing.assert_close(got, wanted)


def test_shapes_of_inputs_and_outputs() -> None:
    layer = nn.FFTConvS4(H, channels=2, d_state=4).eval()
    assert layer.d_output == 12
    x = samples(3, H, L, dtype=torch.float32)
    y, _ = layer(x)
    assert (y.shape, y.dtype) == ((3, 2, H, L), torch.float32)
    other = copy.deepcopy(layer)
    other.transposed, other.swap_channels = False, True
    swapped, _ = other(x.mT)
    torch.testing.assert_close(swapped.transpose(1, 2), y)
    state = layer.default_state(3)
    torch.testing.assert_close(other.step(x[..., 0], state)[0].mT, layer.step(x[..., 0], state)[0])
    assert other.step(x[..., 0], state)[0].shape == (3, H, 2)
    for shape in ((H, L), (0, H, L), (3, H, 0), (2, 3, H, 1)):
        leads, length = shape[:-2], shape[-1]
        for start in (None, layer.default_state(*leads)):
            y, after = layer(torch.ones(shape), start)
            assert y.shape == (*leads, 2, H, length)
            assert after is None if start is None else after.shape == start.shape


def test_long_inputs_are_not_copied() -> None:
    """The convolution gets the caller's memory, seen through a transpose, and so does its gradient."""
    layer, x = nn.FFTConvS4(H, d_state=4).eval(), samples(3, H, L, dtype=torch.float32)
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.convscan.causal_conv.default:
                seen.append(args[0].data_ptr())
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        y, _ = layer(x)
        layer.transposed = False
        time_first = x.mT.contiguous()
        layer(time_first)
    assert seen == [x.data_ptr(), time_first.data_ptr()]
    assert y.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.FFTConvS4(H, channels=2, d_state=8, dtype=dtype).eval(), samples(2, H, L, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    y, state = layer(x, layer.default_state(2))
    assert (y.dtype, state.dtype) == (dtype, torch.complex64)
    assert relative(y.double(), exact(x.double())[0]) < 4 * torch.finfo(dtype).eps
    assert layer.step(x[..., 0], state)[0].dtype == dtype


# ---- dropout ----


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = nn.FFTConvS4(32, dropout=0.5, d_state=4), torch.ones(4, 32, L)
    y, _ = layer(x)
    share = float((y == 0).double().mean())
    assert 0.45 < share < 0.55
    layer.tie_dropout = True
    y, _ = layer(x)
    gone = (y == 0).all(-1)
    assert torch.equal(gone, (y == 0).any(-1))
    assert 0.3 < float(gone.double().mean()) < 0.7
    layer.eval()
    torch.testing.assert_close(layer(x)[0], layer(x)[0])
    assert not (layer(x)[0] == 0).any()


def test_taps_of_the_kernel_are_dropped() -> None:
    torch.manual_seed(0)
    layer, impulse = nn.FFTConvS4(32, drop_kernel=0.25, d_state=4), torch.zeros(1, 32, L)
    impulse[..., 0] = 1
    taps = layer(impulse)[0][..., 1:]
    assert 0.2 < float((taps.abs() < 1e-6).double().mean()) < 0.3
    full = layer.eval()(impulse)[0][..., 1:]
    kept = taps.abs() >= 1e-6
    torch.testing.assert_close(taps[kept], full[kept] / 0.75, rtol=1e-3, atol=1e-5)


# ---- parameters ----


def test_published_initial_values() -> None:
    A, B, P = transition("legs", 4)
    assert A.diagonal().tolist() == [-1, -2, -3, -4]
    assert A[2, 1] == -math.sqrt(15)
    assert (A[1, 2], B[3]) == (0, math.sqrt(7))
    for measure, states in (("legs", 16), ("legt", 16), ("fourier", 16), ("legs", 2)):
        A, B, P = transition(measure, states)
        normal = A + P.T @ P
        torch.testing.assert_close(normal @ normal.T, normal.T @ normal)
        poles, low_rank, b = diagonal_plus_low_rank(measure, states, 2)
        assert low_rank.shape == (2, states // 2)
        # The same system in both bases: equal moments of B under powers of A.
        full = torch.cat([poles, poles.conj()])
        P_full, b_full = torch.cat([low_rank, low_rank.conj()], -1), torch.cat([b, b.conj()])
        A_full = torch.diag(full) - P_full.T @ P_full.conj()
        for power in range(3):
            got = b_full.conj() @ torch.linalg.matrix_power(A_full, power) @ b_full
            torch.testing.assert_close(got.real, B @ torch.linalg.matrix_power(A, power) @ B)
    expected = {
        "lin": math.pi * torch.arange(4, dtype=torch.float64),
        "inv": 8 / math.pi * (8 / (2 * torch.arange(4, dtype=torch.float64) + 1) - 1),
        "fourier": math.pi * torch.arange(4, dtype=torch.float64),
    }
    for init in DIAGONAL_INITS:
        poles = diagonal(init, 8, 3)
        assert poles.shape == (3, 4)
        assert torch.equal(poles.real, torch.full((3, 4), -0.5, dtype=torch.float64))
        if init in expected:
            torch.testing.assert_close(poles[0].imag, expected[init], atol=1e-12, rtol=1e-12)
    # How to Train Your HiPPO: the frequencies of LegS grow towards N²/pi.
    assert 0.9 < float(diagonal("legs", 64, 1).imag.max()) / (64**2 / math.pi) < 1.1
    kernel = nn.S4D(200, d_state=4, dt_min=0.01, dt_max=0.02, is_real=True)
    assert kernel.poles()[0].tolist() == pytest.approx([-1, -2, -3, -4])
    assert torch.equal(kernel.B, torch.ones(200, 4))
    dt = kernel.time_steps().detach()
    assert 0.01 <= float(dt.min()) < 0.0105 < 0.019 < float(dt.max()) <= 0.02
    assert 0.9 < float(nn.S4D(200).C.detach().square().sum(-1).mean()) < 1.1


def test_parameters_may_be_given() -> None:
    torch.manual_seed(0)
    A, B = -torch.rand(2, 4) - 0.1 + 1j * torch.rand(2, 4), torch.randn(2, 4, dtype=torch.complex64)
    C, dt = torch.randn(3, H, 4, dtype=torch.complex64), torch.rand(H, 1) + 0.01
    config = {"A": A, "B": B, "C": C, "dt": dt, "d_state": 8, "disc": "bilinear"}
    layer = nn.FFTConvS4(H, channels=3, kernel_type="s4d", param_config=config)
    kernel = layer.kernel
    assert isinstance(kernel, nn.S4D)
    assert (kernel.n_ssm, kernel.disc) == (2, "bilinear")
    torch.testing.assert_close(kernel.poles().to(A.dtype), A)
    torch.testing.assert_close(kernel.time_steps().float(), dt)
    for name, value in (("B", B), ("C", C)):
        torch.testing.assert_close(torch.view_as_complex(getattr(kernel, name).detach()), value)
    other = nn.S4D(H, None, 3, **config)
    torch.testing.assert_close(other(20)[0], kernel(20)[0])
    with torch.no_grad():
        kernel.C.zero_()
    assert not torch.equal(C, torch.zeros_like(C)), "a ready parameter must be copied"


@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_state_dict_has_each_parameter_once(kernel: str) -> None:
    layer = nn.FFTConvS4(H, channels=2, d_state=8, kernel=kernel)
    layer.setup_step()
    names = ["D", "kernel.A_imag", "kernel.A_real", "kernel.B", "kernel.C", "kernel.inv_dt"]
    names = sorted([*names, "kernel.P"]) if kernel == "s4" else names
    assert sorted(layer.state_dict()) == names
    assert sorted(name for name, _ in layer.named_parameters()) == names
    torch.manual_seed(5)
    other = nn.FFTConvS4(H, channels=2, d_state=8, kernel=kernel)
    other.load_state_dict(layer.state_dict())
    x = samples(1, H, L, dtype=torch.float32)
    assert torch.equal(other(x)[0], layer(x)[0])


def test_parameter_groups() -> None:
    layer = nn.FFTConvS4(H, d_state=4, lr={"A": 1e-3, "dt": 2e-3}, wd={"C": 0.1})
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    groups = nn.parameter_groups(model)
    kernel = layer.kernel
    assert isinstance(kernel, nn.S4D)
    found = {id(p): {k: v for k, v in group.items() if k != "params"} for group in groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(kernel.A_real)] == found[id(kernel.A_imag)] == {"lr": 1e-3}
    assert found[id(kernel.inv_dt)] == {"lr": 2e-3}
    assert found[id(kernel.C)] == {"weight_decay": 0.1}
    assert found[id(kernel.B)] == found[id(layer.D)] == found[id(model[0].weight)] == {}
    assert nn.parameter_groups(nn.FFTConvS4(H, lr=0.5))[1]["lr"] == 0.5
    # A rate of zero leaves a parameter alone.
    frozen = nn.FFTConvS4(H, d_state=4, lr={"A": 0.0})
    before = frozen.kernel.A_real.clone()
    optimiser = torch.optim.AdamW(nn.parameter_groups(frozen), lr=0.1, weight_decay=0.1)
    frozen(samples(1, H, L, dtype=torch.float32))[0].square().sum().backward()
    optimiser.step()
    assert torch.equal(frozen.kernel.A_real, before)
    assert not torch.equal(frozen.D.grad, torch.zeros_like(frozen.D))


def test_every_parameter_learns(options: dict[str, Any]) -> None:
    layer = nn.FFTConvS4(H, channels=2, dtype=torch.float64, **options)
    y, state = layer(samples(2, H, L), 1 + layer.default_state(2))
    (y.square().sum() + state.abs().sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("kind", [nn.S4D, nn.S4])
def test_gradients_of_the_kernel(kind: type[nn.S4D] | type[nn.S4]) -> None:
    torch.manual_seed(0)
    kernel = kind(2, d_state=4, dtype=torch.float64, dt_min=0.1, dt_max=0.5)
    names = [name for name, _ in kernel.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.complex(x, x).expand(2, 2)
        parameters = dict(zip(names, values, strict=True))
        K, K_state = torch.func.functional_call(kernel, parameters, (5, 1.0, state))
        return K, K_state

    values = tuple(parameter.detach().clone().requires_grad_() for parameter in kernel.parameters())
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *values))


def test_setup_step_follows_the_parameters() -> None:
    layer = nn.FFTConvS4(H, d_state=4)
    x, state = samples(2, H, dtype=torch.float32), layer.default_state(2)
    layer.setup_step()
    with torch.no_grad():
        before = layer.step(x, state)[0]
        layer.kernel.C.mul_(2)
        assert torch.equal(layer.step(x, state)[0], before), "set up: kept until set up anew"
        layer.train()
        assert not torch.equal(layer.step(x, state)[0], before)
    layer.setup_step()
    layer.double()
    y, after = layer.step(x.double(), layer.default_state(2))
    assert (y.dtype, after.dtype) == (torch.float64, torch.complex128)
    y.sum().backward()  # gradients flow through steps, with what was set up and without
    assert layer.kernel.C.grad is not None


# ---- PyTorch ----


@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_compile(kernel: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.FFTConvS4(H, channels=2, d_state=4, kernel=kernel), samples(2, H, L, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x)[0], layer(x)[0]
    torch.testing.assert_close(y, expected)
    parameters = list(layer.parameters())
    gradients = zip(
        torch.autograd.grad(y.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    )
    for got, wanted in gradients:
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_export(kernel: str) -> None:
    layer, x = nn.FFTConvS4(H, channels=2, d_state=4, kernel=kernel).eval(), samples(2, H, L, dtype=torch.float32)
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x)[0], layer(x)[0])


@pytest.mark.parametrize("kernel", ["s4d", "s4"])
def test_export_with_sizes_left_open(kernel: str) -> None:
    layer, x = nn.FFTConvS4(H, d_state=4, kernel=kernel).eval(), samples(2, H, L, dtype=torch.float32)
    open_sizes = {0: torch.export.Dim("B", min=1), 2: torch.export.Dim("L", min=3)}
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": open_sizes}).module()
    for batch, length in ((5, 77), (1, 7), (2, 128)):
        other = samples(batch, H, length, dtype=torch.float32)
        torch.testing.assert_close(exported(other)[0], layer(other)[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++")
def test_inductor() -> None:
    layer, x = nn.FFTConvS4(H, d_state=4, kernel="s4d"), samples(2, H, L, dtype=torch.float32)
    compiled = torch.compile(lambda x: layer(x)[0], fullgraph=True, backend="inductor")
    torch.testing.assert_close(compiled(x), layer(x)[0])
    parameters = list(layer.parameters())
    got = torch.autograd.grad(compiled(x).square().sum(), parameters)
    for gradient, wanted in zip(got, torch.autograd.grad(layer(x)[0].square().sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_devices_and_copies() -> None:
    layer = nn.FFTConvS4(H, d_state=4, device="meta", dtype=torch.float64)
    assert layer(torch.empty(2, H, L, device="meta", dtype=torch.float64))[0].shape == (2, 1, H, L)
    assert layer.default_state(2).device.type == "meta"
    assert layer.default_state(2, device="cpu").device.type == "cpu"
    assert isinstance(copy.deepcopy(layer).kernel, StateSpaceKernel)


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"kernel": "s5"}, ValueError, "FFTConvS4: kernel must be one of 's4d', 's4'; got 's5'"),
        ({"kernel_type": "diag"}, ValueError, "FFTConvS4: kernel_type must be one of 's4d', 's4'; got 'diag'"),
        (
            {"kernel": "s4", "kernel_type": "s4d"},
            ValueError,
            "name the same thing; give one of them; got 's4' and 's4d'",
        ),
        (
            {"kernel": "s4", "disc": "zoh"},
            TypeError,
            "arguments for kernel S4 must be among d_state, init, rank, real_",
        ),
        ({"kernel": "s4", "init": "lin"}, ValueError, "S4: init must be one of 'legs', 'legt', 'fourier'; got 'lin'"),
        ({"kernel": "s4", "init": "legt", "rank": 1}, ValueError, "S4: rank must be 2 for init='legt'; got 1"),
        ({"kernel": "s4", "rank": 3}, ValueError, "S4: rank must be 1 or 2 for init='legs'; got 3"),
        ({"kernel": "s4", "P": torch.ones(6, 32)}, ValueError, "S4: P must have the shape (1, 6, 32); got (6, 32)"),
        (
            {"d_sate": 4},
            TypeError,
            "FFTConvS4: arguments for kernel S4D must be among d_state, disc, init, rank, real_",
        ),
        ({"param_config": {"E": 1}}, TypeError, "must be among d_state"),
        ({"param_config": {"disc": "zoh"}, "disc": "zoh"}, TypeError, "must not name the same thing; got disc"),
        ({"d_model": 0}, ValueError, "FFTConvS4: d_model must be at least 1; got 0"),
        ({"channels": 0}, ValueError, "FFTConvS4: channels must be at least 1; got 0"),
        ({"l_max": 0}, ValueError, "S4D: l_max must be at least 1; got 0"),
        ({"d_state": 5}, ValueError, "S4D: d_state must be even, for its states are conjugate pairs; got 5"),
        ({"disc": "euler"}, ValueError, "S4D: disc must be one of 'zoh', 'bilinear'; got 'euler'"),
        ({"init": "hippo"}, ValueError, "S4D: init must be one of 'legs', 'lin', 'inv', 'legt', 'fourier', 'random'"),
        ({"init": "lin", "is_real": True}, ValueError, "S4D: init must be one of 'legs', 'random'; got 'lin'"),
        ({"init": "legt", "rank": 1}, ValueError, "S4D: rank must be at least 2 for init='legt'; got 1"),
        ({"real_transform": "tanh"}, ValueError, "S4D: real_transform must be one of 'none', 'exp', 'relu', 'sigmoid'"),
        ({"imag_transform": "sigmoid"}, ValueError, "S4D: imag_transform='sigmoid' makes values below 1; got"),
        ({"dt_transform": "square"}, ValueError, "S4D: dt_transform must be one of"),
        ({"dt_min": 0.2, "dt_max": 0.1}, ValueError, "S4D: 0 < dt_min <= dt_max must hold; got (0.2, 0.1)"),
        ({"n_ssm": 4}, ValueError, "S4D: n_ssm must divide d_model, 6; got 4"),
        ({"lr": {"E": 1.0}}, ValueError, "S4D: a key of lr must be one of 'A', 'B', 'C', 'dt'; got 'E'"),
        ({"dt": torch.ones(H)}, ValueError, "S4D: dt must have the shape (6, 1); got (6,)"),
        ({"dt": -torch.ones(H, 1)}, ValueError, "S4D: dt must be positive; got -1.0"),
        ({"A": torch.ones(6, 32) + 0j}, ValueError, "S4D: the real part of A must be negative; got 1.0"),
        ({"C": torch.ones(6, 32) + 0j}, ValueError, "S4D: C must have the shape (1, 6, 32); got (6, 32)"),
    ],
)
def test_errors_of_the_constructor(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        nn.FFTConvS4(**({"d_model": H} | arguments))


def test_errors_of_calls() -> None:
    layer = nn.FFTConvS4(H, d_state=4)
    for call, error, text in (
        (lambda: layer(torch.ones(2, L, H)), ValueError, "x must have the shape (B, H, L) with H = 6, for transposed"),
        (lambda: layer(1.0), TypeError, "FFTConvS4: x must be a torch.Tensor; got float"),
        (lambda: layer.step(torch.ones(2, 5), None), ValueError, "x must have the shape (B, H) with H = 6; got (2, 5)"),
        (lambda: layer.step(torch.ones(2, H), torch.ones(2, H, 4)), ValueError, "(..., 6, 2); got (2, 6, 4)"),
        (lambda: layer(torch.ones(2, H, L), torch.ones(2, H, 4)), ValueError, "S4D: state must have the shape (..., 6"),
        (lambda: layer.setup_step("dense"), ValueError, "S4D: mode must be one of 'diagonal'; got 'dense'"),
        (
            lambda: nn.FFTConvS4(H, kernel="s4").setup_step("fast"),
            ValueError,
            "'linear', 'dense', 'diagonal'; got 'fast'",
        ),
        (lambda: layer.kernel(), ValueError, "S4D: length must be given, for l_max is None"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            call()
    assert nn.S4D(H, l_max=17)()[0].shape == (1, H, 17)


def test_example_of_the_documentation() -> None:
    conv_layer = nn.FFTConvS4(d_model=64, l_max=1024, channels=4, kernel="s4d", dropout=0.1)
    y, _ = conv_layer(torch.randn(32, 64, 1024))  # (32, 4, 64, 1024)
    assert y.shape == (32, 4, 64, 1024)
