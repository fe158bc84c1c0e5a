"""OperatorStream: an operator that has a state, as a stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import message
from ..nn._layer import carry
from ..ops.allpole_filter.api import allpole_filter
from ..ops.gated_delta_rule.api import gated_delta_rule_step, gated_delta_rule_with_state
from ..ops.gated_linear_attention.api import gated_linear_attention_step, gated_linear_attention_with_state
from ..ops.mlstm.api import mlstm_step, mlstm_with_state
from ..ops.selective_scan.api import selective_scan_step, selective_scan_with_state
from ..ops.ssd_scan.api import ssd_scan_step, ssd_scan_with_state
from ._stream import StateStream, tree_map


class _Operator(NamedTuple):
    """The function for chunks, that for samples, which overwrites the state, and the tensors that have a time axis."""

    with_state: Callable[..., Any]
    step: Callable[..., Any]
    inputs: tuple[str, ...]


def _allpole_with_state(x: Tensor, a: Tensor, *, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    y = allpole_filter(x, a, initial_state=initial_state)
    return y, carry(initial_state, y.to(initial_state.dtype))


def _allpole_step(state: Tensor, x: Tensor, a: Tensor) -> Tensor:
    # Coefficients that vary come without the time axis, as x does.
    a = a if a.ndim == 2 else a.unsqueeze(-3)
    y, after = _allpole_with_state(x.unsqueeze(-2), a, initial_state=state)
    state.copy_(after)
    return y.squeeze(-2)


OPERATORS = {
    "allpole_filter": _Operator(_allpole_with_state, _allpole_step, ("x", "a")),
    "gated_delta_rule": _Operator(gated_delta_rule_with_state, gated_delta_rule_step, ("q", "k", "v", "g", "beta")),
    "gated_linear_attention": _Operator(
        gated_linear_attention_with_state, gated_linear_attention_step, ("q", "k", "v", "g")
    ),
    "mlstm": _Operator(mlstm_with_state, mlstm_step, ("q", "k", "v", "i", "f")),
    "selective_scan": _Operator(selective_scan_with_state, selective_scan_step, ("u", "delta", "B", "C", "z")),
    "ssd_scan": _Operator(ssd_scan_with_state, ssd_scan_step, ("x", "dt", "B", "C", "z")),
}

# Arguments that the stream gives itself, or that make no sense in it.
_OURS = ("initial_state", "cu_seqlens")


class OperatorStream(StateStream):
    """y, state = <operator>_with_state(..., initial_state=state) for chunks, <operator>_step(state, ...) for samples.

    Args:
        operator: ``"allpole_filter"``, ``"gated_delta_rule"``, ``"gated_linear_attention"``, ``"mlstm"``,
            ``"selective_scan"`` or ``"ssd_scan"``.
        state: the state before the first sample, as the operator takes it: zeros, or one that it returned. Copied.
        batch_shape: the leading axes of state and inputs.
        constants: arguments of the operator that are the same in every call, such as A, D or scale.

    ``extend`` and ``step`` take the tensors that have a time axis, in the operator's order and without those that are
    constants: (x, a), (q, k, v, g, beta), (q, k, v, g), (q, k, v, i, f), (u, delta, B, C) or (x, dt, B, C), the last
    two with z where wanted.

    State, dtypes, errors and cost are the operator's. Steps have no gradient, for they overwrite the state.

    >>> import torch, convscan
    >>> A = -torch.ones(4, 2)
    >>> stream = convscan.stream.OperatorStream("selective_scan", torch.zeros(1, 4, 2), (1,), A=A)
    >>> u, B = torch.randn(1, 9, 4), torch.randn(1, 9, 2)
    >>> y = torch.cat([stream.extend(u[:, :8], u[:, :8], B[:, :8], B[:, :8]),
    ...                stream.step(u[:, 8], u[:, 8], B[:, 8], B[:, 8])[:, None]], 1)
    >>> torch.allclose(y, convscan.selective_scan(u, u, A, B, B), atol=1e-5)
    True
    """

    def __init__(self, operator: str, state: Any, batch_shape: Sequence[int] = (), **constants: Any) -> None:
        if operator not in OPERATORS:
            expectation = f"operator must be one of {', '.join(OPERATORS)}"
            raise ValueError(message("OperatorStream", expectation, repr(operator)))
        self._operator = operator
        self._constants = constants
        known = OPERATORS[operator]
        parameters = [name for name in inspect.signature(known.with_state).parameters if name not in _OURS]
        unknown = [name for name in constants if name not in parameters]
        if unknown:
            expectation = f"constants must be arguments of {operator}: {', '.join(parameters)}"
            raise TypeError(message("OperatorStream", expectation, ", ".join(unknown)))
        self._names = [name for name in known.inputs if name not in constants]
        super().__init__(batch_shape, tree_map(torch.clone, state))
        # The same for all inputs, of which some have more axes than others.
        self.time_axis = len(self.batch_shape)

    def _named(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        if len(inputs) > len(self._names):
            expectation = f"inputs must be at most {', '.join(self._names)}"
            raise TypeError(message("OperatorStream", expectation, f"{len(inputs)} of them"))
        return {**self._constants, **dict(zip(self._names, inputs, strict=False))}

    def _advance(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y, self._state = OPERATORS[self._operator].with_state(**self._named((x, *inputs)), initial_state=self._state)
        return y  # type: ignore[no-any-return]

    def _advance_one(self, x: Tensor, *inputs: Tensor) -> Tensor:
        y: Tensor = OPERATORS[self._operator].step(self._state, **self._named((x, *inputs)))
        return y

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OperatorStream:
        def moved(value: Any) -> Any:
            return value.to(device=device, dtype=dtype) if isinstance(value, Tensor) else value

        other = self._with(self.batch_shape, moved)
        other._constants = {name: moved(value) for name, value in self._constants.items()}
        return other
