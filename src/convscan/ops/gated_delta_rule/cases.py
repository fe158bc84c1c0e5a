"""Named gated delta rules of real models. Tests and the profiler share them."""

from __future__ import annotations

from typing import Any

import torch

from ..linear_attention.cases import OPERATOR, Case

CASES: tuple[Case, ...] = (
    Case("gated-deltanet", "Gated DeltaNet-type: 16 heads of keys 64, values 128", 1, 2048, 16, 64, 128),
    Case("qwen3-next", "Qwen3-Next: 32 heads of 128", 1, 1024, 32, 128, 128, tags=OPERATOR),
    Case(
        "kimi-delta-attention",
        "Kimi Linear: 32 heads of 128, decays by key",
        1,
        1024,
        32,
        128,
        128,
        per_key=True,
        tags=OPERATOR,
    ),
)


def inputs(case: Case, seed: int = 0) -> dict[str, Any]:
    """Arguments for ``gated_delta_rule(**inputs(case, seed))``: keys of length 1, decays near 0.9, beta near 1/2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(case.batch, case.length, case.heads, *shape, generator=generator, dtype=torch.float64)

    arguments = {
        "q": torch.nn.functional.normalize(normal(case.keys), dim=-1),
        "k": torch.nn.functional.normalize(normal(case.keys), dim=-1),
        "v": normal(case.values),
        "g": -0.1 * torch.nn.functional.softplus(normal(case.keys) if case.per_key else normal()),
        "beta": torch.sigmoid(normal()),
    }
    dtype: torch.dtype = getattr(torch, case.dtype)
    return {name: tensor.to(dtype) for name, tensor in arguments.items()}
