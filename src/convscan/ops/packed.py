"""Packed sequences in tensors, for whatever is composed of differentiable operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """S sequences behind one another along L steps: the sequence of each step, (L,), whether a step is the first or the
    last of its sequence, (L, 1), the first and the last step of each sequence, (S,), and whether it has any, (S, 1).

    Of a sequence without steps the first and the last one are some step.
    """

    sequence: Tensor
    is_first: Tensor
    is_last: Tensor
    first: Tensor
    last: Tensor
    has_steps: Tensor

    @staticmethod
    def of(cu_seqlens: Tensor | None, length: int, device: torch.device) -> Packed:
        """One sequence without cu_seqlens. Boundaries that are none give a result, which whoever reads them refuses."""
        steps = torch.arange(length, device=device)
        if cu_seqlens is None:
            # By a product, for an exported program's length may change.
            bounds, sequence = torch.arange(2, device=device) * length, torch.zeros_like(steps)
        else:
            bounds = cu_seqlens.to(torch.int64)
            sequence = (torch.searchsorted(bounds, steps, right=True) - 1).clamp(0, bounds.shape[0] - 2)
        begins, ends = bounds[:-1], bounds[1:] - 1
        return Packed(
            sequence,
            (steps == begins[sequence])[:, None],
            (steps == ends[sequence])[:, None],
            begins.clamp(0, max(0, length - 1)),
            ends.clamp(0, max(0, length - 1)),
            (begins <= ends)[:, None],
        )
