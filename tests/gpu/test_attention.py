"""The Triton kernels of linear attention with decay, by the operators that are made of them, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan.ops.linear_attention import api
from convscan.ops.linear_attention.triton import gradient, launches, plan

NAME = "triton_chunked"
BOUNDS = [0, 0, 67, 70]
# Of the largest value. Half types are rounded where they are stored, and nowhere else.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 keys and 16 values, the fewest that are multiplied."""
    chosen = {"keys": 16, "values": 16, "numbers": 512, "summed": 512, "steps": 16, "warps": 1}
    monkeypatch.setattr(plan, "configuration", lambda gpu, kernel: chosen)


def cut(monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> None:
    """Sizes other than those of devices, wherever they are known."""
    for module in (plan, launches, gradient):
        for name, size in sizes.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, size)
    convscan._dispatch.forget()


def sample(
    form: str, *, dtype: torch.dtype = torch.float32, length: int = 70, keys: int = 17, values: int = 3
) -> dict[str, Any]:
    """Arguments of ``attend``, two heads of a group; ``form`` says what they have. Some gates are shut, one exactly."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lead = (1, length)
    sequences = (len(BOUNDS) - 1,) if "packed" in form else ()
    g = -torch.rand(*lead, 2, *((keys,) if "by key" in form else ()), generator=generator)
    g.view(-1)[::7] = -40.0
    g.view(-1)[g.numel() // 3] = -torch.inf
    state, total = normal(1, *sequences, 2, keys, values), normal(1, *sequences, 2, keys)
    return {
        "q": normal(*lead, 1, keys).to(dtype),
        "k": normal(*lead, 1, keys).to(dtype),
        "v": normal(*lead, 2, values).mT.contiguous().mT.to(dtype),
        "g": g,
        "w": torch.rand(*lead, 2, generator=generator) if "weight" in form else None,
        "state": state if "state" in form else None,
        "sum_state": total if "state" in form and "weights" in form else None,
        "cu_seqlens": torch.tensor(BOUNDS) if "packed" in form else None,
        "sums": "weights" in form,
        "scale": 0.3,
    }


def answers(row: str, given: dict[str, Any], *, gradients: bool) -> list[Tensor]:
    """Outputs and states by a row, and gradients of all arguments for weights that are the same for every row."""
    leaves = {name: t.detach().requires_grad_(gradients) if isinstance(t, Tensor) and t.is_floating_point() else t
              for name, t in given.items()}  # fmt: skip
    with convscan.force(row):
        found = [t for t in api.attend(**leaves) if t.numel()]
        if gradients:
            generator = torch.Generator().manual_seed(5)
            weights = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in found]
            wanted = [t for t in leaves.values() if isinstance(t, Tensor) and t.requires_grad]
            found += torch.autograd.grad(found, wanted, weights)
    return found


def check(given: dict[str, Any], *, gradients: bool = True) -> None:
    dtype = given["v"].dtype
    exact = {name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in given.items()}
    truths = answers("reference", exact, gradients=gradients)
    for index, (one, truth) in enumerate(zip(answers(NAME, given, gradients=gradients), truths, strict=True)):
        assert one.isfinite().all()
        # Weights of gradients are rounded to the type of the output.
        error, size = (one.double() - truth).abs().max(), truth.abs().max()
        assert error <= 3 * TOLERANCE[dtype] * size, (index, float(error), float(size))


@pytest.mark.parametrize("form", ["state", "packed weights state", "packed weights state by key"])
def test_values_and_gradients(form: str) -> None:
    check(sample(form, keys=5 if "by key" in form else 17, values=3 if "packed" in form else 20))


@pytest.mark.parametrize("segment", [plan.WHOLE, 32])
@pytest.mark.parametrize("form", ["state", "packed weight state", "packed weights state"])
def test_segments(form: str, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that walk over sequences, and over segments of two chunks, of which sequences have up to three."""
    cut(monkeypatch, STEPS=16, _SEGMENTS=(segment,), WINDOW=2, NUMBERS=128)
    sizes = {"keys": 5} if "packed" in form else {"length": 40}
    check(sample(form, values=20, **sizes), gradients="weights" not in form)  # those of sums do not walk


def test_gradients_behind_what_has_faded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of decays where the state is a million times smaller than before a gate that lets almost nothing pass."""
    cut(monkeypatch, STEPS=16, _SEGMENTS=(plan.WHOLE,))
    given = sample("state", length=40, keys=3, values=3)
    given["g"] = torch.full_like(given["g"], -0.1)
    given["g"][:, 20] = -45.0
    given["v"][:, :12] *= 1e6
    exact = {name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in given.items()}
    # Behind the outputs and the last state come the gradients of q, k, v and g.
    one, truth = (answers(*call, gradients=True)[5] for call in ((NAME, given), ("reference", exact)))
    for part in (slice(21), slice(21, None)):
        assert (one[:, part].double() - truth[:, part]).abs().max() <= 3e-6 * truth[:, part].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    for form in ("weights state", "by key"):
        check(sample(form, dtype=dtype, length=20, keys=5, values=7))


def test_tiles_as_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check(sample("state", length=5, keys=3, values=2))


def test_the_public_functions() -> None:
    """ssd_scan, gated_linear_attention and mlstm by the same kernels, without a step and without keys too."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, dt, A = normal(2, 9, 4, 5), torch.rand(2, 9, 4, generator=generator), -torch.rand(4, generator=generator)
    B, C, D = normal(2, 9, 2, 6), normal(2, 9, 2, 6), normal(4)
    q, v, gate = normal(2, 9, 2, 6), normal(2, 9, 2, 5), normal(2, 9, 2)
    calls = [
        lambda: convscan.ssd_scan_with_state(x, dt, A, B, C, D=D),
        lambda: convscan.gated_linear_attention_with_state(q[:, :0], q[:, :0], v[:, :0], -gate.abs()[:, :0]),
        lambda: convscan.gated_linear_attention_with_state(q[..., :0], q[..., :0], v, -gate.abs()),
        lambda: convscan.mlstm(q, q, v, gate, gate + 2),
    ]
    for call in calls:
        with convscan.force(NAME):
            found = call()
        torch.testing.assert_close(found, call(), rtol=1e-5, atol=1e-5)


def test_leading_axes_that_do_not_merge() -> None:
    given = sample("weights state", length=3, keys=3, values=2)
    wide = {
        name: torch.stack([torch.cat([t, t + 1])] * 3).transpose(0, 1) if isinstance(t, Tensor) and name != "g" else t
        for name, t in given.items()
    }
    wide["g"] = given["g"].expand(2, 3, *given["g"].shape[1:])
    check(wide)
