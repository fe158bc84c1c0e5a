"""What the choice of a strategy knows of a call: sizes, dtype, and what was asked for; no data."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..fft_conv.equation import parse
from ..fft_conv.problem import EinsumProblem

# What stays in the caches is cheap: the inputs of a small problem are no measure of what its transforms need.
LEAST_BUDGET_BYTES = 12 << 20


class SSMProblem(NamedTuple):
    """x (batch, length, inputs), N ``states`` (none with a full kernel), ``taps`` of a kernel with axes ``layout``.

    ``strategy`` is the one asked for: ``cost``, ``auto``, ``1``, ``2`` or ``3``. The rest as in ``EinsumProblem``.
    """

    batch: int
    length: int
    taps: int
    inputs: int
    outputs: int
    states: int
    layout: str
    strategy: str
    dtype: str
    compute: str
    device: str
    chunked: bool
    threads: int
    isa: str

    def __str__(self) -> str:
        sizes = f"B={self.batch} L={self.length} H_in={self.inputs} H_out={self.outputs} K={self.taps}"
        states = "full kernel" if self.is_full else f"N={self.states}"
        return f"{sizes} {states}, {self.layout}, {self.dtype}, strategy {self.strategy}, {self.threads} threads"

    @property
    def is_full(self) -> bool:
        """Whether the kernel is one for every pair of an input and an output."""
        return self.layout == "loh"

    @property
    def equation(self) -> str:
        """The layer as an equation for ``fft_conv``."""
        return "blh,loh->blo" if self.is_full else f"blh,{self.layout},nh,on->blo"

    @property
    def budget(self) -> int:
        """Bytes of the larger of the inputs x and K: what the tensors in between may take together."""
        kernel = self.taps * (self.inputs * self.outputs if self.is_full else self.states)
        item: int = getattr(torch, self.dtype).itemsize
        return max(LEAST_BUDGET_BYTES, item * max(self.batch * self.length * self.inputs, kernel))

    def einsum(self, **sizes: int) -> EinsumProblem:
        """The problem for ``fft_conv``'s plans, with some sizes replaced."""
        known = {"b": self.batch, "h": self.inputs, "o": self.outputs} | ({} if self.is_full else {"n": self.states})
        return EinsumProblem(
            equation=parse(self.equation),
            sizes=tuple(sorted((known | sizes).items())),
            length=self.length,
            taps=self.taps,
            dtype=self.dtype,
            compute=self.compute,
            device=self.device,
            chunked=self.chunked,
            threads=self.threads,
            isa=self.isa,
        )
