"""The package flash-fft-conv (HazyResearch): half types, time contiguous, transforms of twice the length, a power of
two from 256; with two gates where the operator has them. It is given its own memory order and filters in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..peer import Peer, Prepared, on_gpu, on_rows, unsupported
from ..problem import Problem


def _why_not(problem: Problem) -> list[str]:
    reasons = on_gpu(problem, "flashfftconv")
    reasons += unsupported(problem, dtypes=(torch.float16, torch.bfloat16), backward=True)
    length = problem.size("L")
    if length < 128 or length & (length - 1):
        reasons.append("takes lengths that are powers of two, from 128")
    if problem.size("K") > length:
        reasons.append("takes no filter longer than the signal")
    if problem.inputs.get("activation") is not None:
        reasons.append("has no activation")
    if problem.inputs.get("cu_seqlens") is not None:
        reasons.append("takes no packed sequences")
    return reasons


def _prepare(problem: Problem) -> Prepared:
    from flashfftconv import FlashFFTConv  # type: ignore[import-not-found, unused-ignore]

    conv: Any = FlashFFTConv(2 * problem.size("L"), dtype=problem.dtype).to(problem.device)

    def run(x: Tensor, h: Tensor, *gates: Tensor) -> Any:
        return conv(x, h.float(), *gates)

    gates = [problem[name] for name in ("pre_gate", "post_gate") if problem.inputs.get(name) is not None]
    return on_rows(problem, run, *gates)


PEERS = tuple(
    Peer("flash-fft-conv", op, "flashfftconv", _why_not, _prepare, devices=("cuda",))
    for op in ("causal_conv", "gated causal_conv")
)
