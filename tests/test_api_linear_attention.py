"""ssd_scan, gated_linear_attention and mlstm: values against their step loops, packing, carrying, hostile gates,
derivatives, transforms, errors."""

from __future__ import annotations

import math
import re
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import convscan
import oracle
from convscan import (
    gated_linear_attention,
    gated_linear_attention_step,
    gated_linear_attention_with_state,
    mlstm,
    mlstm_step,
    mlstm_with_state,
    ssd_scan,
    ssd_scan_step,
    ssd_scan_with_state,
)
from convscan.ops.gated_linear_attention import reference as gla_reference
from convscan.ops.linear_attention.problem import AttentionGradientProblem
from convscan.ops.mlstm import reference as mlstm_reference
from convscan.ops.ssd_scan import reference as ssd_reference

REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of the largest value; sums of up to 200 steps.
TOLERANCE = {torch.float64: 2e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Around a tile of 64 steps, one of 16, and a vector.
LENGTHS = (0, 1, 2, 7, 8, 15, 16, 17, 33, 40, 63, 64, 65, 130)
# Leading axes, groups, heads, keys, values.
SIZES = (((), 1, 1, 1, 1), ((2,), 2, 4, 5, 7), ((1, 2), 1, 3, 16, 24), ((2, 1), 3, 3, 33, 8))

State = Any
Arguments = dict[str, Any]


class Draw:
    """Seeded numbers."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype
        self.gates = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def gate(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.gates)

    def decay(self, *shape: int) -> Tensor:
        """Logarithms, a tenth of them closed for good, some open."""
        g = -3 * self.gate(*shape).abs()
        chance = torch.rand(*shape, generator=self.generator)
        return torch.where(chance < 0.1, -math.inf, torch.where(chance > 0.8, 0.0, g))


@dataclass(frozen=True)
class Operator:
    """A way to call one of the operators, and its definition."""

    name: str
    arguments: Callable[[Draw, tuple[int, ...], int, int, int, int, int], Arguments]
    state: Callable[..., State]
    call: Callable[..., tuple[Tensor, State]]
    truth: Callable[..., tuple[Tensor, State]]
    time: dict[str, int]  # the time axis of every argument that has one

    def split(self, arguments: Arguments, begin: int, end: int) -> Arguments:
        return {
            name: value.narrow(self.time[name], begin, end - begin) if name in self.time else value
            for name, value in arguments.items()
        }


def _gla_arguments(
    of: str, draw: Draw, lead: tuple[int, ...], length: int, groups: int, heads: int, keys: int, values: int
) -> Arguments:
    shape = {"key": (*lead, length, heads, keys), "step": (*lead, length, heads), "head": (heads,)}[of]
    return {
        "q": draw.normal(*lead, length, groups, keys),
        "k": draw.normal(*lead, length, groups, keys),
        "v": draw.normal(*lead, length, heads, values),
        "g": draw.decay(*shape),
    }


def _gla(of: str) -> Operator:
    def truth(q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, State]:
        return gla_reference.gated_linear_attention(q, k, v, g, q.shape[-1] ** -0.5, initial_state)

    time = {"q": -3, "k": -3, "v": -3} | {"key": {"g": -3}, "step": {"g": -2}, "head": {}}[of]
    return Operator(
        name=f"gated_linear_attention by {of}",
        arguments=lambda *sizes: _gla_arguments(of, *sizes),
        state=lambda draw, lead, groups, heads, keys, values: draw.gate(*lead, heads, keys, values),
        call=gated_linear_attention_with_state,
        truth=truth,
        time=time,
    )


def _ssd_arguments(
    draw: Draw, lead: tuple[int, ...], length: int, groups: int, heads: int, keys: int, values: int
) -> Arguments:
    return {
        "x": draw.normal(*lead, length, heads, values),
        "dt": draw.gate(*lead, length, heads),
        "A": -draw.gate(heads).abs(),
        "B": draw.normal(*lead, length, groups, keys),
        "C": draw.normal(*lead, length, groups, keys),
        "D": draw.gate(heads) if length % 2 else draw.gate(heads, values),
        "z": draw.normal(*lead, length, heads, values),
        "dt_bias": draw.gate(heads),
        "dt_softplus": True,
    }


def _mlstm_arguments(
    draw: Draw, lead: tuple[int, ...], length: int, groups: int, heads: int, keys: int, values: int
) -> Arguments:
    return {
        "q": draw.normal(*lead, length, groups, keys),
        "k": draw.normal(*lead, length, groups, keys),
        "v": draw.normal(*lead, length, heads, values),
        "i": 2 * draw.gate(*lead, length, heads),
        "f": 3 + 2 * draw.gate(*lead, length, heads),
    }


def _mlstm_truth(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial_state: State = None) -> Any:
    return mlstm_reference.mlstm(q, k, v, i, f, q.shape[-1] ** -0.5, initial_state=initial_state)


GLA = {of: _gla(of) for of in ("key", "step", "head")}
SSD = Operator(
    name="ssd_scan",
    arguments=_ssd_arguments,
    state=lambda draw, lead, groups, heads, keys, values: draw.gate(*lead, heads, values, keys),
    call=ssd_scan_with_state,
    truth=ssd_reference.ssd_scan,
    time={"x": -3, "dt": -2, "B": -3, "C": -3, "z": -3},
)
MLSTM = Operator(
    name="mlstm",
    arguments=_mlstm_arguments,
    state=lambda draw, lead, groups, heads, keys, values: (
        draw.gate(*lead, heads, keys, values),
        draw.gate(*lead, heads, keys),
        draw.gate(*lead, heads),
    ),
    call=mlstm_with_state,
    truth=_mlstm_truth,
    time={"q": -3, "k": -3, "v": -3, "i": -2, "f": -2},
)
OPERATORS = [*GLA.values(), SSD, MLSTM]
# What does not depend on the kind of decay takes seconds.
ONE_OF_A_KIND = pytest.mark.parametrize("operator", [GLA["key"], SSD, MLSTM], ids=lambda operator: operator.name)
EACH = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


def parts(result: tuple[Tensor, State]) -> list[Tensor]:
    """The output and the numbers of the state."""
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def assert_near(got: Any, expected: Any, tolerance: float) -> None:
    """Off by at most ``tolerance`` times the largest value; NaN fails."""
    for one, other in zip(parts(got), parts(expected), strict=True):
        assert one.shape == other.shape
        if one.numel():
            # A single number may come out small where the sum's terms are not.
            error, scale = (one.double() - other.double()).abs(), other.double().abs().max().clamp(min=0.1)
            assert bool((error <= tolerance * scale).all()), f"off by {float((error / scale).max()):.3g} of the scale"


# ---- values ----


@EACH
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_step_loop(operator: Operator, dtype: torch.dtype, isa: str) -> None:
    for seed, length in enumerate(LENGTHS):
        lead, *sizes = SIZES[seed % len(SIZES)]
        draw = Draw(seed, dtype)
        arguments = operator.arguments(draw, lead, length, *sizes)
        state = operator.state(draw, lead, *sizes) if seed % 3 else None
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(operator.call(**arguments, initial_state=state))
        # A divisor near zero magnifies rounding.
        tolerance = TOLERANCE[dtype] * (20 if operator is MLSTM else 1)
        assert_near(answers[0], operator.truth(**arguments, initial_state=state), tolerance)
        for one, other in zip(*map(parts, answers), strict=True):
            assert torch.equal(one, other), "depends on the number of threads"
        assert answers[0][0].dtype == dtype
        assert {part.dtype for part in parts(answers[0])[1:]} == {draw.gates}


@EACH
def test_many_heads_share_tasks(operator: Operator) -> None:
    sizes = ((2,), 40, 2, 24, 8, 70)
    arguments = operator.arguments(Draw(0, torch.float32), *sizes)
    assert_near(operator.call(**arguments), operator.truth(**arguments), 1e-4)


@EACH
def test_implementations_agree_and_are_explained(operator: Operator) -> None:
    arguments = operator.arguments(Draw(0, torch.float64), (2,), 20, 1, 2, 3, 4)
    public = operator.name.split()[0]
    explanation = convscan.explain(public, **arguments)
    assert "L=20 H=2 K=3 V=4 float64" in str(explanation)
    expected = operator.call(**arguments)
    for name in oracle.rows(public):
        with convscan.force(name):
            assert_near(operator.call(**arguments), expected, 1e-13)
    with convscan.workspace_limit(0), pytest.raises(MemoryError):
        operator.call(**arguments)


@EACH
def test_workspace_is_within_what_is_predicted(operator: Operator) -> None:
    for threads, length in ((1, 40), (2, 300)):
        torch.set_num_threads(2)
        convscan.reset_peak_workspace()  # of both threads
        torch.set_num_threads(threads)
        arguments = operator.arguments(Draw(0, torch.float32), (2,), length, 2, 8, 24, 40)
        leaves = [value.requires_grad_() for value in arguments.values() if isinstance(value, Tensor)]
        public = operator.name.split()[0]
        predicted = next(
            c.cost.workspace_bytes for c in convscan.explain(public, **arguments).candidates if c.cost is not None
        )
        y = operator.call(**arguments)[0]
        assert 0 < convscan.workspace_memory().peak <= predicted
        forward = convscan.explain(public, **arguments).problem
        gradient = convscan.implementations("linear_attention_gradient")[0].cost(AttentionGradientProblem(forward))
        torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        assert convscan.workspace_memory().peak <= gradient.workspace_bytes


@ONE_OF_A_KIND
def test_no_state_is_kept_for_each_tile(operator: Operator) -> None:
    """Forward, workspace does not depend on the length; backward it grows with its root."""
    torch.set_num_threads(1)

    def peak(length: int, *, backward: bool) -> int:
        arguments = operator.arguments(Draw(0, torch.float32), (), length, 1, 1, 16, 16)
        leaves = [value.requires_grad_(backward) for value in arguments.values() if isinstance(value, Tensor)]
        convscan.reset_peak_workspace()
        y = operator.call(**arguments)[0]
        if backward:
            torch.autograd.grad(y.sum(), leaves, allow_unused=True)
        return convscan.workspace_memory().peak

    assert peak(64 * 256, backward=False) == peak(64, backward=False)
    assert peak(64 * 256, backward=True) < 5 * peak(64 * 16, backward=True)


@EACH
def test_carrying_the_state_at_every_position(operator: Operator) -> None:
    for length, positions in ((40, range(41)), (130, (15, 16, 17, 63, 64, 65, 128))):
        arguments = operator.arguments(Draw(1, torch.float64), (1,), length, 1, 2, 3, 4)
        state = operator.state(Draw(2, torch.float64), (1,), 1, 2, 3, 4)
        expected = operator.call(**arguments, initial_state=state)
        for at in positions:
            first, carried = operator.call(**operator.split(arguments, 0, at), initial_state=state)
            second, last = operator.call(**operator.split(arguments, at, length), initial_state=carried)
            assert_near((torch.cat([first, second], -3), last), expected, 1e-12)


def packed_state(state: State, count: int, axis: int) -> list[State]:
    return [tuple(s.select(a, i) for s, a in zip(state, (axis, axis + 1, axis + 2), strict=True))
            if isinstance(state, tuple) else state.select(axis, i) for i in range(count)]  # fmt: skip


@EACH
def test_packed_sequences(operator: Operator) -> None:
    bounds = [0, 0, 3, 20, 20, 85, 86, 150, 150]
    count, sizes = len(bounds) - 1, (1, 2, 3, 4)
    for dtype in (torch.float64, torch.float32):
        arguments = operator.arguments(Draw(3, dtype), (2,), bounds[-1], *sizes)
        state = operator.state(Draw(4, dtype), (2, count), *sizes)
        for initial in (None, state):
            for kind in (torch.int32, torch.int64):
                cu_seqlens = torch.tensor(bounds, dtype=kind)
                y, last = operator.call(**arguments, initial_state=initial, cu_seqlens=cu_seqlens)
                lasts = packed_state(last, count, -4)
                for s, (begin, end) in enumerate(pairwise(bounds)):
                    start = None if initial is None else packed_state(initial, count, -4)[s]
                    alone = operator.call(**operator.split(arguments, begin, end), initial_state=start)
                    # Bitwise, but for gates whose functions PyTorch computes and for the stabiliser's running sums.
                    exact = operator in GLA.values()
                    assert_near((y[:, begin:end], lasts[s]), alone, 0 if exact else 1e-5)


@EACH
@pytest.mark.parametrize("per", ["closed", "open", "alternating", "underflowing"])
def test_hostile_gates(operator: Operator, per: str) -> None:
    """Every gate closed, every gate open, one after the other, and decays whose products underflow within a tile."""
    gate = {"closed": -math.inf, "open": 0.0, "alternating": 0.0, "underflowing": -40.0}[per]
    for dtype in (torch.float32, torch.float64):
        arguments = operator.arguments(Draw(5, dtype), (1,), 140, 1, 2, 5, 6)
        name = {"ssd_scan": "A", "mlstm": "f"}.get(operator.name, "g")
        values = torch.full_like(arguments[name], gate)
        if name == "f":
            values = torch.full_like(values, {"open": math.inf}.get(per, gate))
        if per == "alternating" and name != "A" and values.ndim > 1:
            values[..., ::2] = -math.inf
        arguments[name] = values.requires_grad_()
        if name == "A" and per == "closed":
            arguments[name] = torch.full_like(arguments[name], -1e30).requires_grad_()
        others = [value.requires_grad_() for value in arguments.values() if isinstance(value, Tensor)]
        result = operator.call(**arguments)
        loop = operator.truth(**arguments)
        assert_near(result, loop, (2e-4 if operator is MLSTM else 2e-5) if dtype == torch.float32 else 1e-11)
        gradients = torch.autograd.grad(result[0].square().sum(), others)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        if name == "g" and per == "closed":
            assert not gradients[list(arguments).index("g")].any(), "a closed gate has no gradient, exactly"


def test_both_gates_of_mlstm_closed() -> None:
    arguments = MLSTM.arguments(Draw(6, torch.float32), (), 70, 1, 2, 3, 4)
    for name in ("i", "f"):
        arguments[name][10:40] = -math.inf
        arguments[name].requires_grad_()
    y, state = mlstm_with_state(**arguments)
    assert float(y.detach()[10:40].abs().max()) < 1e-30
    gradients = torch.autograd.grad(y.sum() + sum(part.sum() for part in state), (arguments["i"], arguments["f"]))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    for large in (80.0, 500.0):  # far beyond what exp can take
        arguments["i"] = large * torch.randn(70, 2, generator=torch.Generator().manual_seed(0))
        assert_near(mlstm_with_state(**arguments), _mlstm_truth(**arguments), 1e-4)


def test_float32_does_not_drift() -> None:
    """8192 steps of decays near one: within twice the error of the loop in the same type, and a few roundings."""
    draw = Draw(7, torch.float32)
    arguments = _gla_arguments("step", draw, (), 8192, 1, 2, 8, 8)
    arguments["g"] = -1e-3 * arguments["g"].clamp(min=-3).abs()
    truth = gla_reference.gated_linear_attention(**arguments, scale=1.0)[0]
    state, loop = torch.zeros(2, 8, 8), torch.empty_like(arguments["v"])
    decay, steps = arguments["g"].exp(), arguments["k"][..., :, None] * arguments["v"][..., None, :]
    for t in range(8192):
        state = decay[t, :, None, None] * state + steps[t]
        loop[t] = (arguments["q"][t, :, :, None] * state).sum(-2)
    error, of_loop = (
        (found.double() - truth).abs().max() for found in (gated_linear_attention(**arguments, scale=1.0), loop)
    )
    assert error <= 2 * of_loop + 1e-6 * truth.abs().max()


@EACH
def test_impostors(operator: Operator) -> None:
    """Answers that are wrong in one thing must not pass for right ones."""
    sizes = ((2,), 40, 1, 2, 3, 4)
    arguments = operator.arguments(Draw(8, torch.float64), *sizes)
    state = operator.state(Draw(9, torch.float64), (2,), *sizes[2:])
    y, last = operator.truth(**arguments, initial_state=state)
    wrong = {
        "all zeros": (torch.zeros_like(y), last),
        "one step late": (torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1), last),
        "state dropped": operator.truth(**arguments),
        "wrong head": (y.roll(1, -2), last),
        "wrong batch": (y.roll(1, 0), last),
        "last state one step early": (y, operator.truth(**operator.split(arguments, 0, 39), initial_state=state)[1]),
        "computed in bfloat16": (y.bfloat16(), last),
    }
    assert_near((y, last), (y, last), 0)
    for answer in wrong.values():
        with pytest.raises(AssertionError, match="off by"):
            assert_near(answer, (y, last), TOLERANCE[torch.float32] * 20)


def test_memory_orders_and_views() -> None:
    for operator in OPERATORS:
        arguments = operator.arguments(Draw(10, torch.float32), (2, 3), 33, 2, 4, 6, 5)
        expected = operator.call(**arguments)
        for mixed in (
            {name: value.mT.contiguous().mT if value.ndim > 1 else value for name, value in arguments.items()
             if isinstance(value, Tensor)},
            {name: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 2 else value
             for name, value in arguments.items() if isinstance(value, Tensor)},
            {name: torch.stack([value, value * math.nan], -1)[..., 0] for name, value in arguments.items()
             if isinstance(value, Tensor)},
        ):  # fmt: skip
            assert_near(operator.call(**arguments | mixed), expected, 1e-6)


# ---- derivatives ----


def small(operator: Operator, length: int, *, packed: bool = False) -> tuple[list[Tensor], Callable[..., Any]]:
    """Leaves in double precision, and the operator as a function of them."""
    draw = Draw(11 + length, torch.float64)
    lead, sizes = (1,), (1, 2, 2, 3)
    arguments = operator.arguments(draw, lead, length, *sizes)
    if "g" in arguments:
        arguments["g"] = arguments["g"].clamp(min=-4)
    bounds = torch.tensor([0, 1, 1, length]) if packed else None
    state = operator.state(draw, (*lead, 3) if packed else lead, *sizes)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in arguments.items() if name not in tensors}
    states = state if isinstance(state, tuple) else (state,)

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(tensors, leaves, strict=False))
        initial = leaves[len(tensors) :]
        start = tuple(initial) if isinstance(state, tuple) else initial[0]
        return tuple(parts(operator.call(**given, **others, initial_state=start, cu_seqlens=bounds)))

    return [leaf.requires_grad_() for leaf in (*tensors.values(), *states)], function


@EACH
@pytest.mark.parametrize(("length", "packed"), [(3, False), (5, True), (19, False)])
def test_first_derivatives(operator: Operator, length: int, packed: bool) -> None:
    leaves, function = small(operator, length, packed=packed)
    forward = length != 19
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=forward, fast_mode=length > 3)


@EACH
@pytest.mark.parametrize(("length", "packed"), [(2, False), (4, True)])
def test_second_derivatives(operator: Operator, length: int, packed: bool) -> None:
    leaves, function = small(operator, length, packed=packed)
    assert torch.autograd.gradgradcheck(
        function, leaves, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_long_sequences(operator: Operator, dtype: torch.dtype, isa: str) -> None:
    """Over several spans of tiles: the same as those of the reference in double precision, for any threads."""
    arguments = operator.arguments(Draw(12, dtype), (1,), 330, 2, 4, 6, 10)
    leaves = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}

    def gradients(given: Arguments) -> tuple[Tensor, ...]:
        tensors = {name: value.detach().requires_grad_() for name, value in given.items()}
        y, state = operator.call(**arguments | tensors)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
        loss = (y * weights).sum() + sum(part.sum() for part in parts((y, state))[1:])
        return torch.autograd.grad(loss, list(tensors.values()))

    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gradients(leaves))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True)), "depends on the number of threads"
    with convscan.force("reference"):
        truth = gradients({name: value.double() for name, value in leaves.items()})
    for got, expected in zip(found[0], truth, strict=True):
        scale = expected.abs().max()
        assert float((got.double() - expected).abs().max() / scale) < (5e-4 if dtype == torch.float32 else 0.03)


@EACH
def test_gradients_of_nothing(operator: Operator) -> None:
    for lead, length, sizes in (((2,), 0, (1, 2, 3, 4)), ((0,), 5, (1, 2, 3, 4)), ((2,), 5, (1, 2, 3, 0))):
        arguments = operator.arguments(Draw(19, torch.float32), lead, length, *sizes)
        state = operator.state(Draw(19, torch.float32), lead, *sizes)
        leaves = state if isinstance(state, tuple) else (state,)
        after = parts(operator.call(**arguments, initial_state=tuple(leaf.requires_grad_() for leaf in leaves)
                                    if isinstance(state, tuple) else state.requires_grad_()))  # fmt: skip
        gradients = torch.autograd.grad(sum(part.sum() for part in after), leaves)
        if length == 0:
            assert all(bool((gradient == 1).all()) for gradient in gradients)


@EACH
def test_transforms(operator: Operator) -> None:
    leaves, function = small(operator, 5)
    expected = function(*leaves)
    batch = [torch.stack([leaf, leaf * 0.5]).detach() for leaf in leaves]
    for got, one, other in zip(
        torch.vmap(function)(*batch), expected, function(*(leaf * 0.5 for leaf in leaves)), strict=True
    ):
        torch.testing.assert_close(got, torch.stack([one, other]))
    shared = torch.vmap(lambda leaf: function(leaf, *leaves[1:])[0])(batch[0])
    torch.testing.assert_close(shared[0], expected[0])

    def loss(first: Tensor) -> Tensor:
        return function(first, *(leaf.detach() for leaf in leaves[1:]))[0].square().sum()

    point = leaves[0].detach()
    torch.testing.assert_close(torch.func.hessian(loss)(point), torch.func.jacrev(torch.func.jacrev(loss))(point))
    per_sample = torch.vmap(torch.func.grad(loss))(batch[0])
    torch.testing.assert_close(per_sample[0], torch.func.grad(loss)(point))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf.detach(), torch.ones_like(leaf)) for leaf in leaves]
        assert forward_ad.unpack_dual(function(*duals)[0]).tangent is not None


@EACH
def test_boundaries_that_differ_between_mapped_calls(operator: Operator) -> None:
    arguments = operator.arguments(Draw(24, torch.float64), (), 9, 1, 2, 3, 4)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    bounds = torch.tensor([[0, 4, 9], [0, 0, 9]])

    def function(given: Arguments, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
        return tuple(parts(operator.call(**arguments | given, cu_seqlens=cu_seqlens)))

    def loss(given: Arguments, cu_seqlens: Tensor) -> Tensor:
        return sum(part.square().sum() for part in function(given, cu_seqlens))  # type: ignore[return-value]

    mapped = torch.vmap(function, in_dims=(None, 0))(tensors, bounds)
    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensors, bounds)
    for i in range(2):
        torch.testing.assert_close(tuple(part[i] for part in mapped), function(tensors, bounds[i]))
        wanted = torch.func.grad(loss)(tensors, bounds[i])
        torch.testing.assert_close({name: gradient[i] for name, gradient in gradients.items()}, wanted)


@ONE_OF_A_KIND
def test_compilation_and_export(operator: Operator) -> None:
    torch._dynamo.reset()
    sizes = ((2,), 20, 1, 2, 3, 4)
    arguments = operator.arguments(Draw(13, torch.float32), *sizes)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    others = {name: value for name, value in arguments.items() if name not in names}
    cu_seqlens = torch.tensor([0, 7, 20])

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            *given, bounds = tensors
            call = dict(zip(names, given, strict=True)) | others
            return (*parts(operator.call(**call)), *parts(operator.call(**call, cu_seqlens=bounds)))

    tensors = [*(arguments[name] for name in names), cu_seqlens]
    expected = Module()(*tensors)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    for got, one in zip(compiled(*tensors), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(Module(), tuple(tensors)).module()
    for got, one in zip(exported(*tensors), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-5)
    leaves = [tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor for tensor in tensors]
    compiled(*leaves)[0].sum().backward()
    first = leaves[0].grad
    assert first is not None
    again = [tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor for tensor in tensors]
    Module()(*again)[0].sum().backward()
    torch.testing.assert_close(first, again[0].grad, rtol=1e-4, atol=1e-5)


def test_registered_operator() -> None:
    draw = Draw(14, torch.float32)
    q, k, v = draw.normal(2, 5, 1, 3), draw.normal(2, 5, 1, 3), draw.normal(2, 5, 2, 4)
    q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    state, n = draw.gate(2, 3, 2, 3, 4).requires_grad_(), draw.gate(2, 3, 2, 3).requires_grad_()
    by_step, by_key = (-draw.gate(2, 5, 2, *keys).abs().requires_grad_() for keys in ((), (3,)))
    w = draw.gate(2, 5, 2).requires_grad_()
    for call in (
        (q, k, v, by_step, None, None, None, None, 1.0, False, True),
        (q, k, v, by_key, w, state, n, torch.tensor([0, 2, 2, 5]), 0.5, True, False),
    ):
        torch.library.opcheck(torch.ops.convscan.linear_attention.default, call)


def test_no_gradient_for_what_needs_none() -> None:
    arguments = SSD.arguments(Draw(15, torch.float32), (), 20, 1, 2, 3, 4)
    arguments["x"].requires_grad_()
    ssd_scan_with_state(**arguments)[1].sum().backward()  # of the state alone
    assert arguments["x"].grad is not None
    arguments = MLSTM.arguments(Draw(15, torch.float32), (), 20, 1, 2, 3, 4)
    arguments["i"].requires_grad_()
    mlstm_with_state(**arguments)[1][1].sum().backward()
    assert arguments["i"].grad is not None


# ---- single steps ----

STEPS = {
    "gated_linear_attention": gated_linear_attention_step,
    "ssd_scan": ssd_scan_step,
    "mlstm": mlstm_step,
}


def zeros_like(state: State) -> State:
    return tuple(map(torch.zeros_like, state)) if isinstance(state, tuple) else torch.zeros_like(state)


@EACH
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_steps_are_the_sequence(operator: Operator, dtype: torch.dtype, isa: str) -> None:
    step = STEPS[operator.name.split()[0]]
    for lead, *sizes in SIZES:
        arguments = operator.arguments(Draw(20, dtype), lead, 5, *sizes)
        expected = operator.call(**arguments)
        others = {name: value for name, value in arguments.items() if name not in operator.time}
        states = []
        for run in range(3):
            state = zeros_like(expected[1])
            if run == 1 and not isinstance(state, tuple):
                state = state.mT.contiguous().mT  # the other memory order
            torch.set_num_threads(1 + run % 2)
            outputs = []
            for t in range(5):
                now = {name: arguments[name].select(axis, t) for name, axis in operator.time.items()}
                y = step(state, **now, **others)
                assert (y.shape, y.dtype) == (now.get("v", now.get("x")).shape, dtype)  # type: ignore[union-attr]
                outputs.append(y)
            states.append((torch.stack(outputs, -3), state))
        tolerance = TOLERANCE[dtype] * (20 if operator is MLSTM else 1)
        for found in states:
            assert_near(found, expected, tolerance)
        for one, other in zip(parts(states[0]), parts(states[2]), strict=True):
            assert torch.equal(one, other)


@EACH
def test_steps_of_views(operator: Operator) -> None:
    step = STEPS[operator.name.split()[0]]
    arguments = operator.arguments(Draw(21, torch.float32), (2, 3), 1, 2, 4, 6, 5)
    expected = operator.call(**arguments)
    now = {name: arguments[name].select(axis, 0) for name, axis in operator.time.items()}
    others = {name: value for name, value in arguments.items() if name not in operator.time}
    for change in (lambda t: t, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
                   lambda t: torch.stack([t, t * math.nan], -1)[..., 0]):  # fmt: skip
        state = zeros_like(expected[1])
        state = tuple(map(change, state)) if isinstance(state, tuple) else change(state)
        for _ in range(2):  # the second one is prepared
            for part in state if isinstance(state, tuple) else (state,):
                part.zero_()
            y = step(state, **{name: change(value) for name, value in now.items()}, **others)
            assert_near((y, state), (expected[0].squeeze(-3), expected[1]), 1e-5)
    wide = {name: value.double() if name in ("v", "x") else value for name, value in now.items()}
    with pytest.raises(TypeError, match="state must have the dtype float64; got float32"):
        step(zeros_like(expected[1]), **wide, **others)


@ONE_OF_A_KIND
def test_steps_in_transforms_and_where_refused(operator: Operator) -> None:
    torch._dynamo.reset()
    name = operator.name.split()[0]
    step = STEPS[name]
    arguments = operator.arguments(Draw(22, torch.float32), (2,), 1, 1, 2, 3, 4)
    now = {key: arguments[key].select(axis, 0) for key, axis in operator.time.items()}
    others = {key: value for key, value in arguments.items() if key not in operator.time}
    start = operator.call(**arguments)[1]
    expected = zeros_like(start), zeros_like(start)
    y = step(expected[0], **now, **others)

    def function(state: State, tensors: Arguments) -> Tensor:
        return step(state, **tensors, **others)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_near((compiled(expected[1], now), expected[1]), (y, expected[0]), 1e-5)
    mapped = zeros_like(start)
    assert_near((torch.vmap(function)(mapped, now), mapped), (y, expected[0]), 1e-5)
    with convscan.force("reference"):
        loop = zeros_like(start)
        assert_near((step(loop, **now, **others), loop), (y, expected[0]), 1e-5)
    assert "B=2 H=2 K=3 V=4 float32" in str(convscan.explain(f"{name}_step", start, **now, **others))
    first = next(iter(now))
    with pytest.raises(RuntimeError, match="a step overwrites its state, which cannot be differentiated"):
        step(zeros_like(start), **now | {first: now[first].clone().requires_grad_()}, **others)
    with torch.no_grad():
        step(zeros_like(start), **now | {first: now[first].clone().requires_grad_()}, **others)
    shared = start[0] if isinstance(start, tuple) else start
    overlapping = shared[..., :1].expand_as(shared)
    with pytest.raises(ValueError, match="a state must be memory that no argument and no other element of it shares"):
        step((overlapping, *start[1:]) if isinstance(start, tuple) else overlapping, **now, **others)


def test_steps_cost_microseconds() -> None:
    """The aim is 3 µs beyond the state's bytes over the bandwidth. Here multiples of an allocation of some 1.2 µs."""

    def fastest(function: Callable[[], object]) -> float:
        return min(timeit.repeat(function, number=200, repeat=30)) / 200

    empty = fastest(lambda: torch.empty_like(torch.ones(1, 2, 4)))
    for operator in OPERATORS:
        arguments = operator.arguments(Draw(23, torch.float32), (1,), 1, 2, 2, 4, 4)
        now = {key: arguments[key].select(axis, 0) for key, axis in operator.time.items()}
        others = {key: value for key, value in arguments.items() if key not in operator.time}
        state = operator.call(**arguments)[1]
        step = STEPS[operator.name.split()[0]]
        assert fastest(lambda: step(state, **now, **others)) < 8 * empty


# ---- other people's definitions ----


def test_retention() -> None:
    """Retentive networks: a constant decay a head, as one product over the whole length."""
    draw = Draw(18, torch.float64)
    q, k, v = (draw.normal(2, 90, 3, size) for size in (4, 4, 5))
    g = torch.log(1 - 2.0 ** -torch.arange(5.0, 8.0, dtype=torch.float64))
    distance = torch.arange(90)[:, None] - torch.arange(90)
    decay = torch.where(distance >= 0, (g[:, None, None] * distance).exp(), 0.0)
    expected = torch.einsum("blhk,bmhk,hlm,bmhv->blhv", q, k, decay, v) / 2
    torch.testing.assert_close(gated_linear_attention(q, k, v, g), expected)


# ---- errors ----


def test_errors_say_what_to_do() -> None:
    q = k = torch.ones(2, 5, 2, 3)
    v, g, x = torch.ones(2, 5, 4, 6), torch.zeros(2, 5, 4), torch.ones(2, 5, 4, 6)
    state = torch.zeros(2, 4, 3, 6)
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: gated_linear_attention(q, k, 1, g),
            TypeError,
            "gated_linear_attention: v must be a torch.Tensor; got int. Convert it",
        ),  # type: ignore[arg-type]
        (
            lambda: gated_linear_attention(q, k, v[0, 0], g),
            ValueError,
            "v must have the shape (..., L, H, channels); got (4, 6). Add",
        ),
        (
            lambda: gated_linear_attention(q[:, :4], k, v, g),
            ValueError,
            "q must have the shape (..., L, G, K) = (2, 5, 2, 3); got (2, 4, 2, 3)",
        ),
        (
            lambda: gated_linear_attention(q, k[..., :2], v, g),
            ValueError,
            "k must have the shape (..., L, G, K) = (2, 5, 2, 3); got",
        ),
        (
            lambda: gated_linear_attention(q, k, v[:, :, :3], g),
            ValueError,
            "the groups of q must divide the 3 heads of v; got 2",
        ),
        (
            lambda: gated_linear_attention(q, k, v, g[0]),
            ValueError,
            "= (2, 5, 4, 3), (..., L, H) = (2, 5, 4) or (H,) = (4,); got (5, 4)",
        ),
        (
            lambda: gated_linear_attention(q, k, v, g.long()),
            TypeError,
            "g must have one of the dtypes float32, float64, bfloat16, float16; got int64",
        ),
        (
            lambda: gated_linear_attention_with_state(q, k, v, g, initial_state=state[0]),
            ValueError,
            "_with_state: initial_state must have the shape (..., H, K, V) = (2, 4, 3, 6); got (4, 3, 6)",
        ),
        (
            lambda: gated_linear_attention(q, k, v, g, cu_seqlens=torch.tensor([0, 6])),
            ValueError,
            "cu_seqlens must begin with 0 and end with L = 5; got 0 ... 6",
        ),
        (
            lambda: gated_linear_attention(q, k, v, g, cu_seqlens=torch.tensor([0, 4, 2, 5])),
            ValueError,
            "cu_seqlens must not decrease",
        ),
        (
            lambda: gated_linear_attention(q, k, v, g, cu_seqlens=torch.tensor([0.0, 5])),
            TypeError,
            "cu_seqlens must have one of the dtypes int32, int64",
        ),
        (
            lambda: ssd_scan(x, g, g[0, 0], q, k[..., :1]),
            ValueError,
            "ssd_scan: C must have the shape (..., L, G, N) = (2, 5, 2, 3); got (2, 5, 2, 1)",
        ),
        (lambda: ssd_scan(x, g, g[0], q, k), ValueError, "ssd_scan: A must have the shape (H,) = (4,); got (5, 4)"),
        (
            lambda: ssd_scan(x, g, g[0, 0], q, k, D=g),
            ValueError,
            "D must have the shape (H,) = (4,) or (H, P) = (4, 6); got (2, 5, 4)",
        ),
        (
            lambda: ssd_scan(x, g, g[0, 0], q, k, z=g),
            ValueError,
            "z must have the shape of x = (2, 5, 4, 6); got (2, 5, 4)",
        ),
        (
            lambda: ssd_scan_with_state(x, g, g[0, 0], q, k, initial_state=state),
            ValueError,
            "initial_state must have the shape (..., H, P, N) = (2, 4, 6, 3); got",
        ),
        (
            lambda: mlstm(q, k, v, g, g[..., :2]),
            ValueError,
            "mlstm: f must have the shape (..., L, H) = (2, 5, 4); got (2, 5, 2)",
        ),
        (
            lambda: mlstm(q, k, v, g, g, initial_state=state),
            TypeError,
            "mlstm: initial_state must be a tuple (C, n, m); got Tensor. Pass the state",
        ),  # type: ignore[arg-type]
        (
            lambda: mlstm(q, k, v, g, g, initial_state=(state, state, state)),
            ValueError,
            "n of initial_state must have the shape (..., H, K) = (2, 4, 3); got",
        ),
    ]
    for call, kind, text in wrong:
        with pytest.raises(kind, match=re.escape(text)):
            call()
