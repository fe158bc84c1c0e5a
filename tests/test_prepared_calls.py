"""The short way of small calls past PyTorch's dispatcher: what it must leave to the dispatcher, and what it costs."""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import convscan
from convscan import _dispatch, _library, _native, causal_conv, linear_recurrence

# DLPack's table is what PyTorch 2.10 and later have; older ones are asked for attributes.
TABLES = [getattr(torch.Tensor, "__dlpack_c_exchange_api__", None), None]


@pytest.fixture(params=TABLES, ids=["table", "attributes"])
def exchange(request: pytest.FixtureRequest) -> Iterator[object]:
    _library.use_exchange_table(request.param)
    convscan._dispatch.forget()  # the two make different keys
    yield request.param
    _library.use_exchange_table(TABLES[0])
    convscan._dispatch.forget()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def conv(x: Tensor, h: Tensor, bias: Tensor, state: Tensor, out: Tensor | None = None) -> Tensor:
    return causal_conv(x, h, bias=bias, initial_state=state, out=out)


def scan(x: Tensor, start: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
    return linear_recurrence(x, start, a, out=out)


SHAPES: dict[Callable[..., Tensor], tuple[tuple[int, ...], ...]] = {
    conv: ((2, 8, 4), (3, 4), (4,), (2, 2, 4)),
    scan: ((2, 8, 4), (2, 4), (2, 8, 4)),
}


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which public functions left a call to the dispatcher."""
    seen: list[str] = []

    def watch(module: Any, name: str) -> None:
        checked = getattr(module, name)

        def note(*args: Any) -> Tensor:
            seen.append(module.__name__.split(".")[-2])
            return checked(*args)

        monkeypatch.setattr(module, name, note)

    watch(convscan.ops.causal_conv.api, "checked")
    watch(convscan.ops.linear_recurrence.api, "_checked")
    return seen


@pytest.mark.parametrize("function", SHAPES)
def test_the_second_call_is_short(function: Callable[..., Tensor], exchange: object, long_way: list[str]) -> None:
    arguments = [normal(*shape) for shape in SHAPES[function]]
    expected = function(*arguments)
    assert len(long_way) == 1
    assert torch.equal(function(*arguments), expected)
    assert torch.equal(function(torch.nn.Parameter(arguments[0], requires_grad=False), *arguments[1:]), expected)
    with torch.no_grad():
        assert torch.equal(function(arguments[0].clone().requires_grad_(), *arguments[1:]), expected)
    assert len(long_way) == 1
    for _ in range(2):
        out = torch.empty_like(expected)
        assert function(*arguments, out=out) is out
        assert torch.equal(out, expected)
    assert len(long_way) <= 2


@pytest.mark.parametrize("function", SHAPES)
def test_negations_that_are_put_off(function: Callable[..., Tensor], exchange: object) -> None:
    stored = [normal(*shape, dtype=torch.complex64) for shape in SHAPES[function]]
    plain = [tensor.imag for tensor in stored]
    function(*plain)  # prepares a call with the same strides
    for at, tensor in enumerate(stored):
        negated = [*plain]
        negated[at] = tensor.conj().imag
        assert negated[at].is_neg()
        expected = function(*(argument.resolve_neg() for argument in negated))
        torch.testing.assert_close(function(*negated), expected)
        torch.testing.assert_close(function(*negated, out=torch.empty_like(expected)), expected)
    for out in (torch.zeros_like(stored[0]).imag, torch.zeros_like(stored[0]).conj().imag):
        torch.testing.assert_close(function(*plain, out=out), function(*plain))


def test_conjugations_that_are_put_off(exchange: object) -> None:
    plain = [normal(*shape, dtype=torch.complex64) for shape in SHAPES[scan]]
    scan(*plain)
    for at, tensor in enumerate(plain):
        conjugated = [*plain]
        conjugated[at] = tensor.conj()
        expected = scan(*(argument.resolve_conj() for argument in conjugated))
        torch.testing.assert_close(scan(*conjugated), expected)
        torch.testing.assert_close(scan(*conjugated, out=torch.empty_like(expected)), expected)
    out = torch.zeros_like(plain[0]).conj()
    for _ in range(2):
        torch.testing.assert_close(scan(*plain, out=out), scan(*plain))


@pytest.mark.parametrize("function", SHAPES)
def test_zeros_without_memory_and_copies_that_are_put_off(function: Callable[..., Tensor], exchange: object) -> None:
    arguments = [normal(*shape) for shape in SHAPES[function]]
    expected = function(torch.zeros_like(arguments[0]), *arguments[1:])
    zeros = torch._efficientzerotensor(arguments[0].shape)
    torch.testing.assert_close(function(zeros, *arguments[1:]), expected)
    kept = arguments[0].clone()
    out = torch._lazy_clone(arguments[0])
    function(*arguments, out=out)
    assert torch.equal(arguments[0], kept)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("function", SHAPES)
def test_whoever_watches_sees_the_operator(
    function: Callable[..., Tensor], exchange: object, long_way: list[str]
) -> None:
    arguments = [normal(*shape) for shape in SHAPES[function]]
    expected = function(*arguments)
    seen: list[str] = []

    class Dispatches(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for mode in (Dispatches(), Functions()):
        with mode:
            function(*arguments)
        assert any("convscan" in name for name in seen)
        seen.clear()

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    for at in range(len(arguments)):
        watched = [*arguments]
        watched[at] = arguments[at].as_subclass(Watched)
        function(*watched)
        assert any("convscan" in name for name in seen)
        seen.clear()

    traced = torch.jit.trace(function, tuple(arguments))
    assert torch.equal(traced(arguments[0] * 0, *arguments[1:]), function(arguments[0] * 0, *arguments[1:]))
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(arguments[0], torch.ones_like(arguments[0])), *arguments[1:])
        assert forward_ad.unpack_dual(dual).tangent is not None
    for at, tensor in enumerate(arguments):
        tracked = [*arguments]
        tracked[at] = tensor.clone().requires_grad_()
        assert function(*tracked).grad_fn is not None
    before = len(long_way)
    assert torch.equal(torch.vmap(function)(*(tensor.expand(3, *tensor.shape) for tensor in arguments))[0], expected)
    assert len(long_way) == before + 1


def test_a_key_has_all_that_a_prepared_call_depends_on(exchange: object) -> None:
    x = normal(4, 6)
    tensors = [x, x[:2], x.T, x.double(), x.bfloat16(), x.half(), x[None], x[..., ::2], None]
    keys = [_native.call_key(variant, tensor) for tensor in tensors for variant in (None, True)]
    with convscan.force("reference"):
        keys.append(_native.call_key(None, x))
        assert keys[-1] == _native.call_key(None, x.clone())
    with convscan.workspace_limit(1 << 20):
        keys.append(_native.call_key(None, x))
    threads, isa = torch.get_num_threads(), _native.isa()
    torch.set_num_threads(threads + 1)
    keys.append(_native.call_key(None, x))
    torch.set_num_threads(threads)
    for name in _native.isa_names():
        if name != isa:
            assert _native.set_isa(name)
            keys.append(_native.call_key(None, x))
    _native.set_isa(isa)
    assert len(set(keys)) == len(keys)
    assert _native.call_key(None, x.to("meta")) is None
    assert keys[0] == _native.call_key(None, x.clone())


def test_settings_reach_a_prepared_call() -> None:
    x, h = normal(64, 8), normal(4, 8)
    causal_conv(x, h)
    with convscan.workspace_limit(0), pytest.raises(MemoryError, match="no implementation fits in 0 bytes"):
        causal_conv(x, h)


def test_variants_are_compared_not_identified() -> None:
    x, h = normal(8, 4), normal(3, 4)
    expected = causal_conv(x, h, activation="silu")
    assert torch.equal(causal_conv(x, h, activation="".join(["si", "lu"])), expected)
    with pytest.raises(ValueError, match="activation must be None, 'silu' or 'gelu'; got"):
        causal_conv(x, h, activation=["silu"])  # type: ignore[arg-type]


@pytest.mark.parametrize("function", SHAPES)
def test_nothing_leaks(function: Callable[..., Tensor], exchange: object) -> None:
    arguments = [normal(*shape) for shape in SHAPES[function]]
    out = function(*arguments)
    function(*arguments, out=out)
    calls = convscan.ops.causal_conv.api.calls if function is conv else convscan.ops.linear_recurrence.api._calls
    watched = [*arguments, out, out.dtype, *calls.prepared, *calls.prepared.values()]
    with convscan.force("reference"):
        function(*arguments)
        watched.append(convscan._dispatch.settings())
        before = [sys.getrefcount(item) for item in watched]
        for _ in range(50):
            function(*arguments)
    for _ in range(1000):
        function(*arguments)
        function(*arguments, out=out)
        function(*(tensor.requires_grad_(False) for tensor in arguments))
    watched_after = [sys.getrefcount(item) for item in watched]
    assert [abs(after - count) <= 2 for after, count in zip(watched_after, before, strict=True)] == [True] * len(before)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_MOST_PREPARED", 10)
    for length in range(1, 50):
        causal_conv(torch.ones(length, 1), torch.ones(1, 1))
    assert len(convscan.ops.causal_conv.api.calls.prepared) <= 11


@pytest.mark.skipif(TABLES[0] is None, reason="PyTorch before 2.10: reading attributes takes longer")
@pytest.mark.parametrize("op", ["causal_conv", "linear_recurrence"])
def test_overhead_stays_within_microseconds(op: str) -> None:
    x, y = normal(8, 4), torch.empty(8, 4)
    if op == "causal_conv":
        second, strides = normal(3, 4), (0, 4, 1)
        kernel: Any = _native.ConvCall("direct", "float32", 1, 8, 4, 3, strides, (0, 4, 1), strides)
        addresses: tuple[int, ...] = (x.data_ptr(), second.data_ptr(), 0, 0, 0, 0, y.data_ptr())
        call = causal_conv
    else:
        second, strides = normal(8, 4), (0, 4, 1)
        kernel = _native.ScanCall("sequential", "float32", 1, 8, 4, False, strides, strides, (0, 0, 0), strides)
        addresses = (x.data_ptr(), second.data_ptr(), 0, 0, y.data_ptr())

        def call(x: Tensor, a: Tensor, *, out: Tensor | None = None) -> Tensor:
            return linear_recurrence(x, None, a, out=out)

    def fastest(function: Callable[[], object]) -> float:
        return min(timeit.repeat(function, number=500, repeat=30))

    kernel_seconds, empty_seconds = fastest(lambda: kernel(*addresses)), fastest(lambda: torch.empty_like(x))
    # The aim is 3 µs. Here multiples of an allocation of some 1.2 µs, for both slow down on a busy machine. Measured:
    # 1.3 and 2.3; before the short way, 3.3 and 4.1.
    assert fastest(lambda: call(x, second, out=y)) - kernel_seconds < 2.5 * empty_seconds
    assert fastest(lambda: call(x, second)) - kernel_seconds < 3.5 * empty_seconds
