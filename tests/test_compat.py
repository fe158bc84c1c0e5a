"""Stand-ins for other libraries: what their documentation promises, against plain loops and PyTorch's own operators."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
from convscan import compat
from convscan.compat.accelerated_scan import scan
from convscan.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
from convscan.compat.flashfftconv import FlashDepthWiseConv1d, FlashFFTConv
from convscan.compat.mamba_ssm import mamba_inner_fn, selective_scan_fn, selective_state_update
from convscan.compat.torchlpc import sample_wise_lpc

WIDTHS = (1, 2, 3, 4, 7, 31)


def last_axis(x: Tensor, channel_last: bool) -> Tensor:
    """The same (B, D, L) with either axis contiguous."""
    return x.mT.contiguous().mT if channel_last else x.contiguous()


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """PyTorch's convolution of x (B, D, L) with the samples before it in front; as many outputs as weights fit."""
    y = torch.nn.functional.conv1d(x, weight.unsqueeze(1), bias, groups=weight.shape[0])
    return y if activation is None else torch.nn.functional.silu(y)


def inputs(width: int, length: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = oracle.Draw(seed)
    return draw.normal(2, 6, length), draw.normal(6, width), draw.normal(6), draw.normal(2, 6, width - 1)


# ---- causal_conv1d ----


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_causal_conv1d_fn(width: int, channel_last: bool, activation: str | None) -> None:
    x, weight, bias, states = inputs(width)
    x = last_axis(x, channel_last)
    before = torch.cat([states, x], -1)
    for initial, samples in ((states, before), (None, torch.cat([torch.zeros_like(states), x], -1))):
        expected = conv(samples, weight, bias, activation)
        out = causal_conv1d_fn(x, weight, bias, initial_states=initial, activation=activation)
        assert isinstance(out, Tensor)
        assert torch.allclose(out, expected)
        assert out.stride() == x.stride()
        memory = torch.full_like(states, torch.nan)
        both = causal_conv1d_fn(x, weight, bias, None, initial, True, memory, activation)
        assert isinstance(both, tuple)
        assert torch.allclose(both[0], expected)
        assert both[1] is memory
        assert torch.equal(memory, samples[..., x.shape[-1] :])


def test_causal_conv1d_fn_of_fewer_samples_than_states() -> None:
    x, weight, _, states = inputs(7, length=2)
    _, final = causal_conv1d_fn(x, weight, initial_states=states, return_final_states=True)
    assert torch.equal(final, torch.cat([states[..., 2:], x], -1))
    _, final = causal_conv1d_fn(x, weight, return_final_states=True)
    assert torch.equal(final, torch.cat([torch.zeros_like(states)[..., 2:], x], -1))


def packed_loop(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor, states: Tensor | None) -> Tensor:
    """One output after the other: taps that meet another sequence meet zeros."""
    width = weight.shape[1]
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[2]):
            if seq_idx[b, t] < 0:
                continue
            y[b, :, t] = bias
            for k in range(width):
                at = t - k
                if at >= 0 and bool((seq_idx[b, at : t + 1] == seq_idx[b, t]).all()):
                    y[b, :, t] += weight[:, width - 1 - k] * x[b, :, at]
                if at < 0 and states is not None and bool((seq_idx[b, : t + 1] == seq_idx[b, t]).all()):
                    y[b, :, t] += weight[:, width - 1 - k] * states[b, :, width - 1 + at]
    return y


@pytest.mark.parametrize("width", [1, 3, 7])
def test_sequences_behind_one_another(width: int) -> None:
    x, weight, bias, states = inputs(width)
    seq_idx = torch.tensor([[0] * 3 + [1] * 2 + [2] * 15, [4] * 10 + [2] * 6 + [-1] * 4], dtype=torch.int32)
    for initial in (None, states):
        out = causal_conv1d_fn(x, weight, bias, seq_idx, initial)
        assert isinstance(out, Tensor)
        assert torch.allclose(out, packed_loop(x, weight, bias, seq_idx, initial))
        out, final = causal_conv1d_fn(x, weight, bias, seq_idx, initial, True, activation="silu")
        assert torch.allclose(out, torch.nn.functional.silu(packed_loop(x, weight, bias, seq_idx, initial)) * 1.0)
        assert torch.equal(final[0], x[0, :, x.shape[-1] - (width - 1) :])
        ends = torch.nn.functional.pad(x[1, :, 10:16], (width, 0))
        assert torch.equal(final[1], ends[:, ends.shape[1] - (width - 1) :])
    one = torch.zeros(2, 20, dtype=torch.int64)
    out, final = causal_conv1d_fn(x[..., :1], weight, bias, one[:, :1], states, True)
    assert torch.equal(final, torch.cat([states, x[..., :1]], -1)[..., 1:])
    empty = causal_conv1d_fn(x[..., :0], weight, bias, one[:, :0])
    assert isinstance(empty, Tensor)
    assert empty.shape == (2, 6, 0)


def test_causal_conv1d_fn_has_gradients() -> None:
    x, weight, bias, states = inputs(3, length=5)
    x, weight, bias, states = (t.requires_grad_() for t in (x[:, :2], weight[:2], bias[:2], states[:, :2]))
    seq_idx = torch.tensor([[0] * 2 + [1] * 3, [0] * 5])

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        result = causal_conv1d_fn(tensors[0], tensors[1], tensors[2], None, tensors[3], True, activation="silu")
        assert isinstance(result, tuple)
        return result

    assert torch.autograd.gradcheck(run, (x, weight, bias, states))
    packed = lambda *tensors: causal_conv1d_fn(*tensors[:3], seq_idx, tensors[3])  # noqa: E731
    assert torch.autograd.gradcheck(packed, (x, weight, bias, states))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seqlen", [None, 1, 3, 40])
def test_causal_conv1d_update(width: int, seqlen: int | None) -> None:
    x, weight, bias, _ = inputs(width, length=40)
    x = x[..., : seqlen or 1]
    state = oracle.Draw(1).normal(2, 6, width + 2)
    samples = torch.cat([state, x], -1)
    expected = conv(samples, weight, bias, "silu")[..., -x.shape[-1] :]
    out = causal_conv1d_update(x if seqlen else x[..., 0], state, weight, bias, "silu")
    assert torch.allclose(out, expected if seqlen else expected[..., 0])
    assert torch.equal(state, samples[..., -state.shape[-1] :])


@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_ring_is_written_where_the_sequence_is(width: int) -> None:
    x, weight, bias, _ = inputs(width, length=60)
    size = width + 1
    ring = torch.zeros(2, 6, size, dtype=x.dtype)
    given = torch.tensor([0, 0], dtype=torch.int32)
    outputs, at = [], 0
    for count in (1, 3, 1, 20, 1, 1, 33):
        chunk = x[..., at : at + count]
        outputs.append(causal_conv1d_update(chunk, ring, weight, bias, cache_seqlens=given))
        at += count
        given = given + count
        for t in range(max(0, at - size), at):
            assert torch.equal(ring[..., t % size], x[..., t])
    expected = conv(torch.nn.functional.pad(x, (width - 1, 0)), weight, bias, None)
    assert torch.allclose(torch.cat(outputs, -1), expected)


def test_sequences_at_different_places_of_their_rings() -> None:
    x, weight, bias, _ = inputs(4, length=30)
    ring = oracle.Draw(2).normal(2, 6, 5)
    before, given = ring.clone(), torch.tensor([3, 11], dtype=torch.int32)
    out = causal_conv1d_update(x[..., :2], ring, weight, bias, cache_seqlens=given)
    for b, t in enumerate(given.tolist()):
        window = torch.stack([before[b, :, (t - j) % 5] for j in (3, 2, 1)], -1)
        expected = conv(torch.cat([window, x[b, :, :2]], -1)[None], weight, bias, None)[0]
        assert torch.allclose(out[b], expected)
        assert torch.equal(ring[b, :, [t % 5, (t + 1) % 5]], x[b, :, :2])


@pytest.mark.parametrize("ring", [False, True])
def test_states_are_picked_from_a_larger_cache(ring: bool) -> None:
    x, weight, bias, _ = inputs(4)
    x = torch.cat([x, x + 1])[..., 0]
    cache = oracle.Draw(3).normal(7, 6, 5)
    before = cache.clone()
    index = torch.tensor([5, -1, 0, 2], dtype=torch.int32)
    given = torch.tensor([4, 0, 9, 6], dtype=torch.int32) if ring else None
    out = causal_conv1d_update(x, cache, weight, bias, "silu", given, index)
    assert torch.equal(out[1], torch.zeros(6, dtype=x.dtype))
    for b, row in ((0, 5), (2, 0), (3, 2)):
        state = before[row : row + 1].clone()
        taken = None if given is None else given[b : b + 1]
        assert torch.allclose(out[b], causal_conv1d_update(x[b : b + 1], state, weight, bias, "silu", taken)[0])
        assert torch.equal(cache[row], state[0])
    for row in (1, 3, 4, 6):
        assert torch.equal(cache[row], before[row])
    padded = causal_conv1d_update(x, cache, weight, bias, conv_state_indices=index + 1, pad_slot_id=6)
    assert torch.equal(padded[0], torch.zeros(6, dtype=x.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_come_back_as_halves_whatever_the_weight_is(dtype: torch.dtype) -> None:
    x, weight, bias, states = (tensor.float() for tensor in inputs(4))
    out, final = causal_conv1d_fn(x.to(dtype), weight, bias, None, states.to(dtype), True)
    assert out.dtype == final.dtype == dtype
    state = states.to(dtype)
    one = causal_conv1d_update(x[..., 0].to(dtype), state, weight, bias)
    assert one.dtype == state.dtype == dtype
    assert torch.equal(one, out[..., 0])


def test_last_samples_of_sequences() -> None:
    x = oracle.Draw(4).normal(10, 3)
    bounds = torch.tensor([0, 4, 4, 5, 10], dtype=torch.int32)
    for length in (1, 3, 7):
        states = causal_conv1d_varlen_states(x, bounds, length)
        assert states.shape == (4, 3, length)
        for b, (begin, end) in enumerate(((0, 4), (4, 4), (4, 5), (5, 10))):
            padded = torch.nn.functional.pad(x[begin:end].T, (length, 0))
            assert torch.equal(states[b], padded[:, padded.shape[1] - length :])
    assert causal_conv1d_varlen_states(x[:0], torch.tensor([0, 0]), 2).abs().sum() == 0


# ---- accelerated_scan ----


@pytest.mark.parametrize("length", [0, 1, 8, 37])
def test_accelerated_scan(length: int) -> None:
    draw = oracle.Draw(5)
    gates, tokens = torch.sigmoid(draw.normal(2, 3, length)), draw.normal(2, 3, length)
    last, expected = torch.zeros(2, 3, dtype=tokens.dtype), torch.empty_like(tokens)
    for t in range(length):
        last = gates[..., t] * last + tokens[..., t]
        expected[..., t] = last
    assert torch.allclose(scan(gates, tokens), expected)
    if length:
        assert torch.autograd.gradcheck(scan, (gates.requires_grad_(), tokens.requires_grad_()))
    backwards = scan(gates.flip(-1), tokens.flip(-1), reverse=True).flip(-1)
    assert torch.allclose(backwards, expected)


def test_accelerated_scan_by_later_names() -> None:
    """Complex gates, and real or complex inputs."""
    draw = oracle.Draw(6)
    forget = torch.polar(torch.sigmoid(draw.normal(2, 3, 9)), draw.normal(2, 3, 9))
    for inputs in (draw.normal(2, 3, 9), torch.complex(draw.normal(2, 3, 9), draw.normal(2, 3, 9))):
        last, expected = torch.zeros(2, 3, dtype=forget.dtype), torch.empty_like(forget)
        for t in range(9):
            last = forget[..., t] * last + inputs[..., t]
            expected[..., t] = last
        with compat.install("accelerated_scan"):
            for name in ("complex", "scalar"):
                module = importlib.import_module(f"accelerated_scan.{name}")
                assert torch.allclose(module.scan(forget=forget, inputs=inputs), expected)


# ---- flashfftconv ----


def circular(u: Tensor, k: Tensor, period: int) -> Tensor:
    product = torch.fft.rfft(u, period) * torch.fft.rfft(k, period)
    return torch.fft.irfft(product, period)[..., : u.shape[-1]]


@pytest.mark.parametrize(
    ("period", "length", "taps"), [(32, 16, 16), (32, 32, 32), (32, 32, 5), (32, 20, 30), (7, 5, 7)]
)
@pytest.mark.parametrize("training", [True, False])
def test_flash_fft_conv(period: int, length: int, taps: int, training: bool) -> None:
    draw = oracle.Draw(6)
    tensors = [draw.normal(2, 3, length), draw.normal(3, taps), draw.normal(2, 3, length), draw.normal(2, 3, length)]
    u, k, pregate, postgate = (tensor.requires_grad_() for tensor in tensors)
    layer = FlashFFTConv(period, dtype=torch.float64).train(training)
    assert not list(layer.parameters())
    expected = circular(u * pregate, k, period) * postgate
    y = layer(u, k, pregate, postgate)
    assert torch.allclose(y, expected)
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), (u, k, pregate, postgate)),
        torch.autograd.grad(expected.square().sum(), (u, k, pregate, postgate)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)
    assert torch.allclose(layer(u, k), circular(u, k, period))


def test_flash_fft_conv_of_halves() -> None:
    draw = oracle.Draw(7)
    u, k = draw.normal(2, 3, 64, dtype=torch.bfloat16), draw.normal(3, 64, dtype=torch.float32)
    y = FlashFFTConv(128, dtype=torch.bfloat16)(u, k)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), circular(u.float(), k, 128), atol=0.1)


@pytest.mark.parametrize("is_bhl", [True, False])
@pytest.mark.parametrize(("taps", "padding"), [(3, 1), (7, 3), (4, 3), (4, 0), (1, 0), (3, 5)])
def test_flash_depth_wise_conv(is_bhl: bool, taps: int, padding: int) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Conv1d(4, 4, taps, groups=4, padding=padding, dtype=torch.float64)
    assert theirs.bias is not None
    ours = FlashDepthWiseConv1d(4, taps, padding, theirs.weight, theirs.bias, is_bhl)
    x = torch.randn(2, 4, 15, dtype=torch.float64, requires_grad=True)
    y = ours(x) if is_bhl else ours(x.mT).mT
    assert torch.allclose(y, theirs(x))
    y.square().sum().backward()
    theirs(x).square().sum().backward()
    assert ours.weights.grad is not None
    gradient = ours.weights.grad if is_bhl else ours.weights.grad.T
    assert theirs.weight.grad is not None
    assert torch.allclose(gradient, theirs.weight.grad[:, 0])
    other = FlashDepthWiseConv1d(4, taps, padding, theirs.weight * 0, theirs.bias * 0, is_bhl)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.weights, ours.weights)


# ---- mamba_ssm ----


def selective_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, resets: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """One step after the other; B and C (batch, dim, dstate, seqlen), delta ready to use."""
    state = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.promote_types(u.dtype, A.dtype))
    outputs = []
    for t in range(u.shape[2]):
        step = delta[..., t].unsqueeze(-1)
        state = torch.exp(step * A) * (0 if t in resets else state) + step * B[..., t] * u[..., t].unsqueeze(-1)
        y = (state * C[..., t]).sum(-1)
        outputs.append(2 * y.real if y.is_complex() else y)
    return torch.stack(outputs, -1), state


@pytest.mark.parametrize("kind", ["constant", "shared", "groups", "complex"])
@pytest.mark.parametrize("resets", [(), (3, 4)])
def test_selective_scan_fn(kind: str, resets: tuple[int, ...]) -> None:
    draw, states = oracle.Draw(8), 3
    u, delta, z = (draw.normal(2, 4, 9) for _ in range(3))
    D, delta_bias = draw.normal(4), draw.normal(4)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    A = -torch.rand(4, states, dtype=torch.float64) if kind != "complex" else draw.normal(4, states, dtype=dtype) - 2
    shape = {"constant": (4, states), "shared": (2, states, 9), "groups": (2, 2, states, 9), "complex": (2, states, 9)}
    B, C = (draw.normal(*shape[kind], dtype=dtype) for _ in range(2))

    def spread(projection: Tensor) -> Tensor:
        if kind == "constant":
            return projection[None, :, :, None].expand(2, -1, -1, 9)
        return projection.repeat_interleave(2, 1) if kind == "groups" else projection[:, None].expand(-1, 4, -1, -1)

    step = torch.nn.functional.softplus(delta + delta_bias[:, None])
    expected, last = selective_loop(u, step, A, spread(B), spread(C), resets)
    expected = (expected + D[:, None] * u) * torch.nn.functional.silu(z)
    given = (B, C)
    if kind == "complex":
        given = tuple(torch.view_as_real(projection).flatten(-2) for projection in given)  # type: ignore[assignment]
    bounds = torch.tensor([0, *resets, 9], dtype=torch.int32) if resets else None
    tolerance = 1e-10
    out = selective_scan_fn(u, delta, A, *given, D, z, delta_bias, True, False, bounds)
    assert isinstance(out, Tensor)
    assert torch.allclose(out, expected, rtol=tolerance, atol=tolerance)
    both = selective_scan_fn(u, delta, A, *given, D, z, delta_bias, True, True, bounds)
    assert torch.equal(both[0], out)
    assert torch.allclose(both[1], last.to(both[1].dtype), rtol=tolerance, atol=tolerance)
    half = selective_scan_fn(u.bfloat16(), delta, A, *given, D, z, delta_bias, True)
    assert isinstance(half, Tensor)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("picked", [False, True])
def test_selective_state_update(heads: int | None, picked: bool) -> None:
    draw, states = oracle.Draw(9), 5
    lead = (2,) if heads is None else (2, heads)
    channels = (4,) if heads is None else (heads, 4)
    x, dt, z = (draw.normal(*lead, 4) for _ in range(3))
    A, D, bias = -torch.rand(*channels, states, dtype=torch.float64), draw.normal(*channels), draw.normal(*channels)
    B, C = (draw.normal(2, states) if heads is None else draw.normal(2, 3, states) for _ in range(2))
    cache = draw.normal(6, *channels, states)
    rows = torch.tensor([4, 1]) if picked else torch.tensor([0, 1])
    state = cache if picked else cache[:2]
    before = cache.clone()
    step = torch.nn.functional.softplus(dt + bias).unsqueeze(-1)
    b, c = B.unsqueeze(-2), C.unsqueeze(-2)
    expected = torch.exp(step * A) * before[rows] + step * b * x.unsqueeze(-1)
    y = ((expected * c).sum(-1) + D * x) * torch.nn.functional.silu(z)
    out = selective_state_update(state, x, dt, A, B, C, D, z, bias, True, rows if picked else None)
    assert torch.allclose(out, y)
    assert torch.allclose(cache[rows], expected)
    others = [i for i in range(6) if i not in rows.tolist()]
    assert torch.equal(cache[others], before[others])


def test_selective_state_update_passes_over_sequences_without_a_state() -> None:
    draw = oracle.Draw(12)
    x, dt, B = draw.normal(3, 4), draw.normal(3, 4), draw.normal(3, 5)
    A, cache = -torch.rand(4, 5, dtype=torch.float64), draw.normal(6, 4, 5)
    alone, expected = cache.clone(), cache.clone()
    out = selective_state_update(cache, x, dt, A, B, B, state_batch_indices=torch.tensor([4, -1, 0]))
    for row, i in ((4, 0), (0, 2)):
        one = selective_state_update(
            expected[row : row + 1], x[i : i + 1], dt[i : i + 1], A, B[i : i + 1], B[i : i + 1]
        )
        assert torch.allclose(out[i], one[0])
    assert torch.equal(out[1], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(cache, expected)
    assert torch.equal(cache[5], alone[5])


def test_selective_state_update_of_a_state_in_another_order() -> None:
    draw = oracle.Draw(10)
    x, dt, B = draw.normal(2, 3, 4), draw.normal(2, 3, 4), draw.normal(2, 1, 5)
    A = -torch.rand(3, 4, 5, dtype=torch.float64)
    state = torch.zeros(2, 4, 3, 5, dtype=torch.float64).transpose(1, 2)
    contiguous = state.contiguous()
    assert torch.equal(
        selective_state_update(state, x, dt, A, B, B), selective_state_update(contiguous, x, dt, A, B, B)
    )
    assert torch.equal(state, contiguous)


def test_mamba_inner_fn() -> None:
    draw, dim, rank, states = oracle.Draw(11), 6, 2, 3
    xz = draw.normal(2, 2 * dim, 9)
    conv_weight, conv_bias = draw.normal(dim, 1, 4), draw.normal(dim)
    x_proj, delta_proj = draw.normal(rank + 2 * states, dim), draw.normal(dim, rank)
    out_proj, out_bias = draw.normal(5, dim), draw.normal(5)
    A, D, bias = -torch.rand(dim, states, dtype=torch.float64), draw.normal(dim), draw.normal(dim)
    x, z = xz.chunk(2, 1)
    signal = conv(torch.nn.functional.pad(x, (3, 0)), conv_weight[:, 0], conv_bias, "silu")
    mixed = x_proj @ signal
    delta = torch.nn.functional.softplus(delta_proj @ mixed[:, :rank] + bias[:, None])
    B, C = (part[:, None].expand(-1, dim, -1, -1) for part in mixed[:, rank:].chunk(2, 1))
    y = (selective_loop(signal, delta, A, B, C)[0] + D[:, None] * signal) * torch.nn.functional.silu(z)
    expected = (out_proj @ y).mT + out_bias
    given = (xz, conv_weight, conv_bias, x_proj, delta_proj, out_proj, out_bias, A)
    assert torch.allclose(mamba_inner_fn(*given, D=D, delta_bias=bias), expected)
    fixed = draw.normal(dim, states)
    y = (selective_loop(signal, delta, A, fixed[None, :, :, None].expand(2, -1, -1, 9), C)[0]) * (
        torch.nn.functional.silu(z)
    )
    only_c = torch.cat([x_proj[:rank], x_proj[rank + states :]])
    given = (xz, conv_weight, conv_bias, only_c, delta_proj, out_proj, None, A)
    assert torch.allclose(mamba_inner_fn(*given, B=fixed, delta_bias=bias), (out_proj @ y).mT)


def test_mamba_inner_fn_with_norms() -> None:
    draw, dim, rank, states = oracle.Draw(13), 6, 2, 3
    xz = draw.normal(2, 2 * dim, 9)
    conv_weight, x_proj, delta_proj = (
        draw.normal(dim, 1, 4),
        draw.normal(rank + 2 * states, dim),
        draw.normal(dim, rank),
    )
    out_proj, A = draw.normal(5, dim), -torch.rand(dim, states, dtype=torch.float64)
    weights = draw.normal(states), draw.normal(states), draw.normal(dim)
    x, z = xz.chunk(2, 1)
    signal = conv(torch.nn.functional.pad(x, (3, 0)), conv_weight[:, 0], None, "silu")
    mixed = x_proj @ signal
    parts = *mixed[:, rank:].chunk(2, 1), delta_proj @ mixed[:, :rank]
    B, C, delta = (
        part / (part.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight[:, None]
        for part, weight in zip(parts, weights, strict=True)
    )
    B, C = (part[:, None].expand(-1, dim, -1, -1) for part in (B, C))
    y = selective_loop(signal, torch.nn.functional.softplus(delta), A, B, C)[0] * torch.nn.functional.silu(z)
    ours = mamba_inner_fn(
        xz,
        conv_weight,
        None,
        x_proj,
        delta_proj,
        out_proj,
        None,
        A,
        b_rms_weight=weights[0],
        c_rms_weight=weights[1],
        dt_rms_weight=weights[2],
        b_c_dt_rms_eps=1e-5,
    )
    assert torch.allclose(ours, (out_proj @ y).mT)


# ---- torchlpc ----


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 3, 20])
@pytest.mark.parametrize("varying", [False, True])
def test_sample_wise_lpc(order: int, length: int, varying: bool) -> None:
    draw = oracle.Draw(14)
    x, zi = draw.normal(2, length), draw.normal(2, order)
    a = 0.2 * draw.normal(2, length if varying else 1, order)
    a = a.expand(2, length, order)
    for initial in (None, zi):
        past = torch.zeros_like(zi) if initial is None else zi
        outputs: list[Tensor] = []
        for t in range(length):
            y = x[:, t] - (a[:, t] * past).sum(1)
            past = torch.cat([y[:, None], past[:, :-1]], 1)
            outputs.append(y)
        y, last = sample_wise_lpc(x, a, initial, return_zf=True)
        assert torch.allclose(y, torch.stack(outputs, 1))
        assert torch.allclose(last, past)
        alone = sample_wise_lpc(x, a, initial)
        assert isinstance(alone, Tensor)
        assert torch.equal(alone, y)


def test_sample_wise_lpc_against_the_original() -> None:
    torchlpc = pytest.importorskip("torchlpc", reason="torchlpc is not installed")
    draw = oracle.Draw(15)
    leaves = [draw.normal(3, 50), 0.1 * draw.normal(3, 50, 4), draw.normal(3, 4)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    ours, theirs = sample_wise_lpc(*leaves), torchlpc.sample_wise_lpc(*leaves)
    assert isinstance(ours, Tensor)
    assert torch.allclose(ours, theirs)
    weight = draw.normal(3, 50)
    for mine, original in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((theirs * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(mine, original)
    nothing, state = sample_wise_lpc(leaves[0], leaves[1][..., :0], return_zf=True)
    assert torch.equal(nothing, leaves[0])
    assert state.shape == (3, 0)


# ---- errors, and names ----


def test_errors_name_what_to_do() -> None:
    x, weight, bias, states = inputs(4)
    layer = FlashFFTConv(8)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "None, 'silu' or 'swish'", lambda: causal_conv1d_fn(x, weight, activation="gelu")),
        (ValueError, r"nn.Conv1d's weight \(dim, 1, width\)", lambda: causal_conv1d_fn(x, weight[:, None])),
        (ValueError, r"x must have the shape \(batch, dim, seqlen\)", lambda: causal_conv1d_fn(x.mT, weight)),
        (ValueError, "initial_states must have the shape", lambda: causal_conv1d_fn(x, weight, initial_states=x)),
        (ValueError, "seq_idx must have the shape", lambda: causal_conv1d_fn(x, weight, seq_idx=x)),
        (TypeError, "x must be a torch.Tensor", lambda: causal_conv1d_fn([1.0], weight)),  # type: ignore[arg-type]
        (ValueError, r"state_len >= 3; got \(2, 6, 2\)", lambda: causal_conv1d_update(x, states[..., :2], weight)),
        (ValueError, "picked from a larger conv_state", lambda: causal_conv1d_update(x, states[:1], weight)),
        (
            ValueError,
            r"cache_seqlens must have the shape",
            lambda: causal_conv1d_update(x, states, weight, None, None, x),
        ),
        (ValueError, r"\(total_tokens, dim\)", lambda: causal_conv1d_varlen_states(x, bias, 2)),
        (ValueError, r"\(B, C, T\)", lambda: scan(x[0], x[0])),
        (ValueError, "tokens must have the shape", lambda: scan(x, x[..., :3])),
        (ValueError, "seqlen must be at least 1", lambda: FlashFFTConv(0)),
        (ValueError, "L <= seqlen = 8", lambda: layer(x, weight)),
        (ValueError, "1 <= N <= 8", lambda: layer(x[..., :4], x[0])),
        (ValueError, "pregate must have the shape", lambda: layer(x[..., :4], weight, x)),
        (ValueError, r"weights must have the shape \(D, 1, K\)", lambda: FlashDepthWiseConv1d(6, 3, 1, weight, bias)),
        (ValueError, "padding must not be negative", lambda: FlashDepthWiseConv1d(6, 4, -1, weight, bias)),
        (ValueError, r"u must have the shape \(batch, dim, seqlen\)", lambda: selective_scan_fn(bias, x, x, x, x)),
        (ValueError, "delta must have the shape", lambda: selective_scan_fn(x, x[0], weight, weight, weight)),
        (ValueError, "B must have two axes", lambda: selective_scan_fn(x, x, weight, bias, weight)),
        (ValueError, "state must have the shape", lambda: selective_state_update(bias, x, x, weight, x, x)),
        (ValueError, "x must have the shape of the state", lambda: selective_state_update(x, x, x, weight, x, x)),
        (ValueError, r"x must have the shape \(B, T\)", lambda: sample_wise_lpc(x, x)),
        (
            ValueError,
            r"a must have the shape \(B, T, order\) = \(2, 6, order\)",
            lambda: sample_wise_lpc(x[..., 0], x[:1]),
        ),
        (ValueError, "zi must have the shape", lambda: sample_wise_lpc(x[..., 0], x, x[:, 0, :3])),
        (ValueError, "libraries must be among causal_conv1d", lambda: compat.install("einops")),
    ]
    for error, text, action in cases:
        with pytest.raises(error, match=text):
            action()


def test_stand_ins_are_found_under_the_original_names_and_taken_back() -> None:
    names = ("causal_conv1d", "flashfftconv", "mamba_ssm", "fla")
    if any(importlib.util.find_spec(name) is not None for name in names):
        pytest.skip("an original is installed")
    done = compat.install(*names)
    try:
        assert done.registered == names
        assert str(done) == f"convscan stands in for: {', '.join(names)}; left alone, because installed: none"
        assert importlib.util.find_spec("causal_conv1d") is not None
        for name, attribute in (
            ("causal_conv1d", "causal_conv1d_fn"),
            ("causal_conv1d.causal_conv1d_interface", "causal_conv1d_update"),
            ("causal_conv1d.causal_conv1d_varlen", "causal_conv1d_varlen_states"),
            ("flashfftconv", "FlashFFTConv"),
            ("flashfftconv.conv", "FlashFFTConv"),
            ("causal_conv1d.causal_conv1d_interface", "causal_conv1d_update_ref"),
            ("mamba_ssm.ops.selective_scan_interface", "mamba_inner_fn"),
            ("mamba_ssm.ops.selective_scan_interface", "mamba_inner_ref"),
            ("mamba_ssm.ops.selective_scan_interface", "selective_scan_ref"),
            ("mamba_ssm.ops.triton.selective_state_update", "selective_state_update_ref"),
            ("mamba_ssm.ops.triton.selective_state_update", "selective_state_update"),
            ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
            ("fla.ops", "chunk_kda"),
            ("fla.ops.gated_delta_rule", "fused_recurrent_gdn"),
            ("fla.ops.simple_gla", "chunk_simple_gla"),
            ("fla.ops.gla", "fused_recurrent_gla"),
        ):
            assert hasattr(importlib.import_module(name), attribute)
        assert not hasattr(importlib.import_module("fla.ops.gla"), "chunk_simple_gla")
        assert sys.modules["causal_conv1d"].causal_conv1d_varlen is sys.modules["causal_conv1d.causal_conv1d_varlen"]
        again = compat.install("causal_conv1d")
        assert again.registered == ()
        assert again.present == ("causal_conv1d",)
        again.undo()
        assert "causal_conv1d" in sys.modules
    finally:
        done.undo()
    assert not [name for name in sys.modules if name.partition(".")[0] in names]
    assert importlib.util.find_spec("causal_conv1d") is None


def test_what_is_installed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(sys)("causal_conv1d")
    monkeypatch.setitem(sys.modules, "causal_conv1d", original)
    with compat.install() as done:
        assert "causal_conv1d" in done.present
        assert sys.modules["causal_conv1d"] is original
    assert sys.modules["causal_conv1d"] is original
