"""Hugging Face transformers' own functions on PyTorch, which its models run where no GPU's kernels are installed.

* Mamba: ``mamba_selective_scan`` in its memory order, (B, D, L), into which other signals are brought before the time
  is taken; its gates for all of time at once, then a loop over it
* Mamba-2: ``mamba2_chunk_scan`` with the tiles of 256 steps that its models have, by einsum
* Qwen3-Next: ``torch_chunk_gated_delta_rule``, and Kimi Linear's ``chunk_kimi_delta_attention`` for decays by key,
  tiles of 64 steps; both compute in float32 whatever they are given
* xLSTM: ``mlstm_chunkwise_native_autograd``, tiles of 64 steps, (B, H, L, ...)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..peer import Peer, Prepared, from_torch, missing, time_last, unsupported
from ..problem import Problem

NAME = "huggingface torch"
_SIGNALS = ("u", "delta", "z")
_STEPS = 64


def function(path: str) -> Callable[..., Any]:
    """``model.name`` of transformers, without its advice to install other packages."""
    import transformers

    transformers.logging.set_verbosity_error()
    model, name = path.split(".")
    # What it imports warns of kernels that no processor here could run, in the middle of the report.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        module = import_module(f"transformers.models.{model}.modeling_{model}")
    finally:
        logging.disable(before)
    found: Callable[..., Any] = getattr(module, name)
    return found


def _why_not(problem: Problem) -> list[str]:
    return missing("transformers") + unsupported(problem, dtypes=(torch.float32,), backward=True)


# ---- Mamba ----


def _mamba(problem: Problem) -> Prepared:
    scan = function("mamba.mamba_selective_scan")

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Any:
        return scan(u, delta, A, B.mT, C.mT, D=D, z=z, delta_bias=bias, delta_softplus=True)

    def ordered(tensors: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        named = zip(problem.differentiated, tensors, strict=True)
        return [change(tensor) if name in _SIGNALS else tensor for name, tensor in named]

    return from_torch(
        problem,
        run,
        ordered(problem.arguments, time_last),
        result=lambda y: y.mT,
        gradients=lambda gradients: ordered(gradients, lambda gradient: gradient.mT),
        cotangent=time_last,
    )


# ---- Mamba-2 ----


def _mamba2(problem: Problem) -> Prepared:
    scan = function("mamba2.mamba2_chunk_scan")

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Any:
        return scan(x, dt, A, B, C, 256, D=D)

    return from_torch(problem, run, problem.arguments)


# ---- Qwen3-Next and Kimi Linear ----


def _delta_rule(problem: Problem) -> Prepared:
    per_key = problem["g"].ndim == problem["v"].ndim
    rule = function("kimi_linear.chunk_kimi_delta_attention" if per_key else "qwen3_next.torch_chunk_gated_delta_rule")
    return from_torch(problem, lambda *arguments: rule(*arguments)[0], problem.arguments)


# ---- xLSTM ----


def _xlstm(problem: Problem) -> Prepared:
    cell = function("xlstm.mlstm_chunkwise_native_autograd")

    def heads_first(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.transpose(1, 2).contiguous() for tensor in tensors]

    return from_torch(
        problem,
        lambda q, k, v, i, f: cell(q, k, v, i, f, chunk_size=_STEPS),
        heads_first(problem.arguments),
        result=lambda y: y.transpose(1, 2),
        gradients=lambda gradients: [gradient.transpose(1, 2) for gradient in gradients],
        cotangent=lambda gradient: gradient.transpose(1, 2).contiguous(),
    )


def _why_not_xlstm(problem: Problem) -> list[str]:
    reasons = _why_not(problem)
    if problem.size("L") % _STEPS:
        reasons.append(f"needs a length that {_STEPS} divides")
    return reasons if problem["q"].shape[2] == problem["v"].shape[2] else [*reasons, "has no groups of heads"]


PEERS = (
    Peer(NAME, "selective_scan", "transformers", _why_not, _mamba),
    Peer(NAME, "ssd_scan", "transformers", _why_not, _mamba2),
    Peer(NAME, "gated_delta_rule", "transformers", _why_not, _delta_rule),
    Peer(NAME, "mlstm", "transformers", _why_not_xlstm, _xlstm),
)
