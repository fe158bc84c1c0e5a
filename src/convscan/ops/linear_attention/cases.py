"""Shapes that the operators on linear attention have in models; each operator's own file names its cases."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DEFAULT = frozenset({"default"})
OPERATOR = frozenset({"operator"})


@dataclass(frozen=True)
class Case:
    """One call, with where its shape comes from: ``heads`` states of ``keys`` x ``values``.

    Tags: "default" runs in a plain profile, "operator" where this operator is asked for.
    """

    name: str
    source: str
    batch: int
    length: int
    heads: int
    keys: int
    values: int
    groups: int = 0
    per_key: bool = False
    dtype: str = "float32"
    tags: frozenset[str] = DEFAULT

    @property
    def key_heads(self) -> int:
        """Heads of queries and keys: one a group where there are groups."""
        return self.groups or self.heads

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        item = int(getattr(torch, self.dtype).itemsize)
        gates = self.keys if self.per_key else 1
        return (
            item * self.batch * self.length * (2 * self.key_heads * self.keys + self.heads * (2 * self.values + gates))
        )

    @property
    def flops(self) -> int:
        """Additions and multiplications of the step loop: what is written to the state, and what is read of it."""
        return 6 * self.batch * self.length * self.heads * self.keys * self.values
