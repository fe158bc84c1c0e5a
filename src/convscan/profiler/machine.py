"""The machine the numbers belong to, and its own limits: copy and triad bandwidth, multiply-add peak, measured."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from convscan import _native

# Working sets from inside one core's L2 to far beyond any L3 but the largest; bytes moved by one pass.
WORKING_SETS = (256 << 10, 2 << 20, 16 << 20, 192 << 20)


@dataclass(frozen=True)
class Machine:
    """Name, size, and measured limits. Bandwidths are (working-set bytes, bytes per second) from small to large."""

    processor: str
    cores: int
    threads: int
    instruction_sets: str
    memory_bytes: int
    load: float
    system: str
    python: str
    torch: str
    copy_bandwidth: tuple[tuple[int, float], ...]
    triad_bandwidth: tuple[tuple[int, float], ...]
    peak_flops: float
    device: str = "cpu"  # "cuda": a GPU, whose cores are multiprocessors

    def to_json(self) -> dict[str, Any]:
        """As the JSON report stores it."""
        return asdict(self)

    @property
    def busy(self) -> bool:
        """Whether other programs kept the cores occupied before the run."""
        return self.device == "cpu" and self.load > 0.6 * self.cores

    def limit_seconds(self, bandwidth: str, bytes_moved: int, flops: int) -> float:
        """Least time this machine could take: the slower of memory (``bandwidth``: copy or triad) and arithmetic."""
        table = self.copy_bandwidth if bandwidth == "copy" else self.triad_bandwidth
        return max(bytes_moved / _at(table, bytes_moved), flops / self.peak_flops)


def _at(table: tuple[tuple[int, float], ...], working_set: int) -> float:
    """Bandwidth of the smallest measured working set that holds this one."""
    for size, bandwidth in table:
        if working_set <= size:
            return bandwidth
    return table[-1][1]


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Least time of one call among many, with one thread and with all: a limit is what the machine can do undisturbed,
    and a second thread helps neither a small working set nor a busy machine."""
    least, threads = math.inf, torch.get_num_threads()
    try:
        for count in {1, threads}:
            torch.set_num_threads(count)
            run()
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds / 2:
                start = time.perf_counter()
                run()
                least = min(least, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return least


def _bandwidths(budget: float) -> tuple[tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]]:
    copies, triads = [], []
    for size in WORKING_SETS:
        n = size // 8
        source, target = torch.ones(n), torch.zeros(n)
        copies.append((size, size / _fastest(lambda: target.copy_(source), budget)))
        n = size // 12
        a, b, c = torch.ones(n), torch.ones(n), torch.zeros(n)
        triads.append((size, size / _fastest(lambda: torch.add(a, b, alpha=2.0, out=c), budget)))
    return tuple(copies), tuple(triads)


def _peak(budget: float) -> float:
    """Of a loop of nothing but multiply-adds: matrix products, PyTorch's too, reach four fifths of it at best."""
    rounds, threads = 20000, torch.get_num_threads()
    done = _native.multiply_adds(rounds, threads)
    return done / _fastest(lambda: _native.multiply_adds(rounds, threads), 2 * budget)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> str:
    """The vector instruction sets PyTorch sees on this processor."""
    capability: str = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}"


def measure(budget: float = 0.08) -> Machine:
    """Measures this machine with as many threads as PyTorch uses; `budget` seconds for each of about ten numbers."""
    copies, triads = _bandwidths(budget)
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instruction_sets=instruction_sets(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        copy_bandwidth=copies,
        triad_bandwidth=triads,
        peak_flops=_peak(budget),
    )
