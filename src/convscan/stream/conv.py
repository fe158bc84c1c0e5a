"""ConvStream and BlockConvStream: convolutions with filters of any length while the signal comes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _native
from .._calls import _HUGE_PAGE, PreparedCall, empty_like, run_prepared
from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from .._layout import Triple, dtype_name, fold
from .._library import needs_gradient
from ..ops.causal_conv.api import DTYPES, causal_conv
from ._stream import Index, Stream, same_sequences

SCHEDULES = ("growing", "spread")

# Chunks of at least a quarter of the filter (and 64 samples) go through causal_conv, after which the blocks of the
# state are made anew: that costs as much as the stream's own way at K/4 for K = 65536 and at K/8 for 4096.
_BULK_PART, _BULK_LENGTH = 4, 64

# Calls that a stream remembers, one for each length of a chunk and memory order.
_MOST_CALLS = 64

Self = TypeVar("Self", bound="OnlineConvolution")


class OnlineConvolution(Stream):
    """What streams of convolutions share: a filter prepared once, and a state in native memory with its clock."""

    def __init__(
        self,
        h: Tensor,
        batch_shape: Sequence[int],
        channels: int | None,
        initial_state: Tensor | None,
        max_rollback: int,
        schedule: str,
        block: int = 0,
    ) -> None:
        name = type(self).__name__
        tensor_like(name, "h", h, h)
        if h.ndim != 2 or h.shape[0] == 0:
            raise ValueError(message(name, "h must have the shape (K, D) or (K, 1), K >= 1", shape_text(h.shape)))
        if h.dtype not in DTYPES:
            names = ", ".join(map(dtype_name, DTYPES))
            raise TypeError(message(name, f"h must have one of the dtypes {names}", dtype_name(h.dtype)))
        if h.device.type != "cpu":
            raise ValueError(message(name, "h must be on the CPU", h.device, "Move it with h.cpu()"))
        self.channels = h.shape[1] if channels is None else channels
        if self.channels != h.shape[1] and h.shape[1] != 1:
            expectation = f"channels must be those of h, {h.shape[1]}"
            raise ValueError(message(name, expectation, channels, "Only a filter (K, 1) serves any number"))
        if max_rollback < 0:
            raise ValueError(message(name, "max_rollback must not be negative", max_rollback))
        self.batch_shape = tuple(batch_shape)
        self.max_rollback = max_rollback
        # The stream's own, for what it is made into is not made again.
        self._h = h.detach().clone()
        self._schedule, self._block = schedule, block
        self._mark: int | None = None
        self._prepare()
        memory = torch.zeros(*self.batch_shape, self._state_size, dtype=self._kind)
        self._own(memory, torch.zeros(self._clock_size, dtype=torch.int64))
        if initial_state is not None:
            self.state = initial_state

    @property
    def dtype(self) -> torch.dtype:
        """That of the filter, the inputs and the outputs."""
        return self._h.dtype

    def _prepare(self) -> None:
        """Everything that follows from the filter and its schedule."""
        self._kind = torch.float64 if self._h.dtype == torch.float64 else torch.float32
        shares = self._h.shape[1] != self.channels
        # Whole blocks, where there are blocks.
        most = -(-self.max_rollback // self._block) * self._block if self._block else self.max_rollback
        fixed = (self._h.shape[0], shares, self._block, most)
        self._arguments = (self._schedule, dtype_name(self._h.dtype), self.channels, fixed)
        call = self._unbound(1, 0)
        filter_size, self._state_size, self._clock_size, self._lanes, self._history = call.sizes()
        self._filter = torch.empty(filter_size, dtype=self._kind)
        call.bind(self._filter, None, None)
        call.prepare(self._h, self._h.stride(0), 0 if shares else self._h.stride(1))

    def _own(self, memory: Tensor, clock: Tensor) -> None:
        """Memory of this stream alone. Calls hold its addresses: they go where it goes."""
        self._memory, self._clock = memory, clock
        self._calls: dict[Any, PreparedCall] = {}

    def _unbound(
        self, batch: int, length: int, x_strides: Triple = (0, 0, 0), y_strides: Triple = (0, 0, 0)
    ) -> _native.OnlineCall:
        schedule, dtype, channels, (taps, shares, block, most) = self._arguments
        return _native.OnlineCall(
            schedule, dtype, batch, length, channels, taps, shares, block, most, x_strides, y_strides
        )

    def _call(self, *arguments: Any) -> _native.OnlineCall:
        call = self._unbound(*arguments)
        call.bind(self._filter, self._memory, self._clock)
        return call

    # ---- samples ----

    def extend(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y = run_prepared(self._calls, "extend", x, None)
        return self._extend(x) if y is None else y

    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y = run_prepared(self._calls, "step", x, None)
        return self._step(x) if y is None else y

    def _step(self, x: Tensor) -> Tensor:
        self._check("step", x, (*self.batch_shape, self.channels), "(*batch_shape, D)")
        return self._run("step", x.resolve_neg())

    def _extend(self, x: Tensor) -> Tensor:
        name = f"{type(self).__name__}.extend"
        tensor_like(name, "x", x, self._h)
        length = x.shape[-2] if x.ndim >= 2 else 0
        self._check("extend", x, (*self.batch_shape, length, self.channels), "(*batch_shape, L, D)")
        if self._block and length % self._block:
            remedy = "Collect samples until there are as many, or take a ConvStream"
            raise ValueError(message(name, f"L must be a multiple of the block, {self._block}", length, remedy))
        if length >= max(_BULK_LENGTH, self._h.shape[0] // _BULK_PART):
            y = causal_conv(x.detach(), self._h, initial_state=self.state)
            self._take_in(x.detach().resolve_neg())
            return y
        return self._run("extend", x.resolve_neg())

    def _check(self, function: str, x: Tensor, shape: Sequence[int], meaning: str) -> None:
        name = f"{type(self).__name__}.{function}"
        tensor_like(name, "x", x, self._h)
        has_shape(name, "x", x, shape, meaning)
        if x.dtype != self.dtype:
            expectation = f"x must have the dtype of the filter, {dtype_name(self.dtype)}"
            remedy = "Convert it with x.to(stream.dtype), or the stream with stream.to(dtype=x.dtype)"
            raise TypeError(message(name, expectation, dtype_name(x.dtype), remedy))
        if needs_gradient(x):
            remedy = "Call under torch.no_grad(), or causal_conv with initial_state=stream.state"
            raise RuntimeError(message(name, "x must not need a gradient", "a tensor that requires grad", remedy))

    def _run(self, variant: str, x: Tensor) -> Tensor:
        """Runs a call, and remembers it for others like it."""
        y = empty_like(x)
        chunks = [x.unsqueeze(-2), y.unsqueeze(-2)] if variant == "step" else [x, y]
        leading = fold(chunks[0].shape[:-2], [chunk.stride()[:-2] for chunk in chunks])
        if leading.offsets is not None:
            # The state has one axis of sequences: axes of x that cannot be one are copied.
            return torch.empty_like(x).copy_(self._run(variant, x.contiguous()))
        strides = [(batch, c.stride(-2), c.stride(-1)) for batch, c in zip(leading.strides, chunks, strict=True)]
        call = self._call(leading.batch, chunks[0].shape[-2], *strides)
        call(x, y)
        if len(self._calls) >= _MOST_CALLS:
            self._calls.clear()
        if y.stride() == torch.empty_like(x, device="meta").stride():
            # Faults of large results are what huge pages are for.
            fresh = empty_like if y.nbytes >= _HUGE_PAGE else torch.empty_like
            self._calls[_native.call_key(variant, x, None)] = (call, fresh)
        return y

    def _take_in(self, x: Tensor) -> None:
        """The samples without outputs."""
        chunk = x.reshape(math.prod(self.batch_shape), *x.shape[-2:])
        call = self._call(chunk.shape[0], chunk.shape[1], (chunk.stride(0), chunk.stride(1), chunk.stride(2)))
        call(chunk, None)

    # ---- the state ----

    @property
    def state(self) -> Tensor:
        """The last K-1 inputs, (*batch_shape, K-1, D), oldest first: what causal_conv takes as ``initial_state``."""
        taps = self._h.shape[0]
        if self.channels == 0:
            return self._h.new_zeros(*self.batch_shape, taps - 1, 0)
        rows = (int(self._clock[0]) - (taps - 1) + torch.arange(taps - 1)) % self._history
        count = -(-self.channels // self._lanes)
        parts = self._memory.reshape(*self.batch_shape, count, self._state_size // count)
        ring = parts[..., : self._history * self._lanes]
        history = ring.reshape(*ring.shape[:-1], self._history, self._lanes)
        samples = history.index_select(-2, rows).movedim(-2, -3).flatten(-2)
        return samples[..., : self.channels].to(self.dtype)

    @state.setter
    def state(self, state: Tensor) -> None:
        name = f"{type(self).__name__}.state"
        tensor_like(name, "the state", state, self._h)
        has_shape(
            name, "the state", state, (*self.batch_shape, self._h.shape[0] - 1, self.channels), "(*batch_shape, K-1, D)"
        )
        self.reset()
        past = state.detach().to(self.dtype).resolve_neg()
        if self._block:  # whole blocks
            past = torch.nn.functional.pad(past, (0, 0, -past.shape[-2] % self._block, 0))
        self._take_in(past)

    def reset(self) -> None:
        self._memory.zero_()
        self._clock.zero_()
        self._mark = None

    def _with(self: Self, memory: Tensor) -> Self:
        """Another stream at the same point of time, without a checkpoint."""
        other = copy.copy(self)
        other._own(memory, self._clock.clone())
        other._mark = None
        return other

    def clone(self: Self) -> Self:
        other = self._with(self._memory.clone())
        other._mark = self._mark
        return other

    def select(self: Self, index: Index) -> Self:
        positions = self._positions(index)
        other = self._with(self._memory.index_select(0, positions))
        other.batch_shape = (len(positions), *self.batch_shape[1:])
        return other

    @classmethod
    def merge(cls: type[Self], streams: Sequence[Self]) -> Self:
        """The sequences of several streams with one filter behind one another.

        Streams at different points of time cost O(K log K): their blocks are made anew where all agree.
        """
        shape = same_sequences(streams, cls)
        first = streams[0]
        for other in streams[1:]:
            if other._arguments != first._arguments or not torch.equal(other._h, first._h):
                expectation = "streams must have one filter, schedule and max_rollback"
                raise ValueError(message(f"{cls.__name__}.merge", expectation, "different ones"))
        agree = all(torch.equal(stream._clock, first._clock) for stream in streams)
        size = first._state_size
        merged = first._with(
            torch.cat([stream._memory for stream in streams]) if agree else first._memory.new_zeros(*shape, size)
        )
        merged.batch_shape = shape
        if not agree:
            merged.state = torch.cat([stream.state for stream in streams])
        return merged

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        if device is not None and torch.device(device).type != "cpu":
            remedy = "Streams of convolutions run on the CPU"
            raise ValueError(message(f"{type(self).__name__}.to", "device must be the CPU", device, remedy))
        other = self.clone()
        if dtype is not None and dtype != self.dtype:
            other._h = self._h.to(dtype)
            other._prepare()
            other._own(self._memory.new_zeros(*self.batch_shape, other._state_size, dtype=other._kind), other._clock)
            other.state = self.state.to(dtype)
        return other

    def checkpoint(self) -> None:
        self._mark = int(self._clock[0])

    def rollback(self, steps: int) -> None:
        """Undoes the last ``steps`` samples, those since the checkpoint and ``max_rollback`` at the most.

        Costs nothing where a level's block is still the same or the one before, and that level's transforms otherwise.
        """
        position, highest = int(self._clock[0]), int(self._clock[1])
        since = None if self._mark is None else position - self._mark
        most = None if since is None else min(since, self.max_rollback - (highest - position))
        remedy = "" if most == since else f"Pass a larger max_rollback than {self.max_rollback}"
        self._refuse_rollback(steps, most, remedy)
        if self._block and steps % self._block:
            name = f"{type(self).__name__}.rollback"
            raise ValueError(message(name, f"steps must be a multiple of the block, {self._block}", steps))
        self._call(math.prod(self.batch_shape), 0).rewind(steps)

    def __getstate__(self) -> dict[str, Any]:
        # The filter is made of h again: it is nearly as large as the state, and faster made than read.
        return {name: value for name, value in self.__dict__.items() if name not in ("_filter", "_calls")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()
        self._own(self._memory, self._clock)


class ConvStream(OnlineConvolution):
    """y[i,n] = sum_k h[k,n] x[i-k,n], sample by sample or in chunks of any length, at once and without delay.

    A filter of up to 256 taps is summed directly. A longer one is cut into blocks that grow with the lag, convolved by
    FFTs of which those of past inputs are kept: a step costs amortised O(log² K) per channel, not O(K).

    Args:
        h: (K, D), or (K, 1), one filter for all channels; any K >= 1, in any memory order. It is read once.
        batch_shape: the leading axes of x.
        channels: D, where h is (K, 1); 1 if None.
        schedule: ``"growing"``, the least work: a level of blocks is computed at the moment its block is complete, so
            that now and then one step takes a transform of up to K/8 points. ``"spread"``: twice the work, every step
            doing an equal share of it, so that the longest takes hardly longer than the average: for deadlines.
        initial_state: (*batch_shape, K-1, D), the samples before the first, as in ``causal_conv``.
        max_rollback: how many samples ``rollback`` can undo.

    State: (*batch_shape, K-1, D), the last inputs, oldest first: ``causal_conv``'s ``initial_state``.

    dtypes: float32, float64, bfloat16, float16 (computed in float32); x has that of h.

    Raises:
        ValueError: a shape, device or schedule that does not fit.
        TypeError: an argument that is not a tensor, or a dtype that does not fit.
        RuntimeError: where a gradient is needed; ``causal_conv`` with ``initial_state=stream.state`` gives it.

    Memory, for a channel of a sequence: about 3.3 K numbers of state beyond 256 taps, K + ``max_rollback`` up to there,
    and 2.2 K for the filter, shared by sequences and clones; channels are padded to 16 of float32 (4 where there are
    no more), 8 and 2 of float64. Half types keep float32.

    Cost: amortised O(log² K) per sample and channel; long chunks go through ``causal_conv``, O(log L). Errors are those
    of an FFT of K points: relative to the energy of the last K samples.

    Source: W. G. Gardner, Efficient Convolution without Input-Output Delay, 1995; J. van der Hoeven, Relax, but Don't
    Be Too Lazy, 2002; C. Oncescu et al., Flash Inference: Near Linear Time Inference for Long Convolution Sequence
    Models and Beyond, 2024, arXiv 2410.12982.

    >>> import torch, convscan
    >>> h = torch.randn(5000, 8)
    >>> stream = convscan.stream.ConvStream(h, (2,))
    >>> x = torch.randn(2, 3000, 8)
    >>> parts = [stream.extend(x[:, :500]), stream.step(x[:, 500])[:, None], stream.extend(x[:, 501:])]
    >>> torch.allclose(torch.cat(parts, 1), convscan.causal_conv(x, h), atol=1e-3)
    True
    """

    def __init__(
        self,
        h: Tensor,
        batch_shape: Sequence[int] = (),
        *,
        channels: int | None = None,
        schedule: str = "growing",
        initial_state: Tensor | None = None,
        max_rollback: int = 64,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(message("ConvStream", f"schedule must be one of {SCHEDULES}", repr(schedule)))
        super().__init__(h, batch_shape, channels, initial_state, max_rollback, schedule)


class BlockConvStream(OnlineConvolution):
    """y[i,n] = sum_k h[k,n] x[i-k,n], in whole blocks of a fixed size: the callback of an audio device.

    The filter is cut into equal parts of one block, and the transform of each block of input is kept while the filter
    reaches back to it: every block costs the same. The latency is that of collecting a block, nothing is added to it.

    Args:
        h: (K, D), or (K, 1), one filter for all channels.
        block: samples of a block, a power of two, at least 16.
        batch_shape, channels, initial_state, max_rollback: as in ``ConvStream``; whole blocks are rolled back.

    ``extend`` takes any number of whole blocks; ``step`` refuses.

    State, dtypes, errors: as ``ConvStream``. Memory: 3 K and some blocks for a channel of a sequence, and 2 K for the
    filter.

    Cost: O(log block + K / block) per sample and channel.

    Source: G. Garcia, Optimal Filter Partition for Efficient Convolution with Short Input/Output Delay, 2002.

    >>> import torch, convscan
    >>> h = torch.randn(48000, 2)
    >>> stream = convscan.stream.BlockConvStream(h, 256)
    >>> stream.extend(torch.randn(256, 2)).shape
    torch.Size([256, 2])
    """

    def __init__(
        self,
        h: Tensor,
        block: int,
        batch_shape: Sequence[int] = (),
        *,
        channels: int | None = None,
        initial_state: Tensor | None = None,
        max_rollback: int = 0,
    ) -> None:
        if block < 16 or block & (block - 1):
            remedy = "A ConvStream takes chunks of any length"
            raise ValueError(message("BlockConvStream", "block must be a power of two, at least 16", block, remedy))
        super().__init__(h, batch_shape, channels, initial_state, max_rollback, "uniform", block)

    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Refuses: a block is the least that this stream takes."""
        remedy = "Collect a block for extend, or take a ConvStream"
        raise ValueError(message("BlockConvStream.step", f"samples must come in blocks of {self._block}", 1, remedy))
