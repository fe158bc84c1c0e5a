"""The protocol of streams, and what those share whose whole state is a few tensors."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._checks import shape_text
from .._errors import message

Self = TypeVar("Self", bound="Stream")
Index = Sequence[int] | Tensor


class Stream(ABC):
    """y = stream.extend(x): the operator goes on where it stopped, so that any split of a sequence gives what the whole
    gives, to the operator's own rounding.

    ``extend`` takes a chunk of any length, (*batch_shape, L, ...), also an empty one, ``step`` a single sample without
    the time axis. Everything a stream knows of the past is its ``state``; assigning an earlier or another stream's
    state goes on from there. A stream is changed by ``extend``, ``step``, ``reset``, ``rollback`` and by assigning
    ``state``; all else returns another one and shares nothing that changes with it.

    Serving: the first of ``batch_shape`` are sequences. ``select`` picks, repeats and reorders them, ``drop`` removes
    some, ``merge`` puts those of several streams behind one another.

    Speculative decoding: ``checkpoint()`` allows ``rollback(k)``, which undoes the last k samples, as often as wanted,
    but never back beyond the checkpoint.

    Streams pickle, and ``to`` moves them. One stream must not be used by two threads at the same time.
    """

    batch_shape: tuple[int, ...]

    @abstractmethod
    def extend(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """The outputs for a chunk of inputs, (*batch_shape, L, ...)."""

    @abstractmethod
    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """The output for one sample, without the time axis."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """All that is known of the past, as a copy, in the shape that the operator itself takes it in."""

    @state.setter
    @abstractmethod
    def state(self, state: Any) -> None: ...

    @abstractmethod
    def reset(self) -> None:
        """Back to before the first sample, and forgets the checkpoint."""

    @abstractmethod
    def clone(self: Self) -> Self:
        """A stream at the same point that goes on by itself."""

    @abstractmethod
    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The stream on another device or with another dtype."""

    @abstractmethod
    def select(self: Self, index: Index) -> Self:
        """A stream of the sequences that ``index`` names, in its order; the same one may be named several times."""

    @abstractmethod
    def checkpoint(self) -> None:
        """Marks this point as the furthest that ``rollback`` may go back to."""

    @abstractmethod
    def rollback(self, steps: int) -> None:
        """Undoes the last ``steps`` samples, all since the checkpoint at the most."""

    @classmethod
    @abstractmethod
    def merge(cls: type[Self], streams: Sequence[Self]) -> Self:
        """The sequences of several streams of one operator behind one another."""

    def drop(self: Self, index: Index) -> Self:
        """A stream without the sequences that ``index`` names."""
        kept = torch.ones(self._sequences("drop"), dtype=torch.bool)
        kept[torch.as_tensor(index, dtype=torch.long, device="cpu")] = False
        return self.select(kept.nonzero().flatten())

    def _sequences(self, function: str) -> int:
        """How many sequences the first axis has."""
        if not self.batch_shape:
            name = f"{type(self).__name__}.{function}"
            raise ValueError(message(name, "batch_shape must have an axis of sequences", "()", "Pass batch_shape=(1,)"))
        return self.batch_shape[0]

    def _positions(self, index: Index) -> Tensor:
        """``index`` as a tensor, counted from the front."""
        count = self._sequences("select")
        positions = torch.as_tensor(index, dtype=torch.long, device="cpu")
        if positions.ndim != 1 or bool(((positions < -count) | (positions >= count)).any()):
            name = f"{type(self).__name__}.select"
            raise IndexError(message(name, f"index must be a list of sequences -{count} <= i < {count}", index))
        return positions % count if count else positions

    def _refuse_rollback(self, steps: int, most: int | None, remedy: str = "") -> None:
        """Steps that can be undone; ``most`` is None without a checkpoint."""
        name = f"{type(self).__name__}.rollback"
        if most is None:
            raise RuntimeError(message(name, "there must be a checkpoint", "none", "Call checkpoint() before"))
        if not 0 <= steps <= most:
            raise ValueError(
                message(name, f"steps must be from 0 to {most}, those since the checkpoint", steps, remedy)
            )


def same_sequences(streams: Sequence[Stream], cls: type[Stream]) -> tuple[int, ...]:
    """The batch shape of merged streams, which must all be of one class."""
    name = f"{cls.__name__}.merge"
    if not streams or any(type(stream) is not cls for stream in streams):
        kinds = ", ".join(type(stream).__name__ for stream in streams) or "none"
        raise TypeError(message(name, f"streams must be at least one {cls.__name__}", kinds))
    shapes = {stream.batch_shape[1:] for stream in streams}
    if len(shapes) > 1:
        text = ", ".join(shape_text(stream.batch_shape) for stream in streams)
        raise ValueError(message(name, "batch shapes must agree but for their first axis", text))
    return (sum(stream._sequences("merge") for stream in streams), *streams[0].batch_shape[1:])


def tree_map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """``function`` of the tensors at the same place of states: tensors, or tuples or lists of states."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    make = getattr(type(first), "_make", type(first))  # of named tuples
    return make(tree_map(function, *parts) for parts in zip(*trees, strict=True))


class StateStream(Stream):
    """A stream of which ``_state`` is all that changes: tensors of shape (*batch_shape, ...).

    To roll back, it begins again at the checkpoint: the inputs since then are kept, and as many as stay are repeated.
    """

    time_axis = -2

    _state: Any
    _mark: Any = None
    _since: list[tuple[Tensor, ...]]

    def __init__(self, batch_shape: Sequence[int], state: Any) -> None:
        self.batch_shape = tuple(batch_shape)
        self._state = state
        self._since = []

    @abstractmethod
    def _advance(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """``extend`` without keeping record."""

    @abstractmethod
    def _advance_one(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """``step`` without keeping record."""

    def extend(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y = self._advance(x, *inputs)
        if self._mark is not None:
            self._since.append(tuple(tensor.detach().clone() for tensor in (x, *inputs)))
        return y

    def step(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y = self._advance_one(x, *inputs)
        if self._mark is not None:
            self._since.append(tuple(t.detach().unsqueeze(self.time_axis).clone() for t in (x, *inputs)))
        return y

    @property
    def state(self) -> Any:
        return tree_map(torch.clone, self._state)

    @state.setter
    def state(self, state: Any) -> None:
        def fits(new: Tensor, old: Tensor) -> Tensor:
            if not isinstance(new, Tensor) or new.shape != old.shape:
                name = f"{type(self).__name__}.state"
                got = shape_text(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise ValueError(message(name, f"the state must have the shape {shape_text(old.shape)}", got))
            return new.to(old).clone()

        self._state = tree_map(fits, state, self._state)
        self._forget()

    def _forget(self) -> None:
        self._mark, self._since = None, []

    def reset(self) -> None:
        self._state = tree_map(torch.zeros_like, self._state)
        self._forget()

    def _with(self: Self, batch_shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Self:
        """Another stream, with every tensor of the state changed and no checkpoint."""
        other = copy.copy(self)
        other.batch_shape = batch_shape
        assert isinstance(other, StateStream)
        assert isinstance(self, StateStream)
        other._state = tree_map(change, self._state)
        other._forget()
        return other

    def clone(self: Self) -> Self:
        assert isinstance(self, StateStream)
        other = self._with(self.batch_shape, torch.clone)
        if self._mark is not None:
            other._mark, other._since = tree_map(torch.clone, self._mark), list(self._since)
        return other

    def select(self: Self, index: Index) -> Self:
        positions = self._positions(index)
        assert isinstance(self, StateStream)
        shape = (len(positions), *self.batch_shape[1:])
        return self._with(shape, lambda tensor: tensor.index_select(0, positions.to(tensor.device)))

    @classmethod
    def merge(cls: type[Self], streams: Sequence[Self]) -> Self:
        shape = same_sequences(streams, cls)
        merged = streams[0]
        assert isinstance(merged, StateStream)
        states = [stream._state for stream in streams if isinstance(stream, StateStream)]
        merged = merged._with(shape, torch.clone)
        merged._state = tree_map(lambda *tensors: torch.cat(tensors), *states)
        return merged

    def checkpoint(self) -> None:
        self._mark, self._since = tree_map(torch.clone, self._state), []

    def rollback(self, steps: int) -> None:
        taken = sum(inputs[0].shape[self.time_axis] for inputs in self._since)
        self._refuse_rollback(steps, None if self._mark is None else taken)
        kept = taken - steps
        self._state = tree_map(torch.clone, self._mark)
        since, self._since = self._since, []
        for inputs in since:
            length = min(kept, inputs[0].shape[self.time_axis])
            kept -= length
            if length:
                self.extend(*(tensor.narrow(self.time_axis, 0, length) for tensor in inputs))
