"""The gated delta rule's Triton kernels against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan import gated_delta_rule_with_state
from convscan.ops.linear_attention import triton

NAME = "triton_wy"
BOUNDS = [0, 0, 67, 70]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}  # of the largest value


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 keys and 16 values, the fewest that are multiplied."""
    monkeypatch.setattr(triton, "configuration", lambda gpu, kernel: {"keys": 16, "values": 16, "warps": 1})


def sample(length: int, dtype: torch.dtype = torch.float32, *, packed: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    g = -torch.rand(2, length, 2, generator=generator)
    g.view(-1)[::9] = -40.0
    g.view(-1)[g.numel() // 3] = -torch.inf
    sequences = (len(BOUNDS) - 1,) if packed else ()
    return {
        "q": normal(2, length, 1, 17).to(dtype),
        "k": torch.nn.functional.normalize(normal(2, length, 1, 17), dim=-1).to(dtype),
        "v": normal(2, length, 2, 20).mT.contiguous().mT.to(dtype),
        "g": g,
        "beta": 2 * torch.rand(2, length, 2, generator=generator),
        "initial_state": normal(2, *sequences, 2, 17, 20),
        "cu_seqlens": torch.tensor(BOUNDS) if packed else None,
    }


KINDS = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]


@pytest.mark.parametrize(("dtype", "packed"), KINDS)
def test_values(dtype: torch.dtype, packed: bool) -> None:
    for length in (BOUNDS[-1],) if packed else (1, 70):
        given = sample(length, dtype, packed=packed)
        exact = {
            name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in given.items()
        }
        with convscan.force("reference"):
            truths = gated_delta_rule_with_state(**exact)
        with convscan.force(NAME):
            found = gated_delta_rule_with_state(**given)
        for one, truth in zip(found, truths, strict=True):
            assert (one.double() - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()


def test_keys_that_are_all_the_same() -> None:
    """The matrix to invert is as far from the identity as it gets."""
    given = sample(64)
    given["k"] = given["k"][:, :1].expand_as(given["k"])
    given["g"] = torch.zeros_like(given["g"])
    with convscan.force("reference"):
        truth = gated_delta_rule_with_state(**given)[0]
    with convscan.force(NAME):
        found = gated_delta_rule_with_state(**given)[0]
    assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_refusals_and_empty_sizes() -> None:
    given = sample(3)
    by_key = given | {"g": given["g"].unsqueeze(-1).expand(2, 3, 2, 17)}
    row = next(c for c in convscan.explain("gated_delta_rule", **by_key).candidates if c.name == NAME)
    assert row.reasons == ("takes decays by step, not by key",)
    with convscan.force(NAME):
        empty = {name: t[:, :0] if name in ("q", "k", "v", "g", "beta") else t for name, t in given.items()}
        y, state = gated_delta_rule_with_state(**empty)
        assert y.numel() == 0
        assert torch.equal(state, given["initial_state"])
        y = gated_delta_rule_with_state(**given | {"v": given["v"][..., :0], "initial_state": None})[0]
        assert y.shape == (2, 3, 2, 0)
