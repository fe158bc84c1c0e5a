"""The selective scan's Triton kernels, judged by the oracle of all implementations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import selective_scan, selective_scan_with_state
from convscan.ops.selective_scan import triton
from convscan.ops.selective_scan.api import selective_scan_step

NAME = "triton_by_state"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
BOUNDS = [0, 0, 1, 70, 70, 90, 90]
SERIAL = pytest.mark.parametrize("serial", [True, False], ids=["serial", "in chunks"])


@pytest.fixture
def serial(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether programs go through all chunks of their channels, whatever would be faster; with small tiles."""
    sizes = {"channels": 8, "window": 2, "numbers": 8, "unroll": 4, "states": 16, "warps": 1}
    monkeypatch.setattr(triton, "configuration", lambda gpu, kernel: sizes)
    monkeypatch.setattr(triton._Plan, "is_serial", lambda plan, *work: request.param or plan.problem.in_place)
    convscan._dispatch.forget()
    return bool(request.param)


def chosen(**arguments: Any) -> tuple[Tensor, Tensor]:
    with convscan.force(NAME):
        return selective_scan_with_state(**arguments)


def sample(length: int, form: str = "", **sizes: int) -> dict[str, Tensor]:
    """All arguments, in double precision; ``form`` names what is complex, in groups or constant."""
    draw, (batch, channels, states) = oracle.Draw(length), (sizes.get("batch", 2), 4, sizes.get("states", 2))
    number = torch.complex128 if "complex" in form else torch.float64
    A = -draw.normal(channels, states).exp()
    projection = (channels, states) if "constant" in form else (batch, length, states)
    projection = (batch, length, 2, states) if "groups" in form else projection
    return {
        "u": draw.normal(batch, length, channels),
        "delta": draw.normal(batch, channels, length).mT,
        "A": torch.complex(A, draw.normal(channels, states)) if "complex" in form else A,
        "B": draw.normal(*projection, dtype=number),
        "C": draw.normal(*projection, dtype=number),
        "D": draw.normal(channels),
        "z": draw.normal(batch, length, channels),
        "delta_bias": draw.normal(channels),
        "initial_state": draw.normal(batch, channels, states, dtype=number),
    }


# ---- values ----


def test_tiles_as_tuned() -> None:
    for p in oracle.selective_scans(torch.float32, count=3, seed=1, limit=1500):
        y, state = chosen(**p.arguments())
        p.check(y, state)


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@SERIAL
def test_values(serial: bool, dtype: torch.dtype) -> None:
    for p in oracle.selective_scans(dtype, count=6, seed=3, limit=600):
        p.check(*chosen(**p.arguments()))


@SERIAL
def test_hostile_gates(serial: bool) -> None:
    """Gates that are all open, all closed, and step sizes from zero to huge: exact zeros, never NaN."""
    u, B = oracle.Draw(7).normal(1, 70, 5).float(), torch.ones(1, 70, 1)
    for size, decay in ((0.0, -1.0), (1.0, 0.0), (1.0, 0.5), (1e4, -1.0), (1e30, -1e20)):
        p = oracle.Selective(u, torch.full_like(u, size), torch.full((5, 1), decay), B, B)
        y, state = chosen(**p.arguments())
        assert torch.isfinite(y).all()
        p.check(y, state)


@pytest.mark.parametrize("form", ["", "groups", "constant"])
@SERIAL
def test_steps_in_turn(serial: bool, form: str) -> None:
    """Three states of a channel, which are taken for four."""
    names = []
    launch = triton.launch
    for length in (1, 130):
        given = sample(length, form, states=3)
        given = {name: t.float() for name, t in given.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                triton, "launch", lambda kernel, *a, **k: (names.append(kernel.__name__), launch(kernel, *a, **k))
            )
            found = chosen(**given, delta_softplus=True)
        exact = selective_scan_with_state(**{name: t.double() for name, t in given.items()}, delta_softplus=True)
        for one, truth in zip(found, exact, strict=True):
            assert (one.double() - truth).abs().max() <= 4e-6 * truth.abs().max()
    assert "outputs_by_channel" in names


@SERIAL
def test_a_state_that_forgets_at_once(serial: bool) -> None:
    """A = -inf: steps behind the end, which have no length, must not make it something that is no number."""
    draw = oracle.Draw(9)
    u, B, A = draw.normal(1, 70, 3).float(), draw.normal(1, 70, 4).float(), -draw.normal(3, 4).abs().float()
    A[1, 2] = -torch.inf
    results = []
    for name in (NAME, "reference"):
        leaves = [t.clone().requires_grad_() for t in (u, A, B)]
        with convscan.force(name):
            y, state = convscan.selective_scan_with_state(leaves[0], torch.ones_like(u), leaves[1], leaves[2], B)
            results.append([y, state, *torch.autograd.grad(y.square().sum() + state.sum(), leaves)])
    for one, exact in zip(*results, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-4)


@SERIAL
def test_packed(serial: bool) -> None:
    for form in ("groups", "complex constant"):
        given = sample(BOUNDS[-1], form)
        start = oracle.Draw(13).normal(2, len(BOUNDS) - 1, 4, 2, dtype=given["A"].dtype)
        options: dict[str, Any] = {"delta_softplus": True}
        y, last = chosen(**given | {"initial_state": start}, **options, cu_seqlens=torch.tensor(BOUNDS))
        for s, (begin, end) in enumerate(pairwise(BOUNDS)):
            part = {
                name: t[:, begin:end] if name in ("u", "delta", "z") or (name in "BC" and t.ndim > 2) else t
                for name, t in given.items()
            }
            expected, state = selective_scan_with_state(**part | {"initial_state": start[:, s]}, **options)
            torch.testing.assert_close((y[:, begin:end], last[:, s]), (expected, state))


def test_leading_axes_empty_sizes_and_strides() -> None:
    given = sample(11)
    u = oracle.Draw(1).normal(3, 4, 11, 4).transpose(0, 1)[:, :2]  # leading axes (4, 2) that do not merge
    B, start = oracle.Draw(2).normal(4, 2, 11, 2), oracle.Draw(3).normal(4, 2, 4, 2)
    arguments = {"u": u, "delta": u.abs(), "A": given["A"], "B": B, "C": B, "initial_state": start}
    torch.testing.assert_close(chosen(**arguments), selective_scan_with_state(**arguments))
    for batch, length, channels, states in ((2, 0, 3, 2), (0, 5, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0), (1, 1, 1, 1)):
        u, B = torch.ones(batch, length, channels), torch.ones(batch, length, states)
        start = torch.ones(batch, channels, states)
        arguments = {"u": u, "delta": u, "A": -torch.ones(channels, states), "B": B, "C": B, "initial_state": start}
        torch.testing.assert_close(chosen(**arguments), selective_scan_with_state(**arguments))


def test_step_overwrites_its_state() -> None:
    for form in ("", "complex groups"):
        given = sample(1, form)
        row = {name: t[:, 0] if name in ("u", "delta", "z") else t for name, t in given.items()}
        row |= {name: row[name][:, 0] for name in "BC" if row[name].ndim > 2}
        state, other = row.pop("initial_state").clone(), given["initial_state"].clone()
        with convscan.force(NAME):
            y = selective_scan_step(state, **row, delta_softplus=True)
        expected = selective_scan_step(other, **row, delta_softplus=True)
        torch.testing.assert_close((y, state), (expected, other))


# ---- gradients ----


@pytest.mark.parametrize("form", ["groups", "complex", "complex constant"])
@SERIAL
def test_gradients(serial: bool, form: str) -> None:
    """Those of all arguments, from the kernels' own states, against differentiable operators in double precision."""
    given = {name: t.requires_grad_() for name, t in sample(130, form, batch=1).items()}
    draw = oracle.Draw(4)
    weights = draw.normal(1, 130, 4), draw.normal(1, 4, 2, dtype=given["A"].dtype)
    results, answers = [], []
    for name, row in ((NAME, NAME), ("over_channels", "composed")):
        with convscan.force(name):
            answers.append(selective_scan_with_state(**given, delta_softplus=True))
        with convscan.force(row):
            results.append(torch.autograd.grad(answers[-1], tuple(given.values()), weights))
    torch.testing.assert_close(*answers)
    for name, one, exact in zip(NAMES, *results, strict=True):
        torch.testing.assert_close(one, exact, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@SERIAL
def test_gradients_in_other_types(serial: bool, dtype: torch.dtype) -> None:
    """No further from those in double precision than PyTorch's operators in the type computed in."""
    exact = sample(70)
    half = ("u", "delta", "z")
    given = {name: (t.to(dtype) if name in half else t.float()).requires_grad_() for name, t in exact.items()}
    dy = oracle.Draw(5).normal(2, 70, 4).to(dtype)

    def found(row: str, arguments: dict[str, Tensor], dy: Tensor) -> tuple[Tensor, ...]:
        with convscan.force(row):
            y = selective_scan(**arguments, delta_softplus=True)
            return torch.autograd.grad(y, tuple(arguments.values()), dy)

    wide = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    truth = found("composed", wide, dy.double())
    stored = {torch.bfloat16: 2.0**-8}.get(dtype, 0.0)
    for name, one, other in zip(NAMES, found(NAME, given, dy), truth, strict=True):
        bound = (stored if name in half else 0.0) * other.abs() + 64 * 2.0**-24 * other.abs().amax() * 4
        assert ((one.double() - other).abs() <= bound).all(), name


@SERIAL
def test_gradients_of_packed_sequences(serial: bool) -> None:
    for form in ("", "complex constant"):
        given = sample(BOUNDS[-1], form, batch=1)
        given["initial_state"] = oracle.Draw(13).normal(1, len(BOUNDS) - 1, 4, 2, dtype=given["A"].dtype)
        given = {name: t.requires_grad_() for name, t in given.items()}
        bounds, results = torch.tensor(BOUNDS, dtype=torch.int32), []
        for name, row in ((NAME, NAME), ("over_channels", "composed")):
            with convscan.force(name):
                y, last = selective_scan_with_state(**given, cu_seqlens=bounds, delta_softplus=True)
            with convscan.force(row):
                results.append(torch.autograd.grad((y.square().sum() + last.abs().sum()), tuple(given.values())))
        for one, exact in zip(*results, strict=True):
            torch.testing.assert_close(one, exact)


def test_choice_of_chunks() -> None:
    """Programs go through all chunks where there are enough of them, for a device that is not there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        few = torch.empty(1, 4096, 256, device="cuda"), torch.empty(1, 4096, 16, device="cuda")
        many = torch.empty(32, 4096, 4096, device="cuda"), torch.empty(32, 4096, 16, device="cuda")
        found = {}
        for name, (u, B) in (("few", few), ("many", many)):
            A = torch.empty(u.shape[-1], 16, device="cuda")
            explanation = convscan.explain("selective_scan", u, u, A, B, B)
            assert explanation.chosen == NAME
            found[name] = next(c.cost for c in explanation.candidates if c.name == NAME)
    assert found["many"] is not None
    assert found["few"] is not None
    states = 4 * 256 * 16
    assert found["few"].workspace_bytes >= 2 * 64 * states
    assert found["many"].workspace_bytes == 2 * 32 * 4 * 4096 * 16
