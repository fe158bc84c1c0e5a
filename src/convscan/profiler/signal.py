"""Reads a user's signal: WAV (PCM 8 to 32 bits, float 32 and 64) and NPY (never unpickled), as (L, D) float32."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


class SignalError(ValueError):
    """The file cannot be used, with the reason and the remedy."""


def read(path: Path) -> Tensor:
    """The signal as a contiguous (L, D) float32 tensor; integers are scaled to [-1, 1)."""
    if not path.is_file():
        raise SignalError(f"--input: expected a file; {path} does not exist")
    if path.suffix.lower() == ".npy":
        samples = _read_npy(path)
    elif path.suffix.lower() == ".wav":
        samples = _read_wav(path)
    else:
        raise SignalError(f"--input: expected a .wav or .npy file; got {path.name}")
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or samples.shape[0] == 0 or samples.shape[1] == 0:
        raise SignalError(f"--input: expected samples (L,) or (L, D), not empty; got shape {samples.shape}")
    tensor = torch.from_numpy(np.array(samples, dtype=np.float32, order="C"))
    if not bool(torch.isfinite(tensor).all()):
        raise SignalError("--input: the signal holds NaN or infinity; remove them first")
    return tensor


def _read_npy(path: Path) -> np.ndarray:
    try:
        samples: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SignalError(f"--input: {path.name} is not a plain .npy array ({error})") from None
    if samples.dtype.kind not in "iuf":
        raise SignalError(f"--input: expected real numbers; {path.name} holds {samples.dtype}")
    if samples.dtype.kind in "iu":
        return samples / float(np.iinfo(samples.dtype).max)
    return samples


def _read_wav(path: Path) -> np.ndarray:
    data = path.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise SignalError(f"--input: {path.name} is not a RIFF WAVE file")
    layout: tuple[int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            kind, channels = struct.unpack_from("<HH", body)
            bits = struct.unpack_from("<H", body, 14)[0]
            if kind == EXTENSIBLE and len(body) >= 26:
                kind = struct.unpack_from("<H", body, 24)[0]
            layout = (kind, channels, bits)
        elif name == b"data":
            if layout is None:
                break
            return _decode(path.name, body, *layout)
        at += 8 + size + size % 2
    raise SignalError(f"--input: {path.name} has no readable fmt and data chunks")


def _decode(name: str, body: bytes, kind: int, channels: int, bits: int) -> np.ndarray:
    width = bits // 8
    if channels == 0 or (kind, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise SignalError(f"--input: {name} has format {kind} with {bits} bits; expected PCM 8-32 or float 32/64")
    body = body[: len(body) // (width * channels) * width * channels]
    if kind == FLOAT:
        samples = np.frombuffer(body, f"<f{width}")
    elif bits == 8:
        samples = (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    elif bits == 24:
        # Each sample into the upper three bytes of an int32, which keeps the sign.
        padded = np.zeros((len(body) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0] / 2.0**31
    else:
        samples = np.frombuffer(body, f"<i{width}") / 2.0 ** (bits - 1)
    return samples.reshape(-1, channels)
