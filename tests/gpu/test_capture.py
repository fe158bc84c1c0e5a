"""What a CUDA graph can hold: calls of which the host reads no number, waits for nothing and sends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convscan import _gpu
from convscan.ops.gated_delta_rule import api as delta
from convscan.ops.gated_linear_attention import api as gla
from convscan.ops.linear_attention.step import Settings
from convscan.ops.linear_recurrence import step as scan_step
from convscan.ops.mlstm import api as mlstm
from convscan.ops.selective_scan import arguments as selective
from convscan.ops.ssd_scan import api as ssd
from convscan.tuning import measure_gpu
from convscan.tuning.workloads_gpu import WORKLOADS, Workload

# Operators that make tensors whose size is in the data, and that hand data to the host.
NOT_CAPTURED = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "repeat_interleave.Tensor", "item")


def absent(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Watched(TorchDispatchMode):
    """Notes what PyTorch does for a call, on which devices, and how many numbers it allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.devices: set[str] = set()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.name().removeprefix("aten::"))
        given = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
        self.devices |= {one.device.type for one in given}
        if self.names[-1].startswith(("empty", "new_", "zeros", "ones", "full")):
            self.allocated += sum(one.numel() for one in tree_leaves(result) if isinstance(one, Tensor))
        return result


def watched(call: Callable[[], Any]) -> tuple[Watched, list[_gpu.Launch]]:
    """The second time, when what is made once is there. Tensors have no data: reading a number is an error."""
    with _gpu.recorded():
        call()
    with _gpu.recorded() as launches, Watched() as seen:
        call()
    return seen, launches


@pytest.mark.parametrize("kernel", WORKLOADS)
def test_kernels_are_launched_without_the_host(kernel: str) -> None:
    seen, launches = watched(measure_gpu.prepared(WORKLOADS[kernel](absent)))
    assert launches
    assert seen.devices <= {"meta"}
    assert not [name for name in seen.names if name.startswith(NOT_CAPTURED)]


def steps() -> dict[str, Workload]:
    """Every step of generation."""
    q, v, g = absent(8, 4, 16), absent(8, 4, 24), absent(8, 4)
    state, per_head, n = absent(8, 4, 16, 24), absent(4), absent(8, 4, 16)
    calls = {
        "gated_linear_attention_step": (gla, "decay", (v, state, q, q, g)),
        "gated_delta_rule_step": (delta, "delta", (v, state, q, q, g, g)),
        "ssd_scan_step": (ssd, "ssd", (v, state.mT.contiguous(), g, per_head, q, q, per_head, v, per_head)),
        "mlstm_step": (mlstm, "mlstm", (v, state, n, g, q, q, g, g)),
    }
    found = {"causal_conv_step": WORKLOADS["step"](absent)}
    for op, (module, gates, tensors) in calls.items():
        problem = module._step._problem(Settings(gates, softplus=True), [*tensors, v])  # type: ignore[attr-defined]
        found[op] = Workload(op, "triton_step", problem, (*tensors, torch.empty_like(v)))
    x, a = absent(8, 6), absent(6)
    problem = scan_step._problem(x, a, x, torch.empty_like(x))
    found["linear_recurrence_step"] = Workload("linear_recurrence_step", "triton_step", problem, (x, a, x, x))
    u, rows, start = absent(8, 1, 6), absent(8, 1, 1, 4), absent(8, 6, 4)
    given = selective.Arguments(u, u, absent(6, 4), rows, rows, absent(6), u, absent(6), start)
    problem = selective.problem_of(given, True, start, None, u, in_place=True)
    scanned = Workload("selective_scan", "triton_by_state", problem, (*given, start, None, torch.empty_like(u)))
    return {**found, "selective_scan_step": scanned}


@pytest.mark.parametrize("name", steps())
def test_steps_allocate_no_state(name: str) -> None:
    """Nothing but what mLSTM's sums and stabilisers are copied from, which is a part of its state of the size of k."""
    step = steps()[name]
    seen, launches = watched(measure_gpu.prepared(step))
    assert seen.devices <= {"meta"}
    assert not [one for one in seen.names if one.startswith(NOT_CAPTURED)]
    assert len(launches) == 1
    largest = max(one.numel() for one in step.arguments if isinstance(one, Tensor))
    assert seen.allocated <= (8 * 4 * 17 if name == "mlstm_step" else 0), seen.names
    assert seen.allocated < largest


def test_packed_sequences_are_cut_on_the_device() -> None:
    bounds = absent(9, dtype=torch.int32)
    seen, _ = watched(lambda: _gpu.Chunks.of(bounds, 5000, 64))
    assert seen.devices <= {"meta"}
    assert not [one for one in seen.names if one.startswith(NOT_CAPTURED)]


def test_what_would_break_a_capture_is_seen() -> None:
    def reads() -> None:
        absent(3).sum().item()

    def sends() -> None:
        absent(3).copy_(torch.ones(3))

    with pytest.raises(RuntimeError, match="meta"):
        watched(reads)
    seen, _ = watched(sends)
    assert seen.devices == {"meta", "cpu"}
    seen, _ = watched(lambda: absent(3, 4))
    assert seen.allocated == 12
