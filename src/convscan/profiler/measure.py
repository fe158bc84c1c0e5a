"""Latency, peak memory: how every number of the profiler is taken."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from . import machine
from .peer import Prepared
from .problem import Problem

# The kernel counts resident pages per processor and adds them up in batches: differences below this are noise, and a
# single figure may be off by a few times as much.
MEMORY_RESOLUTION = 256 << 10
# A burst of calls of one implementation: long enough to leave the rivals' cache contents behind, short enough to
# interleave often. Between bursts the machine rests so that the other runtimes' spinning threads go to sleep.
BURST_SECONDS = 2e-3
REST_SECONDS = 1e-3
MOST_SAMPLES = 400


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call."""

    p10: float
    median: float
    p90: float
    samples: int


def latency_of(seconds: Sequence[float]) -> Latency:
    """Quantiles of the samples taken, in microseconds."""
    ordered = sorted(s * 1e6 for s in seconds)
    if len(ordered) == 1:
        return Latency(ordered[0], ordered[0], ordered[0], 1)
    deciles = statistics.quantiles(ordered, n=10, method="inclusive")
    return Latency(deciles[0], statistics.median(ordered), deciles[-1], len(ordered))


@dataclass
class Contestant:
    """Something to be timed: `burst(n)` makes n calls and returns their times in seconds."""

    burst: Callable[[int], list[float]]
    seconds: float
    samples: list[float] = field(default_factory=list)
    spent: float = 0.0


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call. What it returns is freed outside the clock: callers keep results."""
    begin = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - begin
    del result
    return elapsed


def bursts(prepared: Prepared) -> Callable[[int], list[float]]:
    """Calls in this process, each timed on its own, after one that brings the data back into the caches."""

    def burst(calls: int) -> list[float]:
        if calls > 1:
            timed(prepared.run)
        return [timed(prepared.run) for _ in range(calls)]

    return burst


def interleave(contestants: Sequence[Contestant], budget_seconds: float) -> None:
    """Round after round over all contestants until the budget is spent, so that drift of the machine hits all alike.

    Nobody gets more than twice a fair share once it has three samples: a slow rival takes part in fewer rounds, a
    fast one gets more calls per burst instead.
    """
    if not contestants:
        return
    begin = time.perf_counter()
    share = budget_seconds / len(contestants)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            active = False
            for one in contestants:
                greedy = one.spent + one.seconds > 2 * share and len(one.samples) >= 3
                if greedy or (one.spent > 4 * share and one.samples) or len(one.samples) >= MOST_SAMPLES:
                    continue
                active = True
                calls = max(1, min(20, int(BURST_SECONDS / max(one.seconds, 1e-7))))
                time.sleep(REST_SECONDS)
                start = time.perf_counter()
                taken = one.burst(calls)
                one.spent += time.perf_counter() - start
                one.samples += taken
                one.seconds = min(one.seconds, min(taken))
            elapsed = time.perf_counter() - begin
            if not active or (elapsed > budget_seconds and all(one.samples for one in contestants)):
                return
    finally:
        if collecting:
            gc.enable()


def memory_is_measurable() -> bool:
    """Whether this kernel lets a process reset its own high-water mark."""
    return sys.platform == "linux" and Path("/proc/self/clear_refs").exists()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def _trim() -> None:
    """Returns what allocators have cached to the system, so that every implementation starts from nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def peak_bytes(prepared: Prepared, output_bytes: int, repeats: int = 2) -> int | None:
    """Most memory resident during one call, beyond inputs and output, plus what preparation keeps.

    Reset the high-water mark (``/proc/self/clear_refs`` ← 5), run once, VmHWM minus VmRSS before, minus a fresh output;
    the least of `repeats`, since other threads of the process only ever add.
    """
    if not memory_is_measurable():
        return None
    found = []
    for _ in range(repeats):
        _trim()
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = prepared.run()
        found.append(_status("VmHWM") - before)
        del result
    transient = max(0, min(found) - (output_bytes if prepared.fresh else 0))
    return transient + prepared.kept_bytes


@dataclass
class Replays:
    """A graph of calls: ``burst(n)`` replays it n times and returns the seconds of a call in each, ``answer`` is what
    the first of its calls returned in the last replay."""

    burst: Callable[[int], list[float]]
    answer: Any


class Meter:
    """How the calls of a problem are timed and weighed: here, on the CPU."""

    device = "cpu"
    counts_workspace = True  # whether convscan's own account has all that its calls keep

    def copies(self, problem: Problem) -> list[Problem]:
        """The problem where it is run, as often as calls shall take its inputs in turn."""
        return [problem]

    def fetched(self, answer: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The answer, to be compared."""
        return tuple(answer)

    def timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        """What one call returns, and its seconds."""
        begin = time.perf_counter()
        result = run()
        return result, time.perf_counter() - begin

    def bursts(self, turns: Sequence[Prepared]) -> Callable[[int], list[float]]:
        """Makes calls and returns the seconds of each."""
        return bursts(turns[0])

    def replays(self, turns: Sequence[Prepared], seconds: float) -> Replays | None:
        """The same calls as a graph of the device, where these take about so many seconds; None where there is none."""
        return None

    def peak_bytes(self, prepared: Prepared, output_bytes: int, repeats: int = 2) -> int | None:
        """Most memory during a call beyond inputs and output, with what preparation keeps."""
        return peak_bytes(prepared, output_bytes, repeats)

    def limits(self, budget: float) -> machine.Machine:
        """What it runs on, with its limits; ``budget`` seconds for each number."""
        return machine.measure(budget)
