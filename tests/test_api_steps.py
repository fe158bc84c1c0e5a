"""causal_conv_step and linear_recurrence_step: the whole operator sample by sample, in PyTorch's transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library

import convscan
import oracle


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_steps_of_a_convolution_are_the_whole(dtype: torch.dtype) -> None:
    draw = oracle.Draw(1)
    x, h, past = (draw.normal(*shape, dtype=dtype) for shape in ((2, 20, 7), (5, 7), (2, 4, 7)))
    state = past.clone()
    y = torch.stack([convscan.causal_conv_step(state, x[:, i], h, activation="silu") for i in range(20)], 1)
    oracle.Convolution(x, h, activation="silu", state=past).check(y, is_transform=False)
    assert torch.equal(state, x[:, -4:])


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
def test_steps_of_a_recurrence_are_the_whole(dtype: torch.dtype) -> None:
    draw = oracle.Draw(2)
    x, start = draw.normal(2, 9, 7, dtype=dtype), draw.normal(2, 7, dtype=dtype)
    a = oracle.coefficients(draw, 1, 7, dtype=dtype)
    state = start.to(torch.float32 if dtype.itemsize == 2 else dtype, copy=True)
    y = torch.stack([convscan.linear_recurrence_step(state, x[:, i], a) for i in range(9)], 1)
    oracle.Recurrence(x, start, a).check(y)


def _conv(state: Tensor, x: Tensor, h: Tensor) -> Tensor:
    return convscan.causal_conv_step(state, x, h, bias=h[0], activation="gelu")


def _scan(state: Tensor, x: Tensor, a: Tensor) -> Tensor:
    return convscan.linear_recurrence_step(state, x, a)


CASES = [(_conv, (3, 2, 4), (3, 4)), (_scan, (3, 4), (4,))]


@pytest.mark.parametrize(("function", "of_state", "of_h"), CASES)
def test_transforms(function: Callable[..., Tensor], of_state: tuple[int, ...], of_h: tuple[int, ...]) -> None:
    draw = oracle.Draw(3)
    state, x, h = (draw.normal(*shape, dtype=torch.float32) for shape in (of_state, (3, 4), of_h))
    eager, traced, mapped = state.clone(), state.clone(), state.clone()
    y = function(eager, x, h)
    assert not torch.equal(eager, state)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(traced, x, h), y)
    assert torch.equal(traced, eager)
    in_parts = torch.vmap(function, in_dims=(0, 0, None))(mapped, x, h)
    torch.testing.assert_close(in_parts, y)
    torch.testing.assert_close(mapped, eager)


def test_opcheck() -> None:
    x, state, h = torch.randn(2, 1, 4), torch.randn(2, 3, 4), torch.randn(3, 4)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for given in (
        (x, state, h, None, "silu", None, None, -1),
        (x, state, h, h[0], None, torch.tensor([4, 7]), None, -1),
    ):
        library.opcheck(torch.ops.convscan.causal_conv_step.default, given, test_utils=checks)
    given_to_scan = (x[:, 0], state[:, 0], h[0])
    library.opcheck(torch.ops.convscan.linear_recurrence_step.default, given_to_scan, test_utils=checks)


def test_errors_name_what_came() -> None:
    state, x, h = torch.zeros(2, 2, 4), torch.zeros(2, 4), torch.zeros(3, 4)
    step, scan = convscan.causal_conv_step, convscan.linear_recurrence_step
    with pytest.raises(ValueError, match=r"causal_conv_step: state must have the shape .*\(2, 2, 4\); got"):
        step(state[:, :1], x, h)
    with pytest.raises(TypeError, match="x must be a torch"):
        step(state, None, h)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a step overwrites its state"):
        step(state, x, h.requires_grad_())
    with pytest.raises(ValueError, match="state must have the shape"):
        scan(state, x, x)
    with pytest.raises(TypeError, match="state must be complex"):
        scan(x, x.to(torch.complex64), x)
    with pytest.raises(ValueError, match="a must broadcast"):
        scan(x, x, x[:, :3])


def test_empty_batch_and_one_tap() -> None:
    y = convscan.causal_conv_step(torch.zeros(0, 2, 4), torch.zeros(0, 4), torch.ones(3, 4))
    assert y.shape == (0, 4)
    y = convscan.causal_conv_step(torch.zeros(2, 0, 4), torch.ones(2, 4), torch.full((1, 4), 3.0))
    assert torch.equal(y, torch.full((2, 4), 3.0))
