"""Measures a GPU: what copies and products reach, and which tile sizes are fastest for each kernel on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import _dispatch
from ..ops.causal_conv import arguments as conv
from ..ops.linear_recurrence import api as scan
from . import gpu

Run = Callable[[], object]
_LONG, _SHORT = (8, 4096, 2048), (8, 4096, 256)  # (B, L, D): past the caches, and for what multiplies more


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


def _row(op: str, name: str) -> _dispatch.Implementation:
    return next(row for row in _dispatch.implementations(op) if row.name == name)


def _conv(name: str, taps: int, time_contiguous: bool) -> Run:
    batch, length, channels = _LONG if taps <= 32 else _SHORT
    x = _signal((batch, length, channels), time_contiguous)
    h, y = torch.randn(taps, channels, device="cuda"), torch.empty_like(x)
    problem = conv.problem_of(conv.Operands(x, h), y)
    return partial(_row("causal_conv", name).prepare(problem), x, h, None, None, None, None, y)


def _scan(time_contiguous: bool) -> Run:
    x = _signal(_LONG, time_contiguous)
    a, y = torch.sigmoid(x), torch.empty_like(x)
    problem = scan._problem(x, None, a, None, False, y)
    return partial(_row("linear_recurrence", "triton_scan").prepare(problem), x, None, a, None, y)


def _signal(size: tuple[int, int, int], time_contiguous: bool) -> Tensor:
    batch, length, channels = size
    if time_contiguous:
        return torch.randn(batch, channels, length, device="cuda").mT
    return torch.randn(size, device="cuda")


# Prepared anew with each configuration, which the rows look up.
MEASURED: dict[str, Callable[[], Run]] = {
    "conv.direct.channel": lambda: _conv("triton_direct", 4, False),
    "conv.direct.time": lambda: _conv("triton_direct", 4, True),
    "conv.rolling": lambda: _conv("triton_rolling", 4, False),
    "conv.toeplitz": lambda: _conv("triton_toeplitz", 128, True),
    "conv.fft": lambda: _conv("triton_fft", 4096, True),
    "conv.fft.passes": lambda: _conv("triton_fft_passes", 4096, True),
    "scan.channel": lambda: _scan(False),
    "scan.time": lambda: _scan(True),
}


def measure(progress: Callable[[str, float], None] | None = None) -> dict[str, Any]:
    """What ``tune`` stores under the name of the GPU: peaks, and the fastest configurations."""
    configurations = {}
    for index, (kernel, make) in enumerate(MEASURED.items()):
        if progress is not None:
            progress(f"{kernel} on the GPU", index / (len(MEASURED) + 1))

        def seconds(tried: Mapping[str, int], kernel: str = kernel, make: Callable[[], Run] = make) -> float:
            with gpu.trying(kernel, tried):
                try:
                    return _seconds(make())
                except Exception as reason:  # more registers or shared memory than there are
                    if type(reason).__name__ not in ("OutOfResources", "PTXASError", "CompilationError"):
                        raise
                    return float("inf")

        configurations[kernel] = search(kernel, seconds)
    if progress is not None:
        progress("copies and products on the GPU", len(MEASURED) / (len(MEASURED) + 1))
    return {"peaks": {name: float(f"{rate:.4g}") for name, rate in _peaks().items()}, "configurations": configurations}
