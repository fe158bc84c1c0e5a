"""What all layers share: one way to run whole sequences, chunks of them, and single samples."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .._checks import shape_text, signal
from .._errors import message

State = TypeVar("State")

HALF_TYPES = (torch.float16, torch.bfloat16)


class SequenceLayer(torch.nn.Module, Generic[State]):
    """y, next_state = layer(x, state): a causal map from (..., L, D) to (..., L, D).

    Without a state the sequence starts from rest and ``next_state`` is None, for nothing has to be kept. With one, the
    output continues the sequence that the state stands for: chunks with the state carried from each to the next give
    what the whole gives. ``step`` does so for one sample. States are never changed in place; a state kept is a point to
    which generation can return.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = at_least(type(self).__name__, "d_model", d_model, 1)

    @abstractmethod
    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> State:
        """The state before the first sample: zeros, on the device of the parameters unless ``device`` is given."""

    @abstractmethod
    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """``forward`` on a checked x."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """x (..., L, D) to (y, next_state), y with the shape and dtype of x; next_state is None without a state."""
        self._check(x)
        return self._run(x, state)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One sample x (..., D) and the state before it to (y, state after it), y (..., D)."""
        y, next_state = self(x.unsqueeze(-2), state)
        return y.squeeze(-2), next_state

    def setup_step(self) -> None:
        """Computes once what ``step`` would compute anew for each sample; to be called again when parameters change."""
        for module in self.children():
            if isinstance(module, SequenceLayer):
                module.setup_step()

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        signal(name, "x", x)
        if x.shape[-1] != self.d_model:
            expectation = f"x must have the shape (..., L, D) = (..., L, {self.d_model})"
            raise ValueError(message(name, expectation, shape_text(x.shape), "Channels are the last axis"))

    def _check_state(self, state: Tensor, x: Tensor, *shape: int) -> None:
        """A state has the leading axes of x and then ``shape``."""
        expected = (*x.shape[:-2], *shape)
        if tuple(state.shape) != tuple(expected):
            name = type(self).__name__
            remedy = f"default_state{shape_text(x.shape[:-2])} makes one"
            raise ValueError(
                message(name, f"state must have the shape {shape_text(expected)}", shape_text(state.shape), remedy)
            )


def at_least(layer: str, name: str, value: int, least: int) -> int:
    """A size of a layer."""
    if value < least:
        raise ValueError(message(layer, f"{name} must be at least {least}", value))
    return value


def carry(state: Tensor, x: Tensor) -> Tensor:
    """The last samples of ``state`` followed by x, as many as ``state`` has: the state after x."""
    steps, length = state.shape[-2], x.shape[-2]
    fresh = min(steps, length)
    # Of each only what is kept, so that the state does not hold on to the memory of a long x.
    return torch.cat([state.narrow(-2, fresh, steps - fresh), x.narrow(-2, length - fresh, fresh)], -2)


def tail(x: Tensor, steps: int) -> Tensor:
    """The last ``steps`` samples, or all where there are no more."""
    return x.narrow(-2, x.shape[-2] - min(steps, x.shape[-2]), min(steps, x.shape[-2]))


def last(y: Tensor, state: Tensor) -> Tensor:
    """The state after y: its last sample, or the state before where y is empty."""
    # A copy: a view would hold on to all of y.
    return y[..., -1, :].clone() if y.shape[-2] > 0 else state


def wide(tensor: Tensor) -> Tensor:
    """float32 for half types. A decay of 0.999 is 1 in bfloat16, so recurrences are carried in float32."""
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor
