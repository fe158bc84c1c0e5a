"""In which form the spectra of filters are kept on a GPU: that of the implementation that will read them.

Each of the three transforms has an order of frequencies of its own. Which of them is fastest depends on the taps and on
the length of the signals, hardly on their number and memory order, so that one form serves every call: the one that is
predicted to be fastest for a signal in which time is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Implementation, prepared_cache, settings
from ..._targets import interprets, processor
from . import torch_fft, triton
from .negacyclic import ascending, transform
from .problem import ConvProblem, Kept, compute_type
from .triton import fft, fft_part, fft_passes

Make = Callable[[Tensor], Tensor]
_SPECTRA: dict[str, Callable[[ConvProblem], tuple[int, Make]]] = {
    fft.FORM: fft.fft_spectra,
    fft_passes.FORM: fft_passes.passes_spectra,
    torch_fft.FORM: torch_fft.spectra,
}
NAMES = tuple(_SPECTRA)
_ROWS: tuple[Implementation, ...] = tuple(row for row in (*triton.ROWS, *torch_fft.ROWS) if row.name in _SPECTRA)
_CHANNELS = 1024  # that share a filter, for the prediction

_made: dict[Any, tuple[Kept, Make] | None] = prepared_cache()


def forced() -> str | None:
    """The one of these implementations that the surrounding settings ask for."""
    now = settings()
    return None if now is None or now.forced not in _SPECTRA else now.forced


def is_foreign(h: Tensor) -> bool:
    """Whether spectra of h are kept in one of these forms: on a GPU, or where one is interpreted."""
    return h.is_cuda or (h.is_cpu and forced() is not None and interprets())


def _problem(h: Tensor, length: int, native_dtype: str) -> ConvProblem:
    taps, filters = h.shape
    channels = filters if filters > 1 else _CHANNELS
    return ConvProblem(
        device=h.device.type,
        dtype="float32" if native_dtype == "wide_float32" else native_dtype,
        batch=1,
        length=length,
        channels=channels,
        taps=min(taps, length),
        x=(length * channels, 1, length),
        h=(h.stride(0), h.stride(1) if filters > 1 else 0),
        y=(length * channels, 1, length),
        bias=None,
        state=None,
        activation=None,
        transposed=False,
        offsets=None,
        threads=1,
        isa=processor(h.device),
        precision="high" if native_dtype == "wide_float32" else "default",
    )


def plan(h: Tensor, length: int, native_dtype: str, is_bfloat16: bool) -> tuple[Kept, Make] | None:
    """What to keep of filters for signals of that length, and what makes it; None where nothing transforms them.

    What makes it takes the first ``length`` taps of h, with the strides of h, in the type of a call.
    """
    key = (h.device, h.shape, h.stride(), length, native_dtype, is_bfloat16, forced())
    if key not in _made:
        _made[key] = _plan(h, length, native_dtype, is_bfloat16)
    return _made[key]


def plan_part(h: Tensor, length: int, keep: Tensor, native_dtype: str, is_bfloat16: bool) -> tuple[Kept, Make]:
    """The same where only frequencies with a flag are kept; ``keep`` is on the host."""
    count, problem = len(keep), _problem(h, length, native_dtype)
    flags = keep[ascending(count)]
    if forced() != torch_fft.FORM and not fft_part.part_refusals(problem, count):
        return fft_part.part_spectra(problem, flags, is_bfloat16)
    wide = compute_type(problem)

    def make(h: Tensor) -> Tensor:
        spectra = transform(h.to(wide), count).mT * flags.to(wide).to(h.device)
        return torch.view_as_real(spectra.contiguous())

    return Kept(count, is_bfloat16, form=torch_fft.FORM), make


def _plan(h: Tensor, length: int, native_dtype: str, is_bfloat16: bool) -> tuple[Kept, Make] | None:
    problem, found = _problem(h, length, native_dtype), []
    for row in _ROWS:
        if row.why_not(problem):
            continue
        points, make = _SPECTRA[row.name](problem)
        kept = Kept(points, is_bfloat16, form=row.name)
        found.append((row.name != forced(), row.cost(problem._replace(kept=kept)).seconds, kept, make))
    if not found:
        return None
    _, _, kept, make = min(found, key=lambda one: one[:2])
    return kept, make
