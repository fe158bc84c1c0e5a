"""The gated delta rule's Triton kernels against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan import gated_delta_rule_with_state
from convscan.ops.gated_delta_rule import triton as rows
from convscan.ops.linear_attention.triton import plan

NAME = "triton_wy"
BOUNDS = [0, 0, 67, 70]
# Of the largest value. Half types are rounded where they are stored, and nowhere else.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 keys and 16 values, the fewest that are multiplied."""
    monkeypatch.setattr(plan, "configuration", lambda gpu, kernel: {"keys": 16, "values": 16, "warps": 1})


def sample(
    length: int, dtype: torch.dtype = torch.float32, *, packed: bool = False, by_key: bool = False, keys: int = 17
) -> dict[str, Any]:
    """Two heads of a group. Some gates are shut, one exactly, and some steps are ignored."""
    generator = torch.Generator().manual_seed(length)
    batch = 1 if by_key or packed else 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    g = -torch.rand(batch, length, 2, *((keys,) if by_key else ()), generator=generator)
    g.view(-1)[::9] = -40.0
    g.view(-1)[g.numel() // 3] = -torch.inf
    beta = 2 * torch.rand(batch, length, 2, generator=generator)
    beta.view(-1)[::5] = 0.0
    sequences = (len(BOUNDS) - 1,) if packed else ()
    return {
        "q": normal(batch, length, 1, keys).to(dtype),
        "k": torch.nn.functional.normalize(normal(batch, length, 1, keys), dim=-1).to(dtype),
        "v": normal(batch, length, 2, 20).mT.contiguous().mT.to(dtype),
        "g": g,
        "beta": beta,
        "initial_state": normal(batch, *sequences, 2, keys, 20),
        "cu_seqlens": torch.tensor(BOUNDS) if packed else None,
    }


def answers(row: str, given: dict[str, Any]) -> list[Tensor]:
    """y, the last state, and gradients of all arguments for weights that are the same for every row."""
    leaves = {name: t.detach().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
              for name, t in given.items()}  # fmt: skip
    with convscan.force(row):
        found = gated_delta_rule_with_state(**leaves)
        generator = torch.Generator().manual_seed(5)
        weights = [torch.randn(t.shape, generator=generator).to(given["v"].dtype).to(t.dtype) for t in found]
        wanted = [t for t in leaves.values() if isinstance(t, Tensor) and t.requires_grad]
        return [*(t.detach() for t in found), *torch.autograd.grad(found, wanted, weights)]


def check(given: dict[str, Any], tolerance: float | None = None) -> None:
    dtype = given["v"].dtype
    exact = {name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in given.items()}
    truths = answers("reference", exact)
    for index, (one, truth) in enumerate(zip(answers(NAME, given), truths, strict=True)):
        assert one.shape == truth.shape
        assert one.isfinite().all()
        if truth.numel() > 0:
            error, size = float((one.double() - truth).abs().max()), float(truth.abs().max())
            assert error <= (tolerance or TOLERANCE[dtype]) * size, (index, error, size)


@pytest.mark.parametrize("by_key", [False, True], ids=["by step", "by key"])
@pytest.mark.parametrize("packed", [False, True], ids=["one sequence", "packed"])
def test_values_and_gradients(packed: bool, by_key: bool) -> None:
    # More than a chunk, but for two blocks of keys with decays by key.
    check(
        sample(40 if by_key and not packed else 70, packed=packed, by_key=by_key, keys=5 if packed and by_key else 17)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    for by_key in (False, True):
        check(sample(20, dtype, by_key=by_key, keys=5))


@pytest.mark.parametrize("by_key", [False, True], ids=["by step", "by key"])
def test_keys_that_are_all_the_same(by_key: bool) -> None:
    """The matrix to invert is as far from the identity as it gets."""
    given = sample(64, by_key=by_key, keys=3)
    given["k"] = given["k"][:, :1].expand_as(given["k"])
    given["g"] = torch.zeros_like(given["g"])
    check(given, 1e-5)


def test_leading_axes_that_do_not_merge() -> None:
    given = sample(3, keys=3)
    wide = {name: t if t is None else torch.stack([t, t + 1, t]).transpose(0, 1) for name, t in given.items()}
    for name in ("k", "g", "beta"):
        wide[name] = given[name].unsqueeze(1).expand(2, 3, *given[name].shape[1:])
    check(wide)


def test_impostors_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that leave something out: what corrections read of the state, or of the gradient behind the chunk."""
    given = sample(66, keys=3)
    found = rows._Given.solve

    def without(index: int) -> None:
        def solve(self: Any, *pairs: Tensor) -> Any:
            solved = found(self, *pairs)
            solved[index][1].zero_()
            return solved

        monkeypatch.setattr(rows._Given, "solve", solve)

    for index in range(2):
        without(index)
        with pytest.raises(AssertionError):
            check(given)


def test_empty_sizes() -> None:
    given = sample(3)
    with convscan.force(NAME):
        empty = {name: t[:, :0] if name in ("q", "k", "v", "g", "beta") else t for name, t in given.items()}
        y, state = gated_delta_rule_with_state(**empty)
        assert y.numel() == 0
        assert torch.equal(state, given["initial_state"])
        y = gated_delta_rule_with_state(**given | {"v": given["v"][..., :0], "initial_state": None})[0]
        assert y.shape == (2, 3, 2, 0)
    check(sample(3, keys=0))
    check({name: t[:, :0] if name in ("q", "k", "v", "g", "beta") else t for name, t in given.items()})
