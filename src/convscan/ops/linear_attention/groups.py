"""Groups of heads that share queries and keys: from groups to their heads, and gradients from heads to their groups."""

from __future__ import annotations

from torch import Tensor


def over_heads(tensor: Tensor, heads: int) -> Tensor:
    """(..., G, K) of groups as (..., H, K): the heads of a group are in a row."""
    groups = tensor.shape[-2]
    return tensor if groups == heads else tensor.repeat_interleave(heads // max(1, groups), -2)


def over_groups(tensor: Tensor, groups: int) -> Tensor:
    """The transpose: (..., H, K) of heads added up for their groups, (..., G, K)."""
    *leading, heads, keys = tensor.shape
    return tensor if groups == heads else tensor.reshape(*leading, groups, heads // max(1, groups), keys).sum(-2)
