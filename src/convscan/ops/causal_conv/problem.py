"""What selection and kernels know of a convolution: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..._layout import Triple, order


class Part(NamedTuple):
    """What the transform of a part of the frequencies computes: k = f + N1 (m + N2 l) for first digits f, last digits l
    and every m between them. N1 and, where there are three factors, N2 and N3 are those of the transform."""

    first: tuple[int, ...]
    last: tuple[int, ...]


class Kept(NamedTuple):
    """Spectra of the filters that were made before: complex points of each, and whether rounded to bfloat16.

    Where a part of them is kept, its pattern lies ``pattern_offset`` bytes behind the first of them, or it is ``part``.
    ``form`` is the implementation that reads them, each in an order of its own (forms.py).
    """

    points: int
    is_bfloat16: bool
    pattern_offset: int = 0
    form: str = "fft"
    part: Part | None = None


def arithmetic(dtype: str, precision: str) -> str:
    """The native name of a dtype, with the arithmetic that a precision asks for."""
    return "wide_float32" if dtype == "float32" and precision == "high" else dtype


class ConvProblem(NamedTuple):
    """y[b,i,n] = activation(post_gate[b,i,n] (sum_k h[k,n] u[b,i+origin-k,n] + bias[n])), u = pre_gate x; with
    ``transposed``, u[b,i+k-origin,n] in place of u[b,i+origin-k,n].

    Strides count elements, in the order (batch, time, channel); of ``h``, (tap, channel) with ``h_batch`` apart; of
    ``bias``, (batch, channel). ``group`` consecutive channels share a filter; with a channel stride of 0 all do.
    ``state`` has the strides of the initial state. What is not given is None. ``offsets`` are those of (x, h, bias,
    state, pre_gate, post_gate, y) for every turn of a loop over leading axes that do not merge into the batch.
    ``sequences``, where it is not 0, are packed along time, the longest of ``longest`` steps, their states
    ``state_sequence`` apart.
    """

    device: str
    dtype: str
    batch: int
    length: int
    channels: int
    taps: int
    x: Triple
    h: tuple[int, int]
    y: Triple
    bias: tuple[int, int] | None
    state: Triple | None
    activation: str | None
    transposed: bool
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str
    precision: str = "default"
    kept: Kept | None = None
    origin: int = 0
    h_batch: int = 0
    group: int = 1
    pre_gate: Triple | None = None
    post_gate: Triple | None = None
    sequences: int = 0
    longest: int = 0
    state_sequence: int = 0

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    @property
    def native_dtype(self) -> str:
        """Storage and arithmetic."""
        return arithmetic(self.dtype, self.precision)

    @property
    def gates(self) -> int:
        """How many gates there are."""
        return (self.pre_gate is not None) + (self.post_gate is not None)

    @property
    def filters(self) -> int:
        """Different filters of one element of the batch."""
        return 1 if self.h[1] == 0 and self.channels > 1 else -(-self.channels // self.group)

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} D={self.channels} K={self.taps} {self.dtype}"]
        parts.append(f"{order(self.x)} contiguous" if order(self.x) != "strided" else "strided")
        parts += [f"origin {self.origin}"] if self.origin else []
        parts += [f"{self.filters} filters"] if self.filters != self.channels else []
        parts += ["a filter for each sequence"] if self.h_batch else []
        parts += ["pre gate"] if self.pre_gate is not None else []
        parts += ["post gate"] if self.post_gate is not None else []
        parts += [self.activation] if self.activation else []
        parts += ["initial state"] if self.state is not None else []
        parts += [f"{self.sequences} sequences packed"] if self.sequences else []
        parts += ["transposed"] if self.transposed else []
        parts += ["computed in float64"] if self.native_dtype == "wide_float32" else []
        parts += ["spectrum kept in bfloat16" if self.kept.is_bfloat16 else "spectrum kept"] if self.kept else []
        parts += [f"{self.turns} calls"] if self.turns > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])


class BackwardProblem(NamedTuple):
    """Every gradient of ``forward`` together, whose ``y`` has the strides of the gradient of the result. ``forced`` is
    the implementation that surrounding settings ask for. ``needs`` says which of the gradients of x, h, bias, state,
    pre_gate and post_gate somebody needs."""

    forward: ConvProblem
    forced: str | None
    needs: tuple[bool, ...] = (True,) * 6

    def __str__(self) -> str:
        return f"all gradients of {self.forward}"


class FilterGradientProblem(NamedTuple):
    """dh[k,n] = sum_{b,i} dz_gate[b,i,n] dz[b,i,n] u[b,i+origin-k,n], u = x_gate x, with ``offsets`` of (x, dz, state,
    x_gate, dz_gate, dh); ``per_batch`` is the stride of dh where it is not summed over the batch, and ``dh`` has the
    others."""

    device: str
    dtype: str
    batch: int
    length: int
    channels: int
    taps: int
    x: Triple
    dz: Triple
    state: Triple | None
    offsets: tuple[tuple[int, ...], ...] | None
    dh: tuple[int, int]
    threads: int
    isa: str
    precision: str = "default"
    origin: int = 0
    x_gate: Triple | None = None
    dz_gate: Triple | None = None
    per_batch: int = 0
    sums_turns: bool = True
    sequences: int = 0
    longest: int = 0
    state_sequence: int = 0

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    @property
    def native_dtype(self) -> str:
        """Storage and arithmetic."""
        return arithmetic(self.dtype, self.precision)

    @property
    def gates(self) -> int:
        """How many gates there are."""
        return (self.x_gate is not None) + (self.dz_gate is not None)

    @property
    def filters(self) -> int:
        """Gradients of one element of the batch."""
        return self.channels

    def __str__(self) -> str:
        sizes = f"B={self.batch} L={self.length} D={self.channels} K={self.taps}"
        return f"{sizes} {self.dtype}, {order(self.x)} contiguous, {self.threads} threads, {self.isa}"


def kept_for(form: str, problem: ConvProblem | FilterGradientProblem) -> Kept | None:
    """What an implementation has of the filters' spectra; None where it transforms them itself."""
    kept = problem.kept if isinstance(problem, ConvProblem) else None
    return kept if kept is not None and kept.form == form else None


def item_bytes(dtype: str) -> int:
    """Bytes of a stored number."""
    return int(getattr(torch, dtype).itemsize)


def compute_bytes(problem: ConvProblem | FilterGradientProblem) -> int:
    """Bytes of a number in arithmetic."""
    return 8 if problem.native_dtype in ("float64", "wide_float32") else 4


def compute_type(problem: ConvProblem | FilterGradientProblem) -> torch.dtype:
    """The type of its arithmetic, as PyTorch has it."""
    return torch.float64 if compute_bytes(problem) == 8 else torch.float32


def samples_of(problem: ConvProblem | FilterGradientProblem) -> float:
    """All samples of the signal, over the leading axes too."""
    return problem.turns * problem.batch * problem.channels * problem.length
