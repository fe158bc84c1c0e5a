"""Named recurrences of real models and benchmarks. Tests, tuning and the profiler share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEFAULT = frozenset({"default"})
QUICK = frozenset({"default", "quick"})


@dataclass(frozen=True)
class Case:
    """One recurrence, y = linear_recurrence(x, y_init, a), with where its shape comes from.

    ``layout`` is the memory order of x and a: "BLD" has channels contiguous, "BDL" has time contiguous; the tensors
    are (B, L, D) in both. ``constant`` has one coefficient per channel, a of shape (D,). Tags: "default" runs in a
    plain profile, "quick" in a short one, "grid" is the challenge's full grid.
    """

    name: str
    source: str
    batch: int
    length: int
    channels: int
    dtype: str = "float32"
    layout: str = "BLD"
    constant: bool = False
    reverse: bool = False
    state: bool = False
    tags: frozenset[str] = DEFAULT

    @property
    def complex(self) -> bool:
        """Whether x, a and y are complex."""
        return self.dtype.startswith("complex")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of x and y, (B, L, D)."""
        return (self.batch, self.length, self.channels)

    @property
    def bytes(self) -> int:
        """Bytes that any implementation must move at least: inputs read once, the output written once."""
        signal = self.batch * self.length * self.channels
        coefficients = self.channels if self.constant else signal
        start = self.batch * self.channels if self.state else 0
        return int(getattr(torch, self.dtype).itemsize * (2 * signal + coefficients + start))

    @property
    def flops(self) -> int:
        """Real additions and multiplications of the loop over time: 2 a step, 8 when complex."""
        return (8 if self.complex else 2) * self.batch * self.length * self.channels


def _grid() -> tuple[Case, ...]:
    source = "the challenge's grid: float32, batch 1, time contiguous, an initial value"
    spread = {(512, 64), (512, 1024), (512, 16384), (2048, 2048), (2048, 16384)}
    quick = {(512, 1024), (2048, 2048)}
    cases = []
    for channels in (512, 2048):
        for length in (64, 256, 1024, 2048, 4096, 16384, 65536):
            key = (channels, length)
            tags = frozenset({"grid"}) | (DEFAULT if key in spread else set()) | (QUICK if key in quick else set())
            name = f"grid-c{channels}-l{length}"
            cases.append(Case(name, source, 1, length, channels, layout="BDL", state=True, tags=tags))
    return tuple(cases)


CASES: tuple[Case, ...] = (
    Case("small", "a toy model", 1, 128, 64, tags=QUICK),
    Case("rg-lru", "RecurrentGemma-2b's RG-LRU: lru_width 2560", 1, 2048, 2560, tags=QUICK),
    Case("hgrn", "HGRN: width 2048", 1, 2048, 2048),
    Case("mingru", "minGRU: width 512, batch 8", 8, 1024, 512, tags=QUICK),
    Case("lru-complex", "LRU on Path-X: 256 complex states with constant coefficients", 1, 16384, 256, "complex64",
         constant=True),
    Case("few-channels", "four channels over a million steps (smoothed sensor data)", 1, 1000000, 4, tags=QUICK),
    Case("decode", "RecurrentGemma-2b: one token", 1, 1, 2560, state=True, tags=QUICK),
    *_grid(),
)  # fmt: skip

# What fills a GPU, and is measured there.
GPU_CASES: tuple[Case, ...] = tuple(
    Case(
        f"gpu-{dtype}-{'time' if layout == 'BDL' else 'channels'}",
        "a batch of 8 in training",
        8,
        4096,
        2048,
        dtype=dtype,
        layout=layout,
        tags=frozenset({"gpu"}),
    )
    for dtype in ("bfloat16", "float32")
    for layout in ("BLD", "BDL")
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``linear_recurrence(**inputs(case, seed))``: normal samples and stable coefficients.

    Real coefficients lie in (0, 1) like gates, mostly near 1; complex ones have such a magnitude and any phase.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, case.dtype)
    wide = torch.complex64 if case.complex else torch.float32

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(-1, -2) if case.layout == "BDL" else tensor

    memory = (case.batch, case.channels, case.length) if case.layout == "BDL" else case.shape
    x = ordered(torch.randn(memory, generator=generator, dtype=wide)).to(dtype)
    a_memory = (case.channels,) if case.constant else memory
    a = torch.sigmoid(2 + 2 * torch.randn(a_memory, generator=generator))
    if case.complex:
        a = torch.polar(a, 6.2831853 * torch.rand(a_memory, generator=generator))
    a = (a if case.constant else ordered(a)).to(dtype)
    start = torch.randn(case.batch, case.channels, generator=generator, dtype=wide).to(dtype) if case.state else None
    return {"x": x, "y_init": start, "a": a, "reverse": case.reverse}
