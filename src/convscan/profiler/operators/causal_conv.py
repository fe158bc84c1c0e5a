"""causal_conv. Its truth is a float64 FFT (a direct sum for few taps), with some points by direct sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan.ops.causal_conv import cases, forms

from ..problem import DIRECTIONS, Answer, Operator, Problem, pick, wide


def _directions(case: cases.Case) -> tuple[str, ...]:
    """A start that is given to one sample is a decoding step: nobody trains through it."""
    return DIRECTIONS[:1] if case.state and case.length == 1 else DIRECTIONS


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


def _kept(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The filters with a kept spectrum, where that is what runs."""
    length = inputs["x"].shape[-2]
    if length == 0 or convscan.explain("causal_conv", **inputs).chosen not in ("fft", *forms.NAMES):
        return None
    return {**inputs, "h": convscan.FilterSpectrum(inputs["h"], length)}


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


def activate(z: Tensor, name: str | None) -> Tensor:
    """activation(z)."""
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
    x, h = wide(pick(problem["x"], channels)), wide(pick(problem["h"], channels))
    history = h.new_zeros((problem.size("B"), 0, x.shape[2]))
    if problem.inputs["initial_state"] is not None:
        history = wide(pick(problem.inputs["initial_state"], channels))
    z = _conv(torch.cat([history, x], dim=1), h)[:, history.shape[1] :]
    rows = 1 + math.log2(problem.size("L") + problem.size("K") + 1)
    if problem.direction == "forward":
        norm_x = torch.cat([history, x], dim=1).pow(2).sum((0, 1)).sqrt()
        return (activate(z, problem.inputs["activation"]),), (rows * h.pow(2).sum(0).sqrt() * norm_x,)
    g = wide(pick(problem.cotangent, channels)) * _activation_gradient(z, problem.inputs["activation"])
    dx = _conv(g.flip(1), h).flip(1)
    points = 1 << max(1, 2 * problem.size("L") - 1).bit_length()
    spectrum = torch.fft.rfft(g, points, dim=1) * torch.fft.rfft(x, points, dim=1).conj()
    dh = torch.fft.irfft(spectrum, points, dim=1).sum(0)[: problem.size("K")]
    if problem.size("K") > dh.shape[0]:
        dh = torch.cat([dh, dh.new_zeros((problem.size("K") - dh.shape[0], dh.shape[1]))])
    dh[problem.size("L") :] = 0
    norm_g, norm_x, norm_h = g.pow(2).sum((0, 1)).sqrt(), x.pow(2).sum((0, 1)).sqrt(), h.pow(2).sum(0).sqrt()
    return (dx, dh), (rows * norm_h * norm_g, rows * norm_x * norm_g)


def _conv_points(problem: Problem, generator: torch.Generator) -> tuple[tuple[int, Tensor], ...]:
    """Direct sums in every channel at a few random times: what a sample of channels would let slip."""
    times = sorted(
        {int(i) for i in torch.randint(problem.size("L"), (4,), generator=generator)} | {problem.size("L") - 1}
    )
    h = wide(problem["h"])
    found = []
    for i in times:
        first = max(0, i - problem.size("K") + 1)
        window = wide(problem["x"][:, first : i + 1]).flip(1)
        z = (window * h[: i + 1 - first]).sum(1)
        if problem.inputs["initial_state"] is not None and i < problem.size("K") - 1:
            past = wide(problem.inputs["initial_state"])[:, i:].flip(1)
            z = z + (past * h[i + 1 :]).sum(1)
        found.append((i, activate(z, problem.inputs["activation"])))
    return tuple(found)


def _answer(problem: Problem, channels: Tensor, generator: torch.Generator) -> Answer:
    values, scales = _conv_truth(problem, channels)
    sampled = problem.direction == "forward" and len(channels) < problem.size("D")
    return Answer(values, scales, _conv_points(problem, generator) if sampled else ())


OPERATOR = Operator(
    name="causal_conv",
    short="conv",
    cases=(*cases.CASES, *cases.GPU_CASES),
    inputs=cases.inputs,
    function=convscan.causal_conv,
    differentiable=("x", "h"),
    shape=lambda inputs: (*inputs["x"].shape, inputs["h"].shape[0]),
    axes="BLDK",
    group=_group,
    answer=_answer,
    bound=64.0,
    bandwidth="copy",
    explain=lambda inputs: convscan.explain("causal_conv", **inputs),
    takes_out=True,
    kept=_kept,
    sampled=True,
    directions=_directions,
    own_case=_own_case,
    signal_cases=_signal_cases,
)
