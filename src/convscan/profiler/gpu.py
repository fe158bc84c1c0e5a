"""How calls are timed and weighed on a GPU, and what the GPU itself can do.

Inputs are copied as often as fills the second-level cache twice, and calls take them in turn, so that none finds its
own in the cache. Each call lies between two events of the stream. The device is kept busy while the host hands it a
burst of calls, so that a small kernel's time is its own and not the host's. Short calls are also captured, all copies
in turn, in a CUDA graph: what lies between two events beside a small kernel is then shared by many of them. Peak memory
is the allocator's.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .machine import Machine
from .measure import Meter, Replays
from .peer import Prepared
from .problem import Problem

# Host time of a call through autograd, generously: the device waits so long for each call of a burst.
HANDED_OVER = 100e-6
MOST_COPIES = 64
# Calls that take less, their way through the host included, are captured too: so many as take that long together, of
# which a launch and two events are less than a hundredth.
SHORT, REPLAYED = 1e-3, 1e-3
MOST_CAPTURED = 256


class Event(Protocol):
    """A point on the device's time line."""

    def record(self) -> None: ...
    def elapsed_time(self, end: Any) -> float: ...


class Device(Protocol):
    """What is asked of a GPU. The tests have one of their own."""

    name: str
    kind: str  # its instruction set, such as sm_90
    processors: int
    memory_bytes: int
    cache_bytes: int
    product_size: int  # of matrices that measure products

    def place(self, tensor: Tensor) -> Tensor:
        """A copy on the device, in the same memory order."""

    def event(self) -> Event: ...
    def synchronize(self) -> None: ...

    def hold(self, seconds: float) -> None:
        """Keeps the device busy for about so long."""

    def capture(self, calls: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], Any] | None:
        """What launches them again as one graph, and what the first of them then returns; None where a call does
        anything that cannot be captured."""

    def allocated(self) -> int:
        """Bytes that tensors have now."""

    def peak(self) -> int:
        """The most that they had since ``reset_peak``."""

    def reset_peak(self) -> None: ...


class Cuda:
    """The GPU that PyTorch uses."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.name = properties.name
        self.kind = getattr(properties, "gcnArchName", "") or f"sm_{properties.major}{properties.minor}"
        self.processors = properties.multi_processor_count
        self.memory_bytes = properties.total_memory
        self.cache_bytes = properties.L2_cache_size
        self.product_size = 8192
        self._cycles = 1e3 * getattr(properties, "clock_rate", 1.5e6)  # of kHz

    def place(self, tensor: Tensor) -> Tensor:
        memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
        return memory.copy_(tensor)

    def event(self) -> Event:
        event: Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return event

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def hold(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * self._cycles))  # type: ignore[no-untyped-call]

    def capture(self, calls: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], Any] | None:
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        try:
            # What is made by a first call on a stream is made outside of the graph.
            other.wait_stream(current)
            with torch.cuda.stream(other):
                calls[0]()
            current.wait_stream(other)
            with torch.cuda.graph(graph, stream=other):
                first = calls[0]()
                for call in calls[1:]:
                    call()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError:  # the host waited for the device, or asked it for memory of its own
            torch.cuda.synchronize()
            return None
        return graph.replay, first

    def allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()


def why_not() -> str | None:
    """The reason where there is no GPU to measure."""
    if torch.cuda.is_available():
        return None
    return "PyTorch finds no GPU; convscan.explain predicts times for one, and docs/gpu.md says what is known without"


class GpuMeter(Meter):
    """Of problems on a GPU."""

    device = "cuda"
    counts_workspace = False

    def __init__(self, gpu: Device) -> None:
        self.gpu = gpu

    def copies(self, problem: Problem) -> list[Problem]:
        size = sum(t.nbytes for t in problem.inputs.values() if isinstance(t, Tensor)) + problem.output_bytes
        count = min(MOST_COPIES, 1 + 2 * self.gpu.cache_bytes // max(1, size))
        place = self.gpu.place
        return [
            replace(
                problem,
                inputs=tree_map_only(Tensor, place, dict(problem.inputs)),
                cotangents=tuple(map(place, problem.cotangents)),
            )
            for _ in range(count)
        ]

    def fetched(self, answer: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.cpu() for tensor in answer)

    def timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        """One call from an idle device to an idle device."""
        self.gpu.synchronize()
        start, end = self.gpu.event(), self.gpu.event()
        start.record()
        result = run()
        end.record()
        self.gpu.synchronize()
        return result, start.elapsed_time(end) / 1e3

    def bursts(self, turns: Sequence[Prepared]) -> Callable[[int], list[float]]:
        made = 0

        def burst(calls: int) -> list[float]:
            nonlocal made
            events = [(self.gpu.event(), self.gpu.event()) for _ in range(calls)]
            self.gpu.hold(calls * HANDED_OVER)
            for start, end in events:
                run = turns[made % len(turns)].run
                made += 1
                start.record()
                run()
                end.record()
            self.gpu.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in events]

        return burst

    def replays(self, turns: Sequence[Prepared], seconds: float) -> Replays | None:
        if seconds >= SHORT:
            return None
        rounds = max(1, min(MOST_CAPTURED, round(REPLAYED / max(seconds, 1e-7))) // len(turns))
        calls = [turn.run for turn in turns] * rounds
        captured = self.gpu.capture(calls)
        if captured is None:
            return None
        replay, answer = captured

        def burst(times: int) -> list[float]:
            events = [(self.gpu.event(), self.gpu.event()) for _ in range(times)]
            self.gpu.hold(times * HANDED_OVER)
            for start, end in events:
                start.record()
                replay()
                end.record()
            self.gpu.synchronize()
            return [start.elapsed_time(end) / 1e3 / len(calls) for start, end in events]

        return Replays(burst, answer)

    def peak_bytes(self, prepared: Prepared, output_bytes: int, repeats: int = 2) -> int | None:
        self.gpu.synchronize()
        before = self.gpu.allocated()
        self.gpu.reset_peak()
        result = prepared.run()
        self.gpu.synchronize()
        transient = self.gpu.peak() - before - (output_bytes if prepared.fresh else 0)
        del result
        return max(0, transient) + prepared.kept_bytes

    def limits(self, budget: float) -> Machine:
        """Bandwidths inside and past the second-level cache, and the fastest products, those of bfloat16."""
        gpu = self.gpu

        def fastest(*runs: Callable[[], Any]) -> float:
            turns = [Prepared(run, lambda y: (y,)) for run in runs]
            burst = self.bursts(turns)
            least = min(burst(3))
            return min(burst(max(3, min(100, int(budget / max(least, 1e-7))))))

        def memory(count: int) -> Tensor:
            return gpu.place(torch.ones(count))

        copies, triads = [], []
        for size in (gpu.cache_bytes // 4, 16 * gpu.cache_bytes):
            n = max(1, size // 12)
            a, b, c = memory(n), memory(n), memory(n)
            copies.append((8 * n, 8 * n / fastest(partial(c.copy_, a))))
            triads.append((12 * n, 12 * n / fastest(partial(torch.add, a, b, alpha=2.0, out=c))))
        size = gpu.product_size
        a = gpu.place(torch.randn(size, size).bfloat16())
        product = torch.empty_like(a)
        rate = 2 * size**3 / fastest(lambda: torch.mm(a, a, out=product))
        return Machine(
            processor=gpu.name,
            cores=gpu.processors,
            threads=torch.get_num_threads(),
            instruction_sets=gpu.kind,
            memory_bytes=gpu.memory_bytes,
            load=os.getloadavg()[0],
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=torch.__version__,
            copy_bandwidth=tuple(copies),
            triad_bandwidth=tuple(triads),
            peak_flops=rate,
            device=self.device,
        )
