"""The operators against the PyTorch functions of Hugging Face transformers that define them in models (Mamba, Mamba-2,
Qwen3-Next, Kimi Linear, xLSTM): random weights and signals, over whole sequences, with states, and step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen
from transformers.models.xlstm import modeling_xlstm as xlstm

import convscan
import oracle

transformers.logging.set_verbosity_error()  # which other packages would be faster

State = tuple[Tensor, Tensor, Tensor]


class Draw(oracle.Draw):
    """Seeded float32 numbers."""

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return super().normal(*shape, dtype=dtype)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    """Both round: off by at most this times the largest value, or what takes its place where all should be zero."""
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance * max(float(wanted.abs().max()), 1e-2)


def gradients(function: Callable[..., Tensor], arguments: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    return torch.autograd.grad(function(*leaves), leaves, weights)


# ---- Mamba ----


def mamba_arguments(length: int, channels: int = 24, states: int = 16) -> dict[str, Tensor]:
    """As its mixer makes them of random weights: A of 1 to N, small steps."""
    draw = Draw(length)
    return {
        "u": draw.normal(2, length, channels),
        "delta": draw.normal(2, length, channels),
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": draw.normal(2, length, states),
        "C": draw.normal(2, length, states),
        "D": draw.normal(channels),
        "z": draw.normal(2, length, channels),
        "delta_bias": draw.normal(channels) - 3,
    }


def mamba_of_hugging_face(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor, **options: Any
) -> Any:
    """Its order is (B, D, L)."""
    return mamba.mamba_selective_scan(
        u.mT, delta.mT, A, B.mT, C.mT, D=D, z=z.mT, delta_bias=delta_bias, delta_softplus=True, **options
    )


@pytest.mark.parametrize("length", [1, 37, 130])
def test_mamba(length: int) -> None:
    arguments = mamba_arguments(length)
    wanted, wanted_state = mamba_of_hugging_face(**arguments, return_last_state=True)
    y, state = convscan.selective_scan_with_state(**arguments, delta_softplus=True)
    assert_near(y.mT, wanted)
    assert_near(state, wanted_state)


def test_gradients_of_mamba() -> None:
    arguments = mamba_arguments(70)
    weights = Draw(0).normal(*arguments["u"].shape)
    tensors = list(arguments.values())
    mine = gradients(
        lambda *t: convscan.selective_scan(*t[:5], D=t[5], z=t[6], delta_bias=t[7], delta_softplus=True),
        tensors,
        weights,
    )
    theirs = gradients(lambda *t: mamba_of_hugging_face(*t).mT, tensors, weights)
    for got, wanted in zip(mine, theirs, strict=True):
        assert_near(got, wanted, 1e-4)


def test_steps_of_mamba() -> None:
    arguments = mamba_arguments(6)
    mine, theirs = Draw(1).normal(2, 24, 16), Draw(1).normal(2, 24, 16)
    for t in range(6):
        u, delta, B, C, z = (arguments[name][:, t] for name in ("u", "delta", "B", "C", "z"))
        A, D, bias = arguments["A"], arguments["D"], arguments["delta_bias"]
        y = convscan.selective_scan_step(mine, u, delta, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)
        wanted = mamba.mamba_selective_state_update(theirs, u, delta, A, B, C, D=D, dt_bias=bias, dt_softplus=True, z=z)
        assert_near(y, wanted)
        assert_near(mine, theirs)


# ---- Mamba-2 ----


def mamba2_arguments(length: int) -> list[Tensor]:
    """x, dt, A, B, C, D, dt_bias: four heads in two groups."""
    draw = Draw(length)
    return [
        draw.normal(2, length, 4, 6),
        draw.normal(2, length, 4),
        -torch.arange(1.0, 5.0),
        draw.normal(2, length, 2, 5),
        draw.normal(2, length, 2, 5),
        draw.normal(4),
        draw.normal(4) - 1,
    ]


def mamba2_of_hugging_face(*tensors: Tensor, **options: Any) -> Any:
    x, dt, A, B, C, D, bias = tensors
    return mamba2.mamba2_chunk_scan(x, dt, A, B, C, 32, D=D, dt_bias=bias, dt_softplus=True, **options)


def ssd(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    *five, D, bias = tensors
    return convscan.ssd_scan_with_state(*five, D=D, dt_bias=bias, dt_softplus=True, **options)


@pytest.mark.parametrize("length", [1, 50, 200])
def test_mamba2(length: int) -> None:
    arguments, start = mamba2_arguments(length), Draw(2).normal(2, 4, 6, 5)
    for state in (None, start):
        wanted = mamba2_of_hugging_face(*arguments, initial_states=state, return_final_states=True)
        found = ssd(*arguments, initial_state=state)
        assert_near(found[0], wanted[0])
        assert_near(found[1], wanted[1])
    weights = Draw(3).normal(*arguments[0].shape)
    theirs = gradients(mamba2_of_hugging_face, arguments, weights)
    for got, wanted in zip(gradients(lambda *t: ssd(*t)[0], arguments, weights), theirs, strict=True):
        assert_near(got, wanted, 1e-4)


def test_steps_of_mamba2() -> None:
    x, dt, A, B, C, D, bias = mamba2_arguments(6)
    mine, theirs = Draw(4).normal(2, 4, 6, 5), Draw(4).normal(2, 4, 6, 5)
    for t in range(6):
        y = convscan.ssd_scan_step(mine, x[:, t], dt[:, t], A, B[:, t], C[:, t], D=D, dt_bias=bias, dt_softplus=True)
        # It takes numbers of heads for every channel.
        wanted = mamba2.mamba2_selective_state_update(
            theirs, x[:, t], dt[:, t, :, None].expand(2, 4, 6), A[:, None, None].expand(4, 6, 5), B[:, t], C[:, t],
            D[:, None].expand(4, 6), dt_bias=bias[:, None].expand(4, 6), dt_softplus=True,
        )  # fmt: skip
        assert_near(y, wanted)
        assert_near(mine, theirs)


# ---- Qwen3-Next and Kimi Linear ----


def delta_arguments(length: int, per_key: bool, groups: int = 4) -> list[Tensor]:
    """q, k, v, g, beta of four heads; keys of length 1."""
    draw = Draw(length)
    shape = (2, length, 4, 8) if per_key else (2, length, 4)
    return [
        draw.normal(2, length, groups, 8),
        normalize(draw.normal(2, length, groups, 8), dim=-1),
        draw.normal(2, length, 4, 10),
        -torch.nn.functional.softplus(draw.normal(*shape)),
        draw.normal(2, length, 4).sigmoid(),
    ]


@pytest.mark.parametrize("length", [1, 64, 150])
@pytest.mark.parametrize("model", ["qwen", "kimi"])
def test_gated_delta_rules(model: str, length: int) -> None:
    arguments, start = delta_arguments(length, model == "kimi"), Draw(5).normal(2, 4, 8, 10)
    loop, tiles = {
        "qwen": (qwen.torch_recurrent_gated_delta_rule, qwen.torch_chunk_gated_delta_rule),
        "kimi": (kimi.recurrent_kimi_delta_attention, kimi.chunk_kimi_delta_attention),
    }[model]
    for state in (None, start):
        found = convscan.gated_delta_rule_with_state(*arguments, initial_state=state)
        for function in (loop, tiles):
            wanted = function(*arguments, initial_state=state, output_final_state=True)
            assert_near(found[0], wanted[0])
            assert_near(found[1], wanted[1])
    weights = Draw(6).normal(*arguments[2].shape)
    theirs = gradients(lambda *t: tiles(*t)[0], arguments, weights)
    for got, wanted in zip(gradients(convscan.gated_delta_rule, arguments, weights), theirs, strict=True):
        assert_near(got, wanted, 1e-4)


@pytest.mark.parametrize("model", ["qwen", "kimi"])
def test_steps_of_gated_delta_rules(model: str) -> None:
    arguments = delta_arguments(6, model == "kimi")
    loop = {"qwen": qwen.torch_recurrent_gated_delta_rule, "kimi": kimi.recurrent_kimi_delta_attention}[model]
    mine = theirs = Draw(7).normal(2, 4, 8, 10)
    mine = mine.clone()
    for t in range(6):
        y = convscan.gated_delta_rule_step(mine, *(tensor[:, t] for tensor in arguments))
        one = [tensor[:, t : t + 1] for tensor in arguments]
        wanted, theirs = loop(*one, initial_state=theirs, output_final_state=True)
        assert_near(y, wanted[:, 0])
        assert_near(mine, theirs)


# ---- xLSTM ----


def xlstm_arguments(length: int) -> list[Tensor]:
    """q, k, v, i, f of three heads; gates as they are after training, and some input gates far beyond. In double
    precision, for y is a quotient whose divisor comes near zero."""
    draw = oracle.Draw(length)
    i = draw.normal(2, length, 3) - 1
    i[draw.normal(2, length, 3) > 1.5] = 30.0
    return [
        draw.normal(2, length, 3, 5),
        draw.normal(2, length, 3, 5),
        draw.normal(2, length, 3, 7),
        i,
        draw.normal(2, length, 3) + 4,
    ]


def heads_first(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]


@pytest.mark.parametrize("length", [1, 64, 128])
def test_xlstm(length: int) -> None:
    arguments = xlstm_arguments(length)
    start = tuple(oracle.Draw(8).normal(*shape) for shape in ((2, 3, 5, 7), (2, 3, 5), (2, 3)))
    for state in (None, start):
        y, (C, n, m) = convscan.mlstm_with_state(*arguments, initial_state=state)
        options: dict[str, Any] = {"return_last_states": True, "dtype_state": torch.float64}
        if state is not None:
            options |= {"c_initial": state[0], "n_initial": state[1], "m_initial": state[2][..., None]}
        for cell in (xlstm.mlstm_recurrent_sequence_native, xlstm.mlstm_chunkwise_native_autograd):
            if cell is xlstm.mlstm_chunkwise_native_autograd and length % 64:
                continue
            wanted, (C_wanted, n_wanted, m_wanted) = cell(*heads_first(*arguments), **options)
            found = (y.transpose(1, 2), C, n, m)
            for got, of_theirs in zip(found, (wanted, C_wanted, n_wanted, m_wanted.squeeze(-1)), strict=True):
                assert_near(got, of_theirs, 1e-9)


def test_gradients_of_xlstm() -> None:
    arguments = xlstm_arguments(64)
    arguments[3] = arguments[3].clamp(max=2)
    weights = oracle.Draw(11).normal(*arguments[2].shape)

    def loop(*tensors: Tensor) -> Tensor:
        y = xlstm.mlstm_recurrent_sequence_native(*heads_first(*tensors), dtype_state=torch.float64)
        return y.transpose(1, 2)

    for pair in zip(gradients(convscan.mlstm, arguments, weights), gradients(loop, arguments, weights), strict=True):
        assert_near(*pair, 1e-9)


def test_steps_of_xlstm() -> None:
    arguments = xlstm_arguments(6)
    mine = tuple(arguments[0].new_zeros(shape) for shape in ((2, 3, 5, 7), (2, 3, 5), (2, 3)))
    theirs: State = (mine[0].clone(), mine[1].clone(), mine[2][..., None].clone())
    for t in range(6):
        q, k, v, i, f = (tensor[:, t] for tensor in arguments)
        y = convscan.mlstm_step(mine, q, k, v, i, f)
        wanted, theirs = xlstm.mlstm_recurrent_step_native(
            q, k, v, i[..., None], f[..., None], *theirs, dtype_state=torch.float64
        )
        assert_near(y, wanted, 1e-9)
        for got, state in zip(mine, (theirs[0], theirs[1], theirs[2].squeeze(-1)), strict=True):
            assert_near(got, state, 1e-9)
