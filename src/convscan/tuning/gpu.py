"""What is known of graphics processors: peaks from their data sheets and tile sizes, which ``convscan tune`` replaces
by what it measures.

gpu.json has an entry for each device, of bytes and operations a second, and a "default" one of the configurations that
hold wherever a device has none of its own. Nothing in it was measured: bandwidths and rates are the makers' (dense, at
boost clock), the cost of a launch and the rate of cached bytes are estimates, the configurations follow from sizes of
registers and memory transactions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from .._dispatch import Cost
from .._targets import processor
from .table import stored

# What of a data sheet's peak programs reach that do nothing but move, or multiply in tiles.
REACHED_BANDWIDTH, REACHED_RATE = 0.9, 0.6
# Programs of four warps that a multiprocessor holds before it moves bytes as fast as it can.
_PROGRAMS_TO_FILL = 4


@lru_cache
def _shipped() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(files(__package__).joinpath("gpu.json").read_text())
    return table


@lru_cache
def peaks(gpu: str) -> Mapping[str, Any]:
    """Rates and sizes of a device: measured where ``convscan tune`` ran, else of the device whose name is the longest
    beginning of this one's, else of the slowest."""
    shipped = _shipped()
    known = max((name for name in shipped if gpu.startswith(name)), key=len, default="NVIDIA A100")
    return {**shipped[known], **stored().get(gpu, {}).get("peaks", {})}


_tried: dict[str, Mapping[str, int]] = {}


@contextmanager
def trying(kernel: str, chosen: Mapping[str, int]) -> Iterator[None]:
    """A configuration that rows are prepared with inside the ``with`` block."""
    before = dict(_tried)
    _tried[kernel] = chosen
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


def candidates(kernel: str) -> Mapping[str, list[int]]:
    """The sizes that ``convscan tune`` tries of a kernel."""
    sizes: Mapping[str, list[int]] = _shipped()["candidates"].get(kernel, {})
    return sizes


def configuration_in_use(kernel: str) -> Mapping[str, int]:
    """That of the current GPU."""
    return configuration(processor(torch.device("cuda")), kernel)


def configuration(gpu: str, kernel: str) -> Mapping[str, int]:
    """Tile sizes, warps and stages of a kernel on a device."""
    return _tried[kernel] if kernel in _tried else _configuration(gpu, kernel)


@lru_cache
def _configuration(gpu: str, kernel: str) -> Mapping[str, int]:
    shipped = _shipped()
    known = max((name for name in shipped if gpu.startswith(name)), key=len, default="default")
    chosen: Mapping[str, int] = {
        **shipped["default"][kernel],
        **shipped[known].get(kernel, {}),
        **stored().get(gpu, {}).get("configurations", {}).get(kernel, {}),
    }
    return chosen


def step_tile(device: str, gpu: str, channels: int) -> tuple[int, int]:
    """Channels and warps of a program that makes a step of generation, no more than there are."""
    chosen = configuration(gpu if device == "cuda" else "default", "step")
    tile = min(chosen["channels"], 1 << max(0, channels - 1).bit_length())
    return tile, max(1, min(chosen["warps"], tile // 32))


def programs_to_fill(gpu: str) -> int:
    """How many programs of four warps occupy a device."""
    return int(_PROGRAMS_TO_FILL * peaks(gpu)["processors"])


class Work(NamedTuple):
    """What one launch does: bytes that it reads and writes, operations by the unit that does them, programs."""

    moved: float
    flops: float = 0.0
    unit: str = "float32"
    programs: float = math.inf
    again: float = 0.0  # bytes that it reads once more, from the cache where they fit
    latency: float = 0.0  # seconds that pass at least, because one part waits for another
    shared: float = 0.0  # bytes that it reads once more for programs beside each other, while the cache still has them


def seconds(gpu: str, *launches: Work) -> float:
    """Predicted time: of each launch the slowest of what it moves and computes, a launch after the other."""
    known = peaks(gpu)
    total = 0.0
    for work in launches:
        share = min(1.0, max(1.0, work.programs) / programs_to_fill(gpu))
        fits = work.moved < known["cache.bytes"] / 2
        bandwidth = REACHED_BANDWIDTH * share * known["cached.bytes" if fits else "memory.bytes"]
        again = known["cached.bytes" if work.again < known["cache.bytes"] / 2 else "memory.bytes"]
        memory = work.moved / bandwidth + work.again / (REACHED_BANDWIDTH * share * again)
        memory = max(memory, work.shared / (REACHED_BANDWIDTH * share * known["cached.bytes"]))
        busy = min(1.0, max(1.0, work.programs) / known["processors"])
        compute = work.flops / (REACHED_RATE * busy * known[work.unit])
        # Neither hides the other completely.
        total += known["launch"] + max(work.latency, math.hypot(memory, compute))
    return total


# What the interpreter takes for an operation on a tile, more than any other implementation.
_INTERPRETED = 1e4


def cost(device: str, gpu: str, workspace: float, *launches: Work) -> Cost:
    """The predicted cost of a call; interpreted on the CPU it is never the cheapest."""
    flops, moved = sum(work.flops for work in launches), sum(work.moved + work.again + work.shared for work in launches)
    name = gpu if device == "cuda" else "NVIDIA A100"
    time = seconds(name, *launches) if device == "cuda" else _INTERPRETED
    return Cost(time, int(workspace), int(flops), int(moved))


def forget() -> None:
    """Reads the tables again at the next selection."""
    peaks.cache_clear()
    _configuration.cache_clear()
