"""Named layers of Mamba-2 models. Tests and the profiler share them."""

from __future__ import annotations

from typing import Any

import torch

from ..linear_attention.cases import OPERATOR, Case

CASES: tuple[Case, ...] = (
    Case("mamba2-130m", "Mamba-2 130M: 24 heads of 64, N 128, one group", 1, 2048, 24, 128, 64, groups=1),
    Case("mamba2-8-groups", "the same with 8 groups of 3 heads", 1, 2048, 24, 128, 64, groups=8, tags=OPERATOR),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``ssd_scan(**inputs(case, seed))``: steps log-uniform in [0.001, 0.1], A uniform in [-16, -1]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch, case.length, *shape, generator=generator, dtype=torch.float64)

    x = normal(case.heads, case.values)
    B, C = (normal(case.key_heads, case.keys) for _ in range(2))
    uniform = torch.rand(2, case.heads, generator=generator, dtype=torch.float64)
    dt = 10 ** (2 * uniform[0] - 3) * torch.exp(0.1 * normal(case.heads))
    dtype: torch.dtype = getattr(torch, case.dtype)
    arguments = {"x": x, "dt": dt, "A": -1 - 15 * uniform[1], "B": B, "C": C, "D": torch.ones(case.heads)}
    return {name: tensor.to(dtype) for name, tensor in arguments.items()}
