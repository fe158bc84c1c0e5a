"""The package accelerated-scan: ``warp.scan``, time contiguous, lengths that are powers of two from 32 to 65536."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, on_gpu, time_last, unsupported
from ..problem import Problem


def _why_not(problem: Problem) -> list[str]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    reasons = on_gpu(problem, "accelerated_scan") + unsupported(problem, dtypes=dtypes)
    length = problem.size("L")
    if not 32 <= length <= 65536 or length & (length - 1):
        reasons.append("takes lengths that are powers of two, from 32 to 65536")
    if problem["a"].shape != problem["x"].shape:
        reasons.append("takes coefficients that vary in time only")
    if not reasons and bool(problem["y_init"].any()):
        reasons.append("starts from zero")
    return reasons


def _prepare(problem: Problem) -> Prepared:
    from accelerated_scan.warp import scan  # type: ignore[import-not-found, unused-ignore]

    def run(x: Tensor, a: Tensor) -> Any:
        return scan(a, x)

    arguments = (time_last(problem["x"]), time_last(problem["a"]))
    return from_torch(problem, run, arguments, result=lambda y: y.mT)


PEERS = (Peer("accelerated-scan", "linear_recurrence", "accelerated-scan", _why_not, _prepare, devices=("cuda",)),)
