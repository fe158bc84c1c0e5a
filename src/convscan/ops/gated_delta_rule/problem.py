"""What selection and kernels know of a gated delta rule: sizes and dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple


class DeltaRuleProblem(NamedTuple):
    """``batch`` counts all leading axes, ``groups`` the heads of q and k, ``sequences`` those packed along time;
    ``per_key`` says how g decays.

    ``is_gradient``: the gradients of all arguments instead of the output.
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
    is_gradient: bool
    threads: int
    isa: str

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} H={self.heads} K={self.keys} V={self.values} {self.dtype}"]
        parts += [f"{self.groups} groups"] if self.groups != self.heads else []
        parts += ["decays by key"] if self.per_key else []
        parts += [f"{self.sequences} sequences"] if self.sequences > 1 else []
        text = ", ".join([*parts, f"{self.threads} threads", self.isa])
        return f"gradient of {text}" if self.is_gradient else text
