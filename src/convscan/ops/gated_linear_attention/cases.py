"""Named gated linear attentions of real models. Tests and the profiler share them."""

from __future__ import annotations

from typing import Any

import torch

from ..linear_attention.cases import OPERATOR, Case

CASES: tuple[Case, ...] = (
    Case("gla-340m", "GLA-type: 16 heads of keys 64, values 128, decays by key", 1, 2048, 16, 64, 128, per_key=True),
    Case("simple-gla", "the same with one decay a step", 1, 2048, 16, 64, 128, tags=OPERATOR),
    Case(
        "gla-few-heads", "GLA 340M: 4 heads of keys 128, values 256", 1, 2048, 4, 128, 256, per_key=True, tags=OPERATOR
    ),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``gated_linear_attention(**inputs(case, seed))``: decays log sigmoid / 16, as GLA initialises."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch, case.length, *shape, generator=generator, dtype=torch.float64)

    q, k = (normal(case.key_heads, case.keys) for _ in range(2))
    v = normal(case.heads, case.values)
    g = torch.nn.functional.logsigmoid(normal(case.heads, case.keys) if case.per_key else normal(case.heads)) / 16
    dtype: torch.dtype = getattr(torch, case.dtype)
    return {name: tensor.to(dtype) for name, tensor in {"q": q, "k": k, "v": v, "g": g}.items()}
