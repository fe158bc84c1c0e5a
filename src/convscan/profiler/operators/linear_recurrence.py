"""linear_recurrence. Its truth is a two-level loop in float64, of which the residual ``y[i] - a[i] y[i-1] - x[i]`` is
then checked everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import convscan
from convscan.ops.linear_recurrence import cases

from ..problem import DIRECTIONS, Answer, CaseLike, Operator, Problem, pick, wide


def _inputs(case: CaseLike, seed: int) -> dict[str, object]:
    """A recurrence without a start gets an explicit zero for all."""
    assert isinstance(case, cases.Case)
    arguments = cases.inputs(case, seed)
    if arguments["y_init"] is None:
        arguments["y_init"] = arguments["x"].new_zeros((case.batch, case.channels))
    return arguments


def _directions(case: cases.Case) -> tuple[str, ...]:
    """A start that is given to one sample is a decoding step: nobody trains through it."""
    return DIRECTIONS[:1] if case.state and case.length == 1 else DIRECTIONS


def _group(shape: Sequence[int]) -> str:
    _, length, channels = shape
    if length == 1:
        return "recurrence, one step"
    if length >= 100_000 and channels <= 8:
        return "recurrence, few channels"
    return "recurrence, D ≥ 512" if channels >= 512 else "recurrence, other"


def _signal_cases(signal: Tensor, seed: int, source: str) -> list[tuple[cases.Case, dict[str, object]]]:
    """A smoothing recurrence."""
    case = cases.Case("input", source, 1, *signal.shape)
    return [(case, _inputs(case, seed) | {"x": signal[None]})]


def _own_case(shape: tuple[int, int, int], taps: int | None, dtype: str, layout: str) -> cases.Case:
    return cases.Case("own", "your shape", *shape, dtype=dtype, layout=layout)


# ---- truth ----


# Up to this many steps a plain loop over time is quicker than tiles.
LOOPED_STEPS = 4096


def solve_recurrence(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
    """float64 recurrence; of a long sequence in about 2·√L vector steps: all tiles of time from zero, then carries."""
    batch, length, channels = x.shape
    if length == 0:
        return wide(x).clone()
    tile = length if length <= LOOPED_STEPS else math.isqrt(length)
    tiles = -(-length // tile)

    def split(t: Tensor) -> Tensor:
        """(step in the tile, batch, tile, channel), so that every step works on contiguous memory."""
        padded = wide(t)
        if tiles * tile != length:
            padded = torch.cat([padded, padded.new_zeros((batch, tiles * tile - length, channels))], dim=1)
        parted = padded.view(batch, tiles, tile, channels).permute(2, 0, 1, 3)
        return parted.clone(memory_format=torch.contiguous_format)

    y, coefficients = split(x), split(a.expand(x.shape).contiguous())
    y[0, :, 0].addcmul_(coefficients[0, :, 0], wide(y_init))
    for i in range(1, tile):
        y[i].addcmul_(coefficients[i], y[i - 1])
    for i in range(1, tile) if tiles > 1 else ():
        coefficients[i].mul_(coefficients[i - 1])  # the factor of a tile's carry
    for t in range(1, tiles):
        y[:, :, t].addcmul_(coefficients[:, :, t], y[-1, :, t - 1])
    return y.permute(1, 2, 0, 3).reshape(batch, tiles * tile, channels)[:, :length]


def _recurrence_truth(problem: Problem, channels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x, y_init = pick(problem["x"], channels), pick(problem["y_init"], channels)
    a = wide(pick(problem["a"], channels).expand(x.shape))
    y = solve_recurrence(x, y_init, a)
    before = torch.cat([wide(y_init)[:, None], y[:, :-1]], dim=1)
    scale, residual = y.new_zeros(y.shape[-1], dtype=torch.float64), torch.zeros(())
    if y.numel():
        terms = a * before  # not their sum with x: y may cancel to nearly nothing
        scale = terms.abs().add_(y.abs()).amax((0, 1))
        residual = terms.add_(wide(x)).sub_(y).abs().amax()
    if not float(residual) <= 1e-9 * (1 + float(y.abs().amax() if y.numel() else 0)):
        raise ArithmeticError(
            f"{problem.name}: the float64 answer fails its own residual check ({float(residual):.1e})"
        )
    if problem.direction == "forward":
        return (y,), (scale,)
    g = wide(pick(problem.cotangent, channels))
    following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1).conj()
    dx = solve_recurrence(g.flip(1), torch.zeros_like(g[:, 0]), following.flip(1)).flip(1)
    da = dx * before.conj()
    dy_init = a[:, 0].conj() * dx[:, 0]
    da = _sum_to(da, problem["a"])
    scales = (dx.abs().amax((0, 1)), dx.abs().amax((0, 1)), da.abs().reshape(-1, da.shape[-1]).amax(0))
    return (dx, dy_init, da), scales


def _sum_to(gradient: Tensor, like: Tensor) -> Tensor:
    """Sums a full-size gradient over the axes along which the argument was broadcast."""
    if like.dim() < gradient.dim():
        gradient = gradient.sum(tuple(range(gradient.dim() - like.dim())))
    for axis, extent in enumerate(like.shape[:-1]):
        if extent == 1 and gradient.shape[axis] != 1:
            gradient = gradient.sum(axis, keepdim=True)
    return gradient


def _answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
    values, scales = _recurrence_truth(problem, channels)
    return Answer(values, scales)


OPERATOR = Operator(
    name="linear_recurrence",
    short="recurrence",
    cases=(*cases.CASES, *cases.GPU_CASES),
    inputs=_inputs,
    function=convscan.linear_recurrence,
    differentiable=("x", "y_init", "a"),
    shape=lambda inputs: tuple(inputs["x"].shape),
    axes="BLD",
    group=_group,
    answer=_answer,
    bound=4096.0,
    bandwidth="triad",
    explain=lambda inputs: convscan.explain("linear_recurrence", **inputs),
    takes_out=True,
    sampled=True,
    directions=_directions,
    own_case=_own_case,
    signal_cases=_signal_cases,
)
