"""The judge of every implementation: problems of hostile sizes, their truth in float64, and the error allowed.

An implementation computing in type t with unit roundoff u may be off by four times the error of the plain loop in the
same type, plus 4 u times the sum of magnitudes that the result is made of. A transform mixes the samples of a channel,
so that its errors are relative to the channel's energy: 4 u log2(M) ‖h‖₂ ‖x‖₂ more. Every bound is per channel: a
wrong channel cannot hide behind a loud one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import convscan

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)
ORDERS = ("channels contiguous", "time contiguous", "every second channel", "offset rows", "batch innermost")
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 500, 1021)
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130)
TAPS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 129, 257, 600)


def rows(op: str) -> list[str]:
    """The implementations that run on tensors of the CPU by themselves; tests/gpu has the others interpreted."""
    return [row.name for row in convscan.implementations(op) if row.target != "triton"]


class Mismatch(AssertionError):
    """An answer further from the truth than rounding explains."""


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type that arithmetic on a stored type is done in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff of the arithmetic."""
    return torch.finfo(compute_type(dtype)).eps / 2


def wide(tensor: Tensor) -> Tensor:
    """The same numbers in double precision."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


class Draw:
    """Seeded random choices."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self._generator))

    def pick(self, values: tuple[int, ...]) -> int:
        return values[self.below(len(values))]

    def chance(self, one_in: int) -> bool:
        return self.below(one_in) == 0

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        kind = torch.complex128 if dtype in COMPLEX else torch.float64
        return torch.randn(*shape, generator=self._generator, dtype=kind).to(dtype)


def in_order(tensor: Tensor, order: str) -> Tensor:
    """The same (B, L, D) values in another memory order; what lies between the elements is NaN."""
    batch, length, channels = tensor.shape
    if order == "channels contiguous":
        return tensor.contiguous()
    if order == "time contiguous":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if order == "batch innermost":
        return tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    shape, window = {
        "every second channel": ((batch, length, 2 * channels), (slice(None), slice(None), slice(0, None, 2))),
        "offset rows": ((batch, length + 2, channels + 3), (slice(None), slice(1, -1), slice(1, -2))),
    }[order]
    memory = torch.full(shape, math.nan, dtype=tensor.dtype)
    view = memory[window]
    view.copy_(tensor)
    return view


def _activate(z: Tensor, activation: str | None) -> Tensor:
    if activation == "silu":
        return z * torch.sigmoid(z)
    if activation == "gelu":
        return z * torch.erfc(-z / math.sqrt(2)) / 2
    return z


def _judge(what: str, y: Tensor, truth: Tensor, bound: Tensor) -> None:
    """Fails where an error exceeds its channel's bound; NaN fails."""
    if y.shape != truth.shape:
        raise Mismatch(f"{what}: shape {tuple(y.shape)} instead of {tuple(truth.shape)}")
    if y.numel() == 0:
        return
    error = (wide(y) - truth).abs().amax(-2)
    bound = bound + 2.0**-24 * (y.dtype == torch.float16)  # its smallest subnormal number
    excess = torch.where(bound > 0, error / bound, torch.where(error == 0, 0.0, math.inf))
    worst = float(excess.nan_to_num(nan=math.inf).max())
    if not worst <= 1:
        raise Mismatch(f"{what}: error {float(error.max()):.3g} is {worst:.3g} times the bound")


@dataclass(frozen=True)
class Convolution:
    """One problem for causal_conv; x is (B, L, D)."""

    x: Tensor
    h: Tensor
    bias: Tensor | None = None
    activation: str | None = None
    state: Tensor | None = None
    pre_gate: Tensor | None = None
    post_gate: Tensor | None = None

    def __str__(self) -> str:
        extras = [
            self.activation or "",
            "bias" if self.bias is not None else "",
            "state" if self.state is not None else "",
            *(
                f"{name} {tuple(gate.shape)} strides {gate.stride()}"
                for name, gate in (("pre_gate", self.pre_gate), ("post_gate", self.post_gate))
                if gate is not None
            ),
        ]
        sizes = f"{self.x.dtype} (B, L, D) = {tuple(self.x.shape)}, strides {self.x.stride()}, h {tuple(self.h.shape)}"
        return " ".join([sizes, f"strides {self.h.stride()}", *filter(None, extras)])

    def options(self) -> dict[str, Any]:
        """What ``causal_conv`` takes beside x and h."""
        return {
            "bias": self.bias,
            "activation": self.activation,
            "initial_state": self.state,
            "pre_gate": self.pre_gate,
            "post_gate": self.post_gate,
        }

    def extended(self, kind: torch.dtype) -> Tensor:
        """The samples, gated in the given type, with those before them."""
        taps = self.h.shape[0]
        batch, _, channels = self.x.shape
        past = self.x.new_zeros(batch, taps - 1, channels) if self.state is None else self.state
        samples = self.x.to(kind) if self.pre_gate is None else self.x.to(kind) * self.pre_gate.to(kind)
        return torch.cat([past.to(kind), samples], 1)

    def end(self, z: Tensor) -> Tensor:
        """What becomes of the sums, in their type."""
        z = z if self.bias is None else z + self.bias.to(z.dtype)
        return _activate(z if self.post_gate is None else z * self.post_gate.to(z.dtype), self.activation)

    def truth(self) -> Tensor:
        """The definition, in float64: a sum over taps, or a transform where that would take minutes."""
        samples, h = self.extended(torch.float64), wide(self.h)
        return self.end(_sum(samples, h) if h.shape[0] <= 1024 else _transform(samples, h))

    def error_of_the_plain_loop(self, truth: Tensor) -> Tensor:
        """The error per channel of the sum over taps done in the implementation's own type."""
        if self.x.dtype == torch.float64:
            single = self.single()
            return single.error_of_the_plain_loop(single.truth()) * 2.0**-29
        kind, half = compute_type(self.x.dtype), self.x.dtype
        taps = min(self.h.shape[0], 1024)  # errors of longer sums are no smaller
        first = self.h.shape[0] - taps
        z = _sum(self.extended(kind)[:, first:], self.h[:taps].to(kind))
        if first > 0:
            exact = _sum(self.extended(torch.float64)[:, first:], wide(self.h[:taps]))
            stored = (wide(truth.to(half)) - truth).abs().amax(1)
            return (z.double() - exact).abs().amax(1) * self.loudest() + stored
        return (wide(self.end(z).to(half)) - truth).abs().amax(1)

    def single(self) -> Convolution:
        """The same problem in float32: its error in units of the roundoff stands for that in float64."""
        given = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.float() for name, value in given.items()})

    def loudest(self) -> Tensor:
        """The largest factor that the sums of a channel meet."""
        batch, _, channels = self.x.shape
        if self.post_gate is None or self.x.numel() == 0:
            return torch.ones(batch, channels, dtype=torch.float64)
        return wide(self.post_gate).abs().expand(self.x.shape).amax(1)

    def scale(self) -> Tensor:
        """The largest sum of magnitudes of a channel."""
        samples, h = self.extended(torch.float64).abs(), wide(self.h).abs()
        total = (_sum if h.shape[0] <= 1024 else _transform)(samples, h).amax(1)
        return (total if self.bias is None else total + wide(self.bias).abs()) * self.loudest()

    def check(self, y: Tensor, *, is_transform: bool) -> None:
        """Raises Mismatch unless ``y`` is the answer."""
        truth = self.truth()
        if self.x.numel() == 0:
            return _judge(str(self), y, truth, truth)
        u = roundoff(self.x.dtype)
        bound = 4 * self.error_of_the_plain_loop(truth) + 4 * u * self.scale()
        if is_transform:
            samples = self.extended(torch.float64)
            energy = samples.norm(dim=1) * wide(self.h).norm(dim=0) * self.loudest()
            bound = bound + 4 * u * math.log2(2 * samples.shape[1] + 2) * energy
        _judge(str(self), y, truth, bound)


def _sum(samples: Tensor, h: Tensor) -> Tensor:
    taps = h.shape[0]
    length = samples.shape[1] - taps + 1
    y = samples.new_zeros(samples.shape[0], length, samples.shape[2])
    for k in range(taps):
        y += h[k] * samples[:, taps - 1 - k : taps - 1 - k + length]
    return y


def _transform(samples: Tensor, h: Tensor) -> Tensor:
    points = 1 << (samples.shape[1] + h.shape[0]).bit_length()
    product = torch.fft.rfft(samples, points, dim=1) * torch.fft.rfft(h, points, dim=0)
    return torch.fft.irfft(product, points, dim=1)[:, h.shape[0] - 1 : samples.shape[1]]


def convolutions(dtype: torch.dtype, count: int, seed: int, limit: int = 2_000_000) -> Iterator[Convolution]:
    """Seeded problems of hostile sizes, every memory order in turn."""
    draw = Draw(seed)
    for index in range(count):
        while True:
            batch, length, channels, taps = 1 + draw.below(3), draw.pick(LENGTHS), draw.pick(CHANNELS), draw.pick(TAPS)
            if batch * length * channels * taps <= limit:
                break
        h = draw.normal(taps, 1 if draw.chance(6) else channels, dtype=dtype)
        x = in_order(draw.normal(batch, length, channels, dtype=dtype), ORDERS[index % len(ORDERS)])
        if draw.chance(8):
            x = x[:1].expand(batch, length, channels)
        state = in_order(draw.normal(batch, taps - 1, channels, dtype=dtype), "channels contiguous")
        yield Convolution(
            x=x,
            h=h if draw.chance(2) else h.T.contiguous().T,
            bias=draw.normal(channels, dtype=dtype) if draw.chance(3) else None,
            activation=(None, None, "silu", "gelu")[draw.below(4)],
            state=state if draw.chance(3) else None,
            pre_gate=_gate(draw, batch, length, channels, dtype),
            post_gate=_gate(draw, batch, length, channels, dtype),
        )


def _gate(draw: Draw, batch: int, length: int, channels: int, dtype: torch.dtype) -> Tensor | None:
    """No gate, one of all samples in any memory order, or one that broadcasts."""
    if not draw.chance(3):
        return None
    if draw.chance(2):
        return in_order(draw.normal(batch, length, channels, dtype=dtype), ORDERS[draw.below(len(ORDERS))])
    smaller = ((length, channels), (channels,), (length, 1), (batch, 1, channels), (1, 1, 1))
    return draw.normal(*smaller[draw.below(len(smaller))], dtype=dtype)


@dataclass(frozen=True)
class Recurrence:
    """One problem for linear_recurrence; x is (B, L, D)."""

    x: Tensor
    y_init: Tensor | None
    a: Tensor
    reverse: bool = False

    def __str__(self) -> str:
        sizes = f"{self.x.dtype} (B, L, D) = {tuple(self.x.shape)}, strides {self.x.stride()}, a {tuple(self.a.shape)}"
        extras = ["reverse" if self.reverse else "", "y_init" if self.y_init is not None else ""]
        return " ".join([sizes, f"strides {self.a.stride()}", *filter(None, extras)])

    def loop(self, kind: torch.dtype, *, magnitudes: bool = False) -> Tensor:
        """The definition, in the given type; with ``magnitudes``, of the absolute values."""
        x, a = self.x.to(kind), self.a.to(kind).expand(self.x.shape)
        last = x.new_zeros(x.shape[0], x.shape[2]) if self.y_init is None else self.y_init.to(kind)
        if magnitudes:
            x, a, last = x.abs(), a.abs(), last.abs()
        y = torch.empty_like(x)
        steps = range(x.shape[1])
        for i in reversed(steps) if self.reverse else steps:
            last = a[:, i] * last + x[:, i]
            y[:, i] = last
        return y

    def truth(self) -> Tensor:
        """The definition, in double precision."""
        return self.loop(torch.complex128 if self.x.is_complex() else torch.float64)

    def error_of_the_plain_loop(self, truth: Tensor) -> Tensor:
        """The error per channel of the loop over time in the implementation's own type; in double precision that of
        single precision, in units of the roundoff."""
        if truth.dtype == self.x.dtype:
            kind = torch.complex64 if self.x.is_complex() else torch.float32
            start = None if self.y_init is None else self.y_init.to(kind)
            single = replace(self, x=self.x.to(kind), y_init=start, a=self.a.to(kind))
            return single.error_of_the_plain_loop(single.truth()) * 2.0**-29
        return (wide(self.loop(compute_type(self.x.dtype)).to(self.x.dtype)) - truth).abs().amax(1)

    def check(self, y: Tensor) -> None:
        """Raises Mismatch unless ``y`` is the answer."""
        if self.x.numel() == 0:
            return _judge(str(self), y, self.x, self.x)
        truth = self.truth()
        scale = self.loop(truth.dtype, magnitudes=True).amax(1)
        _judge(str(self), y, truth, 4 * self.error_of_the_plain_loop(truth) + 4 * roundoff(self.x.dtype) * scale)


def coefficients(draw: Draw, kind: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """Coefficients of a recurrence: gates near 1; any sign; with exact zeros; or some beyond 1."""
    noise = draw.normal(*shape)
    a = torch.sigmoid(2 + 2 * noise)
    if kind == 1:
        a = torch.tanh(noise)
    if kind == 2:
        a = a * (draw.normal(*shape) > -1)
    if kind == 3:
        a = torch.where(draw.normal(*shape) > 1.5, -1.0625, a)
    if dtype in COMPLEX:
        return torch.polar(a.abs(), 3 * draw.normal(*shape)).to(dtype)
    return a.to(dtype)


def recurrences(dtype: torch.dtype, count: int, seed: int, limit: int = 40_000) -> Iterator[Recurrence]:
    """Seeded problems of hostile sizes, every memory order in turn."""
    draw = Draw(seed)
    for index in range(count):
        while True:
            batch, length, channels = 1 + draw.below(3), draw.pick((*LENGTHS, 2500)), draw.pick(CHANNELS)
            if batch * length * channels <= limit:
                break
        shape = ((batch, length, channels),) * 3 + (
            (channels,),
            (length, 1),
            (batch, 1, channels),
            (1, length, channels),
        )
        size = shape[draw.below(len(shape))]
        # Powers of one coefficient beyond 1 magnify its rounding by the number of steps in any order but the plain one.
        kind = index % 4 if size[-2:-1] == (length,) else index % 3
        a = coefficients(draw, kind, *size, dtype=dtype)
        if a.shape == (batch, length, channels):
            a = in_order(a, ORDERS[draw.below(len(ORDERS))])
        yield Recurrence(
            x=in_order(draw.normal(batch, length, channels, dtype=dtype), ORDERS[index % len(ORDERS)]),
            y_init=draw.normal(batch, channels, dtype=dtype) if draw.chance(2) else None,
            a=a,
            reverse=draw.chance(3),
        )


# ---- impostors: wrong answers that a test must not accept ----


def _later(y: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)


CONVOLUTION_IMPOSTORS: dict[str, Callable[[Convolution], Tensor]] = {
    "all zeros": lambda p: torch.zeros_like(p.truth()),
    "one step late": lambda p: _later(p.truth()),
    "state dropped": lambda p: replace(p, state=None).truth(),
    "state reversed": lambda p: replace(p, state=None if p.state is None else p.state.flip(1)).truth(),
    "wrong channel": lambda p: p.truth().roll(1, 2),
    "wrong batch": lambda p: p.truth().roll(1, 0),
    "filter reversed": lambda p: replace(p, h=p.h.flip(0)).truth(),
    "last tap dropped": lambda p: replace(p, h=torch.cat([p.h[:-1], torch.zeros_like(p.h[-1:])])).truth(),
    "aliased tail": lambda p: _circular(p),
    "gate before dropped": lambda p: replace(p, pre_gate=None).truth(),
    "gate behind dropped": lambda p: replace(p, post_gate=None).truth(),
    "gate before the bias": lambda p: _gated_too_early(p),
    "bias dropped": lambda p: replace(p, bias=None).truth(),
    "activation dropped": lambda p: replace(p, activation=None).truth(),
    "computed in bfloat16": lambda p: replace(
        p, x=p.x.bfloat16().to(p.x.dtype), h=p.h.bfloat16().to(p.h.dtype)
    ).truth(),
}


def _gated_too_early(p: Convolution) -> Tensor:
    """The sum is gated, the bias is not."""
    if p.post_gate is None or p.bias is None:
        return p.truth()
    late = replace(p, bias=None, activation=None).truth() + wide(p.bias)
    return _activate(late, p.activation)


def _circular(p: Convolution) -> Tensor:
    """A transform that is too short: the end of the convolution wraps onto its start."""
    twice = {
        name: None if gate is None else torch.cat([gate.expand(p.x.shape)] * 2, 1)
        for name, gate in (("pre_gate", p.pre_gate), ("post_gate", p.post_gate))
    }
    wrapped = replace(p, state=None, x=torch.cat([p.x, p.x], 1), **twice)
    return wrapped.truth()[:, p.x.shape[1] :]


def _log_space(p: Recurrence) -> Tensor:
    a = wide(p.a).expand(p.x.shape)
    flip = (lambda t: t.flip(1)) if p.reverse else (lambda t: t)
    total = flip(a).log().cumsum(1)
    start = 0 if p.y_init is None else wide(p.y_init)[:, None]
    return flip(total.exp() * (start + (flip(wide(p.x)) * (-total).exp()).cumsum(1)))


RECURRENCE_IMPOSTORS: dict[str, Callable[[Recurrence], Tensor]] = {
    "all zeros": lambda p: torch.zeros_like(p.truth()),
    "one step late": lambda p: _later(p.truth()),
    "y_init dropped": lambda p: replace(p, y_init=None).truth(),
    "a one step early": lambda p: replace(p, a=wide(p.a).expand(p.x.shape).roll(-1, 1)).truth(),
    "wrong channel": lambda p: p.truth().roll(1, 2),
    "wrong batch": lambda p: p.truth().roll(1, 0),
    "wrong direction": lambda p: replace(p, reverse=not p.reverse).truth(),
    "state lost between tiles": lambda p: torch.cat(
        [replace(p, x=x, a=a, y_init=None).truth() for x, a in _halves(p)], 1
    ),
    "log space": _log_space,
}


def _halves(p: Recurrence) -> Iterator[tuple[Tensor, Tensor]]:
    a, middle = p.a.expand(p.x.shape), (p.x.shape[1] + 1) // 2
    for part in (slice(None, middle), slice(middle, None)):
        yield p.x[:, part], a[:, part]


# ---- selective scans ----


@dataclass(frozen=True)
class Selective:
    """One problem for selective_scan; u is (B, L, D), with the public function's other arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    initial_state: Tensor | None = None

    def __str__(self) -> str:
        sizes = "x".join(map(str, (*self.u.shape, self.A.shape[1])))
        given = [name for name in ("D", "z", "delta_bias", "initial_state") if getattr(self, name) is not None]
        shapes = f"B {tuple(self.B.shape)} C {tuple(self.C.shape)} strides {self.u.stride()}"
        return f"selective scan {sizes} {self.u.dtype} {shapes} {' '.join(given)}"

    def arguments(self) -> dict[str, object]:
        """For ``selective_scan(**p.arguments())``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def loop(self, kind: torch.dtype, *, magnitudes: bool = False) -> tuple[Tensor, Tensor]:
        """The definition, in the given real type; with ``magnitudes``, of the absolute values. Also the last state."""
        number = torch.promote_types(kind, torch.complex64) if self.A.is_complex() else kind
        size = torch.abs if magnitudes else torch.clone
        u, A = size(self.u.to(kind)), self.A.to(number)
        dt = self.delta.to(kind) + (0 if self.delta_bias is None else self.delta_bias.to(kind))
        dt = torch.nn.functional.softplus(dt) if self.delta_softplus else dt
        batch, length, channels = u.shape

        def projected(P: Tensor, t: int) -> Tensor:
            P = size(P.to(number))
            if P.ndim == 2:
                return P
            return P[:, t].repeat_interleave(channels // P.shape[2], 1) if P.ndim == 4 else P[:, t, None]

        start = torch.zeros(batch, *A.shape) if self.initial_state is None else self.initial_state
        h = size(start.to(number))
        y = torch.empty_like(u)
        for t in range(length):
            h = size(torch.exp(dt[:, t, :, None] * A)) * h + size((dt * u)[:, t, :, None]) * projected(self.B, t)
            y[:, t] = (projected(self.C, t) * h).sum(-1).real * (2 if A.is_complex() else 1)
        if self.D is not None:
            y = y + size(self.D.to(kind)) * u
        if self.z is not None:
            y = y * size(torch.nn.functional.silu(self.z.to(kind)))
        return y, h

    def truth(self) -> Tensor:
        """The definition, in double precision."""
        return self.loop(torch.float64)[0]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The errors allowed of y, per channel, and of the last state: as of recurrences."""
        kind = torch.float32 if self.u.dtype == torch.float64 else compute_type(self.u.dtype)
        units = 2.0**-29 if self.u.dtype == torch.float64 else 1.0
        bounds = []
        for single, double, magnitude in zip(
            self.loop(kind), self.loop(torch.float64), self.loop(torch.float64, magnitudes=True), strict=True
        ):
            error = (wide(single) - double).abs() * units
            bounds.append((error, magnitude.abs()))
        (y_error, y_size), (h_error, h_size) = bounds
        unit = 4 * roundoff(self.u.dtype)
        storage = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(self.u.dtype, 0.0)
        y_bound = 4 * y_error.amax(1) + (unit + storage) * y_size.amax(1)
        return y_bound, (4 * h_error + unit * h_size).amax((-1, -2), keepdim=True)

    def check(self, y: Tensor, state: Tensor | None = None) -> None:
        """Raises Mismatch unless ``y``, and ``state`` where given, are the answer."""
        truth, last = self.loop(torch.float64)
        y_bound, state_bound = self.bounds()
        _judge(str(self), y, truth, y_bound)
        if state is not None and state.numel():
            _judge(f"last state of {self}", state, last, state_bound.expand(state.shape).amax(-2))


def selective_scans(dtype: torch.dtype, count: int, seed: int, limit: int = 20_000) -> Iterator[Selective]:
    """Seeded problems of hostile sizes: real and complex, every memory order and form of B and C in turn."""
    draw = Draw(seed)
    for index in range(count):
        while True:
            batch, length, channels = 1 + draw.below(3), draw.pick(LENGTHS), draw.pick(CHANNELS)
            states = draw.pick((1, 2, 3, 4, 5, 8, 16, 17))
            if batch * length * channels * states <= limit and length <= 257:
                break
        is_complex = index % 3 == 2
        real = compute_type(dtype)
        number = torch.promote_types(real, torch.complex64) if is_complex else real
        groups = next(g for g in (4, 3, 2, 1) if channels % g == 0)
        forms = ((batch, length, states), (batch, length, groups, states), (channels, states))
        first = draw.below(3)
        second = draw.pick((first, 2)) if first < 2 else draw.below(3)
        order = ORDERS[index % len(ORDERS)]
        softplus = draw.chance(2)
        delta = draw.normal(batch, length, channels)
        A = -draw.normal(channels, states).exp()
        optional = [draw.chance(2) for _ in range(4)]
        yield Selective(
            u=in_order(draw.normal(batch, length, channels, dtype=dtype), order),
            delta=in_order((delta if softplus else 0.1 * delta.abs()).to(dtype), ORDERS[draw.below(len(ORDERS))]),
            A=torch.complex(A, 3 * draw.normal(channels, states)).to(number) if is_complex else A.to(number),
            B=draw.normal(*forms[first], dtype=number),
            C=draw.normal(*forms[second], dtype=number),
            D=draw.normal(channels, dtype=real) if optional[0] else None,
            z=in_order(draw.normal(batch, length, channels, dtype=dtype), order) if optional[1] else None,
            delta_bias=draw.normal(channels, dtype=real) * 0.1 if optional[2] and softplus else None,
            delta_softplus=softplus,
            initial_state=draw.normal(batch, channels, states, dtype=number) if optional[3] else None,
        )


def _gate_before_skip(p: Selective) -> Tensor:
    y = replace(p, D=None).truth()
    return y if p.D is None else y + wide(p.D) * wide(p.u)


SELECTIVE_IMPOSTORS: dict[str, Callable[[Selective], Tensor]] = {
    "all zeros": lambda p: torch.zeros_like(p.truth()),
    "one step late": lambda p: _later(p.truth()),
    "state dropped": lambda p: replace(p, initial_state=None).truth(),
    "D dropped": lambda p: replace(p, D=None).truth(),
    "z dropped": lambda p: replace(p, z=None).truth(),
    "gate before D": _gate_before_skip,
    "delta_bias dropped": lambda p: replace(p, delta_bias=None).truth(),
    "softplus dropped": lambda p: replace(p, delta_softplus=False, delta=p.delta.abs() * 0.1).truth(),
    "wrong channel": lambda p: p.truth().roll(1, 2),
    "B of the step before": lambda p: replace(p, B=p.B.roll(1, 1) if p.B.ndim > 2 else p.B).truth(),
    "C conjugated": lambda p: replace(p, C=p.C.conj()).truth(),
    "one state dropped": lambda p: replace(p, C=torch.cat([p.C[..., :-1], 0 * p.C[..., -1:]], -1)).truth(),
}


def masked(x: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    """A convolution with a part of the filters' spectra: evaluation at the roots of X^2M + 1 above the real axis, a
    product with what is kept, and interpolation."""
    x, h = x.double(), h.double()
    count = keep.shape[0]
    odd = 2 * torch.arange(count) + 1

    def waves(length: int) -> Tensor:
        turns = odd[:, None] * torch.arange(length) % (4 * count)  # of 1 / 4M each, whole ones left out
        angles = -2 * math.pi * turns.double() / (4 * count)
        return torch.polar(torch.ones_like(angles), angles)

    spectra = (waves(h.shape[0]) @ h.to(torch.complex128)) * keep[:, None]
    y: Tensor = (waves(x.shape[-2]).conj().T @ (waves(x.shape[-2]) @ x.to(torch.complex128) * spectra)).real / count
    return y
