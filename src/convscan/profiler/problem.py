"""One workload ready to run: a case, its arguments, and the answer in float64.

The truth is computed here from the formulas alone, by methods none of the implementations under test use: a float64 FFT
whose points are then checked against direct sums, and for the recurrence a two-level loop whose residual
``y[i] - a[i] y[i-1] - x[i]`` is then checked everywhere. An implementation never sees it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

DIRECTIONS = ("forward", "backward")
# Whole-channel truth is kept for at most this many elements; beyond it, for a sample of channels that includes the
# first and the last, and every channel is still checked at sampled points. Float64 passes over more would take longer
# than the timing.
TRUTH_ELEMENTS = 1 << 22
UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.complex64: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.complex128: 2.0**-53,
    torch.bfloat16: 2.0**-9,
    torch.float16: 2.0**-11,
}


class CaseLike(Protocol):
    """What the profiler reads of a case in ``ops/<op>/cases.py``."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...


@dataclass(frozen=True)
class Problem:
    """A case, a direction and the arguments; all tensors are (B, L, D) in the case's memory order.

    For ``causal_conv``: ``x``, ``h`` (K, D), ``activation``, ``state`` (B, K-1, D) or None.
    For ``linear_recurrence``: ``x``, ``a``, ``y_init`` (B, D).
    ``cotangent`` is what the backward pass starts from.
    """

    op: str
    case: CaseLike
    direction: str
    x: Tensor
    h: Tensor | None = None
    state: Tensor | None = None
    a: Tensor | None = None
    y_init: Tensor | None = None
    cotangent: Tensor | None = None

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def layout(self) -> str:
        return self.case.layout

    @property
    def activation(self) -> str | None:
        name: str | None = getattr(self.case, "activation", None)
        return name

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def length(self) -> int:
        return self.x.shape[1]

    @property
    def channels(self) -> int:
        return self.x.shape[2]

    @property
    def taps(self) -> int:
        return 0 if self.h is None else self.h.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, L, D), and K for a convolution."""
        shape: tuple[int, ...] = (self.batch, self.length, self.channels)
        return (*shape, self.taps) if self.op == "causal_conv" else shape

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The differentiable arguments in the operator's order."""
        if self.op == "causal_conv":
            assert self.h is not None
            return (self.x, self.h)
        assert self.y_init is not None
        assert self.a is not None
        return (self.x, self.y_init, self.a)

    @property
    def filter(self) -> Tensor:
        assert self.h is not None
        return self.h

    @property
    def coefficients(self) -> Tensor:
        assert self.a is not None
        return self.a

    @property
    def initial(self) -> Tensor:
        assert self.y_init is not None
        return self.y_init

    @property
    def gradient_of_output(self) -> Tensor:
        assert self.cotangent is not None
        return self.cotangent

    @property
    def output_bytes(self) -> int:
        """Bytes of what a call returns: y forward; the gradients of every argument backward."""
        if self.direction == "forward":
            return self.x.numel() * self.x.element_size()
        return sum(t.numel() * t.element_size() for t in self.arguments)

    @property
    def bytes(self) -> int:
        """Bytes that must move at least once. Backward also reads dL/dy and writes a gradient for every input read."""
        if self.direction == "forward":
            return self.case.bytes
        return 2 * self.case.bytes

    @property
    def flops(self) -> int:
        """Arithmetic of the cheapest known method; forward + backward is about three times the forward alone."""
        return self.case.flops * (1 if self.direction == "forward" else 3)

    def time_last(self, t: Tensor) -> Tensor:
        """`t` as a contiguous (B, D, L): the same memory when the case is time contiguous, a copy otherwise."""
        return t.transpose(-1, -2).contiguous()

    def activate(self, y: Tensor) -> Tensor:
        """The case's activation, in place where no gradient is needed, for rivals that have none of their own."""
        if self.activation is None:
            return y
        if self.activation == "silu":
            activated: Tensor = torch.nn.functional.silu(y, inplace=not y.requires_grad)
            return activated
        return torch.nn.functional.gelu(y)


def make(op: str, case: CaseLike, arguments: dict[str, Any], direction: str = "forward", seed: int = 0) -> Problem:
    """The problem of a case and its ``inputs``. A recurrence without a start gets an explicit zero for all."""
    x = arguments["x"]
    cotangent = _cotangent(x, seed) if direction == "backward" else None
    if op == "causal_conv":
        state = arguments.get("initial_state")
        return Problem(op, case, direction, x, h=arguments["h"], state=state, cotangent=cotangent)
    start = arguments.get("y_init")
    if start is None:
        start = x.new_zeros((x.shape[0], x.shape[2]))
    return Problem(op, case, direction, x, a=arguments["a"], y_init=start, cotangent=cotangent)


def _cotangent(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator, dtype=x.dtype))


# ---- truth ----


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.dtype.is_complex else torch.float64)


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


# Up to this many steps a plain loop over time is quicker than tiles.
LOOPED_STEPS = 4096


def solve_recurrence(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
    """float64 recurrence; of a long sequence in about 2·√L vector steps: all tiles of time from zero, then carries."""
    batch, length, channels = x.shape
    if length == 0:
        return _wide(x).clone()
    tile = length if length <= LOOPED_STEPS else math.isqrt(length)
    tiles = -(-length // tile)

    def split(t: Tensor) -> Tensor:
        """(step in the tile, batch, tile, channel), so that every step works on contiguous memory."""
        padded = _wide(t)
        if tiles * tile != length:
            padded = torch.cat([padded, padded.new_zeros((batch, tiles * tile - length, channels))], dim=1)
        parted = padded.view(batch, tiles, tile, channels).permute(2, 0, 1, 3)
        return parted.clone(memory_format=torch.contiguous_format)

    y, coefficients = split(x), split(a.expand(x.shape).contiguous())
    y[0, :, 0].addcmul_(coefficients[0, :, 0], _wide(y_init))
    for i in range(1, tile):
        y[i].addcmul_(coefficients[i], y[i - 1])
    for i in range(1, tile) if tiles > 1 else ():
        coefficients[i].mul_(coefficients[i - 1])  # the factor of a tile's carry
    for t in range(1, tiles):
        y[:, :, t].addcmul_(coefficients[:, :, t], y[-1, :, t - 1])
    return y.permute(1, 2, 0, 3).reshape(batch, tiles * tile, channels)[:, :length]


@dataclass(frozen=True)
class Truth:
    """The float64 answer, a tensor per output, on `channels` (all, or a sample), and what the tolerance scales with."""

    values: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    channels: Tensor
    points: tuple[tuple[int, Tensor], ...]
    norms: tuple[float, ...]


def truth(problem: Problem, seed: int = 0) -> Truth:
    """The answer in float64: y forward; the gradient of every argument backward."""
    generator = torch.Generator().manual_seed(seed + 2)
    every = problem.channels
    keep = max(2, min(every, TRUTH_ELEMENTS // max(1, problem.batch * problem.length)))
    if keep < every:
        inner = 1 + torch.randperm(every - 2, generator=generator)[: keep - 2]
        channels = torch.cat([torch.tensor([0]), inner.sort().values, torch.tensor([every - 1])])
    else:
        channels = torch.arange(every)
    if problem.op == "causal_conv":
        values, scales = _conv_truth(problem, channels)
        points = _conv_points(problem, generator) if problem.direction == "forward" and keep < every else ()
    else:
        values, scales = _recurrence_truth(problem, channels)
        points = ()
    norms = tuple(float(torch.linalg.vector_norm(v)) for v in values)
    return Truth(values, scales, channels, points, norms)


def _pick(t: Tensor, channels: Tensor) -> Tensor:
    return t if t.shape[-1] == 1 or t.shape[-1] == len(channels) else t[..., channels]


def _conv_truth(problem: Problem, channels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x, h = _wide(_pick(problem.x, channels)), _wide(_pick(problem.filter, channels))
    history = h.new_zeros((problem.batch, 0, x.shape[2]))
    if problem.state is not None:
        history = _wide(_pick(problem.state, channels))
    z = _conv(torch.cat([history, x], dim=1), h)[:, history.shape[1] :]
    rows = 1 + math.log2(problem.length + problem.taps + 1)
    if problem.direction == "forward":
        norm_x = torch.cat([history, x], dim=1).pow(2).sum((0, 1)).sqrt()
        return (_activation(z, problem.activation),), (rows * h.pow(2).sum(0).sqrt() * norm_x,)
    g = _wide(_pick(problem.gradient_of_output, channels)) * _activation_gradient(z, problem.activation)
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
    h = _wide(problem.filter)
    found = []
    for i in times:
        first = max(0, i - problem.taps + 1)
        window = _wide(problem.x[:, first : i + 1]).flip(1)
        z = (window * h[: i + 1 - first]).sum(1)
        if problem.state is not None and i < problem.taps - 1:
            past = _wide(problem.state)[:, i:].flip(1)
            z = z + (past * h[i + 1 :]).sum(1)
        found.append((i, _activation(z, problem.activation)))
    return tuple(found)


def _recurrence_truth(problem: Problem, channels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x, y_init = _pick(problem.x, channels), _pick(problem.initial, channels)
    a = _wide(_pick(problem.coefficients, channels).expand(x.shape))
    y = solve_recurrence(x, y_init, a)
    before = torch.cat([_wide(y_init)[:, None], y[:, :-1]], dim=1)
    scale, residual = y.new_zeros(y.shape[-1], dtype=torch.float64), torch.zeros(())
    if y.numel():
        terms = a * before  # not their sum with x: y may cancel to nearly nothing
        scale = terms.abs().add_(y.abs()).amax((0, 1))
        residual = terms.add_(_wide(x)).sub_(y).abs().amax()
    if not float(residual) <= 1e-9 * (1 + float(y.abs().amax() if y.numel() else 0)):
        raise ArithmeticError(
            f"{problem.name}: the float64 answer fails its own residual check ({float(residual):.1e})"
        )
    if problem.direction == "forward":
        return (y,), (scale,)
    g = _wide(_pick(problem.gradient_of_output, channels))
    following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1).conj()
    dx = solve_recurrence(g.flip(1), torch.zeros_like(g[:, 0]), following.flip(1)).flip(1)
    da = dx * before.conj()
    dy_init = a[:, 0].conj() * dx[:, 0]
    da = _sum_to(da, problem.coefficients)
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


@dataclass(frozen=True)
class Error:
    """How far an answer is from the truth, and why it is wrong when it is."""

    relative_rms: float
    max_abs: float
    wrong: str | None


def compare(problem: Problem, answer: Sequence[Tensor], expected: Truth) -> Error:
    """Error of an answer against the truth; `wrong` names the first requirement it misses.

    Per channel, ``max|y - ref| <= 64 u' scale`` with the unit roundoff u' = u_storage/16 + u_arithmetic, where scale is
    log2(L+K)·‖h‖₂‖x‖₂ for a convolution (the error bound of an FFT) and 64·max(|y| + |a y₋₁|) for a recurrence; and
    over all, a relative RMS of at most 1e-3 (1e-2 in half types).
    """
    if len(answer) != len(expected.values):
        return Error(math.inf, math.inf, f"returned {len(answer)} tensors, expected {len(expected.values)}")
    half = problem.dtype in (torch.bfloat16, torch.float16)
    arithmetic = UNIT_ROUNDOFF[torch.float32 if half else problem.dtype]
    squares = norm = worst = 0.0
    wrong: str | None = None
    names = {"causal_conv": ("dx", "dh"), "linear_recurrence": ("dx", "dy_init", "da")}[problem.op]
    for index, (got, want, scale) in enumerate(zip(answer, expected.values, expected.scales, strict=True)):
        name = "y" if problem.direction == "forward" else names[index]
        full = problem.x.shape if problem.direction == "forward" else problem.arguments[index].shape
        if got.shape != full:
            return Error(math.inf, math.inf, f"{name} has shape {tuple(got.shape)}, expected {tuple(full)}")
        if got.dtype != problem.dtype:
            return Error(math.inf, math.inf, f"{name} is {got.dtype}, expected {problem.dtype}")
        if got.numel() == 0:
            continue
        difference = (_wide(_pick(got, expected.channels)) - want).abs()
        per_channel = difference.amax(tuple(range(difference.dim() - 1)))
        if not bool(torch.isfinite(per_channel).all()):
            return Error(math.inf, math.inf, f"{name} holds NaN or infinity")
        squares += float(torch.linalg.vector_norm(difference)) ** 2
        norm += expected.norms[index] ** 2
        worst = max(worst, float(per_channel.amax()))
        factor = 64.0 if problem.op == "causal_conv" else 4096.0
        bound = factor * arithmetic * scale
        if half:
            bound = bound + 4 * UNIT_ROUNDOFF[problem.dtype] * want.abs().reshape(-1, want.shape[-1]).amax(0)
        over = per_channel > bound + 1e-300
        if bool(over.any()) and wrong is None:
            n = int((per_channel / (bound + 1e-300)).argmax())
            wrong = f"{name} is off by {float(per_channel[n]):.2g} in channel {int(expected.channels[n])}"
    for i, want_row in expected.points:
        row = (_wide(answer[0][:, i]) - want_row).abs()
        limit = 1e-3 * float(want_row.abs().amax()) * (10 if half else 1)
        if not bool((row <= limit).all()) and wrong is None:
            wrong = f"y is off by {float(row.nan_to_num(math.inf).amax()):.2g} at time {i}"
    relative = math.sqrt(squares / norm) if norm > 0 else (0.0 if squares == 0 else math.inf)
    if relative > (1e-2 if half else 1e-3) and wrong is None:
        wrong = f"relative RMS error {relative:.2g}"
    return Error(relative, worst, wrong)
