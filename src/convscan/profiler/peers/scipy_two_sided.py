"""SciPy's two-sided and circular convolutions and Toeplitz products: ``oaconvolve``, transforms of ``scipy.fft`` with
our number of workers, and ``linalg.matmul_toeplitz``, head by head.

Convolutions are given (B, D, L) memory. All transform the filter in every call.
"""

from __future__ import annotations

import numpy as np
import torch

from ..peer import Peer, Prepared, missing, time_last, unsupported
from ..problem import Problem
from .torch_two_sided import wraps_once

DTYPES = (torch.float32, torch.float64)


def _why_not(problem: Problem) -> list[str]:
    return missing("scipy") + unsupported(problem, dtypes=DTYPES)


def _two_sided(problem: Problem) -> Prepared:
    import scipy.fft
    from scipy.signal import oaconvolve

    x = time_last(problem["x"]).numpy()
    h = problem["h"].t().contiguous().numpy()[None]
    length, origin = problem.size("L"), problem.inputs["origin"]
    threads = torch.get_num_threads()

    def circular() -> np.ndarray:
        spectrum = scipy.fft.rfft(x, workers=threads) * scipy.fft.rfft(h[..., :length], workers=threads)
        y: np.ndarray = np.roll(scipy.fft.irfft(spectrum, length, workers=threads), -origin, -1)
        return y

    def linear() -> np.ndarray:
        with scipy.fft.set_workers(threads):
            y: np.ndarray = oaconvolve(x, h, axes=-1)[..., origin : origin + length]
        return y

    run = circular if problem.inputs["circular"] else linear
    return Prepared(run, lambda y: (torch.from_numpy(np.ascontiguousarray(y)).transpose(1, 2),))


def _toeplitz(problem: Problem) -> Prepared:
    from scipy.linalg import matmul_toeplitz

    column, row = (problem[name].numpy() for name in ("column", "row"))
    X = problem["X"].numpy()
    threads = torch.get_num_threads()

    def run() -> np.ndarray:
        y = np.empty_like(X)
        for b, n in np.ndindex(X.shape[:2]):
            y[b, n] = matmul_toeplitz((column[n], row[n]), X[b, n], workers=threads)
        return y

    return Prepared(run, lambda y: (torch.from_numpy(y),))


PEERS = (
    Peer(
        "scipy oaconvolve, fft",
        "convolve",
        "scipy",
        lambda problem: _why_not(problem) + wraps_once(problem),
        _two_sided,
    ),
    Peer("scipy matmul_toeplitz", "toeplitz_matmul", "scipy", _why_not, _toeplitz),
)
