"""SciPy: ``oaconvolve`` (overlap-add FFT, SciPy's FFT workers at our thread count) and ``lfilter``, channel by channel.

Both are given (B, D, L) memory. ``lfilter`` runs recurrences with constant coefficients only; for filters it is NumPy's
direct convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..peer import Peer, Prepared, activate, missing, time_last, unsupported
from ..problem import Problem

DTYPES = (torch.float32, torch.float64)
# NumPy's direct convolution stays below this on any core we have seen: refuses hopeless cases without running them.
MULTIPLY_ADDS_PER_SECOND = 30e9


def _views(y: np.ndarray) -> tuple[Tensor, ...]:
    return (torch.from_numpy(y).transpose(1, 2),)


def _oaconvolve(problem: Problem) -> Prepared:
    import scipy.fft
    from scipy.signal import oaconvolve

    x = time_last(problem["x"]).numpy()
    h = problem["h"].t().contiguous().numpy()[None]
    threads = torch.get_num_threads()

    def run() -> np.ndarray:
        with scipy.fft.set_workers(threads):
            y: np.ndarray = oaconvolve(x, h, axes=-1)[..., : problem.size("L")]
        activate(problem, torch.from_numpy(y))
        return y

    return Prepared(run, _views)


def _lfilter_conv(problem: Problem) -> Prepared:
    from scipy.signal import lfilter

    x = time_last(problem["x"]).numpy()
    h = problem["h"].t().contiguous().numpy()
    one = np.ones(1, dtype=x.dtype)

    def run() -> np.ndarray:
        y = np.empty_like(x)
        for n in range(x.shape[1]):
            y[:, n] = lfilter(h[n % h.shape[0]], one, x[:, n])
        activate(problem, torch.from_numpy(y))
        return y

    return Prepared(run, _views)


def _lfilter_recurrence(problem: Problem) -> Prepared:
    from scipy.signal import lfilter

    x = time_last(problem["x"]).numpy()
    a = problem["a"].expand(problem["x"].shape)[0, 0].numpy()
    start = problem["y_init"].numpy()
    one = np.ones(1, dtype=x.dtype)

    def run() -> np.ndarray:
        y = np.empty_like(x)
        for b in range(x.shape[0]):
            for n in range(x.shape[1]):
                denominator = np.array([1, -a[n]], dtype=x.dtype)
                y[b, n], _ = lfilter(one, denominator, x[b, n], zi=a[n : n + 1] * start[b, n])
        return y

    return Prepared(run, _views)


def _why_not_lfilter_recurrence(problem: Problem) -> list[str]:
    reasons = missing("scipy") + unsupported(problem, dtypes=(*DTYPES, torch.complex64, torch.complex128))
    a = problem["a"]
    if a.dim() != 1 and not (a.dim() == 3 and a.shape[0] == 1 and a.shape[1] == 1):
        reasons.append("coefficients vary in time")
    return reasons


def _lfilter_allpole(problem: Problem) -> Prepared:
    from scipy.signal import lfilter

    x, a = time_last(problem["x"]).numpy(), problem["a"].numpy()
    one = np.ones(1, dtype=x.dtype)
    denominators = [np.concatenate([one, -a[:, n]]) for n in range(a.shape[1])]

    def run() -> np.ndarray:
        y = np.empty_like(x)
        for n, denominator in enumerate(denominators):
            y[:, n] = lfilter(one, denominator, x[:, n])
        return y

    return Prepared(run, _views)


def _why_not_lfilter_allpole(problem: Problem) -> list[str]:
    reasons = missing("scipy") + unsupported(problem, dtypes=DTYPES)
    return reasons + (["coefficients vary in time"] if problem["a"].ndim > 2 else [])


PEERS = (
    Peer(
        "scipy oaconvolve",
        "causal_conv",
        "scipy",
        lambda problem: missing("scipy") + unsupported(problem, dtypes=DTYPES),
        _oaconvolve,
    ),
    Peer(
        "scipy lfilter",
        "causal_conv",
        "scipy",
        lambda problem: missing("scipy") + unsupported(problem, dtypes=DTYPES),
        _lfilter_conv,
        estimate=lambda problem: problem["x"].numel() * problem.size("K") / MULTIPLY_ADDS_PER_SECOND,
    ),
    Peer("scipy lfilter", "linear_recurrence", "scipy", _why_not_lfilter_recurrence, _lfilter_recurrence),
    Peer("scipy lfilter", "allpole_filter", "scipy", _why_not_lfilter_allpole, _lfilter_allpole),
)
