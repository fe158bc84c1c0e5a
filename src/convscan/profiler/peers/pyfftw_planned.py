"""FFTW through pyFFTW: planned (FFTW_MEASURE, at most a second), a fast length, all threads, buffers kept and reused.

Given (B, D, L) memory, a group of rows at a time so that its buffers stay within 16 MiB. With the filter transformed in
every call, and with its spectrum kept. Buffers and kept spectra count as memory; the output is the caller's.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from ..peer import Peer, Prepared, activate, missing, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)
BUFFER_BYTES = 16 << 20


def _prepare(problem: Problem, keep: bool) -> Prepared:
    import pyfftw

    batch, length, channels = problem["x"].shape
    x = time_last(problem["x"]).numpy().reshape(-1, length)
    h = problem["h"].expand(-1, channels).t().contiguous().numpy()
    n = pyfftw.next_fast_len(length + problem.size("K") - 1)
    real, half = x.dtype, np.result_type(x.dtype, np.complex64)
    rows = max(1, min(len(x), BUFFER_BYTES // (2 * n * real.itemsize)))
    while channels % rows and rows > 1:
        rows -= 1
    samples = pyfftw.zeros_aligned((rows, n), real)
    spectrum = pyfftw.zeros_aligned((rows, n // 2 + 1), half)
    options = {"threads": torch.get_num_threads(), "planning_timelimit": 1.0, "flags": ("FFTW_MEASURE",)}
    forward = pyfftw.FFTW(samples, spectrum, **options)
    # Destroying its input is the complex-to-real plan's only mode in several dimensions and the faster one here.
    inverse = pyfftw.FFTW(
        spectrum, samples, direction="FFTW_BACKWARD", **(options | {"flags": ("FFTW_MEASURE", "FFTW_DESTROY_INPUT")})
    )
    kept = np.empty((channels if keep else rows, n // 2 + 1), half)
    y = np.empty_like(x)

    def transform(source: np.ndarray) -> None:
        samples[:, : source.shape[1]] = source
        samples[:, source.shape[1] :] = 0
        forward.execute()

    if keep:
        for first in range(0, channels, rows):
            transform(h[first : first + rows])
            np.multiply(spectrum, 1 / n, out=kept[first : first + rows])

    def run() -> np.ndarray:
        for first in range(0, len(x), rows):
            n0 = first % channels
            if keep:
                filters = kept[n0 : n0 + rows]
            else:
                transform(h[n0 : n0 + rows])
                filters = np.multiply(spectrum, 1 / n, out=kept)
            transform(x[first : first + rows])
            np.multiply(spectrum, filters, out=spectrum)
            inverse.execute()
            y[first : first + rows] = samples[:, :length]
        activate(problem, torch.from_numpy(y))
        return y

    view = torch.from_numpy(y).view(batch, channels, length).transpose(1, 2)
    return Prepared(run, lambda _: (view,), kept_bytes=samples.nbytes + spectrum.nbytes + kept.nbytes, fresh=False)


PEERS = tuple(
    Peer(
        name,
        "causal_conv",
        "pyFFTW",
        lambda problem: missing("pyfftw") + unsupported(problem, dtypes=DTYPES),
        partial(_prepare, keep=keep),
    )
    for name, keep in (("pyfftw planned", False), ("pyfftw planned, spectrum kept", True))
)
