"""Streams: any split of a sequence into chunks and samples, and any handling of the sequences, equals the whole."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor

import convscan
import oracle
from convscan import _native, causal_conv, linear_recurrence
from convscan.stream import BlockConvStream, ConvStream, LayerStream, OperatorStream, RecurrenceStream, Stream

Judge = Callable[[Tensor, Tensor], None]
TAPS = (1, 2, 9, 256, 257, 700, 2500)


class Session:
    """A stream with what each of its sequences has got and given; every action does to both what it says."""

    def __init__(self, stream: Stream, channels: int, judge: Judge, dtype: torch.dtype, seed: int, block: int = 1):
        self.stream, self.channels, self.judge, self.dtype, self.block = stream, channels, judge, dtype, block
        self.generator = torch.Generator().manual_seed(seed)
        empty = torch.empty(0, channels, dtype=dtype)
        self.given = [empty] * stream.batch_shape[0]
        self.got = [empty] * stream.batch_shape[0]
        self.since: int | None = None

    def draw(self, length: int) -> Tensor:
        shape = (len(self.given), length, self.channels)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def record(self, x: Tensor, y: Tensor) -> None:
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        self.given = [torch.cat(pair) for pair in zip(self.given, x, strict=True)]
        self.got = [torch.cat(pair) for pair in zip(self.got, y, strict=True)]
        if self.since is not None:
            self.since += x.shape[1]

    def extend(self, length: int) -> None:
        x = self.draw(length * self.block)
        self.record(x, self.stream.extend(x))

    def step(self) -> None:
        if self.block > 1:
            return self.extend(1)
        x = self.draw(1)
        return self.record(x, self.stream.step(x[:, 0]).unsqueeze(1))

    def checkpoint(self) -> None:
        self.stream.checkpoint()
        self.since = 0

    def rollback(self, steps: int) -> None:
        if self.since is None:
            return
        steps = min(steps, self.since // self.block) * self.block
        self.stream.rollback(steps)
        self.since -= steps
        for sequences in (self.given, self.got):
            sequences[:] = [sequence[: sequence.shape[0] - steps] for sequence in sequences]

    def select(self, index: list[int]) -> None:
        index = [i % len(self.given) for i in index]
        self.stream, self.since = self.stream.select(index), None
        self.given, self.got = [self.given[i] for i in index], [self.got[i] for i in index]

    def drop(self, index: int) -> None:
        index %= len(self.given)
        if len(self.given) > 1:
            self.stream, self.since = self.stream.drop([index]), None
            del self.given[index], self.got[index]

    def merge(self, ahead: int) -> None:
        """With the first sequence of its own past, which goes on for a while alone."""
        if len(self.given) > 3:
            return
        other = copy.copy(self)
        other.stream, other.since = self.stream.select([0]), None
        other.given, other.got = self.given[:1], self.got[:1]
        other.extend(ahead)
        self.stream, self.since = type(self.stream).merge([self.stream, other.stream]), None
        self.given, self.got = self.given + other.given, self.got + other.got

    def clone(self) -> None:
        """Goes on with a clone; the original must not matter any more."""
        original, self.stream = self.stream, self.stream.clone()
        original.extend(self.draw(self.block))

    def send(self) -> None:
        self.stream = pickle.loads(pickle.dumps(self.stream))

    def restore(self) -> None:
        self.stream.state = self.stream.state
        self.since = None

    def reset(self) -> None:
        self.check()
        self.stream.reset()
        self.since = None
        self.given = [sequence[:0] for sequence in self.given]
        self.got = [sequence[:0] for sequence in self.got]

    def check(self) -> None:
        for x, y in zip(self.given, self.got, strict=True):
            self.judge(x, y)


def conv_session(kind: type[ConvStream], schedule: str, taps: int, seed: int, dtype: torch.dtype) -> Session:
    # Of longer filters of half types the oracle does not know how much rounding the result costs.
    taps = min(taps, 1024) if dtype in (torch.float16, torch.bfloat16) else taps
    h = oracle.Draw(seed).normal(taps, 3, dtype=dtype)

    def judge(x: Tensor, y: Tensor) -> None:
        oracle.Convolution(x[None], h).check(y[None], is_transform=True)

    if schedule == "uniform":
        return Session(BlockConvStream(h, 16, (2,), max_rollback=400), 3, judge, dtype, seed, 16)
    return Session(kind(h, (2,), schedule=schedule, max_rollback=400), 3, judge, dtype, seed)


def recurrence_session(seed: int, dtype: torch.dtype) -> Session:
    a = oracle.coefficients(oracle.Draw(seed), 0, 3, dtype=dtype)
    return Session(
        RecurrenceStream(a, (2,)), 3, lambda x, y: oracle.Recurrence(x[None], None, a).check(y[None]), dtype, seed
    )


LAYERS: dict[str, Callable[[], Any]] = {
    "Hyena": lambda: convscan.nn.Hyena(4, 60),
    "RGLRU": lambda: convscan.nn.RGLRU(4),
    "S4": lambda: convscan.nn.S4Block(4, d_state=8, kernel="s4"),
    "S4D": lambda: convscan.nn.S4Block(4, d_state=8, kernel="s4d"),
    "ShortConv": lambda: convscan.nn.ShortConv(4),
}


def layer_session(name: str, seed: int) -> Session:
    torch.manual_seed(seed)
    layer = LAYERS[name]().double().eval()

    def judge(x: Tensor, y: Tensor) -> None:
        if x.shape[0]:
            with torch.no_grad():
                expected = layer(x[None])[0][0]
            if not torch.allclose(y, expected, rtol=1e-9, atol=1e-9):
                raise oracle.Mismatch(f"{name} is off by {float((y - expected).abs().max())}")

    return Session(LayerStream(layer, (2,)), 4, judge, torch.float64, seed)


# Shapes of inputs after batch and time, of the state after the batch, and of constants.
OPERATOR_CASES: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "allpole_filter": ([(4,)], [(2, 4)], {"a": (2, 4)}),
    "selective_scan": ([(4,), (4,), (3,), (3,), (4,)], [(4, 3)], {"A": (4, 3), "D": (4,)}),
    "ssd_scan": ([(2, 4), (2,), (1, 3), (1, 3), (2, 4)], [(2, 4, 3)], {"A": (2,)}),
    "gated_delta_rule": ([(2, 3), (2, 3), (2, 4), (2, 3), (2,)], [(2, 3, 4)], {}),
    "gated_linear_attention": ([(2, 3), (2, 3), (2, 4), (2, 3)], [(2, 3, 4)], {}),
    "mlstm": ([(2, 3), (2, 3), (2, 4), (2,), (2,)], [(2, 3, 4), (2, 3), (2,)], {}),
}


class OneSignal(OperatorStream):
    """An operator whose inputs are the channels of one signal, and its output the first of that many channels."""

    def __init__(self, operator: str, draw: oracle.Draw) -> None:
        self.shapes, states, fixed = OPERATOR_CASES[operator]
        # Poles within the unit circle.
        small = 0.3 if operator == "allpole_filter" else 1.0
        self.fixed = {name: -small * draw.normal(*shape).abs().clamp(max=1) for name, shape in fixed.items()}
        zeros = tuple(torch.zeros(2, *shape, dtype=torch.float64) for shape in states)
        super().__init__(operator, zeros if len(zeros) > 1 else zeros[0], (2,), **self.fixed)

    @property
    def channels(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def parts(self, x: Tensor) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [part.unflatten(-1, shape) for part, shape in zip(x.split(sizes, -1), self.shapes, strict=True)]
        if self._operator in ("gated_linear_attention", "gated_delta_rule"):
            parts[1], parts[3] = torch.nn.functional.normalize(parts[1], dim=-1), -parts[3].abs()
        if self._operator == "gated_delta_rule":
            parts[4] = torch.sigmoid(parts[4])
        if self._operator in ("selective_scan", "ssd_scan"):
            parts[1] = parts[1].abs()
        return parts

    def whole(self, x: Tensor) -> Tensor:
        inputs = dict(zip(self._names, self.parts(x), strict=True))
        return self.padded(getattr(convscan, self._operator)(**self.fixed, **inputs), x)

    def padded(self, y: Tensor, x: Tensor) -> Tensor:
        y = y.flatten(x.ndim - 1)
        return torch.nn.functional.pad(y, (0, self.channels - y.shape[-1]))

    def _advance(self, x: Tensor, *inputs: Tensor) -> Tensor:
        return self.padded(super()._advance(*self.parts(x)), x)

    def _advance_one(self, x: Tensor, *inputs: Tensor) -> Tensor:
        return self.padded(super()._advance_one(*self.parts(x)), x)


def operator_session(operator: str, seed: int) -> Session:
    stream = OneSignal(operator, oracle.Draw(seed))

    def judge(x: Tensor, y: Tensor) -> None:
        if not torch.allclose(y, stream.whole(x), rtol=1e-9, atol=1e-9):
            raise oracle.Mismatch(f"{operator} is off by {float((y - stream.whole(x)).abs().max())}")

    return Session(stream, stream.channels, judge, torch.float64, seed)


class Interleaved(RuleBasedStateMachine):
    """Everything that can be done with a stream, in any order."""

    def start(self, seed: int, dtype: torch.dtype, taps: int) -> Session:
        raise AssertionError("every machine has its own")

    @initialize(seed=st.integers(0, 999), dtype=st.sampled_from(oracle.REAL), taps=st.sampled_from(TAPS))
    def begin(self, seed: int, dtype: torch.dtype, taps: int) -> None:
        self.session = self.start(seed, dtype, taps)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            with torch.no_grad():
                self.session.check()

    @rule(length=st.sampled_from((0, 1, 2, 15, 60, 130, 400, 700)))
    def extend(self, length: int) -> None:
        with torch.no_grad():
            self.session.extend(-(-length // self.session.block))

    @rule(count=st.integers(1, 20))
    def step(self, count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                self.session.step()

    @rule()
    def checkpoint(self) -> None:
        self.session.checkpoint()

    @precondition(lambda self: self.session.since is not None)
    @rule(ahead=st.integers(0, 400), back=st.integers(0, 400))
    def speculate(self, ahead: int, back: int) -> None:
        with torch.no_grad():
            self.session.checkpoint()
            self.session.extend(ahead // self.session.block)
            self.session.rollback(back)

    @rule(index=st.lists(st.integers(0, 3), min_size=1, max_size=4))
    def select(self, index: list[int]) -> None:
        self.session.select(index)

    @rule(index=st.integers(0, 3))
    def drop(self, index: int) -> None:
        self.session.drop(index)

    @rule(ahead=st.sampled_from((0, 1, 77)))
    def merge(self, ahead: int) -> None:
        with torch.no_grad():
            self.session.merge(ahead)

    @rule()
    def clone(self) -> None:
        with torch.no_grad():
            self.session.clone()

    @rule()
    def send(self) -> None:
        self.session.send()

    @rule()
    def restore(self) -> None:
        self.session.restore()

    @rule()
    def reset(self) -> None:
        with torch.no_grad():
            self.session.reset()


QUICK = settings(max_examples=12, stateful_step_count=20, deadline=None)


def machine(start: Callable[[int, torch.dtype, int], Session]) -> Any:
    kind = type("Machine", (Interleaved,), {"start": staticmethod(start)})
    case = kind.TestCase
    case.settings = QUICK
    return case


TestGrowing = machine(lambda seed, dtype, taps: conv_session(ConvStream, "growing", taps, seed, dtype))
TestSpread = machine(lambda seed, dtype, taps: conv_session(ConvStream, "spread", taps, seed, dtype))
TestUniform = machine(lambda seed, dtype, taps: conv_session(ConvStream, "uniform", taps, seed, dtype))
TestRecurrence = machine(lambda seed, dtype, taps: recurrence_session(seed, dtype))
TestLayer = machine(lambda seed, dtype, taps: layer_session(list(LAYERS)[seed % len(LAYERS)], seed))
TestAllpoleFilter = machine(lambda seed, dtype, taps: operator_session("allpole_filter", seed))
TestGatedDeltaRule = machine(lambda seed, dtype, taps: operator_session("gated_delta_rule", seed))
TestGatedLinearAttention = machine(lambda seed, dtype, taps: operator_session("gated_linear_attention", seed))
TestMatrixMemory = machine(lambda seed, dtype, taps: operator_session("mlstm", seed))
TestSelectiveScan = machine(lambda seed, dtype, taps: operator_session("selective_scan", seed))
TestStateSpaceDuality = machine(lambda seed, dtype, taps: operator_session("ssd_scan", seed))


# ---- impostors: streams that are wrong in one way, which the session must not accept ----


class Forgetful(ConvStream):
    def extend(self, x: Tensor, *inputs: Tensor) -> Tensor:
        self._memory.zero_()
        return super().extend(x)


class OneLate(ConvStream):
    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        before = self.__dict__.get("before", torch.zeros_like(x))
        self.__dict__["before"] = x
        return super().step(before if before.shape == x.shape else x)


class Silent(ConvStream):
    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        return torch.zeros_like(super().step(x))


class NeverBack(ConvStream):
    def rollback(self, steps: int) -> None:
        pass


class StaleBlocks(ConvStream):
    """Moves the position back and leaves what was computed since."""

    def rollback(self, steps: int) -> None:
        self._clock[0] -= steps


class SharedClone(ConvStream):
    def clone(self) -> Any:
        return copy.copy(self)


class Unordered(ConvStream):
    def select(self, index: Any) -> Any:
        return super().select(sorted(index))


class WrongOneDropped(ConvStream):
    def drop(self, index: Any) -> Any:
        return super().drop([i - 1 for i in index])


class StateReversed(ConvStream):
    @property
    def state(self) -> Tensor:
        return super().state.flip(-2)

    @state.setter
    def state(self, state: Tensor) -> None:
        ConvStream.state.fset(self, state)  # type: ignore[attr-defined]


class LosesItsClock(ConvStream):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clock.zero_()


IMPOSTORS = (
    Forgetful, OneLate, Silent, NeverBack, StaleBlocks, SharedClone, Unordered, WrongOneDropped, StateReversed,
    LosesItsClock,
)  # fmt: skip


def wander(kind: type[ConvStream], seed: int) -> None:
    """Every action several times, in an order of its own."""
    session = conv_session(kind, "growing", 400, seed, torch.float64)
    draw = random.Random(seed)
    session.extend(300)

    def speculate() -> None:
        session.checkpoint()
        for _ in range(4):
            session.extend(90)
        session.rollback(draw.randint(260, 360))

    actions: list[Callable[[], Any]] = [
        lambda: session.extend(draw.choice((1, 50, 90))),
        session.step,
        speculate,
        lambda: session.select([1, 0]),
        lambda: (session.merge(5), session.drop(1)),
        session.clone,
        session.send,
        session.restore,
    ]
    for _ in range(6):
        draw.shuffle(actions)
        for action in actions:
            action()
    session.check()


def test_no_action_spoils_a_stream() -> None:
    for seed in range(3):
        wander(ConvStream, seed)


@pytest.mark.parametrize("kind", IMPOSTORS, ids=lambda kind: kind.__name__)
def test_the_session_catches_impostors(kind: type[ConvStream]) -> None:
    with pytest.raises(oracle.Mismatch):
        wander(kind, 0)


# ---- convolutions ----


@pytest.mark.parametrize("schedule", ["growing", "spread"])
@pytest.mark.parametrize("dtype", oracle.REAL)
@pytest.mark.parametrize("taps", [1, 3, 255, 257, 1024, 5000])
def test_samples_and_chunks_agree_with_causal_conv(schedule: str, dtype: torch.dtype, taps: int) -> None:
    if dtype in (torch.float16, torch.bfloat16) and taps > 1024:
        pytest.skip("the oracle does not know how much rounding the result costs")
    draw = oracle.Draw(taps)
    h, state = draw.normal(taps, 5, dtype=dtype), draw.normal(2, taps - 1, 5, dtype=dtype)
    x = draw.normal(2, 1400, 5, dtype=dtype)
    stream = ConvStream(h, (2,), schedule=schedule, initial_state=state)
    lengths = [700, 0, 1, 128, 129, 400]
    pieces = [stream.extend(chunk) for chunk in x[:, : sum(lengths)].split(lengths, 1)]
    pieces += [stream.step(sample).unsqueeze(1) for sample in x[:, sum(lengths) :].unbind(1)]
    oracle.Convolution(x, h, state=state).check(torch.cat(pieces, 1), is_transform=True)
    assert torch.equal(stream.state, torch.cat([state, x], 1)[:, x.shape[1] :])


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 16, 17, 40])
@pytest.mark.parametrize("order", oracle.ORDERS)
def test_any_number_of_channels_in_any_memory_order(channels: int, order: str) -> None:
    draw = oracle.Draw(channels)
    h, x = draw.normal(600, 1 if channels == 5 else channels), draw.normal(3, 300, channels)
    seen = oracle.in_order(x, order)
    stream = ConvStream(h.T.contiguous().T, (3,), channels=channels)
    pieces = [stream.extend(seen[:, :100])]
    pieces += [stream.extend(seen[:, 100:280]), *(stream.step(seen[:, t]).unsqueeze(1) for t in range(280, 300))]
    oracle.Convolution(x, h).check(torch.cat(pieces, 1), is_transform=True)


@pytest.mark.parametrize("batch_shape", [(), (0,), (1,), (2, 3), (2, 0, 3)])
def test_any_leading_axes(batch_shape: tuple[int, ...]) -> None:
    draw = oracle.Draw(1)
    h, x = draw.normal(300, 3), draw.normal(*batch_shape, 90, 3)
    stream = ConvStream(h, batch_shape)
    expected = causal_conv(x, h)
    y = torch.cat([stream.extend(x[..., :40, :]), stream.step(x[..., 40, :]).unsqueeze(-2)], -2)
    assert torch.allclose(y, expected[..., :41, :], atol=1e-12)
    stream.checkpoint()
    stream.extend(x[..., :40, :])
    stream.rollback(40)
    # Axes in another order in memory, which no single step of a batch can follow.
    turned = x[..., 41:, :].transpose(0, -3).contiguous().transpose(0, -3) if len(batch_shape) > 1 else x[..., 41:, :]
    assert torch.allclose(stream.extend(turned), expected[..., 41:, :], atol=1e-12)
    assert stream.state.shape == (*batch_shape, 299, 3)


def test_no_channels() -> None:
    stream = ConvStream(torch.empty(300, 0), (2,))
    assert stream.extend(torch.empty(2, 5, 0)).shape == (2, 5, 0)
    assert stream.step(torch.empty(2, 0)).shape == (2, 0)
    assert stream.state.shape == (2, 299, 0)


@pytest.mark.parametrize("schedule", ["growing", "spread", "uniform"])
def test_results_do_not_depend_on_threads_or_on_where_the_state_was_made(schedule: str) -> None:
    draw = oracle.Draw(2)
    h, x = draw.normal(1300, 40, dtype=torch.float32), draw.normal(4, 512, 40, dtype=torch.float32)

    def make() -> Stream:
        return BlockConvStream(h, 64, (4,)) if schedule == "uniform" else ConvStream(h, (4,), schedule=schedule)

    def run(stream: Stream, x: Tensor) -> Tensor:
        return torch.cat([stream.extend(chunk) for chunk in x.split(64, 1)], 1)

    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(run(make(), x))
    torch.set_num_threads(threads)
    assert torch.equal(*results)

    best = _native.isa()
    try:
        for name in _native.isa_names():
            stream = make()
            assert _native.set_isa(name)
            first = run(stream, x[:, :256])
            assert _native.set_isa(best)
            y = torch.cat([first, run(pickle.loads(pickle.dumps(stream)), x[:, 256:])], 1)
            oracle.Convolution(x, h).check(y, is_transform=True)
    finally:
        _native.set_isa(best)


def test_a_stream_goes_on_in_another_dtype() -> None:
    draw = oracle.Draw(3)
    h, x = draw.normal(500, 3), draw.normal(2, 300, 3)
    stream = ConvStream(h, (2,))
    stream.extend(x[:, :200])
    single = stream.to(dtype=torch.float32)
    assert single.dtype == torch.float32
    y = single.extend(x[:, 200:].float())
    assert torch.allclose(y.double(), causal_conv(x, h)[:, 200:], atol=1e-3)
    assert torch.allclose(stream.to(torch.device("cpu")).extend(x[:, 200:]), causal_conv(x, h)[:, 200:], atol=1e-12)


def test_the_filter_is_read_once() -> None:
    h, x = torch.ones(300, 1), torch.ones(10, 1)
    stream = ConvStream(h)
    h.zero_()
    assert torch.equal(stream.extend(x), torch.arange(1.0, 11)[:, None])


def test_memory_is_what_the_document_says() -> None:
    for schedule, limit in (("growing", 3.6), ("spread", 3.6)):
        stream = ConvStream(torch.zeros(65536, 16), schedule=schedule)
        assert stream._memory.numel() <= limit * 65536 * 16
        assert stream._filter.numel() <= 2.3 * 65536 * 16
    assert BlockConvStream(torch.zeros(65536, 16), 256)._memory.numel() <= 3.2 * 65536 * 16
    assert ConvStream(torch.zeros(64, 16))._memory.numel() == 128 * 16


def test_errors_name_what_to_do() -> None:
    h = torch.ones(4, 3)
    stream = ConvStream(h, (2,))
    x = torch.ones(2, 5, 3)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"ConvStream: h must have the shape \(K, D\)", lambda: ConvStream(torch.ones(3))),
        (TypeError, "ConvStream: h must have one of the dtypes", lambda: ConvStream(torch.ones(3, 1).int())),
        (TypeError, "ConvStream: h must be a torch.Tensor", lambda: ConvStream([1.0])),  # type: ignore[arg-type]
        (ValueError, "schedule must be one of", lambda: ConvStream(h, schedule="eager")),
        (ValueError, "channels must be those of h, 3", lambda: ConvStream(h, channels=4)),
        (ValueError, "max_rollback must not be negative", lambda: ConvStream(h, max_rollback=-1)),
        (ValueError, r"must have the shape \(\*batch_shape, K-1, D\)", lambda: ConvStream(h, initial_state=x)),
        (ValueError, "ConvStream.extend: x must have the shape", lambda: stream.extend(x[0])),
        (ValueError, "ConvStream.step: x must have the shape", lambda: stream.step(x)),
        (TypeError, r"Convert it with x.to\(stream.dtype\)", lambda: stream.extend(x.double())),
        (RuntimeError, "causal_conv with initial_state", lambda: stream.extend(x.clone().requires_grad_())),
        (RuntimeError, r"Call checkpoint\(\) before", lambda: stream.rollback(1)),
        (IndexError, "index must be a list of sequences", lambda: stream.select([2])),
        (ValueError, r"Pass batch_shape=\(1,\)", lambda: ConvStream(h).select([0])),
        (TypeError, "streams must be at least one ConvStream", lambda: ConvStream.merge([])),
        (ValueError, "one filter", lambda: ConvStream.merge([stream, ConvStream(2 * h, (2,))])),
        (ValueError, "batch shapes must agree", lambda: ConvStream.merge([stream, ConvStream(h, (2, 1))])),
        (ValueError, "device must be the CPU", lambda: stream.to("meta")),
        (ValueError, "block must be a power of two", lambda: BlockConvStream(h, 24)),
        (ValueError, "L must be a multiple of the block, 16", lambda: BlockConvStream(h, 16, (2,)).extend(x)),
        (ValueError, "take a ConvStream", lambda: BlockConvStream(h, 16, (2,)).step(x[:, 0])),
        (TypeError, "a or y_init must be given", lambda: RecurrenceStream()),
        (ValueError, r"a must have the shape \(D,\)", lambda: RecurrenceStream(x)),
        (ValueError, "operator must be one of", lambda: OperatorStream("fft", x)),
        (TypeError, "constants must be arguments of mlstm", lambda: OperatorStream("mlstm", x, bias=x)),
        (TypeError, "inputs must be at most q, k, v", lambda: OperatorStream("mlstm", x).extend(*8 * (x,))),
        (TypeError, "a must be given once", lambda: RecurrenceStream(x[0, 0], (2,)).extend(x, x)),
        (ValueError, r"the state must have the shape \(2, 3\)", lambda: _assign(RecurrenceStream(x[0, 0], (2,)), x)),
    ]
    for error, text, action in cases:
        with pytest.raises(error, match=text):
            action()
    stream.checkpoint()
    stream.extend(torch.ones(2, 100, 3))
    with pytest.raises(ValueError, match="Pass a larger max_rollback than 64"):
        stream.rollback(65)
    with pytest.raises(ValueError, match="must be from 0 to 64"):
        stream.rollback(-1)


def _assign(stream: Stream, state: Any) -> None:
    stream.state = state


def test_going_back_twice_is_no_further_than_was_kept() -> None:
    """What may be undone is counted from the latest sample ever taken, for its block is what has been overwritten."""
    stream = ConvStream(torch.ones(300, 1), max_rollback=10)
    stream.checkpoint()
    stream.extend(torch.ones(20, 1))
    stream.rollback(10)
    with pytest.raises(ValueError, match="from 0 to 0"):
        stream.rollback(1)
    stream.extend(torch.ones(15, 1))
    stream.rollback(10)
    assert torch.equal(stream.extend(torch.ones(1, 1)), torch.tensor([[16.0]]))


@pytest.mark.parametrize("schedule", ["growing", "spread", "uniform"])
@pytest.mark.parametrize("back", [16, 48, 64, 128, 192, 400])
def test_going_back_beyond_what_was_made_anew(schedule: str, back: int) -> None:
    """A long chunk goes through causal_conv and leaves outputs of its last block alone: earlier ones are to be made."""
    draw = oracle.Draw(7)
    h, x = draw.normal(700, 3), draw.normal(1100, 3)
    expected = causal_conv(x, h)
    for length in (416, 464, 512, 528):
        if schedule == "uniform":
            stream: Stream = BlockConvStream(h, 16, max_rollback=500)
        else:
            stream = ConvStream(h, schedule=schedule, max_rollback=500)
        stream.checkpoint()
        stream.extend(x[:length])
        stream.rollback(back)
        at = length - back
        stream.checkpoint()
        assert torch.allclose(stream.extend(x[at : at + 32]), expected[at : at + 32], atol=1e-10)
        stream.rollback(32)  # and once more from what has been made anew by going back
        pieces = [stream.extend(chunk) for chunk in x[at : at + 288].split(96)]
        assert torch.allclose(torch.cat(pieces), expected[at : at + 288], atol=1e-10)


# ---- recurrences ----


@pytest.mark.parametrize("dtype", [*oracle.REAL, torch.complex64])
def test_recurrences_with_coefficients_of_each_step(dtype: torch.dtype) -> None:
    draw = oracle.Draw(4)
    x, start = draw.normal(2, 200, 5, dtype=dtype), draw.normal(2, 5, dtype=dtype)
    a = oracle.coefficients(draw, 0, 2, 200, 5, dtype=dtype)
    stream = RecurrenceStream(y_init=start)
    stream.checkpoint()
    stream.extend(x[:, 50:90], a[:, 50:90])
    stream.step(x[:, 7], a[:, 7])
    stream.rollback(41)
    pieces = [stream.extend(x[:, :90], a[:, :90]), stream.step(x[:, 90], a[:, 90]).unsqueeze(1)]
    pieces += [stream.extend(x[:, 91:91], a[:, 91:91]), stream.extend(x[:, 91:], a[:, 91:])]
    oracle.Recurrence(x, start, a).check(torch.cat(pieces, 1))


def test_gradients_flow_from_chunk_to_chunk() -> None:
    draw = oracle.Draw(5)
    x, a = draw.normal(2, 9, 3).requires_grad_(), torch.sigmoid(draw.normal(3)).requires_grad_()
    expected = torch.autograd.grad(linear_recurrence(x, None, a).square().sum(), (x, a))
    stream = RecurrenceStream(a, (2,))
    y = torch.cat([stream.extend(x[:, :4]), stream.step(x[:, 4]).unsqueeze(1), stream.extend(x[:, 5:])], 1)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), (x, a)), expected, strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("operator", OPERATOR_CASES)
def test_operators_with_a_state(operator: str) -> None:
    draw = oracle.Draw(6)
    inner, states, fixed = OPERATOR_CASES[operator]
    inputs = [draw.normal(2, 60, *shape) for shape in inner]
    if operator == "gated_linear_attention":
        inputs[3] = -inputs[3].abs()
    if operator in ("selective_scan", "ssd_scan"):
        inputs[1] = inputs[1].abs()
    constants = {name: -draw.normal(*shape).abs() for name, shape in fixed.items()}
    zeros = tuple(torch.zeros(2, *shape, dtype=torch.float64) for shape in states)
    stream = OperatorStream(operator, zeros if len(zeros) > 1 else zeros[0], (2,), **constants)
    expected = getattr(convscan, operator)(**constants, **dict(zip(stream._names, inputs, strict=True)))

    def part(begin: int, end: int) -> list[Tensor]:
        return [tensor[:, begin:end] for tensor in inputs]

    pieces = [stream.extend(*part(0, 30))]
    stream.checkpoint()
    stream.extend(*part(5, 20))
    stream.step(*(tensor[:, 7] for tensor in inputs))
    stream.rollback(16)
    stream.extend(*part(30, 40))
    stream.rollback(3)
    pieces.append(expected[:, 30:37])
    stream = pickle.loads(pickle.dumps(stream)).clone()
    pieces += [stream.step(*(tensor[:, t] for tensor in inputs)).unsqueeze(1) for t in range(37, 42)]
    pieces.append(stream.extend(*part(42, 42)))
    turned = stream.select([1, 0])
    y = turned.extend(*(tensor.flip(0) for tensor in part(42, 60)))
    assert torch.allclose(y, expected.flip(0)[:, 42:], atol=1e-9)
    both = OperatorStream.merge([stream.drop([1]), stream.drop([0])])
    pieces.append(both.extend(*part(42, 60)))
    assert torch.allclose(torch.cat(pieces, 1), expected, atol=1e-9)


def test_layers_with_time_last() -> None:
    torch.manual_seed(0)
    layer = convscan.nn.FFTConvS4(3, 50, d_state=4).double().eval()
    x = torch.randn(2, 3, 30, dtype=torch.float64)
    with torch.no_grad():
        stream = LayerStream(layer, (2,))
        stream.checkpoint()
        stream.extend(x[..., :20])
        stream.rollback(13)
        y = torch.cat([stream.step(x[..., 7]).unsqueeze(-1), stream.extend(x[..., 8:])], -1)
        assert torch.allclose(y, layer(x)[0][..., 7:], atol=1e-9)
