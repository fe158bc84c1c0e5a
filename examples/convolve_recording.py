"""Convolves a real recording with a long impulse response and checks the result against SciPy.

    python examples/convolve_recording.py [RECORDING.wav] [--taps K]

Without a file it takes the 20-minute pulse recording (68,476 samples of a photoplethysmogram) that the package heartpy
ships; ``pip install --no-deps heartpy`` is enough, only its data file is read. The impulse response is what a large
room sounds like: noise that decays by 60 dB over its length.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import scipy.signal
import torch

import convscan
from convscan.profiler import signal


def pulse_recording() -> torch.Tensor:
    """heartpy's third example recording as (L, 1) float32, its mean removed."""
    package = importlib.util.find_spec("heartpy")
    if package is None or package.origin is None:
        raise SystemExit("this example reads a recording of the package heartpy: pip install --no-deps heartpy")
    table = np.loadtxt(
        Path(package.origin).parent / "data" / "data3.csv", delimiter=",", skiprows=1, usecols=1, dtype=np.float32
    )
    return torch.from_numpy(table - table.mean())[:, None]


def impulse_response(taps: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Decaying noise (K, D) of unit energy, the direct sound first."""
    generator = torch.Generator().manual_seed(seed)
    decay = 10 ** (-3 * torch.arange(taps) / taps)
    response = torch.randn(taps, channels, generator=generator) * decay[:, None]
    response[0] = response.abs().max()
    return response / response.square().sum(0).sqrt()


def main() -> None:
    """Prints times and the largest deviation; fails when the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", nargs="?", type=Path, help="a .wav or .npy file")
    parser.add_argument("--taps", type=int, default=16384, help="length of the impulse response")
    arguments = parser.parse_args()

    x = pulse_recording() if arguments.recording is None else signal.read(arguments.recording)
    h = impulse_response(arguments.taps, x.shape[1])
    convscan.causal_conv(x, h)  # once before the clock: the first call plans
    begin = time.perf_counter()
    y = convscan.causal_conv(x, h)
    ours = time.perf_counter() - begin

    begin = time.perf_counter()
    reference = scipy.signal.oaconvolve(x.double().numpy(), h.double().numpy(), axes=0)[: x.shape[0]]
    theirs = time.perf_counter() - begin

    deviation = float(np.abs(y.double().numpy() - reference).max() / np.abs(reference).max())
    print(f"{x.shape[0]} samples, {x.shape[1]} channel(s), {h.shape[0]} taps")
    print(f"convscan {1e3 * ours:.2f} ms (float32), scipy.signal.oaconvolve {1e3 * theirs:.2f} ms (float64)")
    print(f"largest deviation {deviation:.1e} of the largest value")
    if deviation > 1e-5:
        raise SystemExit("the two disagree")


if __name__ == "__main__":
    main()
