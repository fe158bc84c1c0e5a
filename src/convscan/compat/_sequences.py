"""Sequences that lie behind one another, the way that other libraries mark them: one number for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """The sequences of one row: where they begin and end, (S+1,), and that of the last one that is no padding."""

    bounds: Tensor
    begin: int
    end: int


def rows_of(seq_idx: Tensor) -> Iterator[Row]:
    """Each row of seq_idx (batch, seqlen), in which equal neighbours are one sequence and negative numbers padding."""
    for numbers in seq_idx:
        cuts = (numbers[1:] != numbers[:-1]).nonzero().flatten() + 1
        bounds = torch.nn.functional.pad(cuts, (1, 1))
        bounds[-1] = len(numbers)
        real = (numbers >= 0).nonzero().flatten()
        end = int(real[-1]) + 1 if len(real) else 0
        yield Row(bounds, int(bounds[bounds < end].max()) if end else 0, end)
