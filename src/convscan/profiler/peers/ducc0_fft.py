"""ducc0's FFT (the engine behind scipy.fft's successor): a fast length, all threads, buffers kept and reused.

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
    from ducc0 import fft

    batch, length, channels = problem["x"].shape
    x = time_last(problem["x"]).numpy().reshape(-1, length)
    h = problem["h"].expand(-1, channels).t().contiguous().numpy()
    n = fft.good_size(length + problem.size("K") - 1, True)
    half = np.result_type(x.dtype, np.complex64)
    rows = max(1, min(channels, BUFFER_BYTES // (2 * n * x.dtype.itemsize)))
    while channels % rows:
        rows -= 1
    threads = torch.get_num_threads()
    samples = np.zeros((rows, n), x.dtype)
    spectrum = np.empty((rows, n // 2 + 1), half)
    kept = np.empty((channels if keep else rows, n // 2 + 1), half)
    y = np.empty_like(x)

    def transform(source: np.ndarray, out: np.ndarray) -> np.ndarray:
        samples[:, : source.shape[1]] = source
        samples[:, source.shape[1] :] = 0
        return fft.r2c(samples, axes=(1,), nthreads=threads, out=out)  # type: ignore[no-any-return]

    if keep:
        for first in range(0, channels, rows):
            transform(h[first : first + rows], kept[first : first + rows])

    def run() -> np.ndarray:
        for first in range(0, len(x), rows):
            n0 = first % channels
            filters = kept[n0 : n0 + rows] if keep else transform(h[n0 : n0 + rows], kept)
            transform(x[first : first + rows], spectrum)
            np.multiply(spectrum, filters, out=spectrum)
            fft.c2r(
                spectrum,
                axes=(1,),
                lastsize=n,
                forward=False,
                inorm=2,
                nthreads=threads,
                out=samples,
                allow_overwriting_input=True,
            )
            y[first : first + rows] = samples[:, :length]
        activate(problem, torch.from_numpy(y))
        return y

    view = torch.from_numpy(y).view(batch, channels, length).transpose(1, 2)
    return Prepared(run, lambda _: (view,), kept_bytes=samples.nbytes + spectrum.nbytes + kept.nbytes, fresh=False)


PEERS = tuple(
    Peer(
        name,
        "causal_conv",
        "ducc0",
        lambda problem: missing("ducc0") + unsupported(problem, dtypes=DTYPES),
        partial(_prepare, keep=keep),
    )
    for name, keep in (("ducc0 fft", False), ("ducc0 fft, spectrum kept", True))
)
