"""Calls that are prepared once: from the arguments of an operator to the function that runs its kernel.

Selection and preparation look at sizes, strides, dtypes, threads and settings only, so that their outcome is kept for
the next call that agrees in these. ``run_prepared`` is the whole way of such a call from a public function to its
kernel, 1 to 2 µs; it returns None for what has to go through PyTorch's dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._dispatch import choose, prepared_cache, settings

_HUGE_PAGE = 2 << 20  # bytes

PreparedCall = tuple[Callable[..., None], Callable[[Tensor], Tensor] | None]
run_prepared = _native.run_prepared


def in_huge_pages(y: Tensor) -> Tensor:
    """y, not yet written to, to be in huge pages where it is large: faults cost more than sums."""
    if y.is_cpu and y.nbytes >= _HUGE_PAGE:
        _native.advise_huge_pages(y.data_ptr(), y.nbytes)
    return y


def empty_like(x: Tensor) -> Tensor:
    """Memory for a result in the memory order of x."""
    return in_huge_pages(torch.empty_like(x))


def _device_key(variant: Any, tensors: tuple[Tensor | None, ...]) -> Any:
    """What a prepared call depends on, of tensors that the native module does not look at."""
    shapes = (None if t is None else (t.device, t.dtype, t.shape, t.stride()) for t in tensors)
    return (variant, settings(), *shapes)


class Calls:
    """The prepared calls of one operator.

    A call is a ``variant`` (whatever it depends on beside its tensors) with the tensors in the order of the functions
    that rows prepare, the output last.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.prepared: dict[Any, PreparedCall] = prepared_cache()

    def run(self, variant: Any, *tensors: Tensor | None, problem: Callable[[], Any], strict: bool = True) -> None:
        """Selects, prepares and runs; remembers what it prepared."""
        key = _native.call_key(variant, *tensors)
        if key is None and tensors[0] is not None and not tensors[0].is_cpu:
            key = _device_key(variant, tensors)
        known = self.prepared.get(key)
        if known is not None:
            return known[0](*tensors)
        described = problem()
        run = choose(self.op, described, strict=strict).prepare(described)
        run(*tensors)
        if key is None:
            return None
        self.prepared[key] = (run, None)
        x, y = tensors[0], tensors[-1]
        assert x is not None
        assert y is not None
        if y.is_cpu and y.stride() == torch.empty_like(x, device="meta").stride():
            fresh = empty_like if y.nbytes >= _HUGE_PAGE else torch.empty_like
            self.prepared[_native.call_key(variant, *tensors[:-1], None)] = (run, fresh)
        return None
