"""RecurrenceStream: linear_recurrence as a stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import has_shape, shape_text, tensor_like
from .._errors import message
from .._library import needs_gradient
from ..ops.linear_recurrence.api import linear_recurrence
from ..ops.linear_recurrence.step import linear_recurrence_step
from ._stream import StateStream

_HALVES = (torch.float16, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    """A decay of 0.999 is 1 in bfloat16, and what is lost of a state is lost for ever: both are carried in float32."""
    return tensor.float() if tensor.dtype in _HALVES else tensor


class RecurrenceStream(StateStream):
    """y[i,n] = a[i,n] y[i-1,n] + x[i,n], going on from the y of the call before.

    Args:
        a: (D,), coefficients that are constant in time; or None, and each call brings its own: ``extend(x, a)`` with a
            (*batch_shape, L, D) or what broadcasts to it with a time axis, ``step(x, a)`` with a (*batch_shape, D) or
            what broadcasts to it.
        batch_shape: the leading axes of x; those of ``y_init`` where it is given.
        y_init: (*batch_shape, D), the y before the first sample; zeros if None. Needed where ``a`` is None, for its
            shape and dtype.

    State: (*batch_shape, D), the last y; float32 for half types. Outputs have the dtype that x, a and the state promote
    to, or that of x where it is a half type. Gradients flow through the state from chunk to chunk; assigning the
    detached state ends them there.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: coefficients given twice, or not at all.

    Cost: that of ``linear_recurrence``; a step is O(D).

    >>> import torch, convscan
    >>> stream = convscan.stream.RecurrenceStream(torch.tensor([0.5]))
    >>> stream.extend(torch.tensor([[1.0], [2.0]])).flatten().tolist(), stream.step(torch.tensor([3.0])).tolist()
    ([1.0, 2.5], [4.25])
    """

    def __init__(
        self, a: Tensor | None = None, batch_shape: Sequence[int] = (), *, y_init: Tensor | None = None
    ) -> None:
        name = "RecurrenceStream"
        if a is None and y_init is None:
            remedy = "Pass y_init=torch.zeros(*batch_shape, D) where a comes with each call"
            raise TypeError(message(name, "a or y_init must be given", "neither", remedy))
        if y_init is None:
            assert a is not None
            if a.ndim != 1:
                remedy = "Coefficients that vary in time come with each call: extend(x, a)"
                raise ValueError(message(name, "a must have the shape (D,)", shape_text(a.shape), remedy))
            y_init = torch.zeros(*batch_shape, *a.shape, dtype=a.dtype, device=a.device)
        elif a is not None:
            tensor_like(name, "a", a, y_init)
            has_shape(name, "a", a, y_init.shape[-1:], "(D,)")
        super().__init__(y_init.shape[:-1], _wide(y_init).clone())
        self._a = None if a is None else _wide(a.detach() if not a.requires_grad else a)

    def _coefficients(self, a: tuple[Tensor, ...]) -> Tensor:
        if len(a) != (self._a is None):
            expectation = "a must be given once, to the constructor or with each call"
            raise TypeError(message("RecurrenceStream", expectation, f"{len(a)} with this call"))
        return _wide(a[0]) if self._a is None else self._a

    def _advance(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y = linear_recurrence(_wide(x), self._state, self._coefficients(inputs))
        if y.shape[-2]:
            # A copy: a view would hold on to all of y, and the caller may write over it.
            self._state = y[..., -1, :].clone()
        return y.to(x.dtype) if x.dtype in _HALVES else y

    def _advance_one(self, x: Tensor, *inputs: Tensor) -> Tensor:
        tensor_like("RecurrenceStream", "x", x, self._state)
        has_shape("RecurrenceStream", "x", x, self._state.shape, "(*batch_shape, D)")
        a = self._coefficients(inputs)
        is_alike = _wide(x).dtype == a.dtype == self._state.dtype
        if not x.is_cpu and is_alike and not needs_gradient(x, a, self._state):
            y = linear_recurrence_step(self._state, _wide(x), a)  # one kernel, in place
        else:
            y = torch.addcmul(_wide(x), a, self._state)
            self._state = y.clone()
        return y.to(x.dtype) if x.dtype in _HALVES else y

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> RecurrenceStream:
        other = self._with(self.batch_shape, lambda tensor: _wide(tensor.to(device=device, dtype=dtype, copy=True)))
        other._a = None if self._a is None else _wide(self._a.to(device=device, dtype=dtype))
        return other
