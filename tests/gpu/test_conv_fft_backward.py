"""Every gradient of a long convolution by transforms in registers or in passes over memory, against its definition and
autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import convscan
import oracle
from convscan.ops.causal_conv.arguments import Operands
from convscan.ops.causal_conv.triton import fft, fft_backward, fft_passes, fft_passes_backward

# Of what a product of transforms is computed in: float32's, and of bfloat16 the 11 bits that tensor cores take.
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-12}
STORED = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def exact(p: Operands, dy: Tensor) -> tuple[Tensor | None, ...]:
    """By autograd through a sum over taps, in double precision."""
    wide = [None if t is None else t.double().requires_grad_() for t in p.floats]
    x, h, bias, state, pre, post = wide
    assert x is not None
    assert h is not None
    u = x if pre is None else x * pre
    taps, length = h.shape[0], u.shape[-2]
    past = u.new_zeros(*u.shape[:-2], taps - 1, u.shape[-1]) if state is None else state
    u = torch.cat([past, u, u.new_zeros(*u.shape[:-2], p.origin, u.shape[-1])], -2)
    z: Tensor = sum(h[k] * u.narrow(-2, taps - 1 + p.origin - k, length) for k in range(taps))  # type: ignore[assignment]
    z = z if bias is None else z + bias
    y = oracle._activate(z if post is None else z * post, p.activation)
    found = iter(torch.autograd.grad(y, [t for t in wide if t is not None], dy.double()))
    return tuple(None if t is None else next(found) for t in wide)


def check(p: Operands, dy: Tensor, found: tuple[Tensor | None, ...]) -> None:
    """Errors are relative to the energy of a channel: of filters and bias, which sum over the batch, to that of all."""
    points = 2 * (p.x.shape[-2] + p.h.shape[0])
    for name, one, truth in zip(Operands._fields, found, exact(p, dy), strict=False):
        assert (one is None) == (truth is None), name
        if one is None or truth is None or truth.numel() == 0:
            continue
        assert one.shape == truth.shape
        scale = truth.abs().max() + truth.norm() / truth.numel() ** 0.5 + 1
        bound = STORED[p.x.dtype] * truth.abs() + 4 * ROUNDOFF[p.x.dtype] * math.log2(points) * scale
        assert ((one.double() - truth).abs() <= bound).all(), f"{name}: {(one - truth).abs().max() / scale}"


def problem(
    seed: int, length: int, taps: int, dtype: torch.dtype = torch.float32, time_contiguous: bool = True, **sizes: int
) -> tuple[Operands, Tensor]:
    """With all that a convolution can have, filters of unit norm."""
    draw, batch, channels = oracle.Draw(seed), sizes.get("batch", 1), sizes.get("channels", 2)

    def signal(*shape: int) -> Tensor:
        order = "time contiguous" if time_contiguous else "channels contiguous"
        return oracle.in_order(draw.normal(*shape, dtype=dtype), order)

    x, dy, pre, post = (signal(batch, length, channels) for _ in range(4))
    h = (draw.normal(taps, channels) / taps**0.5).to(dtype)
    bias, state = draw.normal(channels, dtype=dtype), signal(batch, taps - 1, channels)
    return Operands(x, h, bias, state, pre, post, None, "silu"), dy


def given_to(p: Operands, dy: Tensor, needs: tuple[bool, ...] = (True,) * 6) -> tuple[object, ...]:
    """The arguments of the operator."""
    return (dy, *p[:7], None, p.activation, p.origin, "default", needs)


def refusals(*given: object, name: str = "triton_fft") -> tuple[str, ...]:
    candidates = convscan.explain("causal_conv_backward", *given).candidates
    return next(row for row in candidates if row.name == name).reasons


def together(p: Operands, dy: Tensor, name: str = "triton_fft") -> tuple[Tensor | None, ...]:
    given = given_to(p, dy)
    assert not refusals(*given, name=name)
    with convscan.force(name):
        results = torch.ops.convscan.causal_conv_backward.default(*given)
    return tuple(None if of is None else one for of, one in zip(p.floats, results, strict=True))


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize(
    ("length", "taps", "time_contiguous"),
    [
        (100, 100, True),
        (61, 150, True),
        (130, 40, False),
        (256, 257, True),
        (700, 33, False),
        (1, 5, True),
        (40, 1, True),
    ],
)
def test_every_gradient(length: int, taps: int, time_contiguous: bool, dtype: torch.dtype) -> None:
    p, dy = problem(length, length, taps, dtype, time_contiguous)
    check(p, dy, together(p, dy))


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("given", ["", "bias", "state", "pre_gate", "post_gate"])
def test_each_argument_alone(given: str, activation: str | None) -> None:
    p, dy = problem(3, 90, 50, channels=1)
    only = {name: getattr(p, name) if name == given else None for name in ("bias", "state", "pre_gate", "post_gate")}
    p = p._replace(**only, activation=activation)
    check(p, dy, together(p, dy))


@pytest.mark.parametrize("origin", [0, 7, 39])
def test_blocks_that_programs_share(monkeypatch: pytest.MonkeyPatch, origin: int) -> None:
    """Many blocks of a row, in chunks of two or three, whose last samples the next chunk adds to."""
    monkeypatch.setattr(fft, "_fft_points", lambda problem: 256)
    monkeypatch.setattr(fft_backward, "_LEAST_BLOCKS", 2)
    p, dy = problem(4, 3000, 40, channels=1)
    p = p._replace(origin=origin, state=None if origin else p.state, activation="gelu")
    described = convscan.explain("causal_conv_backward", *given_to(p, dy)).problem
    plan = fft_backward._FftBackwardPlan(described)
    assert plan.chunks > 1
    assert plan.blocks % plan.chunk_blocks != 0
    found = together(p, dy)
    check(p, dy, found)
    for one, again in zip(found, together(p, dy), strict=True):
        assert one is None or again is None or torch.equal(one, again)


@pytest.mark.parametrize("points", [512, 1024, 2048, 4096])
def test_every_transform(monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    monkeypatch.setattr(fft, "_fft_points", lambda problem: points)
    p, dy = problem(points, 2 * points + 100, points // 3, channels=1)
    p = p._replace(state=None, bias=None, pre_gate=None)
    if points == 4096:
        p = p._replace(h=p.h[:30])  # the definition takes its time
    check(p, dy, together(p, dy))


def test_batch_and_shared_filters_and_gates() -> None:
    p, dy = problem(6, 30, 20, batch=2, channels=4)
    for filters in (1, 2):
        draw = oracle.Draw(filters)
        h = draw.normal(20, filters, dtype=torch.float32) / 8
        found = together(p._replace(h=h, state=None), dy)
        full = p._replace(h=h.repeat_interleave(4 // filters, 1), state=None)
        of_h, truth = found[1], exact(full, dy)[1]
        assert of_h is not None
        assert truth is not None
        summed = truth.reshape(20, filters, -1).sum(-1)
        assert (of_h - summed).abs().max() <= 2e-6 * (1 + summed.abs().max())
    shared = p._replace(pre_gate=p.pre_gate[:, :1], post_gate=p.post_gate[:1, :, :1])  # type: ignore[index]
    check(shared, dy, together(shared, dy))


def test_the_bound_sees_wrong_answers() -> None:
    p, dy = problem(7, 120, 100)
    found = together(p, dy)
    for index, one in enumerate(found):
        assert one is not None
        for wrong in (torch.zeros_like(one), one.roll(1, 0 if one.ndim < 3 else 1), one * 1.001):
            with pytest.raises(AssertionError):
                check(p, dy, (*found[:index], wrong, *found[index + 1 :]))


def test_what_it_refuses() -> None:
    p, dy = problem(8, 60, 50)
    assert refusals(*given_to(p, dy, (True, False, True, True, True, True))) == (
        "computes the gradients of x and h together",
    )
    long = p._replace(x=torch.zeros(1, 9000, 2), h=torch.zeros(9000, 2), state=None, pre_gate=None, post_gate=None)
    assert refusals(*given_to(long, long.x)) == ("holds transforms of up to 4096 points in registers",)
    wide = Operands(*(None if t is None else t.double() for t in p.floats))  # type: ignore[arg-type]
    assert "multiplies in float32 only" in refusals(*given_to(wide, dy.double()))


def test_chosen_for_long_filters_on_a_device() -> None:
    """By its prediction; nothing of the size of the input is stored."""
    needs = (True, True, True, False, True, True)
    with FakeTensorMode():
        x = torch.empty(8, 768, 2048, device="cuda", dtype=torch.bfloat16).mT
        h, bias = (
            torch.empty(2048, 768, device="cuda", dtype=torch.bfloat16),
            torch.empty(768, device="cuda").bfloat16(),
        )
        given = (x, x, h, bias, None, x, x, None, None, "silu", 0, "default", needs)
        explanation = convscan.explain("causal_conv_backward", *given)
    costs = {row.name: row.cost for row in explanation.candidates if row.cost is not None}
    assert explanation.chosen == "triton_fft"
    assert costs["triton_fft"].seconds < 0.7 * costs["composed"].seconds
    assert costs["triton_fft"].workspace_bytes < 2 * x.nbytes


# ---- in passes ----

PASSES = "triton_fft_passes"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest transforms that products of 16 allow: 16 columns of 256 rows."""
    monkeypatch.setattr(fft_passes, "LONGEST", 256)
    monkeypatch.setattr(fft_passes, "_points", lambda problem: 4096)


def passes_plan(p: Operands, dy: Tensor) -> fft_passes_backward._BackwardPlan:
    return fft_passes_backward._BackwardPlan(convscan.explain("causal_conv_backward", *given_to(p, dy)).problem)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("has_z", [True, False])
@pytest.mark.parametrize(
    ("length", "taps", "origin", "dtype"),
    [
        (2000, 2100, 0, torch.float32),
        (9000, 600, 0, torch.float32),
        (9000, 300, 200, torch.float16),
        (600, 500, 0, torch.bfloat16),
    ],
)
def test_every_gradient_in_passes(length: int, taps: int, origin: int, dtype: torch.dtype, has_z: bool) -> None:
    """One block and two, whose last samples the next one adds to; with all that there is, and without a sum to
    compute again."""
    p, dy = problem(length, length, taps, dtype, taps != 600, channels=1)
    p = p._replace(origin=origin, state=None if origin else p.state)
    if not has_z:
        p = p._replace(activation=None, post_gate=None, pre_gate=None)
    plan = passes_plan(p, dy)
    assert (plan.blocks > 1) == (length == 9000)
    assert plan.needs_z == has_z
    found = together(p, dy, PASSES)
    check(p, dy, found)
    if length == 600:
        for one, again in zip(found, together(p, dy, PASSES), strict=True):
            assert one is None or again is None or torch.equal(one, again)


@pytest.mark.usefixtures("small")
def test_passes_of_parts_of_channels_and_a_shared_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_passes, "_PART_BYTES", 8 * 4096 * 5)
    p, dy = problem(6, 90, 70, batch=2)
    p = p._replace(h=p.h[:, :1], pre_gate=None, activation=None, state=None)
    whole = p._replace(h=p.h.expand(-1, 2))
    assert passes_plan(p, dy).parts == 2
    found, truth = together(p, dy, PASSES), exact(whole, dy)
    assert found[1] is not None
    assert truth[1] is not None
    check(whole, dy, (found[0], truth[1], *found[2:]))
    summed = truth[1].sum(1, keepdim=True)
    assert (found[1] - summed).abs().max() <= 2e-6 * (1 + summed.abs().max())


def test_passes_are_chosen_for_longer_filters_on_a_device() -> None:
    """By their prediction."""
    needs = (True, True, True, False, True, True)
    for length, channels in ((1 << 15, 64), (1 << 20, 4), (1 << 22, 1)):
        with FakeTensorMode():
            x = torch.empty(4, channels, length, device="cuda").mT
            h, bias = torch.empty(length, channels, device="cuda"), torch.empty(channels, device="cuda")
            given = (x, x, h, bias, None, x, x, None, None, "silu", 0, "default", needs)
            explanation = convscan.explain("causal_conv_backward", *given)
        costs = {row.name: row.cost for row in explanation.candidates if row.cost is not None}
        assert explanation.chosen == PASSES
        assert costs[PASSES].seconds < 0.8 * costs["composed"].seconds
    p, dy = problem(8, 60, 50)
    assert refusals(*given_to(p, dy, (False, True, True, True, True, True)), name=PASSES) == (
        "computes the gradients of x and h together",
    )
