"""The plain loops in Numba, compiled for this machine, parallel over what is independent, in the case's memory order.

Channel contiguous: threads over blocks of time (convolution) or of channels (recurrence), the inner loop over channels.
Time contiguous: threads over rows. Compiled once per type and order, in memory; compilation is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from ..peer import Peer, Prepared, activate, missing, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)
# Direct multiply-adds a second no run of these loops has exceeded on two cores. With channels contiguous every tap
# reads and writes the output again (measured: 1.7e9 for 256 channels, 0.5e9 for 2).
MULTIPLY_ADDS_PER_SECOND = {"BLD": 10e9, "BDL": 60e9}


@cache
def _kernels() -> dict[str, Callable[..., Any]]:
    from numba import njit, prange

    @njit(parallel=True)
    def conv_channels(x, h, y):  # type: ignore[no-untyped-def]
        batch, length, channels = x.shape
        block = 64
        blocks = (length + block - 1) // block
        for job in prange(batch * blocks):
            b, first = job // blocks, job % blocks * block
            for i in range(first, min(length, first + block)):
                y[b, i, :] = 0
                for k in range(min(h.shape[0], i + 1)):
                    for n in range(channels):
                        y[b, i, n] += h[k, n] * x[b, i - k, n]

    @njit(parallel=True)
    def conv_time(x, h, y):  # type: ignore[no-untyped-def]
        rows, length = x.shape
        block = 2048
        for r in prange(rows):
            n = r % h.shape[0]
            for first in range(0, length, block):
                last = min(length, first + block)
                y[r, first:last] = 0
                for k in range(min(h.shape[1], last)):
                    tap = h[n, k]
                    for i in range(max(first, k), last):
                        y[r, i] += tap * x[r, i - k]

    @njit(parallel=True)
    def recurrence_channels(x, y_init, a, y):  # type: ignore[no-untyped-def]
        batch, length, channels = x.shape
        block = 256
        blocks = (channels + block - 1) // block
        for job in prange(batch * blocks):
            b, first = job // blocks, job % blocks * block
            last = min(channels, first + block)
            state = y_init[b, first:last].copy()
            for i in range(length):
                for n in range(last - first):
                    state[n] = a[b, i, first + n] * state[n] + x[b, i, first + n]
                    y[b, i, first + n] = state[n]

    @njit(parallel=True)
    def recurrence_time(x, y_init, a, y):  # type: ignore[no-untyped-def]
        rows, length = x.shape
        for r in prange(rows):
            state = y_init[r]
            for i in range(length):
                state = a[r, i] * state + x[r, i]
                y[r, i] = state

    return {
        "conv BLD": conv_channels,
        "conv BDL": conv_time,
        "recurrence BLD": recurrence_channels,
        "recurrence BDL": recurrence_time,
    }


def _conv(problem: Problem) -> Prepared:
    kernel = _kernels()[f"conv {problem.layout}"]
    if problem.layout == "BLD":
        x, h = problem["x"].contiguous().numpy(), problem["h"].expand(-1, problem.size("D")).contiguous().numpy()
    else:
        x = time_last(problem["x"]).numpy().reshape(-1, problem.size("L"))
        h = problem["h"].t().contiguous().numpy()
    return _prepared(problem, kernel, (x, h), x)


def _conv_estimate(problem: Problem) -> float:
    work = problem["x"].numel() * min(problem.size("K"), problem.size("L")) / 2
    return work / MULTIPLY_ADDS_PER_SECOND[problem.layout]


def _recurrence(problem: Problem) -> Prepared:
    kernel = _kernels()[f"recurrence {problem.layout}"]
    a = problem["a"].expand(problem["x"].shape)
    if problem.layout == "BLD":
        x, start = problem["x"].contiguous().numpy(), problem["y_init"].contiguous().numpy()
        coefficients = a.numpy()
    else:
        x = time_last(problem["x"]).numpy().reshape(-1, problem.size("L"))
        coefficients, start = (
            time_last(a).numpy().reshape(-1, problem.size("L")),
            problem["y_init"].reshape(-1).numpy(),
        )
    return _prepared(problem, kernel, (x, start, coefficients), x)


def _prepared(problem: Problem, kernel: Callable[..., Any], arguments: tuple[Any, ...], like: np.ndarray) -> Prepared:
    import numba

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    y = np.empty_like(like)
    batch, length, channels = problem["x"].shape
    tensor = torch.from_numpy(y)
    view = tensor if problem.layout == "BLD" else tensor.view(batch, channels, length).transpose(1, 2)

    kernel(*arguments, y)  # compiles, once per type and memory order

    def run() -> np.ndarray:
        kernel(*arguments, y)
        if problem.op == "causal_conv":
            activate(problem, tensor)
        return y

    return Prepared(run, lambda _: (view,), fresh=False)


PEERS = (
    Peer(
        "numba loop",
        "causal_conv",
        "numba",
        lambda problem: missing("numba") + unsupported(problem, dtypes=DTYPES),
        _conv,
        estimate=_conv_estimate,
    ),
    Peer(
        "numba loop",
        "linear_recurrence",
        "numba",
        lambda problem: missing("numba") + unsupported(problem, dtypes=(*DTYPES, torch.complex64, torch.complex128)),
        _recurrence,
    ),
)
