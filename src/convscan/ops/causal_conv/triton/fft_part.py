"""Transforms of a part of the frequencies: which digits of them are computed, and which of these are kept.

The first step of a transform leaves the residue of a frequency modulo N1, the last one its block of M / N of them that
follow one another, N the last factor. Residues that are dropped are out of all steps behind the first, blocks that are
dropped out of the last step. What is left are as many of each as a power of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...._gpu import power_of_two
from ..problem import ConvProblem, Kept, Part
from . import fft_passes
from .fft import FORM, LONGEST, factors, fft_spectra, whole
from .fft_passes import columns_of
from .toeplitz import toeplitz_refusals

_LEAST = 2  # digits of a step, whose products are padded to more


def part_refusals(problem: ConvProblem, points: int) -> list[str]:
    """Why transforms of so many points cannot run a problem."""
    reasons = toeplitz_refusals(problem)
    if not reasons and (points & (points - 1) or points > fft_passes.MOST):
        reasons.append(f"does transforms of powers of two, up to {fft_passes.MOST} points")
    return reasons


def _padded(digits: Tensor, whole: range) -> tuple[int, ...]:
    """Them, and as many others as make a power of two."""
    kept = sorted(set(digits.tolist()))
    others = [one for one in whole if one not in kept]
    return tuple(sorted(kept + others[: power_of_two(len(kept), _LEAST) - len(kept)]))


def part_of(kept: Tensor) -> Part:
    """The fewest digits that have all frequencies for which ``kept`` has a flag, in the order of k.

    Digits of the first step are 0 ... N1 - 1 or 1 ... N1: blocks of the latter begin at 1, as a half of the lowest
    frequencies does, beside that of their conjugates."""
    points, k = len(kept), kept.nonzero().flatten()
    n1, n2, n3 = factors(points)
    last = n3 if n3 > 1 else n2
    found: list[Part] = []
    for begin in (0, 1):
        first = (k - begin) % n1 + begin
        block = (k - first) % points // (points // last)
        found.append(Part(_padded(first, range(begin, begin + n1)), _padded(block, range(last))))
    return min(found, key=lambda part: len(part.first) * len(part.last))


def rows_of(kept: Tensor) -> Part:
    """The same of a transform in passes: residues modulo its columns, any number of them."""
    return Part(tuple(sorted({int(k) % columns_of(len(kept)) for k in kept.nonzero().flatten()})) or (0,), ())


def row_frequencies_of(part: Part, points: int) -> Tensor:
    """k of each frequency that these compute, as they are stored."""
    columns = columns_of(points)
    rest = points // columns
    within = frequencies_of(whole(rest), rest)
    return (torch.tensor(part.first)[:, None] + columns * within).flatten()


def frequencies_of(part: Part, points: int) -> Tensor:
    """k of each frequency that the transform of a part computes, as it stores them."""
    n1, n2, n3 = factors(points)
    first, last = torch.tensor(part.first), torch.tensor(part.last)
    middle = torch.arange(n2 if n3 > 1 else 1)
    step = points // (n3 if n3 > 1 else n2)
    return ((first[:, None, None] + n1 * middle[:, None] + step * last) % points).flatten()


def part_spectra(problem: ConvProblem, kept: Tensor, is_bfloat16: bool) -> tuple[Kept, Callable[[Tensor], Tensor]]:
    """What is kept of filters where ``kept`` has flags, in the order of k, and what makes it of them."""
    points = len(kept)
    if points > LONGEST:
        part = rows_of(kept)
        form = Kept(points, is_bfloat16, form=fft_passes.FORM, part=part)
        _, of_rows = fft_passes.passes_spectra(problem._replace(kept=form))
        # The kernel divides by the points that it computes.
        share = len(part.first) / columns_of(points)
        factors_of = kept[row_frequencies_of(part, points)].float().reshape(len(part.first), -1) * share
        return form, lambda h: of_rows(h).mul_(factors_of.to(h.device))
    part = part_of(kept)
    form = Kept(points, is_bfloat16, form=FORM, part=part)
    _, make = fft_spectra(problem._replace(kept=form))
    flags = kept[frequencies_of(part, points)].float()
    return form, lambda h: make(h).mul_(flags.to(h.device))
