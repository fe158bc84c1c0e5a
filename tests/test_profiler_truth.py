"""The profiler's judge is itself judged: right answers pass, every known way of being wrong fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from convscan.nn import FFTConvS4
from convscan.ops.cauchy.cases import Case as PolesCase
from convscan.ops.cauchy.reference import cauchy as cauchy_reference
from convscan.ops.causal_conv.cases import Case as ConvCase
from convscan.ops.causal_conv.cases import inputs as conv_inputs
from convscan.ops.fft_conv.cases import Case as EinsumCase
from convscan.ops.fft_conv.reference import fft_conv as fft_conv_reference
from convscan.ops.linear_recurrence.cases import Case as RecurrenceCase
from convscan.ops.linear_recurrence.cases import inputs as recurrence_inputs
from convscan.ops.opt_ssm_forward.cases import Case as LayerCase
from convscan.ops.opt_ssm_forward.reference import opt_ssm_forward as layer_reference
from convscan.ops.vandermonde.cases import Case as KernelCase
from convscan.ops.vandermonde.reference import vandermonde as vandermonde_reference
from convscan.profiler import ours, problem
from convscan.profiler.operators import operator
from convscan.profiler.operators.fft_conv_s4 import Case as TrainingCase
from convscan.profiler.problem import Problem, compare, truth, wide

CONV_SHAPES = [(1, 1, 1, 1), (2, 7, 3, 4), (1, 33, 5, 33), (1, 16, 2, 40), (3, 64, 4, 20)]
RECURRENCE_SHAPES = [(1, 1, 1), (2, 7, 3), (1, 97, 4), (1, 1000, 2)]


def conv(
    shape: tuple[int, int, int, int], direction: str = "forward", layout: str = "BLD", **options: object
) -> Problem:
    case = ConvCase("test", "test", *shape, layout=layout, **options)  # type: ignore[arg-type]
    return problem.make(operator("causal_conv"), case, conv_inputs(case, 3), direction, 3)


def recurrence(shape: tuple[int, int, int], direction: str = "forward", **options: object) -> Problem:
    case = RecurrenceCase("test", "test", *shape, state=True, **options)  # type: ignore[arg-type]
    return problem.make(operator("linear_recurrence"), case, recurrence_inputs(case, 3), direction, 3)


def conv_loop(x: Tensor, h: Tensor, state: Tensor | None = None) -> Tensor:
    y = torch.zeros_like(x)
    for i in range(x.shape[1]):
        for k in range(h.shape[0]):
            if i - k >= 0:
                y[:, i] += h[k] * x[:, i - k]
            elif state is not None:
                y[:, i] += h[k] * state[:, state.shape[1] + i - k]
    return y


def recurrence_loop(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
    y, rows = y_init, []
    for i in range(x.shape[1]):
        y = a.expand(x.shape)[:, i] * y + x[:, i]
        rows.append(y)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("shape", CONV_SHAPES)
@pytest.mark.parametrize("layout", ["BLD", "BDL"])
def test_convolution_truth_is_the_double_loop(shape: tuple[int, int, int, int], layout: str) -> None:
    p = conv(shape, layout=layout)
    torch.testing.assert_close(truth(p).values[0], conv_loop(p["x"].double(), p["h"].double()))
    assert compare(p, (conv_loop(p["x"], p["h"]),), truth(p)).wrong is None


@pytest.mark.parametrize("shape", CONV_SHAPES)
def test_convolution_gradients_are_autograds(shape: tuple[int, int, int, int]) -> None:
    p = conv(shape, "backward", activation="silu")
    x, h = (t.double().requires_grad_() for t in p.arguments)
    y = torch.nn.functional.silu(conv_loop_functional(x, h))
    expected = torch.autograd.grad(y, (x, h), p.cotangent.double())
    for got, want in zip(truth(p).values, expected, strict=True):
        torch.testing.assert_close(got, want)


def conv_loop_functional(x: Tensor, h: Tensor) -> Tensor:
    padded = torch.cat([x.new_zeros((x.shape[0], h.shape[0] - 1, x.shape[2])), x], dim=1)
    return torch.stack([(padded[:, i : i + h.shape[0]] * h.flip(0)).sum(1) for i in range(x.shape[1])], dim=1)


def test_a_state_counts() -> None:
    p = conv((2, 6, 3, 4), state=True)
    assert p.inputs["initial_state"] is not None
    right = conv_loop(p["x"].double(), p["h"].double(), p.inputs["initial_state"].double())
    torch.testing.assert_close(truth(p).values[0], right)
    assert compare(p, (conv_loop(p["x"], p["h"]),), truth(p)).wrong is not None


@pytest.mark.parametrize("shape", RECURRENCE_SHAPES)
@pytest.mark.parametrize("options", [{}, {"constant": True}, {"dtype": "complex64"}, {"layout": "BDL"}])
def test_recurrence_truth_is_the_loop(shape: tuple[int, int, int], options: dict[str, object]) -> None:
    p = recurrence(shape, **options)
    wide = [t.to(torch.complex128 if t.dtype.is_complex else torch.float64) for t in p.arguments]
    torch.testing.assert_close(truth(p).values[0], recurrence_loop(*wide))
    assert compare(p, (recurrence_loop(*p.arguments),), truth(p)).wrong is None


@pytest.mark.parametrize("shape", RECURRENCE_SHAPES)
@pytest.mark.parametrize("options", [{}, {"constant": True}, {"dtype": "complex64"}])
def test_recurrence_gradients_are_autograds(shape: tuple[int, int, int], options: dict[str, object]) -> None:
    p = recurrence(shape, "backward", **options)
    wide = torch.complex128 if p.dtype.is_complex else torch.float64
    leaves = [t.to(wide).requires_grad_() for t in p.arguments]
    expected = torch.autograd.grad(recurrence_loop(*leaves), leaves, p.cotangent.to(wide))
    for got, want in zip(truth(p).values, expected, strict=True):
        torch.testing.assert_close(got, want)


CONV_IMPOSTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "all zeros": lambda x, h: torch.zeros_like(x),
    "one step late": lambda x, h: torch.roll(conv_loop(x, h), 1, dims=1),
    "wrong channel": lambda x, h: conv_loop(x, h).roll(1, dims=-1),
    "one channel wrong": lambda x, h: torch.cat([conv_loop(x, h)[..., :-1], conv_loop(x, h)[..., :1]], dim=-1),
    "filter reversed": lambda x, h: conv_loop(x, h.flip(0)),
    "last tap dropped": lambda x, h: conv_loop(x, h[:-1]),
    "tail aliased": lambda x, h: torch.fft.irfft(
        torch.fft.rfft(x, x.shape[1], dim=1) * torch.fft.rfft(h, x.shape[1], dim=0), x.shape[1], dim=1
    ),
    "not a number": lambda x, h: conv_loop(x, h) * float("nan"),
    "one sample infinite": lambda x, h: conv_loop(x, h).index_fill(1, torch.tensor([x.shape[1] // 2]), float("inf")),
    "wrong shape": lambda x, h: conv_loop(x, h)[:, :-1],
    "wrong type": lambda x, h: conv_loop(x, h).double(),
    "rounded to half": lambda x, h: conv_loop(x, h).bfloat16().float(),
}
RECURRENCE_IMPOSTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "all zeros": lambda x, s, a: torch.zeros_like(x),
    "one step late": lambda x, s, a: torch.roll(recurrence_loop(x, s, a), 1, dims=1),
    "dropped state": lambda x, s, a: recurrence_loop(x, torch.zeros_like(s), a),
    "wrong channel": lambda x, s, a: recurrence_loop(x, s, a).roll(1, dims=-1),
    "coefficients shifted": lambda x, s, a: recurrence_loop(x, s, a.roll(1, dims=1)),
    "state dropped midway": lambda x, s, a: torch.cat(
        [recurrence_loop(x[:, :32], s, a[:, :32]), recurrence_loop(x[:, 32:], torch.zeros_like(s), a[:, 32:])], dim=1
    ),
    "not a number": lambda x, s, a: recurrence_loop(x, s, a) * float("nan"),
}


@pytest.mark.parametrize("name", CONV_IMPOSTORS)
def test_convolution_impostors_are_wrong(name: str) -> None:
    p = conv((2, 64, 5, 64))
    assert compare(p, (CONV_IMPOSTORS[name](p["x"], p["h"]),), truth(p)).wrong


@pytest.mark.parametrize("name", RECURRENCE_IMPOSTORS)
def test_recurrence_impostors_are_wrong(name: str) -> None:
    p = recurrence((2, 64, 5))
    assert compare(p, (RECURRENCE_IMPOSTORS[name](*p.arguments),), truth(p)).wrong


MIXING = {
    "fft_conv": EinsumCase("test", "test", 2, 20, 3, 27),
    "opt_ssm_forward": LayerCase("test", "test", 2, 20, 3, 5),
}


KERNELS = {
    "vandermonde": KernelCase("test", "test", 3, 5, 40),
    "cauchy": PolesCase("test", "test", 2, 3, 5, 40),
    "FFTConvS4": TrainingCase("test", "test", 2, 3, 40),
}


def definition(p: Problem, arguments: Sequence[Tensor]) -> Tensor:
    if p.op == "fft_conv":
        return fft_conv_reference("bli,loi->blo", arguments[0], arguments[1:])
    if p.op == "vandermonde":
        return vandermonde_reference(*arguments, p.inputs["length"])
    if p.op == "cauchy":
        return cauchy_reference(arguments[0], wide(p["z"]), arguments[1])
    if p.op == "FFTConvS4":
        parameters = dict(zip(p.differentiated[1:], arguments[1:], strict=True))
        layer = FFTConvS4(p.size("H"), kernel="s4d").double()
        return torch.func.functional_call(layer, parameters, (arguments[0],))[0]
    return layer_reference(*arguments)


@pytest.mark.parametrize("op", KERNELS)
def test_truth_of_kernels_and_layers_is_the_definition(op: str) -> None:
    one = operator(op)
    p = problem.make(one, KERNELS[op], one.inputs(KERNELS[op], 3), "backward", 3)
    leaves = [wide(t).requires_grad_() for t in p.arguments]
    y = definition(p, leaves)
    expected = torch.autograd.grad(y, leaves, wide(p.cotangent))
    for got, want in zip(truth(p).values, expected, strict=True):
        torch.testing.assert_close(got, want)
    right = [g.to(t.dtype) for g, t in zip(expected, p.arguments, strict=True)]
    assert compare(p, right, truth(p)).wrong is None
    for k in range(len(right)):
        impostor = [*right[:k], right[k] * 1.01, *right[k + 1 :]]
        assert compare(p, impostor, truth(p)).wrong
    if "forward" in one.directions(p.case):
        p = problem.make(one, p.case, p.inputs)
        right = [y.detach().to(p.outputs[0].dtype)]
        assert compare(p, right, truth(p)).wrong is None
        assert compare(p, [right[0].roll(1, -1)], truth(p)).wrong


@pytest.mark.parametrize("op", MIXING)
def test_truth_of_what_mixes_channels_is_the_definition(op: str) -> None:
    p = problem.make(operator(op), MIXING[op], operator(op).inputs(MIXING[op], 3))
    torch.testing.assert_close(truth(p).values[0], definition(p, p.arguments))
    right = definition(p, p.arguments).float()
    assert compare(p, (right,), truth(p)).wrong is None
    impostors = (
        torch.zeros_like(right),
        right.roll(1, 1),
        right.roll(1, 2),
        right.roll(1, 0),
        right.bfloat16().float(),
    )
    assert all(compare(p, (impostor,), truth(p)).wrong for impostor in impostors)


@pytest.mark.parametrize("op", MIXING)
def test_gradients_of_what_mixes_channels_are_autograds(op: str) -> None:
    p = problem.make(operator(op), MIXING[op], operator(op).inputs(MIXING[op], 3), "backward", 3)
    leaves = [t.double().requires_grad_() for t in p.arguments]
    expected = torch.autograd.grad(definition(p, leaves), leaves, p.cotangent.double())
    for got, want in zip(truth(p).values, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert compare(p, [g.float() for g in expected], truth(p)).wrong is None
    assert compare(p, [g.float().flip(0) for g in expected], truth(p)).wrong


@dataclass(frozen=True)
class DecayCase:
    """For an operator with heads, two signals, a setting, an absent argument and two outputs."""

    name: str = "test"
    source: str = "test"
    dtype: str = "float32"
    tags: frozenset[str] = frozenset()
    bytes: int = 0
    flops: int = 0


def decayed(k: Tensor, v: Tensor, g: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """k and v (B, L, H, P) as a running sum with decay 1/2, `steps` late, and the last state (B, H, P)."""
    state, rows = torch.zeros_like(k[:, 0]), []
    for i in range(k.shape[1]):
        state = 0.5 * state + k[:, i] * v[:, i]
        rows.append(state)
    return torch.stack(rows, 1).roll(steps, 1), state


def decay_problem(direction: str) -> Problem:
    def inputs(case: DecayCase, seed: int) -> dict[str, object]:
        generator = torch.Generator().manual_seed(seed)
        k, v = (torch.randn(2, 6, 3, 4, generator=generator) for _ in range(2))
        return {"k": k, "v": v, "g": None, "steps": 1}

    one = problem.Operator(
        name="decayed",
        short="decayed",
        cases=(DecayCase(),),
        inputs=inputs,
        function=decayed,
        differentiable=("k", "v", "g"),
        shape=lambda inputs: tuple(inputs["k"].shape),
        axes="BLHP",
        group=lambda shape: "test",
        answer=problem.by_formula(decayed),
        bound=64.0,
        bandwidth="copy",
        explain=None,
        outputs=lambda inputs: (inputs["k"].to("meta"), inputs["k"][:, 0].to("meta")),
    )
    return problem.make(one, DecayCase(), inputs(DecayCase(), 3), direction, 3)


def test_an_operator_may_have_any_inputs_and_several_outputs() -> None:
    p = decay_problem("forward")
    y, state = ours._prepare(p).run()
    assert (p.size("H"), p.elements, p.output_bytes) == (3, 168, 672)
    assert compare(p, (y, state), truth(p)).wrong is None
    assert "output 1 is off" in str(compare(p, (y, 1.01 * state), truth(p)).wrong)
    assert "output 0 is off" in str(compare(p, (y.roll(1, 2), state), truth(p)).wrong)
    assert "returned 1 tensors" in str(compare(p, (y,), truth(p)).wrong)
    p = decay_problem("backward")
    assert p.differentiated == ("k", "v")
    gradients = ours._prepare(p).run()
    assert compare(p, gradients, truth(p)).wrong is None
    assert str(compare(p, (gradients[0], 2 * gradients[1]), truth(p)).wrong).startswith("dv is off by")


def test_a_scale_may_be_per_head() -> None:
    p = decay_problem("forward")
    expected = truth(p)
    heads = expected.values[0].abs().amax((0, 1, 3), keepdim=True)[0]
    narrow = replace(expected, scales=(1e-3 * heads, expected.scales[1]))
    y, state = decayed(**p.inputs)
    off = y.clone()
    off[:, :, 2] += 1e-5
    assert compare(p, (off, state), expected).wrong is None
    assert "output 0 is off" in str(compare(p, (off, state), narrow).wrong)


def test_sampled_truth_still_sees_every_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "TRUTH_ELEMENTS", 64 * 4)
    p = conv((1, 64, 40, 16))
    expected = truth(p)
    assert len(expected.channels) == 4
    right = conv_loop(p["x"], p["h"])
    assert compare(p, (right,), expected).wrong is None
    unseen = next(n for n in range(40) if n not in expected.channels.tolist())
    wrong = right.clone()
    wrong[..., unseen] = right[..., unseen].roll(1, dims=1)
    assert compare(p, (wrong,), expected).wrong
