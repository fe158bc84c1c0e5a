"""Filters that a layer keeps, with their spectra, while nothing they are made of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._gpu import Held, is_capturing
from .._library import is_watched
from ..ops.causal_conv.spectrum import FilterSpectrum

_SIMPLE = (bool, int, float, str, type(None))
# A plain variable: Dynamo traces no other. Exporting is the work of one thread.
_constant = False


@contextmanager
def constant_filters() -> Iterator[None]:
    """Inside, traced calls take the filters that the calls before them kept, as constants of what is traced."""
    global _constant
    before, _constant = _constant, True
    try:
        yield
    finally:
        _constant = before


class KeptFilters:
    """The filters of the last call of a layer without gradients in evaluation, made again when the layer has changed.

    A copy or a pickle of the layer starts with none.
    """

    def __init__(self) -> None:
        self._entry: tuple[list[Any], Any, list[FilterSpectrum]] | None = None
        self._captured = Held()

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptFilters:
        return KeptFilters()

    def __reduce__(self) -> tuple[type[KeptFilters], tuple[()]]:
        return KeptFilters, ()

    def drop(self) -> None:
        """Forgets the filters."""
        self._entry = None

    def filters(
        self, layer: torch.nn.Module, length: int, variant: Any, make: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor | FilterSpectrum]:
        """``make()``, filters for signals of ``length``; kept where that is allowed, and then transformed once.

        ``make`` may depend on ``variant``, on the layer's parameters, buffers, and attributes that are numbers or text.
        """
        if _constant and self._entry is not None and is_watched():
            _, kind, kept = self._entry
            if kind == variant and length <= kept[0].length:  # taps that no sample meets do no harm
                return [one.h for one in kept]
        if layer.training or torch.is_grad_enabled() or is_watched() or length == 0:
            return make()
        made_of = _made_of(layer)
        if made_of is None:
            return make()
        is_captured = any(is_capturing(one) for one in made_of if isinstance(one, Tensor))
        if self._entry is not None:
            before, kind, kept = self._entry
            # Longer ones would serve as well, but a result is not to depend on the calls before.
            if kept[0].length == length and kind == variant and _same(before, made_of):
                if is_captured:
                    self._captured.hold(kept)
                return kept
        if is_captured:  # what is made now has no values before the graph is replayed
            return make()
        with torch.inference_mode(False), torch.no_grad():  # inference tensors would not tell when they change
            kept = [FilterSpectrum(h, length) for h in make()]
        self._entry = (made_of, variant, kept)
        return kept


def _made_of(layer: torch.nn.Module) -> list[Any] | None:
    """All that changes when the layer does; None where that cannot be told."""
    parts: list[Any] = []
    for module in layer.modules():
        parts += [value for value in vars(module).values() if isinstance(value, _SIMPLE)]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            if tensor.is_inference() or not (tensor.is_cpu or tensor.is_cuda):
                return None
            parts += [tensor, tensor._version, tensor.data_ptr()]
    return parts


def _same(before: list[Any], now: list[Any]) -> bool:
    if len(before) != len(now):
        return False
    return all(a is b if isinstance(a, Tensor) else a == b for a, b in zip(before, now, strict=True))
