"""Measures a GPU: what copies and products reach, and which tile sizes are fastest for each kernel on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import _dispatch
from . import gpu
from .workloads_gpu import WORKLOADS, Make, Workload

Run = Callable[[], object]


def search(kernel: str, seconds: Callable[[Mapping[str, int]], float]) -> dict[str, int]:
    """The fastest configuration that changing one size at a time finds, from the one in use; ``seconds`` is infinite
    for what cannot run."""
    best = dict(gpu.configuration_in_use(kernel))
    least = seconds(best)
    for name, values in gpu.candidates(kernel).items():
        for value in values:
            if value == best[name]:
                continue
            tried = {**best, name: value}
            taken = seconds(tried)
            # A difference that the next measurement would not show is none.
            if taken < 0.98 * least:
                best, least = tried, taken
    return best


def _seconds(run: Run, repeats: int = 20) -> float:
    """The median of calls on the current device, by events."""
    run()
    event: Any = partial(torch.cuda.Event, enable_timing=True)
    events = [(event(), event()) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return float(median(start.elapsed_time(end) for start, end in events)) / 1e3


def _peaks() -> dict[str, float]:
    """As fractions of the data sheet's rates are part of the predictions, what is reached is scaled up by them."""
    x = torch.empty(1 << 28, device="cuda")
    y = torch.empty_like(x)
    found = {"memory.bytes": 2 * x.nbytes / _seconds(lambda: y.copy_(x)) / gpu.REACHED_BANDWIDTH}
    for name, dtype in (("float32", torch.float32), ("half", torch.bfloat16)):
        a = torch.randn(4096, 4096, device="cuda", dtype=dtype)
        found[name] = 2 * 4096**3 / _seconds(partial(torch.mm, a, a)) / gpu.REACHED_RATE
    return found


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def prepared(workload: Workload) -> Run:
    """The call of a workload, with the configurations of now."""
    row = next(row for row in _dispatch.implementations(workload.op) if row.name == workload.row)
    return partial(row.prepare(workload.problem), *workload.arguments)


def measure(
    progress: Callable[[str, float], None] | None = None,
    *,
    make: Make = _normal,
    seconds: Callable[[Run], float] = _seconds,
    peaks: Callable[[], dict[str, float]] = _peaks,
) -> dict[str, Any]:
    """What ``tune`` stores under the name of the GPU: peaks, and the fastest configurations.

    Kernels are prepared anew with each configuration, which the rows look up; those that are measured later have the
    ones that were found before.
    """
    configurations: dict[str, dict[str, int]] = {}
    with ExitStack() as found:
        for index, (kernel, workload) in enumerate(WORKLOADS.items()):
            if progress is not None:
                progress(f"{kernel} on the GPU", index / (len(WORKLOADS) + 1))
            call = workload(make)

            def taken(tried: Mapping[str, int], kernel: str = kernel, call: Workload = call) -> float:
                with gpu.trying(kernel, tried):
                    try:
                        return seconds(prepared(call))
                    except Exception as reason:  # more registers or shared memory than there are
                        if type(reason).__name__ not in ("OutOfResources", "PTXASError", "CompilationError"):
                            raise
                        return float("inf")

            configurations[kernel] = search(kernel, taken)
            found.enter_context(gpu.trying(kernel, configurations[kernel]))
    if progress is not None:
        progress("copies and products on the GPU", len(WORKLOADS) / (len(WORKLOADS) + 1))
    return {"peaks": {name: float(f"{rate:.4g}") for name, rate in peaks().items()}, "configurations": configurations}
