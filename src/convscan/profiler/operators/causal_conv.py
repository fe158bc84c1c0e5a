"""causal_conv. Its truth is a float64 FFT (a direct sum for few taps), with some points by direct sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import convscan
from convscan.ops.causal_conv import cases

from ..problem import Answer, Operator, Problem, pick, wide


def _call(problem: Problem, x: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
    return convscan.causal_conv(x, h, activation=problem.activation, initial_state=problem.state, out=out)


def _group(shape: Sequence[int]) -> str:
    _, length, _, taps = shape
    if length == 1:
        return "convolution, one step"
    if taps >= 1024:
        return "convolution, K ≥ 1024"
    if taps > 16:
        return "convolution, 16 < K < 1024"
    return "convolution, K ≤ 16"


def _signal_cases(signal: Tensor, seed: int, source: str) -> list[tuple[cases.Case, dict[str, object]]]:
    """A short, a medium and a long decaying filter."""
    length, channels = signal.shape
    found: list[tuple[cases.Case, dict[str, object]]] = []
    for taps in sorted({4, min(128, length), min(48000, length)}):
        case = cases.Case(f"input-k{taps}", source, 1, length, channels, taps)
        arguments = cases.inputs(case, seed)
        envelope = torch.exp(-6.9 * torch.arange(taps) / taps)[:, None]
        found.append((case, arguments | {"x": signal[None], "h": arguments["h"] * envelope}))
    return found


def _own_case(shape: tuple[int, int, int], taps: int | None, dtype: str, layout: str) -> cases.Case | None:
    return None if taps is None else cases.Case("own", "your shape", *shape, taps, dtype=dtype, layout=layout)


# ---- truth ----


def _fft_conv(x: Tensor, h: Tensor) -> Tensor:
    """Causal convolution along time, float64, transforms long enough that nothing wraps."""
    points = x.shape[1] + h.shape[0] - 1
    points = 1 << max(1, points - 1).bit_length()
    spectrum = torch.fft.rfft(x.transpose(1, 2).contiguous(), points)
    spectrum *= torch.fft.rfft(h.t().contiguous(), points)
    y: Tensor = torch.fft.irfft(spectrum, points)[..., : x.shape[1]].transpose(1, 2)
    return y


def _direct_conv(x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for k in range(min(h.shape[0], x.shape[1])):
        y[:, k:] += h[k] * x[:, : x.shape[1] - k]
    return y


def _conv(x: Tensor, h: Tensor) -> Tensor:
    if x.numel() == 0:
        return torch.zeros_like(x)
    return _direct_conv(x, h) if min(h.shape[0], x.shape[1]) <= 16 else _fft_conv(x, h)


def _activation(z: Tensor, name: str | None) -> Tensor:
    if name is None:
        return z
    y: Tensor = torch.nn.functional.silu(z) if name == "silu" else torch.nn.functional.gelu(z)
    return y


def _activation_gradient(z: Tensor, name: str | None) -> Tensor:
    if name is None:
        return torch.ones_like(z)
    if name == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    pdf = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * pdf


def _conv_truth(problem: Problem, channels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x, h = wide(pick(problem.x, channels)), wide(pick(problem.filter, channels))
    history = h.new_zeros((problem.batch, 0, x.shape[2]))
    if problem.state is not None:
        history = wide(pick(problem.state, channels))
    z = _conv(torch.cat([history, x], dim=1), h)[:, history.shape[1] :]
    rows = 1 + math.log2(problem.length + problem.taps + 1)
    if problem.direction == "forward":
        norm_x = torch.cat([history, x], dim=1).pow(2).sum((0, 1)).sqrt()
        return (_activation(z, problem.activation),), (rows * h.pow(2).sum(0).sqrt() * norm_x,)
    g = wide(pick(problem.gradient_of_output, channels)) * _activation_gradient(z, problem.activation)
    dx = _conv(g.flip(1), h).flip(1)
    points = 1 << max(1, 2 * problem.length - 1).bit_length()
    spectrum = torch.fft.rfft(g, points, dim=1) * torch.fft.rfft(x, points, dim=1).conj()
    dh = torch.fft.irfft(spectrum, points, dim=1).sum(0)[: problem.taps]
    if problem.taps > dh.shape[0]:
        dh = torch.cat([dh, dh.new_zeros((problem.taps - dh.shape[0], dh.shape[1]))])
    dh[problem.length :] = 0
    norm_g, norm_x, norm_h = g.pow(2).sum((0, 1)).sqrt(), x.pow(2).sum((0, 1)).sqrt(), h.pow(2).sum(0).sqrt()
    return (dx, dh), (rows * norm_h * norm_g, rows * norm_x * norm_g)


def _conv_points(problem: Problem, generator: torch.Generator) -> tuple[tuple[int, Tensor], ...]:
    """Direct sums in every channel at a few random times: what a sample of channels would let slip."""
    times = sorted({int(i) for i in torch.randint(problem.length, (4,), generator=generator)} | {problem.length - 1})
    h = wide(problem.filter)
    found = []
    for i in times:
        first = max(0, i - problem.taps + 1)
        window = wide(problem.x[:, first : i + 1]).flip(1)
        z = (window * h[: i + 1 - first]).sum(1)
        if problem.state is not None and i < problem.taps - 1:
            past = wide(problem.state)[:, i:].flip(1)
            z = z + (past * h[i + 1 :]).sum(1)
        found.append((i, _activation(z, problem.activation)))
    return tuple(found)


def _answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
    values, scales = _conv_truth(problem, channels)
    sampled = problem.direction == "forward" and len(channels) < problem.channels
    return Answer(values, scales, _conv_points(problem, generator) if sampled else ())


OPERATOR = Operator(
    name="causal_conv",
    short="conv",
    cases=cases.CASES,
    inputs=cases.inputs,
    differentiable=("x", "h"),
    shape=lambda problem: (*problem.x.shape, problem.taps),
    axes="BLDK",
    group=_group,
    answer=_answer,
    bound=64.0,
    bandwidth="copy",
    call=_call,
    explain=lambda problem: convscan.explain("causal_conv", **problem.inputs),
    takes_out=True,
    sampled=True,
    own_case=_own_case,
    signal_cases=_signal_cases,
)
