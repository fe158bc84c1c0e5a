"""Times samples that come one by one: ConvStream against the direct step, and how even its steps are.

    python benchmarks/streaming.py [--channels D ...]

The direct step keeps the last K inputs in a ring stored twice, so that its window is always contiguous, and sums K
products by ``mul`` into existing memory and ``sum``, which is faster than einsum or a matrix product. One thread. Of
each step the least CPU time of several runs counts, less what the clock itself takes, so that a busy machine does not
show; the longest is the longest of these.
"""

from __future__ import annotations

import argparse
import time

import torch

from convscan.stream import ConvStream

RUNS = 8


class DirectStep:
    """y = sum_k h[k] x[i-k] over a ring."""

    def __init__(self, h: torch.Tensor) -> None:
        self.taps = h.shape[0]
        self.h = h.flip(0).contiguous()
        self.ring = torch.zeros(2 * self.taps, h.shape[1])
        self.products = torch.empty_like(self.h)
        self.at = 0

    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.ring[self.at] = x
        self.ring[self.at + self.taps] = x
        self.at = (self.at + 1) % self.taps
        return torch.mul(self.h, self.ring[self.at : self.at + self.taps], out=self.products).sum(0)


def clock_nanoseconds() -> int:
    """What reading the clock takes of a measurement."""
    return min(-time.thread_time_ns() + time.thread_time_ns() for _ in range(1000))


def direct_microseconds(h: torch.Tensor) -> float:
    """The least time of a direct step."""
    direct, x = DirectStep(h), torch.randn(h.shape[1])
    best = float("inf")
    for _ in range(max(10, min(2000, 20_000_000 // h.numel()))):
        begin = time.thread_time_ns()
        direct.step(x)
        best = min(best, time.thread_time_ns() - begin)
    return (best - clock_nanoseconds()) / 1e3


def step_microseconds(h: torch.Tensor, schedule: str, steps: int) -> torch.Tensor:
    """The least time of each of some steps, past the first K, over several streams."""
    x = torch.randn(h.shape[1])
    least = torch.full((steps,), torch.iinfo(torch.int64).max, dtype=torch.int64)
    warm = ConvStream(h, schedule=schedule)
    warm.extend(torch.randn(h.shape))
    for _ in range(RUNS):
        stream = warm.clone()
        stream.step(x)
        for i in range(steps):
            begin = time.thread_time_ns()
            stream.step(x)
            took = time.thread_time_ns() - begin
            if took < least[i]:
                least[i] = took
    return (least - clock_nanoseconds()).double() / 1e3


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("    K     D    direct µs   growing µs   ratio   spread µs   longest / average: growing, spread")
    for channels in arguments.channels:
        for taps in (64, 256, 1024, 4096, 16384, 65536):
            h = torch.randn(taps, channels) / taps
            direct = direct_microseconds(h)
            steps = max(1024, taps // 8)  # the largest block is complete once
            growing, spread = (step_microseconds(h, schedule, steps) for schedule in ("growing", "spread"))
            means = [float(times.mean()) for times in (growing, spread)]
            uneven = [float(times.max()) / mean for times, mean in zip((growing, spread), means, strict=True)]
            numbers = f"{direct:10.1f}  {means[0]:11.2f}  {direct / means[0]:6.1f}  {means[1]:10.2f}"
            print(f"{taps:6d}  {channels:4d}  {numbers}   {uneven[0]:8.1f} {uneven[1]:8.1f}")


if __name__ == "__main__":
    main()
