"""Streams a real recording through a long reverberation, block by block and sample by sample, as an audio device would.

    python examples/stream_recording.py [RECORDING.wav] [--taps K] [--block B]

Without a file it takes the recording that convolve_recording.py takes. Three streams hear the same signal: one in
blocks of a fixed size (what an audio callback gets), one in samples with the work spread evenly, one in chunks of
random length that is interrupted, pickled, and taken back. All must agree with the convolution of the whole recording.
"""

from __future__ import annotations

import argparse
import pickle
import random
import time
from pathlib import Path

import torch
from convolve_recording import impulse_response, pulse_recording

import convscan
from convscan.profiler import signal
from convscan.stream import BlockConvStream, ConvStream, Stream


def in_blocks(stream: Stream, x: torch.Tensor, block: int) -> tuple[torch.Tensor, list[float]]:
    """The output, and the seconds of each block."""
    pieces, seconds = [], []
    for begin in range(0, x.shape[0] - block + 1, block):
        start = time.perf_counter()
        pieces.append(stream.extend(x[begin : begin + block]))
        seconds.append(time.perf_counter() - start)
    return torch.cat(pieces), seconds


def in_samples(stream: Stream, x: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """The output, and the seconds of each sample."""
    pieces, seconds = [], []
    for sample in x:
        start = time.perf_counter()
        pieces.append(stream.step(sample))
        seconds.append(time.perf_counter() - start)
    return torch.stack(pieces), seconds


def interrupted(stream: Stream, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The output in chunks of random length; now and then the stream is sent through a file, or goes back."""
    draw = random.Random(seed)
    pieces: list[torch.Tensor] = []
    at = 0
    while at < x.shape[0]:
        chunk = x[at : at + draw.choice((1, 7, 480, 5000))]
        if draw.random() < 0.2:
            stream = pickle.loads(pickle.dumps(stream))
        if draw.random() < 0.2:  # noise that was never meant to be heard
            stream.checkpoint()
            stream.extend(torch.randn(50, x.shape[1]))
            stream.rollback(50)
        pieces.append(stream.extend(chunk))
        at += chunk.shape[0]
    return torch.cat(pieces)


def main() -> None:
    """Prints times and the largest deviations; fails when one is larger than rounding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", nargs="?", type=Path, help="a .wav or .npy file")
    parser.add_argument("--taps", type=int, default=16384, help="length of the impulse response")
    parser.add_argument("--block", type=int, default=256, help="samples of a block, a power of two")
    arguments = parser.parse_args()

    x = pulse_recording() if arguments.recording is None else signal.read(arguments.recording)
    h = impulse_response(arguments.taps, x.shape[1])
    whole = convscan.causal_conv(x, h)
    blocks, block_seconds = in_blocks(BlockConvStream(h, arguments.block), x, arguments.block)
    samples, sample_seconds = in_samples(ConvStream(h, schedule="spread"), x)
    chunks = interrupted(ConvStream(h), x)

    print(f"{x.shape[0]} samples, {x.shape[1]} channel(s), {h.shape[0]} taps")
    for name, seconds in ((f"block of {arguments.block}", block_seconds), ("sample", sample_seconds)):
        ordered = sorted(seconds)
        print(
            f"{name}: {1e6 * ordered[len(ordered) // 2]:.1f} µs, 99 % within {1e6 * ordered[-len(ordered) // 100]:.1f}"
        )
    worst = 0.0
    for name, y in (("blocks", blocks), ("samples", samples), ("chunks", chunks)):
        deviation = float((y - whole[: y.shape[0]]).abs().max() / whole.abs().max())
        print(f"{name}: largest deviation {deviation:.1e} of the largest value")
        worst = max(worst, deviation)
    if worst > 1e-5:
        raise SystemExit("the streams and the whole disagree")


if __name__ == "__main__":
    main()
