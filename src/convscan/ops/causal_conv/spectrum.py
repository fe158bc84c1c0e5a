"""FilterSpectrum: filters whose transforms are kept from call to call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._calls import in_huge_pages
from ..._checks import shape_text
from ..._errors import message
from ..._gpu import Held, Shared, is_capturing
from . import forms
from .negacyclic import ascending, points
from .problem import Kept
from .transforms import kept_transform_length

STORAGES = (None, torch.bfloat16)
Keep = float | tuple[float, float] | Tensor


def first_taps(filters: FilterSpectrum, h: Tensor) -> Tensor:
    """Those of h that meet samples of a signal of the length that the filters are made for."""
    return h.narrow(0, 0, min(h.shape[0], filters.length))


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
        keep: the part of the spectrum that is not zero; None for all of it. A number f: the lowest part f of the
            frequencies. A pair (low, high): those from low to below high, in cycles per sample, of which 0.5 is the
            highest. A bool tensor (M,): a flag for each of ``frequencies(K, length)``. Transforms leave out what meets
            nothing: where whole classes of ``residues`` are dropped, whole transforms; where only the lowest quarter is
            kept, on processors with vectors of eight, the larger part of their last steps. A filter without some of its
            frequencies is as long as the transform, so that it is neither causal nor finite; the result is
            that of multiplying the spectra, modulo X^2M + 1. No initial state then.

    Derivatives with respect to x, h and everything else are those of ``causal_conv(x, h)``, of any order. Function
    transforms, compilation and export see ``causal_conv(x, h)`` itself, and transform h in each call. So does a call
    with an initial state where K > L. Where direct sums are faster, they are used.

    On a GPU the spectrum is that of the transform which is predicted to be the fastest for signals of ``length``, in
    its order of frequencies (``triton_fft``, ``triton_fft_passes`` or ``torch_fft``); others transform h in each call.
    A call that is captured in a CUDA graph reads the spectrum of that time when it is replayed: capture it anew when h
    has changed. Where none had been made before, the graph makes it in each replay.

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

    keep: Tensor | None

    def __init__(self, h: Tensor, length: int, *, storage: torch.dtype | None = None, keep: Keep | None = None) -> None:
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
        self.register_buffer("keep", None if keep is None else self._flags(keep), persistent=False)
        # What it was made for and of, the spectrum, and the memory of h, so that no other h gets the same address.
        self._kept: tuple[Any, Tensor, Shared, Tensor] | None = None
        # The flags that plans of a part were made for, and these.
        self._parts: tuple[Any, dict[Any, tuple[Kept, forms.Make]]] | None = None
        self._captured = Held()

    @staticmethod
    def frequencies(taps: int, length: int) -> Tensor:
        """The frequencies, ascending, that ``keep`` has flags for, in cycles per sample: (j + 1/2) / 2M, 0 <= j < M."""
        count = points(taps, length)
        return (torch.arange(count, dtype=torch.float64) + 0.5) / (2 * count)

    @staticmethod
    def residues(taps: int, length: int, modulus: int) -> Tensor:
        """A class from 0 to modulus - 1 for each of these frequencies; those of a class are a transform of their own.

        Dropping classes saves most for 2, 4 or 8 that divide M, which it is told to divide.
        """
        count = points(taps, length)
        if modulus < 1 or count % modulus != 0:
            raise ValueError(message("FilterSpectrum", f"modulus must divide M = {count}", modulus))
        classes = torch.empty(count, dtype=torch.int64)
        classes[ascending(count)] = torch.arange(count) % modulus
        return classes

    def _flags(self, keep: Keep) -> Tensor:
        name, count = type(self).__name__, points(self.h.shape[0], self.length)
        if isinstance(keep, Tensor):
            if keep.dtype != torch.bool or keep.shape != (count,):
                expectation = f"keep must be a bool tensor of the shape (M,) = ({count},)"
                got = f"{keep.dtype} {shape_text(keep.shape)}"
                raise ValueError(message(name, expectation, got, "frequencies(K, length) are those it has flags for"))
            return keep.to(self.h.device, copy=True)
        low, high = (0.0, keep / 2) if isinstance(keep, (int, float)) else keep
        if not 0 <= low < high <= 0.5:
            expectation = "keep must be a part in (0, 1], or (low, high) with 0 <= low < high <= 0.5, or a bool tensor"
            raise ValueError(message(name, expectation, keep))
        frequencies = self.frequencies(self.h.shape[0], self.length)
        return ((low <= frequencies) & (frequencies < high)).to(self.h.device)

    def extra_repr(self) -> str:
        text = f"K={self.h.shape[0]}, D={self.h.shape[1]}, length={self.length}, storage={self.storage}"
        return text if self.keep is None else f"{text}, keep={self.kept_part:.3g}"

    @property
    def kept_part(self) -> float:
        """How much of the spectrum is kept, from 0 to 1."""
        return 1.0 if self.keep is None else float(self.keep.float().mean())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_parts": None, "_captured": Held()}

    @property
    def nbytes(self) -> int:
        """Bytes that the spectrum takes at present: 0 before the first call."""
        return 0 if self._kept is None else self._kept[2].tensor.nbytes

    def plan(self, native_dtype: str) -> Kept | None:
        """The transform for calls with this arithmetic; None where none is long enough."""
        is_rounded = self.storage is not None
        if forms.is_foreign(self.h):
            found = self._foreign(self.h, native_dtype)
            return None if found is None else found[0]
        if self.keep is not None:
            count = self.keep.shape[0]
            return Kept(count, is_rounded, self.h.shape[1] * _native.spectrum_bytes(count, native_dtype, is_rounded))
        count = kept_transform_length(self.length, min(self.h.shape[0], self.length), native_dtype)
        return None if count == 0 else Kept(count, is_rounded)

    def form(self, native_dtype: str) -> Kept | str | None:
        """What the spectrum depends on of the place that makes it."""
        return self.plan(native_dtype) if forms.is_foreign(self.h) else _native.isa()

    def ready(self, length: int, native_dtype: str) -> Tensor | None:
        """The spectrum for signals of that length where it has been made, of all taps and for all frequencies."""
        if self.keep is not None or length > self.length or self.h.shape[0] > self.length or not self.h.is_cpu:
            return None
        return self._made(self._key(native_dtype))

    def _key(self, native_dtype: str) -> Any:
        """What a spectrum is made for and of; None where that cannot be told."""
        source, keep = self.h, self.keep
        if source.is_inference() or (keep is not None and keep.is_inference()):
            return None
        part = None if keep is None else (keep._version, keep.data_ptr())
        return (
            native_dtype,
            self.form(native_dtype),
            source._version,
            source.data_ptr(),
            self.length,
            self.storage,
            part,
        )

    def _made(self, key: Any) -> Tensor | None:
        kept = self._kept
        if kept is None or key is None or kept[0] != key or kept[1] is not self.h:
            return None
        made = kept[2].read()
        if is_capturing(made):
            self._captured.hold(made)
        return made

    def spectrum(self, h: Tensor, native_dtype: str) -> Tensor | None:
        """The spectra of h in the shape and order of their form, or bytes of them with the pattern of what is kept;
        None where no transform is long enough.

        h is the first ``length`` taps of ``self.h`` in the dtype of a call, ``native_dtype`` the call's arithmetic.
        """
        source, keep, key = self.h, self.keep, self._key(native_dtype)
        made_before = self._made(key)
        if made_before is not None:
            return made_before
        if forms.is_foreign(source):
            h = h.detach().resolve_neg()
            found = self._foreign(h, native_dtype)
            made = None if found is None else found[1](h)
            return self._keep(key, made if made is None or self.storage is None else made.to(self.storage))
        plan = self.plan(native_dtype)
        if plan is None:
            return None
        h = h.detach().resolve_neg()
        taps, filters = h.shape
        flags = pattern = 0
        if keep is None:
            compute = torch.float64 if native_dtype in ("float64", "wide_float32") else torch.float32
            made = in_huge_pages(torch.empty(filters, 2 * plan.points, dtype=self.storage or compute))
        else:
            size = plan.pattern_offset + _native.pattern_bytes(plan.points, native_dtype)
            made = in_huge_pages(torch.empty(size, dtype=torch.uint8))
            flags, pattern = keep.data_ptr(), made.data_ptr() + plan.pattern_offset
        strides = (h.stride(0), h.stride(1))
        _native.filter_spectrum(
            native_dtype,
            filters,
            taps,
            plan.points,
            strides,
            plan.is_bfloat16,
            h.data_ptr(),
            made.data_ptr(),
            flags,
            pattern,
        )
        return self._keep(key, made)

    def _foreign(self, h: Tensor, native_dtype: str) -> tuple[Kept, forms.Make] | None:
        """What is kept in the form of a GPU's implementation, and what makes it of h."""
        keep, is_rounded = self.keep, self.storage is not None
        if keep is None:
            return forms.plan(h, self.length, native_dtype, is_rounded)
        flags = None if keep.is_inference() else (keep._version, keep.data_ptr())
        key = (h.device, h.shape, h.stride(), self.length, native_dtype, is_rounded, forms.forced())
        if flags is None or self._parts is None or self._parts[0] != flags:
            self._parts = (flags, {})
        plans = self._parts[1]
        if key not in plans:  # looking at the flags waits for the device, once
            plans[key] = forms.plan_part(h, self.length, keep.cpu(), native_dtype, is_rounded)
        return plans[key]

    def _keep(self, key: Any, made: Tensor | None) -> Tensor | None:
        # What is captured has not been computed, so that no other call may read it.
        if made is not None and not is_capturing(made):
            self._kept = None if key is None else (key, self.h, Shared(made), self.h.detach())
        return made
