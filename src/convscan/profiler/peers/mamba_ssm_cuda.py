"""The package mamba-ssm: Mamba's ``selective_scan_fn`` on (B, D, L) and its step, and Mamba-2's
``mamba_chunk_scan_combined`` in chunks of 256 steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, on_gpu, time_last, unsupported
from ..problem import Problem, as_tuple, own

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _why_not(problem: Problem) -> list[str]:
    return on_gpu(problem, "mamba_ssm") + unsupported(problem, dtypes=DTYPES)


def _prepare(problem: Problem) -> Prepared:
    from mamba_ssm.ops.selective_scan_interface import (  # type: ignore[import-not-found, unused-ignore]
        selective_scan_fn,
    )

    softplus = problem.inputs["delta_softplus"]
    u, delta, b, c, z = (time_last(problem[name]) for name in ("u", "delta", "B", "C", "z"))
    rest = (problem["A"], b, c, problem["D"], z, problem["delta_bias"])

    def scan(u: Tensor) -> Any:
        return selective_scan_fn(u, delta, *rest, delta_softplus=softplus)

    return from_torch(problem, scan, (u,), result=lambda y: y.mT)


def _prepare_step(problem: Problem) -> Prepared:
    from mamba_ssm.ops.triton.selective_state_update import (  # type: ignore[import-not-found, unused-ignore]
        selective_state_update,
    )

    given = own(problem)
    names = ("state", "u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    arguments, softplus = [given[name] for name in names], given["delta_softplus"]

    def run() -> Any:
        with torch.no_grad():
            return selective_state_update(*arguments, dt_softplus=softplus)

    return Prepared(run, as_tuple)


def _prepare_dual(problem: Problem) -> Prepared:
    from mamba_ssm.ops.triton.ssd_combined import (  # type: ignore[import-not-found, unused-ignore]
        mamba_chunk_scan_combined,
    )

    dt, a, b, c, d = (problem[name] for name in ("dt", "A", "B", "C", "D"))

    def scan(x: Tensor) -> Any:
        return mamba_chunk_scan_combined(x, dt, a, b, c, 256, D=d)

    return from_torch(problem, scan, (problem["x"],))


PEERS = (
    Peer("mamba-ssm", "selective_scan", "mamba-ssm", _why_not, _prepare, devices=("cuda",)),
    Peer("mamba-ssm", "selective_scan_step", "mamba-ssm", _why_not, _prepare_step, devices=("cuda",)),
    Peer("mamba-ssm", "ssd_scan", "mamba-ssm", _why_not, _prepare_dual, devices=("cuda",)),
)
