"""Steps of generation of the operators on linear attention by their Triton kernel, against the native one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan.ops.linear_attention import step

NAME = "triton_step"


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of keys and of values."""
    monkeypatch.setattr(step, "configuration", lambda gpu, kernel: {"values": 4, "numbers": 8, "warps": 1})


class Given:
    """Seeded arguments; a call of each operator as ``name(dtype)``: the function, its states, and the rest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(1), dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32

    def signal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def state(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.wide)

    def decay(self, *shape: int) -> Tensor:
        return -self.state(*shape).abs()

    def decay_by_step(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
        q, k, v = self.signal(3, 2, 5), self.signal(3, 2, 5), self.signal(3, 4, 6)
        g = self.decay(3, 4)
        return convscan.gated_linear_attention_step, (self.state(3, 4, 5, 6),), {"q": q, "k": k, "v": v, "g": g}

    def decay_by_key(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
        q, k, v = self.signal(2, 3, 4, 5).transpose(0, 1), self.signal(3, 2, 4, 5), self.signal(3, 2, 4, 6)
        state = self.state(3, 2, 4, 6, 5).mT
        return convscan.gated_linear_attention_step, (state,), {"q": q, "k": k, "v": v, "g": self.decay(3, 2, 4, 5)}

    def delta(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
        q, k, v = self.signal(3, 2, 5), self.signal(3, 2, 5), self.signal(3, 4, 6)
        rest = {"q": q, "k": k, "v": v, "g": self.decay(3, 4), "beta": self.state(3, 4).sigmoid()}
        return convscan.gated_delta_rule_step, (self.state(3, 4, 5, 6),), rest

    def ssd(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
        rest = {
            "x": self.signal(3, 4, 6),
            "dt": self.state(3, 4),
            "A": self.decay(4),
            "B": self.signal(3, 2, 5),
            "C": self.signal(3, 2, 5),
            "D": self.state(4),
            "z": self.signal(3, 4, 6),
            "dt_bias": self.state(4),
            "dt_softplus": True,
        }
        return convscan.ssd_scan_step, (self.state(3, 4, 6, 5),), rest

    def mlstm(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, Any]]:
        q, k, v = self.signal(3, 4, 5), self.signal(3, 4, 5), self.signal(3, 4, 6)
        states = (self.state(3, 4, 5, 6), self.state(3, 4, 5), self.state(3, 4))
        return convscan.mlstm_step, states, {"q": q, "k": k, "v": v, "i": self.state(3, 4), "f": self.state(3, 4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["decay_by_step", "decay_by_key", "delta", "ssd", "mlstm"])
def test_steps(name: str, dtype: torch.dtype) -> None:
    function, states, rest = getattr(Given(dtype), name)()
    results = []
    for row in (NAME, "in_place"):
        own = [state.clone() for state in states]
        given = tuple(own) if name == "mlstm" else own[0]
        with convscan.force(row):
            for _ in range(2):
                y = function(given, **rest)
        results.append([y, *own])
    torch.testing.assert_close(*results)
