"""What the operators can run on, and the one place that reads environment variables.

``CONVSCAN_ISA``     name of the instruction set whose kernels to use (``baseline``, ``avx2``, ``avx512``, ``neon``);
                     by default the best one that the processor has.
``CONVSCAN_TUNING``  path of the tuning table to use instead of the one that ``convscan tune`` stored.
``CONVSCAN_GPU``     name of the graphics processor to predict for where there is none, such as ``NVIDIA H200`` (the
                     default), one of those in tuning/gpu.json.
``TRITON_INTERPRET`` Triton's own: with ``1`` its kernels also run, interpreted and very slowly, on tensors of the CPU.
                     It has to be set before anything imports Triton.
``XDG_CACHE_HOME``   the user's cache folder, where the system has another than ``~/.cache``.
``CXX``              the C++ compiler for the operators' library of ExecuTorch; by default c++, g++ or clang++.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch  # before the native module: both share the OpenMP runtime that torch brings

from . import _native
from ._errors import message


@dataclass(frozen=True)
class Target:
    """A kind of device with kernels for it. ``why_not()`` is None where it can be used, else the reason."""

    name: str
    device: str
    why_not: Callable[[], str | None]


def interprets() -> bool:
    """Whether Triton's interpreter is asked for, which runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton_why_not() -> str | None:
    if not _has_triton():
        return "Triton is not installed"
    if not interprets() and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return None


TARGETS: tuple[Target, ...] = (
    Target("cpu", "cpu", lambda: None),
    Target("triton", "cuda", _triton_why_not),
)


@lru_cache
def _gpu_name(index: int | None) -> str:
    if not torch.cuda.is_available():
        return os.environ.get("CONVSCAN_GPU", "NVIDIA H200")
    return torch.cuda.get_device_name(index)


def processor(device: torch.device) -> str:
    """What the cost of work on a device depends on: the instruction set of a processor, the name of a GPU."""
    return _gpu_name(device.index) if device.type == "cuda" else _native.isa()


@lru_cache
def _is_too_old(name: str) -> bool:
    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0)


def gpu_refusals(device: str, dtype: str, dtypes: tuple[str, ...], other_dtype: str = "does not compute") -> list[str]:
    """Why Triton kernels for ``dtypes`` cannot run a problem, as ``cpu_refusals`` of native ones."""
    reasons = []
    if not _has_triton():
        reasons.append("Triton is not installed")
    if device != "cuda" and not (device == "cpu" and interprets()):
        reasons.append(f"runs on cuda, not on {device}")
    elif device == "cuda" and _is_too_old(_gpu_name(None)):
        reasons.append("needs compute capability 8.0")
    if dtype not in dtypes:
        reasons.append(f"{other_dtype} {dtype}")
    return reasons


def cpu_refusals(device: str, dtype: str, dtypes: tuple[str, ...], other_dtype: str = "does not compute") -> list[str]:
    """Why native kernels for ``dtypes`` cannot run a problem; ``other_dtype`` words it for a dtype not among them."""
    reasons = []
    if device != "cpu":
        reasons.append(f"runs on cpu, not on {device}")
    if dtype not in dtypes:
        reasons.append(f"{other_dtype} {dtype}")
    return reasons


class WorkspaceMemory(NamedTuple):
    """Bytes of scratch memory that the native kernels of all threads hold together.

    ``current`` now, ``peak`` since ``reset_peak_workspace()``, ``tables`` in tables shared between calls.
    """

    current: int
    peak: int
    tables: int


def workspace_memory() -> WorkspaceMemory:
    """Scratch memory held by the native kernels, exact to the byte."""
    return WorkspaceMemory(_native.workspace_current(), _native.workspace_peak(), _native.tables_current())


def reset_peak_workspace() -> None:
    """Frees idle scratch memory and starts a new high-water mark."""
    _native.reset_workspace_peak()


def set_num_threads(threads: int) -> None:
    """Uses this many threads, in convscan and in PyTorch, which share one pool: ``torch.set_num_threads``."""
    if threads < 1:
        raise ValueError(message("set_num_threads", "threads must be at least 1", threads))
    torch.set_num_threads(threads)


def _use_isa(name: str | None) -> None:
    if name and not _native.set_isa(name):
        known = ", ".join(_native.isa_names())
        raise ImportError(message("CONVSCAN_ISA", f"this build and processor run {known}", repr(name), "Unset it"))


def tuning_file() -> Path:
    """Where ``convscan tune`` stores its measurements and selection looks for them."""
    override = os.environ.get("CONVSCAN_TUNING")
    if override:
        return Path(override)
    return cache_folder() / "tuning.json"


def cache_folder() -> Path:
    """The folder for what convscan keeps between programs."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "convscan"


def cxx_compiler() -> str | None:
    """The C++ compiler that the user names, by the variable that build tools read."""
    return os.environ.get("CXX") or None


_use_isa(os.environ.get("CONVSCAN_ISA"))
