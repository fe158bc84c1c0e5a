"""Named layers of xLSTM models. Tests and the profiler share them."""

from __future__ import annotations

from typing import Any

import torch

from ..linear_attention.cases import OPERATOR, Case

CASES: tuple[Case, ...] = (
    Case("xlstm-7b-head", "xLSTM 7B: one of 8 heads of keys 256, values 512", 1, 1024, 1, 256, 512),
    Case("xlstm-small", "4 heads of keys 64, values 128", 1, 2048, 4, 64, 128, tags=OPERATOR),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``mlstm(**inputs(case, seed))``: forget gates open, input gates mostly small, as after training."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch, case.length, *shape, generator=generator, dtype=torch.float64)

    q, k = (normal(case.key_heads, case.keys) for _ in range(2))
    v = normal(case.heads, case.values)
    dtype: torch.dtype = getattr(torch, case.dtype)
    arguments = {"q": q, "k": k, "v": v, "i": normal(case.heads) - 1, "f": normal(case.heads) + 4}
    return {name: tensor.to(dtype) for name, tensor in arguments.items()}
