"""The package flash-linear-attention: ``chunk_gla`` for a decay per key, ``chunk_simple_gla`` for one per head, and
``chunk_gated_delta_rule``, on (B, L, H, K)."""

from __future__ import annotations

from typing import Any

import torch

from ..peer import Peer, Prepared, on_gpu, unsupported
from ..problem import Problem, as_tuple


def _why_not(problem: Problem) -> list[str]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return on_gpu(problem, "fla") + unsupported(problem, dtypes=dtypes)


def _prepare(problem: Problem) -> Prepared:
    from fla.ops.gla import chunk_gla  # type: ignore[import-not-found, unused-ignore]
    from fla.ops.simple_gla import chunk_simple_gla  # type: ignore[import-not-found, unused-ignore]

    q, k, v, g = (problem[name] for name in ("q", "k", "v", "g"))
    function: Any = chunk_gla if g.ndim == k.ndim else chunk_simple_gla

    def run() -> Any:
        with torch.no_grad():
            return function(q, k, v, g)[0]

    return Prepared(run, as_tuple)


def _prepare_delta(problem: Problem) -> Prepared:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # type: ignore[import-not-found, unused-ignore]

    arguments = [problem[name] for name in ("q", "k", "v", "g", "beta")]

    def run() -> Any:
        with torch.no_grad():
            return chunk_gated_delta_rule(*arguments)[0]

    return Prepared(run, as_tuple)


NAME = "flash-linear-attention"
PEERS = (
    Peer(NAME, "gated_linear_attention", NAME, _why_not, _prepare, devices=("cuda",)),
    Peer(NAME, "gated_delta_rule", NAME, _why_not, _prepare_delta, devices=("cuda",)),
)
