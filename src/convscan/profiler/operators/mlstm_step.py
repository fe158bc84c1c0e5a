"""mlstm_step. Its truth: the definition in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import convscan
from convscan.ops.linear_attention.cases import Case
from convscan.ops.mlstm import cases

from ..step import read, step_operator
from .mlstm import OPERATOR as SEQUENCE


def _start(memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return memory, memory[..., 0].contiguous(), memory.new_zeros(memory.shape[:2])


def _formula(state: tuple[Tensor, ...], q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    C, n, m = state
    log_f = torch.nn.functional.logsigmoid(f) + m
    m = torch.maximum(log_f, i)
    decay, weight = (log_f - m).exp()[..., None], (i - m).exp()[..., None]
    q = q * float(q.shape[-1] ** -0.5)
    n = decay * n + weight * k
    C = decay[..., None] * C + (weight * k)[..., None] * v[..., None, :]
    return read(C, q) / (torch.maximum((n * q).sum(-1).abs(), (-m).exp()) + 1e-6)[..., None]


OPERATOR = step_operator(
    SEQUENCE,
    short="mlstm-step",
    function=convscan.mlstm_step,
    timed=("v", "q", "k", "i", "f"),
    cases=(
        Case("tiny", "one head of 8 x 8", 1, 1, 1, 8, 8),
        Case("xlstm-7b", "xLSTM 7B: 8 heads of keys 256, values 512", 1, 1, 8, 256, 512),
        *cases.CASES[1:],
    ),
    state=lambda case: (1, case.heads, case.keys, case.values),
    start=_start,
    formula=_formula,
)
