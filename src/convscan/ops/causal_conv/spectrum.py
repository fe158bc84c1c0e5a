"""FilterSpectrum: filters whose transforms are kept from call to call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._calls import in_huge_pages
from ..._checks import shape_text
from ..._errors import message
from . import cpu
from .problem import Kept

STORAGES = (None, torch.bfloat16)


class FilterSpectrum(torch.nn.Module):
    """Filters h that ``causal_conv(x, FilterSpectrum(h, length))`` transforms once for all signals of up to ``length``.

    The transform is made by the first call that needs it, and again when h has changed: in place, by assignment, by
    ``load_state_dict`` or by ``to``. It is neither pickled nor part of the ``state_dict``, which have h alone. Reading
    the filters' spectrum replaces a third of the work of a convolution whose filters are as long as its signals.

    Args:
        h: (K, D) or (K, 1), as of ``causal_conv``. A parameter stays the same parameter; any other tensor becomes a
            buffer, which may require a gradient.
        length: the longest signal, L.
        storage: None keeps the spectrum in the type of the arithmetic, 8 M D bytes in float32 where M is about
            (L + K) / 2; ``torch.bfloat16`` rounds it to half of these, which errs by 2^-9 of each of its numbers at the
            most: 0.17 % of the result's norm in the mean, measured on white noise. Derivatives with respect to x are
            those of the rounded filter; those with respect to h pass the rounding unchanged.

    Derivatives with respect to x, h and everything else are those of ``causal_conv(x, h)``, of any order. Function
    transforms, compilation and export see ``causal_conv(x, h)`` itself, and transform h in each call. So does a call
    with an initial state where K > L, and one on a device other than the CPU. Where direct sums are faster, they are
    used.

    Changes through ``h.data`` are seen where they replace it, not where they write into it, of which PyTorch keeps no
    count. Inference tensors do not say when they change: of these, every call makes the transform anew.

    Raises:
        TypeError: h is not a real floating point tensor.
        ValueError: h has not two axes or no tap, ``length`` is less than 1, or ``storage`` is neither of the two; of
            ``causal_conv``: a signal that is longer than ``length``.

    >>> import torch, convscan
    >>> h, x = torch.randn(64, 3), torch.randn(2, 100, 3)
    >>> spectrum = convscan.FilterSpectrum(h, length=100)
    >>> torch.allclose(convscan.causal_conv(x, spectrum), convscan.causal_conv(x, h), atol=1e-4)
    True
    """

    h: Tensor

    def __init__(self, h: Tensor, length: int, *, storage: torch.dtype | None = None) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(h, Tensor) or not h.is_floating_point():
            got = h.dtype if isinstance(h, Tensor) else type(h).__name__
            raise TypeError(message(name, "h must be a real floating point torch.Tensor", got))
        if h.ndim != 2 or h.shape[0] == 0:
            raise ValueError(message(name, "h must have the shape (K, D) or (K, 1), K >= 1", shape_text(h.shape)))
        if length < 1:
            raise ValueError(message(name, "length must be at least 1", length))
        if storage not in STORAGES:
            raise ValueError(message(name, "storage must be None or torch.bfloat16", storage))
        if isinstance(h, torch.nn.Parameter):
            self.h = h
        else:
            self.register_buffer("h", h)
        self.length = length
        self.storage = storage
        # What it was made for and of, the spectrum, and the memory of h, so that no other h gets the same address.
        self._kept: tuple[Any, Tensor, Tensor, Tensor] | None = None

    def extra_repr(self) -> str:
        return f"K={self.h.shape[0]}, D={self.h.shape[1]}, length={self.length}, storage={self.storage}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    @property
    def nbytes(self) -> int:
        """Bytes that the spectrum takes at present: 0 before the first call."""
        return 0 if self._kept is None else self._kept[2].nbytes

    def plan(self, native_dtype: str) -> Kept | None:
        """The transform for calls with this arithmetic; None where none is long enough."""
        points = cpu.kept_transform_length(self.length, min(self.h.shape[0], self.length), native_dtype)
        return None if points == 0 else Kept(points, self.storage is not None)

    def spectrum(self, h: Tensor, native_dtype: str) -> Tensor | None:
        """The spectra of h, (filters, 2 M) in an order of their own; None where no transform is long enough.

        h is the first ``length`` taps of ``self.h`` in the dtype of a call, ``native_dtype`` the call's arithmetic.
        """
        source = self.h
        key = None
        if not source.is_inference():
            key = (native_dtype, _native.isa(), source._version, source.data_ptr(), self.length, self.storage)
            kept = self._kept
            if kept is not None and kept[0] == key and kept[1] is source:
                return kept[2]
        plan = self.plan(native_dtype)
        if plan is None:
            return None
        h = h.detach().resolve_neg()
        taps, filters = h.shape
        compute = torch.float64 if native_dtype in ("float64", "wide_float32") else torch.float32
        made = in_huge_pages(torch.empty(filters, 2 * plan.points, dtype=self.storage or compute))
        _native.filter_spectrum(
            native_dtype,
            filters,
            taps,
            plan.points,
            (h.stride(0), h.stride(1)),
            plan.is_bfloat16,
            h.data_ptr(),
            made.data_ptr(),
        )
        self._kept = None if key is None else (key, source, made, source.detach())
        return made
