"""selective_scan and its companions: values against the oracle, memory orders, errors, derivatives, transforms."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, library

import convscan
import oracle
from convscan import selective_scan, selective_scan_step, selective_scan_with_state
from convscan._calls import run_prepared
from convscan.ops.selective_scan.api import _prepared

ROWS = oracle.rows("selective_scan")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def sample(
    *, is_complex: bool = False, constant: bool = False, groups: int = 1, grad: bool = True, length: int = 4
) -> dict[str, Tensor]:
    """All arguments of a small double precision problem, two batch entries of four channels and two states."""
    draw = oracle.Draw(length)
    number = torch.complex128 if is_complex else torch.float64
    form = (4, 2) if constant else (2, length, groups, 2) if groups > 1 else (2, length, 2)
    A = -draw.normal(4, 2).exp()
    arguments = {
        "u": draw.normal(2, length, 4),
        "delta": draw.normal(2, length, 4),
        "A": torch.complex(A, draw.normal(4, 2)) if is_complex else A,
        "B": draw.normal(*form, dtype=number),
        "C": draw.normal(*form, dtype=number),
        "D": draw.normal(4),
        "z": draw.normal(2, length, 4),
        "delta_bias": draw.normal(4),
        "initial_state": draw.normal(2, 4, 2, dtype=number),
    }
    return {name: tensor.requires_grad_(grad) for name, tensor in arguments.items()}


def both(*tensors: Tensor, softplus: bool = True) -> tuple[Tensor, Tensor]:
    return selective_scan_with_state(**dict(zip(NAMES, tensors, strict=True)), delta_softplus=softplus)


# ---- values ----


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_agree_with_the_definition(name: str, dtype: torch.dtype, isa: str) -> None:
    for p in oracle.selective_scans(dtype, count=24, seed=1):
        with convscan.force(name):
            y, state = selective_scan_with_state(**p.arguments())  # type: ignore[arg-type]
        assert y.dtype == dtype
        assert state.dtype == p.A.dtype
        p.check(y, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("impostor", oracle.SELECTIVE_IMPOSTORS)
def test_impostor_fails(impostor: str, dtype: torch.dtype) -> None:
    caught = 0
    for p in oracle.selective_scans(dtype, count=30, seed=2, limit=3000):
        wrong, truth = oracle.SELECTIVE_IMPOSTORS[impostor](p), p.truth()
        p.check(truth.to(dtype))
        if (wrong - truth).norm() < 0.02 * truth.norm():
            continue
        with pytest.raises(oracle.Mismatch):
            p.check(wrong.to(dtype))
        caught += 1
    assert caught >= 4


def test_results_do_not_depend_on_the_number_of_threads(isa: str) -> None:
    draw = oracle.Draw(3)
    u, delta = draw.normal(1, 200, 150, dtype=torch.float32), draw.normal(1, 200, 150, dtype=torch.float32)
    arguments = (u, delta, -torch.rand(150, 8), draw.normal(1, 200, 8).float(), draw.normal(1, 200, 8).float())
    results = []
    for threads in (1, 2, 3):
        convscan.set_num_threads(threads)
        leaves = [tensor.clone().requires_grad_() for tensor in arguments]
        y = selective_scan(*leaves, delta_softplus=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_memory_order_is_kept() -> None:
    draw = oracle.Draw(4)
    u, delta, z = (draw.normal(2, 70, 9, dtype=torch.float32).mT.contiguous().mT for _ in range(3))
    A, B = -torch.rand(9, 4), draw.normal(2, 70, 4, dtype=torch.float32)
    p = oracle.Selective(u, delta, A, B, B, z=z, delta_softplus=True)
    y = selective_scan(**p.arguments())  # type: ignore[arg-type]
    assert y.stride() == u.stride()
    p.check(y)


@pytest.mark.parametrize("name", ROWS)
def test_leading_axes(name: str) -> None:
    draw = oracle.Draw(5)
    u = draw.normal(4, 3, 2, 11, 6).transpose(0, 2)[:, 1:]
    delta, B = draw.normal(2, 2, 4, 11, 6).exp() * 0.1, draw.normal(2, 2, 4, 11, 2, 5)
    A, start = -draw.normal(6, 5).exp(), draw.normal(4, 2, 2, 6, 5).transpose(0, 2)
    with convscan.force(name):
        y, state = selective_scan_with_state(u, delta, A, B, B, initial_state=start)
        for i, j in itertools.product(range(2), range(2)):
            p = oracle.Selective(u[i, j], delta[i, j], A, B[i, j], B[i, j], initial_state=start[i, j])
            p.check(y[i, j], state[i, j])
            p.check(*selective_scan_with_state(**p.arguments()))  # type: ignore[arg-type]
        row = selective_scan(u[0, 0, 0], delta[0, 0, 0], A, B[0, 0, 0], B[0, 0, 0], initial_state=start[0, 0, 0])
    torch.testing.assert_close(row, y[0, 0, 0])


@pytest.mark.parametrize("shape", [(2, 0, 3, 2), (0, 5, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0), (1, 1, 1, 1)])
def test_empty_and_single_sizes(shape: tuple[int, int, int, int]) -> None:
    batch, length, channels, states = shape
    u = torch.ones(batch, length, channels, requires_grad=True)
    A = -torch.ones(channels, states, requires_grad=True)
    B = torch.ones(batch, length, states, requires_grad=True)
    start = torch.ones(batch, channels, states, requires_grad=True)
    for name in ROWS:
        with convscan.force(name), torch.no_grad():
            y, state = selective_scan_with_state(u, u, A, B, B, D=torch.ones(channels), initial_state=start)
            assert (y.shape, state.shape) == (u.shape, start.shape)
            if length == 0:
                assert torch.equal(state, start)
            if states == 0:
                assert torch.equal(y, u)
    y, state = selective_scan_with_state(u, u, A, B, B, initial_state=start)
    gradients = torch.autograd.grad(y.sum() + state.sum(), (u, A, B, start))
    if length == 0:
        assert torch.equal(gradients[3], torch.ones_like(start))


def test_split_and_carry_equals_whole() -> None:
    for p in oracle.selective_scans(torch.float64, count=6, seed=6, limit=2000):
        whole, last = selective_scan_with_state(**p.arguments())  # type: ignore[arg-type]
        for position in range(0, p.u.shape[1] + 1, max(1, p.u.shape[1] // 12)):
            parts, state = [], p.initial_state
            for part in (slice(None, position), slice(position, None)):
                cut: dict[str, Any] = {
                    name: tensor[:, part]
                    for name in ("u", "delta", "z", "B", "C")
                    if (tensor := getattr(p, name)) is not None and tensor.ndim > 2
                }
                piece = replace(p, **cut, initial_state=state)
                y, state = selective_scan_with_state(**piece.arguments())  # type: ignore[arg-type]
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, 1), whole)
            torch.testing.assert_close(state, last)


@pytest.mark.parametrize("name", ROWS)
def test_hostile_gates(name: str, isa: str) -> None:
    """Gates that are all open, all closed, and step sizes from zero to huge: exact zeros, never NaN."""
    u = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(7))
    B = torch.ones(1, 40, 3)
    for size, decay in itertools.product((0.0, 1e-30, 1.0, 1e4, 1e30), (0.0, -1e-30, -1.0, -1e20)):
        A = torch.full((5, 3), decay)
        with convscan.force(name):
            y, state = selective_scan_with_state(u, torch.full_like(u, size), A, B, B)
        assert torch.isfinite(y).all()
        oracle.Selective(u, torch.full_like(u, size), A, B, B).check(y, state)
        if size * decay < -1e3:
            # Nothing is left of the step before.
            torch.testing.assert_close(state, (size * u[:, -1, :, None]).expand(state.shape), rtol=0, atol=0)


# ---- packed sequences ----

BOUNDS = [0, 0, 1, 70, 70, 134, 150, 150]


def packed_sample(form: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arguments whose initial state has an axis of sequences."""
    wide = sample(length=BOUNDS[-1], grad=False, **form)
    start = oracle.Draw(13).normal(2, len(BOUNDS) - 1, 4, 2, dtype=wide["A"].dtype)
    narrow = torch.complex64 if wide["A"].is_complex() else torch.float32
    arguments = wide | {"initial_state": start}
    if dtype == torch.float64:
        return arguments
    return {name: t.to(narrow if t.is_complex() else torch.float32) for name, t in arguments.items()}


def apart(arguments: dict[str, Tensor], s: int) -> dict[str, Tensor]:
    """The arguments of one sequence."""
    steps = slice(BOUNDS[s], BOUNDS[s + 1])
    part = {name: t[:, steps] if name in ("u", "delta", "z", "B", "C") and t.ndim > 2 else t
            for name, t in arguments.items()}  # fmt: skip
    return part | ({"initial_state": arguments["initial_state"][:, s]} if "initial_state" in arguments else {})


@pytest.mark.parametrize("form", [{}, {"groups": 2}, {"constant": True}], ids=str)
@pytest.mark.parametrize("is_complex", [False, True])
def test_packed_sequences_know_nothing_of_each_other(form: dict[str, Any], is_complex: bool, isa: str) -> None:
    arguments = packed_sample(form | {"is_complex": is_complex})
    for kind, names in ((torch.int32, NAMES), (torch.int64, NAMES[:5])):
        given = {name: arguments[name].clone().requires_grad_() for name in names}
        cu_seqlens, answers = torch.tensor(BOUNDS, dtype=kind), []
        for threads in (1, 2):
            convscan.set_num_threads(threads)
            answers.append(selective_scan_with_state(**given, delta_softplus=True, cu_seqlens=cu_seqlens))
        y, last = answers[0]
        assert torch.equal(y, answers[1][0])
        pieces = [selective_scan_with_state(**apart(given, s), delta_softplus=True) for s in range(len(BOUNDS) - 1)]
        expected = torch.cat([piece for piece, _ in pieces], 1), torch.stack([state for _, state in pieces], 1)
        torch.testing.assert_close((y, last), expected, rtol=0, atol=0)
        draw = oracle.Draw(14)
        weights = draw.normal(*y.shape), draw.normal(*last.shape, dtype=last.dtype)
        wanted = torch.autograd.grad(expected, tuple(given.values()), weights)
        for keep in (False, True):  # by the kernels, and composed of operators that have derivatives again
            got = torch.autograd.grad((y, last), tuple(given.values()), weights, retain_graph=True, create_graph=keep)
            torch.testing.assert_close(got, wanted)


def test_packed_sequences_by_every_implementation() -> None:
    arguments = packed_sample({"groups": 2}, torch.float32)
    options: dict[str, Any] = {"cu_seqlens": torch.tensor(BOUNDS), "delta_softplus": True}
    expected = selective_scan_with_state(**arguments, **options)
    explanation = convscan.explain("selective_scan", **arguments, **options)
    assert f"{len(BOUNDS) - 1} sequences" in str(explanation)
    for name in ROWS:
        if next(c for c in explanation.candidates if c.name == name).reasons:
            assert name == "over_states"
            continue
        leaves = {key: t.clone().requires_grad_() for key, t in arguments.items()}
        with convscan.force(name):
            found = selective_scan_with_state(**leaves, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for row in ("over_channels", "composed"):
            with convscan.force(row):
                gradients = torch.autograd.grad(found[0].sum(), tuple(leaves.values()), retain_graph=True)
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    swapped = {name: t.unsqueeze(0).transpose(0, 1) if name in ("u", "delta", "z", "B", "C", "initial_state") else t
               for name, t in arguments.items()}  # fmt: skip
    y, last = selective_scan_with_state(**swapped, **options)  # leading axes (2, 1)
    torch.testing.assert_close((y[:, 0], last[:, 0]), expected)


def test_packed_sequences_in_transforms() -> None:
    arguments = packed_sample({})
    bounds = torch.tensor(BOUNDS)

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        *given, cu_seqlens = tensors
        return selective_scan_with_state(
            **dict(zip(NAMES, given, strict=True)), cu_seqlens=cu_seqlens, delta_softplus=True
        )

    tensors = tuple(arguments.values())
    expected = function(*tensors, bounds)
    primals, tangents = tensors, tuple(torch.randn_like(t) for t in tensors)
    _, forward = torch.func.jvp(lambda *t: function(*t, bounds), primals, tangents)
    weights = tuple(torch.randn_like(t) for t in expected)
    gradients = torch.func.vjp(lambda *t: function(*t, bounds), *primals)[1](weights)
    product = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(sum((w * f).sum() for w, f in zip(weights, forward, strict=True)), product)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors, bounds), expected)
    other = torch.tensor([0, 20, 20, 40, 41, 42, 149, 150])
    mapped = torch.vmap(function, in_dims=(None,) * 9 + (0,))(*tensors, torch.stack([bounds, other]))
    torch.testing.assert_close(tuple(t[1] for t in mapped), function(*tensors, other))
    y = torch.vmap(lambda u: function(u, *tensors[1:], bounds)[0])(torch.stack([tensors[0], 2 * tensors[0]]))
    torch.testing.assert_close(y[0], expected[0])
    grouped = [t.unsqueeze(-2) if name in ("B", "C") else t for name, t in zip(NAMES, tensors, strict=True)]
    library.opcheck(torch.ops.convscan.selective_scan.default, (*grouped, bounds, True))


def test_boundaries_are_checked_at_every_call() -> None:
    u, A, B = torch.ones(9, 3), -torch.ones(3, 2), torch.ones(9, 2)
    selective_scan(u, u, A, B, B, cu_seqlens=torch.tensor([0, 4, 9]))
    with pytest.raises(ValueError, match="selective_scan: cu_seqlens must not decrease; got 4 after 5 at 2"):
        selective_scan(u, u, A, B, B, cu_seqlens=torch.tensor([0, 5, 4, 9]))
    with pytest.raises(ValueError, match="selective_scan: cu_seqlens must begin with 0 and end with L = 9"):
        selective_scan(u, u, A, B, B, cu_seqlens=torch.tensor([0, 4, 8]))
    start, bounds = torch.ones(3, 2), torch.tensor([0, 4, 9])
    with pytest.raises(
        ValueError, match=re.escape("initial_state must have the shape (..., S, D, N) = (2, 3, 2); got")
    ):
        selective_scan(u, u, A, B, B, initial_state=start, cu_seqlens=bounds)


def test_memory_does_not_grow_with_every_state() -> None:
    """Forward, workspace does not depend on the length, backward neither: states are kept of every 64th step alone."""
    torch.set_num_threads(1)

    def peak(length: int, *, backward: bool) -> int:
        u, B = torch.randn(1, length, 8), torch.randn(1, length, 4)
        leaves = [tensor.requires_grad_(backward) for tensor in (u, torch.rand(1, length, 8), -torch.rand(8, 4), B)]
        convscan.reset_peak_workspace()
        y = selective_scan(*leaves, B)
        if backward:
            torch.autograd.grad(y.sum(), leaves)
        return convscan.workspace_memory().peak

    assert peak(64 * 100, backward=False) == peak(128, backward=False)
    assert peak(64 * 100, backward=True) == peak(128, backward=True)
    u, A, B = torch.randn(1, 1000, 8), -torch.rand(8, 4), torch.randn(1, 1000, 4)
    operands = (u, u.sigmoid(), A, B, B, None, None, None, None)
    _, _, checkpoints = torch.ops.convscan.selective_scan(*operands, None, False)
    assert checkpoints.numel() == 16 * 8 * 4
    _, _, checkpoints = torch.ops.convscan.selective_scan(*operands, torch.tensor([0, 10, 500, 1000]), False)
    assert checkpoints.numel() == (15 + 3) * 8 * 4


def test_long_sequences_are_as_exact_as_the_loop() -> None:
    draw = oracle.Draw(8)
    u = draw.normal(1, 65536, 2, dtype=torch.float32)
    delta = 0.001 * draw.normal(1, 65536, 2).exp().float()
    B = draw.normal(1, 65536, 2, dtype=torch.float32)
    y = selective_scan(u, delta, A := torch.tensor([[-0.5, -1.0], [-0.1, -2.0]]), B, B)
    wide = linear_truth(*(t.double() for t in (u, delta, A, B)))
    loop = linear_truth(u, delta, A, B)
    assert (y - wide).abs().max() <= 2 * (loop - wide).abs().max() + 1e-6


def linear_truth(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    a = torch.exp(delta.unsqueeze(-1) * A).flatten(-2)
    x = ((delta * u).unsqueeze(-1) * B.unsqueeze(-2)).flatten(-2)
    h = convscan.linear_recurrence(x, None, a).unflatten(-1, A.shape)
    return (h * B.unsqueeze(-2)).sum(-1)


def test_dtypes_are_promoted() -> None:
    arguments = {name: tensor.float() for name, tensor in sample(grad=False).items()}
    y = selective_scan(**arguments)
    half = {name: t.bfloat16() if name in ("u", "delta", "z", "B", "C") else t for name, t in arguments.items()}
    assert selective_scan(**half).dtype == torch.bfloat16
    assert selective_scan(**half | {"z": half["z"].float()}).dtype == torch.float32
    double = selective_scan(**arguments | {"A": arguments["A"].double()})
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), y, rtol=1e-5, atol=1e-5)
    A = arguments["A"].to(torch.complex64)
    torch.testing.assert_close(
        selective_scan(**arguments | {"A": A, "D": None}), 2 * selective_scan(**arguments | {"D": None})
    )


# ---- steps ----


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_steps_equal_the_scan(dtype: torch.dtype, isa: str) -> None:
    for p in oracle.selective_scans(dtype, count=12, seed=9, limit=3000):
        start = torch.zeros(p.u.shape[0], *p.A.shape, dtype=p.A.dtype) if p.initial_state is None else p.initial_state
        state, rows = start.clone(), []
        for t in range(p.u.shape[1]):
            step = {name: getattr(p, name)[:, t] for name in ("u", "delta")}
            is_constant = 2 in (p.B.ndim, p.C.ndim)
            for name in ("B", "C"):
                tensor = getattr(p, name)
                row = tensor.expand(p.u.shape[0], *tensor.shape) if tensor.ndim == 2 else tensor[:, t]
                row = row.unsqueeze(1) if is_constant and row.ndim == 2 else row
                step[name] = row.repeat_interleave(p.u.shape[2] // row.shape[1], 1) if is_constant else row
            y = selective_scan_step(
                state, A=p.A, D=p.D, z=None if p.z is None else p.z[:, t], delta_bias=p.delta_bias,
                delta_softplus=p.delta_softplus, **step,
            )  # fmt: skip
            rows.append(y)
        p.check(torch.stack(rows, 1), state)


def test_steps_take_the_prepared_way_and_any_state() -> None:
    s = {name: t.float() for name, t in sample(grad=False, length=1).items()}
    row = {name: s[name][:, 0] for name in ("u", "delta", "B", "C", "z")}
    rest = {name: s[name] for name in ("A", "D", "delta_bias")}
    expected, last = selective_scan_with_state(**s, delta_softplus=True)
    with convscan.force("reference"):
        state = s["initial_state"].clone()
        y = selective_scan_step(state, **row, **rest, delta_softplus=True)
        torch.testing.assert_close((y, state), (expected[:, 0], last))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        state = s["initial_state"].clone().to(dtype)
        y = selective_scan_step(state, **row, **rest, delta_softplus=True)
        torch.testing.assert_close(state.float(), last, rtol=1e-2, atol=1e-2)
        if dtype == torch.float32:
            torch.testing.assert_close(y, expected[:, 0])
            order = (*(row[n] for n in ("u", "delta")), rest["A"], row["B"], row["C"], rest["D"], row["z"])
            again = run_prepared(_prepared, (True,), *order, rest["delta_bias"], None, None, state, None, None)
            assert again is not None, "a step was not remembered"


def test_steps_compile_and_map() -> None:
    s = sample(grad=False, length=1)
    row = [s[name][:, 0] for name in ("u", "delta")]
    projections = [s[name][:, 0] for name in ("B", "C")]

    def function(state: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan_step(state, u, delta, s["A"], B, C, delta_softplus=True)

    states = [s["initial_state"].clone() for _ in range(3)]
    expected = function(states[0], *row, *projections)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(states[1], *row, *projections)
    mapped = torch.vmap(function)(states[2], *row, *projections)
    for y, state in ((compiled, states[1]), (mapped, states[2])):
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(state, states[0])


def test_steps_refuse_gradients() -> None:
    s = sample(length=1)
    with pytest.raises(RuntimeError, match="selective_scan_step: the state cannot be overwritten where a gradient"):
        selective_scan_step(
            s["initial_state"].detach(), s["u"][:, 0], s["delta"][:, 0], s["A"], s["B"][:, 0], s["C"][:, 0]
        )


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"u": 1.0}, TypeError, "u must be a torch.Tensor; got float"),
        ({"u": torch.ones(3)}, ValueError, "u must have the shape (..., L, D); got (3,)"),
        ({"delta": torch.ones(2, 5, 3)}, ValueError, "delta must have the shape of u = (2, 7, 6); got (2, 5, 3)"),
        ({"A": torch.ones(5, 4)}, ValueError, "A must have the shape (D, N) with D = 6; got (5, 4)"),
        ({"B": torch.ones(2, 6, 4)}, ValueError, "B must have the shape (..., L, N) = (2, 7, 4); got (2, 6, 4)"),
        ({"B": torch.ones(7, 4)}, ValueError, "B must have the shape (D, N) = (6, 4); got (7, 4)"),
        ({"B": torch.ones(4)}, ValueError, "B must have the shape (..., L, N) = (2, 7, 4), or one axis more; got (4,)"),
        ({"B": torch.ones(2, 7, 4, 4)}, ValueError, "B must have a number of groups that divides the channels, 6; "),
        ({"B": torch.ones(2, 7, 3, 4)}, ValueError, "C must have as many groups as B, 3; got 1. Expand the one with"),
        ({"D": torch.ones(5)}, ValueError, "D must have the shape (D,) = (6,); got (5,)"),
        ({"z": torch.ones(7, 6)}, ValueError, "z must have the shape of u = (2, 7, 6); got (7, 6)"),
        ({"initial_state": torch.ones(6, 4)}, ValueError, "initial_state must have the shape (..., D, N) = (2, 6, 4)"),
        ({"C": torch.ones(2, 7, 4, dtype=torch.complex64)}, TypeError, "C must have one of the dtypes float32, "),
        ({"u": torch.ones(2, 7, 6).to(torch.complex64)}, TypeError, "u must have one of the dtypes float32, float64"),
        ({"A": torch.ones(6, 4, device="meta")}, ValueError, "A must be on the device of x, cpu; got meta"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    u, B = torch.ones(2, 7, 6), torch.ones(2, 7, 4)
    with pytest.raises(error, match=re.escape("selective_scan: " + text)):
        selective_scan(**({"u": u, "delta": u, "A": torch.ones(6, 4), "B": B, "C": B} | arguments))


# ---- derivatives ----


@pytest.mark.parametrize("form", [{}, {"groups": 2}, {"constant": True}])
@pytest.mark.parametrize("is_complex", [False, True])
def test_first_and_second_derivatives(form: dict[str, Any], is_complex: bool) -> None:
    tensors = tuple(sample(is_complex=is_complex, length=2, **form).values())
    assert torch.autograd.gradcheck(both, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(both, tensors, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("is_complex", [False, True])
def test_every_derivative(is_complex: bool) -> None:
    tensors = tuple(sample(is_complex=is_complex, length=2).values())
    assert torch.autograd.gradcheck(both, tensors, check_forward_ad=True, check_batched_grad=not is_complex)


def test_derivatives_without_optional_arguments() -> None:
    tensors = tuple(sample().values())[:5]
    assert torch.autograd.gradcheck(selective_scan, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(selective_scan, tensors, fast_mode=True)


def loop(p: oracle.Selective) -> tuple[Tensor, Tensor]:
    return p.loop(torch.float64)


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_gradients_agree_with_those_of_the_loop(dtype: torch.dtype, isa: str) -> None:
    """Over several tiles, every memory order and form; errors relative to each gradient's size."""
    for p in oracle.selective_scans(dtype, count=9, seed=10, limit=20_000):
        tensors = {name: t for name, t in p.arguments().items() if isinstance(t, Tensor)}
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        y, state = selective_scan_with_state(**leaves, delta_softplus=p.delta_softplus)  # type: ignore[arg-type]
        draw = oracle.Draw(11)
        dy, dstate = draw.normal(*y.shape, dtype=y.dtype), draw.normal(*state.shape, dtype=state.dtype)
        got = torch.autograd.grad((y, state), list(leaves.values()), (dy, dstate))
        exact = {name: oracle.wide(t).requires_grad_() for name, t in tensors.items()}
        wanted = torch.autograd.grad(
            loop(replace(p, **exact)),
            list(exact.values()),
            (dy.double(), oracle.wide(dstate)),  # type: ignore[arg-type]
        )
        for name, mine, truth in zip(leaves, got, wanted, strict=True):
            assert mine.dtype == leaves[name].dtype
            size = float(truth.abs().max())
            unit = {torch.float64: 1e-11, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(mine.dtype, 3e-5)
            assert float((oracle.wide(mine) - truth).abs().max()) <= unit * max(size, 1e-3), (name, str(p))


def test_gradients_per_sample() -> None:
    s = sample(grad=False)
    names = ("A", "u", "delta", "B", "C")

    def loss(A: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, D=s["D"], delta_softplus=True).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))
    arguments = [s[name] for name in names]
    gradients = torch.vmap(gradient, in_dims=(None, 0, 0, 0, 0))(*arguments)
    for i in range(2):
        single = gradient(arguments[0], *(t[i] for t in arguments[1:]))
        for batched, wanted in zip(gradients, single, strict=True):
            torch.testing.assert_close(batched[i], wanted)


@pytest.mark.parametrize("mapped", ["all", "u", "A", "B", "initial_state"])
def test_vmap(mapped: str) -> None:
    s = sample(groups=2, grad=False)
    names = NAMES if mapped == "all" else (mapped,)
    stacked = {
        name: torch.stack([t, 0.5 * t], t.ndim if name == "B" else 0) if name in names else t for name, t in s.items()
    }
    axes = tuple((s[name].ndim if name == "B" else 0) if name in names else None for name in NAMES)
    y, state = torch.vmap(both, in_dims=axes)(*(stacked[name] for name in NAMES))
    for i, factor in enumerate((1, 0.5)):
        expected = both(*(factor * s[name] if name in names else s[name] for name in NAMES))
        torch.testing.assert_close((y[i], state[i]), expected)


# ---- compilation and export ----


@pytest.mark.parametrize("is_complex", [False, True])
def test_compile(is_complex: bool) -> None:
    tensors = tuple(sample(is_complex=is_complex).values())
    y, state = torch.compile(both, fullgraph=True, backend="aot_eager")(*tensors)
    expected = both(*tensors)
    torch.testing.assert_close((y, state), expected)
    got = torch.autograd.grad(y.sum() + state.abs().sum(), tensors)
    for mine, wanted in zip(
        got, torch.autograd.grad(expected[0].sum() + expected[1].abs().sum(), tensors), strict=True
    ):
        torch.testing.assert_close(mine, wanted)


class Module(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return both(*tensors)[0]


def test_export_of_any_length() -> None:
    tensors = tuple(sample(grad=False, length=6).values())
    any_length = torch.export.Dim("length", min=2, max=4096)
    shapes = [{1: any_length} if t.ndim == 3 and t.shape[1] == 6 else None for t in tensors]
    exported = torch.export.export(Module(), tensors, dynamic_shapes={"tensors": tuple(shapes)})
    other = tuple(sample(grad=False, length=70).values())
    torch.testing.assert_close(exported.module()(*other), both(*other)[0])
    assert any("convscan.selective_scan" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("is_complex", [False, True])
def test_opcheck(is_complex: bool) -> None:
    s = sample(is_complex=is_complex)
    grouped = s | {name: s[name].detach().unsqueeze(-2).requires_grad_() for name in ("B", "C")}
    operator = torch.ops.convscan.selective_scan.default
    library.opcheck(operator, (*grouped.values(), None, True))
    detached = [t.detach() for t in grouped.values()]
    y, state, checkpoints = operator(*detached, None, True)
    gradient = torch.ops.convscan.selective_scan_gradient.default
    library.opcheck(gradient, (y, state, checkpoints, *detached, None, True))
    one = [t[:, :1] if name in ("u", "delta", "B", "C", "z") else t for name, t in zip(NAMES, detached, strict=True)]
    library.opcheck(torch.ops.convscan.selective_scan_step.default, (one[-1].clone(), *one[:-1], True))


def test_gradients_over_leading_axes_that_do_not_merge() -> None:
    """The states that are kept lie in the order of the leading axes, whichever of them kernels loop over."""
    draw = oracle.Draw(21)
    u = draw.normal(2, 4, 70, 3).transpose(0, 1)  # leading axes (4, 2), the first with the smaller stride
    delta, A, B = draw.normal(4, 2, 70, 3).abs(), -draw.normal(3, 2).exp(), draw.normal(4, 2, 70, 2)
    results = []
    for one in (u, u.contiguous()):
        leaves = [tensor.detach().requires_grad_() for tensor in (one, delta, A, B)]
        results.append(torch.autograd.grad(selective_scan(*leaves, leaves[3]).square().sum(), leaves))
    torch.testing.assert_close(*results)
