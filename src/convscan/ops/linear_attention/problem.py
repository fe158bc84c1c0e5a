"""What selection knows of linear attention with decay: sizes and dtype; kernels take any strides."""

from __future__ import annotations

from typing import NamedTuple


class AttentionProblem(NamedTuple):
    """S[t] = diag(exp(g[t])) S[t-1] + w[t] k[t] v[t]^T, y[t] = S[t]^T q[t], with a state of keys x values a head.

    ``batch`` counts all leading axes, ``groups`` the heads of q and k, ``sequences`` those packed along time.
    ``per_key``: g has one number for each key, not one a step. ``sums``: the sums of weights are wanted too.
    """

    device: str
    dtype: str
    batch: int
    length: int
    groups: int
    heads: int
    keys: int
    values: int
    sequences: int
    per_key: bool
    sums: bool
    threads: int
    isa: str

    @property
    def columns(self) -> int:
        """Columns of the state: the values, and one of ones where the sums of weights are wanted."""
        return self.values + self.sums

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} H={self.heads} K={self.keys} V={self.values} {self.dtype}"]
        parts += [f"{self.groups} groups"] if self.groups != self.heads else []
        parts += [f"{self.sequences} sequences"] if self.sequences != 1 else []
        parts += ["decay per key"] if self.per_key else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])


class AttentionGradientProblem(NamedTuple):
    """The gradients of linear attention with decay."""

    forward: AttentionProblem

    def __str__(self) -> str:
        return f"gradient of {self.forward}"
