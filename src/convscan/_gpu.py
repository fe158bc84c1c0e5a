"""Launching Triton kernels, and compiling what would be launched for devices that are not there.

Kernels live beside their operator in files named triton_*.py, which alone import Triton and are themselves imported
when a row prepares its first call. Rows and their costs (triton.py) can be looked at where Triton is not installed.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """A kernel with all it was launched with."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]


_record: ContextVar[list[Launch] | None] = ContextVar("convscan_launches", default=None)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collects what would be launched inside the ``with`` block, and launches nothing."""
    launches: list[Launch] = []
    token = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(token)


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Runs as many programs of a kernel, on the current stream of the device of its first argument.

    ``constants`` are the kernel's compile-time arguments, ``num_warps`` and ``num_stages``. Nothing waits: a call can
    be captured in a CUDA graph.
    """
    if programs == 0:
        return
    if programs >= 1 << 31:
        raise ValueError(
            f"convscan: a kernel for GPUs would need {programs} programs, of which devices run less than 2^31"
        )
    record = _record.get()
    if record is not None:
        record.append(Launch(kernel, programs, args, constants))
        return
    device = args[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **constants)


def at(tensor: Tensor, offset: int) -> Tensor:
    """The memory of a tensor from an element on, as kernels take it: an address with a dtype."""
    if offset == 0:
        return tensor
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + offset)


def as_pairs(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, with twice the strides; what PyTorch has put off is done."""
    return torch.view_as_real(tensor.resolve_conj().resolve_neg()) if tensor.is_complex() else tensor


def apart(x: Tensor, y: Tensor) -> Tensor:
    """x, or a copy with its strides where the result y is written into its memory."""
    if x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr() or x.numel() == 0 or x.is_meta:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is launched for a tensor is captured in a CUDA graph: recorded, and not computed yet."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class Held(list[Any]):
    """What CUDA graphs read, which do not own it."""

    def hold(self, thing: Any) -> None:
        """From now on, once."""
        if not any(one is thing for one in self):
            self.append(thing)


class Shared:
    """A tensor that the current stream computes now and that later calls read, on whichever stream."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._stream = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
        self._event = None if self._stream is None else self._stream.record_event()

    def read(self) -> Tensor:
        """The tensor, for what the current stream computes next."""
        if self._stream is None or self._event is None:
            return self.tensor
        stream = torch.cuda.current_stream(self.tensor.device)
        # A capture begins when the device has finished, and cannot wait for what is outside of it.
        if stream != self._stream and not is_capturing(self.tensor):
            stream.wait_event(self._event)
            self.tensor.record_stream(stream)
        return self.tensor


def sequence_of(bounds: Tensor, length: int) -> Tensor:
    """The sequence of each step, without waiting for the device; bounds are cu_seqlens."""
    steps = torch.arange(length, device=bounds.device, dtype=bounds.dtype)
    return (torch.searchsorted(bounds, steps, right=True) - 1).clamp_(0, bounds.shape[0] - 2).to(torch.int32)


class Chunks(NamedTuple):
    """Packed sequences in chunks of some steps, each of one sequence.

    ``bounds`` are cu_seqlens as 64 bits; ``table`` has a row (sequence, first step, end) for every chunk that the
    sequences could have, the first of the s-th at bounds[s] // steps + s. Those that are not there have no steps.
    """

    bounds: Tensor
    table: Tensor

    @staticmethod
    def of(cu_seqlens: Tensor, length: int, steps: int) -> Chunks:
        """Without waiting for the device."""
        bounds = cu_seqlens.to(torch.int64).contiguous()
        sequences = bounds.shape[0] - 1
        first = bounds[:-1] // steps + torch.arange(sequences, device=bounds.device)
        chunk = torch.arange(chunks_of(length, steps, sequences), device=bounds.device)
        sequence = (torch.searchsorted(first, chunk, right=True) - 1).clamp_(min=0)
        end_of_sequence = bounds[1:][sequence]
        begin = torch.minimum(bounds[:-1][sequence] + (chunk - first[sequence]) * steps, end_of_sequence)
        end = torch.minimum(begin + steps, end_of_sequence)
        return Chunks(bounds, torch.stack([sequence, begin, end], 1))


def chunks_of(length: int, steps: int, sequences: int) -> int:
    """How many chunks as many packed sequences may have."""
    return ceil_div(length, steps) if sequences == 1 else length // steps + sequences


# ---- compiling for other devices ----

_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Resources(NamedTuple):
    """What a compiled kernel takes: registers and bytes of spilled ones of a thread, shared memory of a program."""

    registers: int
    spilled: int
    shared: int


def compiled(launched: Launch, target: Any) -> Any:
    """A launch compiled for a Triton ``GPUTarget``, with the specialisation that it would get on a device."""
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

    signature: dict[str, str] = {}
    known: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (name, value) in enumerate(zip(launched.kernel.arg_names, launched.args, strict=False)):
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            aligned = True  # as PyTorch allocates
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        elif value == 1:
            signature[name], known[name], aligned = "constexpr", 1, False
        else:
            signature[name], aligned = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in launched.constants.items() if name in ("num_warps", "num_stages")}
    for name, value in launched.constants.items():
        if name not in options:
            signature[name], known[name] = "constexpr", value
    source = triton.compiler.ASTSource(fn=launched.kernel, signature=signature, constexprs=known, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def resources(built: Any) -> Resources:
    """Of a kernel compiled for an NVIDIA device, read from its machine code."""
    import triton.backends.nvidia  # type: ignore[import-not-found, import-untyped, unused-ignore]

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    line = next(line for line in shown.splitlines() if "REG:" in line)
    usage = dict(part.split(":", 1) for part in line.split() if part.count(":") == 1)
    return Resources(int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), int(built.metadata.shared))


def ceil_div(a: int, b: int) -> int:
    """The least integer not below a / b."""
    return -(-a // b)


def power_of_two(n: int, least: int = 1, most: int = 1 << 30) -> int:
    """The least power of two not below n, between bounds."""
    return min(most, max(least, 1 << max(0, n - 1).bit_length()))


def names(values: Sequence[Tensor | None], stand_in: Tensor) -> list[Tensor]:
    """The tensors, with one that is never read in place of those that are not given."""
    return [stand_in if value is None else value for value in values]
