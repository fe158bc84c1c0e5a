"""Arrays whose elements lie further apart than 32 bits count."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from torch import Tensor

import convscan
import oracle

_REACH = 1 << 31  # elements that offsets of 32 bits reach, to either side


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Float32 numbers, none of which takes memory before it is written. Interpreted kernels write where they should:
    the interpreter would copy all of it onto itself."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    with TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=2 * _REACH + (1 << 28)))


def _far(memory: Tensor, tensor: Tensor, axis: int, begin: int) -> Tensor:
    """The tensor, two neighbours along ``axis`` as far apart as brings the last one beyond 32 bits. It lies in the
    middle, where an offset that is cut off leads to zeros and not out of the memory."""
    rest = tensor.movedim(axis, 0)[0]
    step = -(-_REACH // (tensor.shape[axis] - 1) // 64) * 64 + 64
    strides = list(rest.contiguous().stride())
    strides.insert(axis, step)
    place = memory.as_strided(tensor.shape, strides, _REACH + begin)
    return place.copy_(tensor)


_conv = partial(convscan.causal_conv, activation="silu")
_scan = partial(convscan.selective_scan, delta_softplus=True)


def _arguments(operator: Callable[..., Tensor], name: str) -> dict[str, Tensor]:
    draw = oracle.Draw(1)

    def normal(*shape: int) -> Tensor:
        return draw.normal(*shape, dtype=torch.float32)

    x, row = normal(2, 40, 3), normal(3)
    if operator is _conv:
        state = normal(2, 3, 3)
        return {"x": x, "h": normal(4, 3), "bias": row, "initial_state": state, "pre_gate": x, "post_gate": x.cos()}
    if operator is convscan.linear_recurrence:
        return {"x": x, "y_init": normal(2, 3), "a": x.sigmoid()}
    if operator is _scan:
        signals, state = {name: normal(2, 40, 4) for name in "BC"}, normal(2, 3, 4)
        return {"u": x, "delta": x.cos(), "A": -normal(3, 4).abs(), **signals, "D": row, "z": x, "initial_state": state}
    q, k, v, state = normal(2, 18, 2, 16), normal(2, 18, 2, 16), normal(2, 18, 2, 8), normal(2, 2, 16, 8)
    attention = {"q": q, "k": torch.nn.functional.normalize(k, dim=-1), "v": v, "initial_state": state}
    if operator is convscan.gated_delta_rule:
        return {**attention, "g": -q[..., 0].abs(), "beta": k[..., 0].sigmoid()}
    return {**attention, "g": -(q if "by key" in name else q[..., 0]).abs()}


# The operator, how many axes its arguments have at most, and the kernel.
CALLS: dict[str, tuple[Callable[..., Tensor], int, str]] = {
    **{name: (_conv, 3, name) for name in ("triton_direct", "triton_rolling", "triton_toeplitz", "triton_fft")},
    "recurrence": (convscan.linear_recurrence, 3, "triton_scan"),
    "selective scan": (_scan, 3, "triton_by_state"),
    "attention by step": (convscan.gated_linear_attention, 4, "triton_chunked"),
    "attention by key": (convscan.gated_linear_attention, 4, "triton_chunked"),
    "delta rule": (convscan.gated_delta_rule, 4, "triton_wy"),
}


@pytest.mark.parametrize(("name", "axis"), [(name, axis) for name in CALLS for axis in range(CALLS[name][1])])
def test_an_axis_of_every_argument(name: str, axis: int, memory: Tensor) -> None:
    operator, _, kernel = CALLS[name]
    near = _arguments(operator, name)
    far = {
        argument: _far(memory, tensor, axis, index << 20)
        for index, (argument, tensor) in enumerate(near.items())
        # The one kernel that takes contiguous channels only.
        if axis < tensor.ndim and (argument, axis, kernel) != ("x", 2, "triton_rolling")
    }

    def results(given: dict[str, Tensor]) -> list[Tensor]:
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in given.items()}
        with convscan.force(kernel):
            y = operator(**leaves)
            return [y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))]

    for what, one, exact in zip(("y", *near), results({**near, **far}), results(near), strict=True):
        assert torch.allclose(one, exact, rtol=1e-4, atol=1e-4), what
