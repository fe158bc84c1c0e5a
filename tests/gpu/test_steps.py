"""Steps of generation on GPUs: one kernel each, which overwrites its state and whose data the host never reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import convscan
import oracle
from convscan import _gpu, compat
from convscan.ops.causal_conv import step as conv_step
from convscan.ops.linear_recurrence import step as scan_step


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_convolution(dtype: torch.dtype) -> None:
    """Some steps one after the other are the whole convolution, and leave its last samples."""
    draw = oracle.Draw(1)
    for taps, filters, activation in ((1, 6, None), (4, 6, "silu"), (3, 1, "gelu"), (9, 2, None)):
        x = draw.normal(2, 5, 6, dtype=dtype)
        h, bias = draw.normal(taps, filters, dtype=dtype), draw.normal(6, dtype=dtype)
        past = draw.normal(2, taps - 1, 6, dtype=dtype)
        state = past.mT.contiguous().mT
        with convscan.force("triton_step"):
            rows = [convscan.causal_conv_step(state, x[:, i], h, bias=bias, activation=activation) for i in range(5)]
        problem = oracle.Convolution(x, h.repeat_interleave(6 // filters, 1), bias, activation, past)
        problem.check(torch.stack(rows, 1), is_transform=False)
        assert torch.equal(state, torch.cat([past, x], 1)[:, 5:])


def test_the_oracle_sees_wrong_steps() -> None:
    draw = oracle.Draw(2)
    problem = oracle.Convolution(draw.normal(1, 1, 4), draw.normal(3, 4), state=draw.normal(1, 2, 4))
    late = oracle._sum(problem.extended(torch.float64).roll(1, 1), problem.h)
    for wrong in (torch.zeros(1, 1, 4), late, problem.h[0] * problem.x):
        with pytest.raises(oracle.Mismatch):
            problem.check(wrong.double(), is_transform=False)


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("picks", [False, True])
def test_caches_of_servers(length: int, is_ring: bool, picks: bool) -> None:
    """causal_conv1d_update with rings, chosen rows and several samples, against the composition."""
    draw = oracle.Draw(length)
    x = draw.normal(3, 10, length, dtype=torch.float32)
    weight, bias = draw.normal(10, 4, dtype=torch.float32), draw.normal(10, dtype=torch.float32)
    cache = draw.normal(5 if picks else 3, 10, 6, dtype=torch.float32)
    options: dict[str, Any] = {"cache_seqlens": torch.tensor([0, 5, 23], dtype=torch.int32) if is_ring else None}
    if picks:
        options |= {"conv_state_indices": torch.tensor([4, -1, 1], dtype=torch.int32), "pad_slot_id": -1}
    results, caches = [], []
    for name in ("composed", "triton_step"):
        mine = cache.clone()
        with convscan.force(name):
            y = compat.causal_conv1d.causal_conv1d_update(x, mine, weight, bias, "silu", **options)
        results.append(y)
        caches.append(mine)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[1], caches[0])
    assert not torch.equal(caches[1], cache)
    if picks:
        assert torch.equal(results[1][1], torch.zeros(10, length))
        assert torch.equal(caches[1][[0, 2, 3]], cache[[0, 2, 3]])


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
def test_recurrence(dtype: torch.dtype) -> None:
    draw = oracle.Draw(3)
    x, start = draw.normal(2, 4, 5, dtype=dtype), draw.normal(2, 5, dtype=dtype)
    for a in (oracle.coefficients(draw, 1, 2, 4, 5, dtype=dtype), oracle.coefficients(draw, 1, 5, dtype=dtype)):
        kind = torch.float32 if dtype.itemsize == 2 else dtype
        state = start.to(kind, copy=True)
        with convscan.force("triton_step"):
            rows = [convscan.linear_recurrence_step(state, x[:, i], a if a.ndim == 1 else a[:, i]) for i in range(4)]
        oracle.Recurrence(x, start, a).check(torch.stack(rows, 1))
        torch.testing.assert_close(state.to(dtype), rows[-1], rtol=0, atol=0)


def test_leading_axes_that_do_not_merge() -> None:
    draw = oracle.Draw(4)
    x = draw.normal(3, 2, 4).transpose(0, 1)
    state, h = draw.normal(2, 3, 2, 4), draw.normal(3, 4)
    copies = [state.clone(), state.clone()]
    results = []
    for name, mine in zip(("composed", "triton_step"), copies, strict=True):
        with convscan.force(name):
            results.append(convscan.causal_conv_step(mine, x, h))
            results.append(convscan.linear_recurrence_step(mine[..., 0, :], x, x))
    for one, other in (results[::2], results[1::2], copies):
        torch.testing.assert_close(one, other)


def _called(*tensors: Tensor) -> list[_gpu.Launch]:
    """What both steps launch on tensors without data, of which reading a number would be an error."""
    x, state, h, bias, taken, rows = tensors
    y = torch.empty_like(x)
    conv = conv_step._problem(x, state, h, bias, y, "silu", taken, rows, -1)
    scan = scan_step._problem(x[:, 0], bias, x[:, 0], y[:, 0])
    with _gpu.recorded() as launches:
        conv_step._prepare(conv)(x, state, h, bias, taken, rows, y)
        scan_step._prepare(scan)(x[:, 0], bias.expand(x[:, 0].shape), x[:, 0], y[:, 0])
    return launches


def test_one_launch_and_no_number_read_by_the_host() -> None:
    x, state = torch.empty(8, 1, 256, device="meta"), torch.empty(20, 3, 256, device="meta")
    h, bias = torch.empty(4, 256, device="meta"), torch.empty(256, device="meta")
    integers = torch.empty(8, dtype=torch.int32, device="meta")
    with pytest.raises(RuntimeError):
        integers[0].item()
    assert [launched.kernel.__name__ for launched in _called(x, state, h, bias, integers, integers)] == ["step"] * 2


def test_chosen_on_a_device() -> None:
    with FakeTensorMode():
        state, x, h = (torch.empty(*shape, device="cuda") for shape in ((8, 3, 2048), (8, 2048), (4, 2048)))
        a = torch.empty(2048, device="cuda")
        assert convscan.explain(convscan.causal_conv_step, state, x, h).chosen == "triton_step"
        assert convscan.explain(convscan.linear_recurrence_step, x, x, a).chosen == "triton_step"
        y = convscan.causal_conv_step(state, x, h)
        assert (y.shape, y.device.type) == (x.shape, "cuda")


def test_a_stream_steps_in_place_without_sharing() -> None:
    """On a GPU; here on tensors without data, of which the memory says who has what."""
    stream = convscan.stream.RecurrenceStream(torch.ones(6, device="meta"), (2,))
    state = stream._state
    other = stream.to(dtype=torch.float32)
    assert other._state is not state
    stream.step(torch.ones(2, 6, device="meta"))
    assert stream._state is state
    x = torch.ones(2, 6, device="meta", requires_grad=True)
    assert stream.step(x).requires_grad
    assert stream._state is not state
