"""Operators of one step of generation, which overwrite their state: cases, arguments and truth from what the operator
of the whole sequence has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .problem import Operator, by_formula

_TAGS = frozenset({"operator"})


@dataclass(frozen=True)
class StepCase:
    """One step of batch 1 at the sizes of a case of the whole sequence, whose ``state`` has this shape."""

    whole: Any
    state: tuple[int, ...]
    tags: frozenset[str] = _TAGS

    @property
    def name(self) -> str:
        """That of the whole."""
        return str(self.whole.name)

    @property
    def source(self) -> str:
        """That of the whole."""
        return str(self.whole.source)

    @property
    def dtype(self) -> str:
        """That of the whole."""
        return str(self.whole.dtype)

    @property
    def bytes(self) -> int:
        """What the whole moves for one step, and the state, read and written."""
        return int(self.whole.bytes + 2 * getattr(torch, self.dtype).itemsize * torch.Size(self.state).numel())

    @property
    def flops(self) -> int:
        """Those of the whole for one step."""
        return int(self.whole.flops)


def step_operator(
    sequence: Operator,
    *,
    short: str,
    function: Callable[..., Tensor],
    timed: Sequence[str],
    cases: Sequence[Any],
    state: Callable[[Any], tuple[int, ...]],
    formula: Callable[..., Tensor],
    start: Callable[[Tensor], Any] = lambda state: state,
    before: str = "initial_state",
) -> Operator:
    """The profiler's view of ``function(state, ...)``, whose arguments in ``timed`` have a time axis in ``sequence``.

    ``state(case)`` is the shape of the state, ``start`` makes of random numbers of this shape what the function takes,
    and ``formula`` computes y from the same arguments. The sequence's own start is its argument ``before``.
    """
    first = timed[0]

    def inputs(case: StepCase, seed: int) -> dict[str, Any]:
        whole = sequence.inputs(case.whole, seed)
        whole.pop(before, None)
        generator = torch.Generator().manual_seed(seed + 1)
        numbers = torch.randn(case.state, generator=generator, dtype=getattr(torch, case.dtype))
        arguments = {name: value.select(1, 0).contiguous() if name in timed else value for name, value in whole.items()}
        return {"state": start(numbers), **arguments}

    def shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
        wholes = {name: value.unsqueeze(1) if name in timed else value for name, value in arguments.items()}
        return sequence.shape(wholes)

    return Operator(
        name=f"{sequence.name}_step",
        short=short,
        cases=tuple(StepCase(replace(case, length=1), state(case)) for case in cases),
        inputs=inputs,
        function=function,
        differentiable=(),
        shape=shape,
        axes=sequence.axes,
        group=lambda sizes: "steps of generation",
        answer=by_formula(formula),
        bound=sequence.bound,
        bandwidth="copy",
        explain=None,
        outputs=lambda arguments: (torch.empty_like(arguments[first], device="meta"),),
        directions=lambda case: ("forward",),
        overwrites=("state",),
    )


def read(state: Tensor, q: Tensor) -> Tensor:
    """q^T S for every head: (B, H, K) of (B, H, K, V)."""
    return (q.unsqueeze(-2) @ state).squeeze(-2)
