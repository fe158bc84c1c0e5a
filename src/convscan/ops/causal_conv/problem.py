"""What selection and kernels know of a convolution: sizes, strides, dtype; no addresses and no data."""

from __future__ import annotations

from typing import NamedTuple

from ..._layout import Triple, order


class Kept(NamedTuple):
    """Spectra of the filters that were made before: complex points of each, and whether rounded to bfloat16."""

    points: int
    is_bfloat16: bool


def arithmetic(dtype: str, precision: str) -> str:
    """The native name of a dtype, with the arithmetic that a precision asks for."""
    return "wide_float32" if dtype == "float32" and precision == "high" else dtype


class ConvProblem(NamedTuple):
    """y[b,i,n] = activation(sum_k h[k,n] x[b,i-k,n] + bias[n]); x[b,i+k,n] when ``transposed``.

    Strides count elements, in the order (batch, time, channel). ``bias`` is the stride of the bias and ``state`` has
    the strides of the initial state, None without. ``offsets`` are those of (x, state, y) for every turn of a loop
    over leading axes that do not merge into the batch.
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
    bias: int | None
    state: Triple | None
    activation: str | None
    transposed: bool
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str
    precision: str = "default"
    kept: Kept | None = None

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    @property
    def native_dtype(self) -> str:
        """Storage and arithmetic."""
        return arithmetic(self.dtype, self.precision)

    def __str__(self) -> str:
        parts = [f"B={self.batch} L={self.length} D={self.channels} K={self.taps} {self.dtype}"]
        parts.append(f"{order(self.x)} contiguous" if order(self.x) != "strided" else "strided")
        parts += [self.activation] if self.activation else []
        parts += ["initial state"] if self.state is not None else []
        parts += ["transposed"] if self.transposed else []
        parts += ["computed in float64"] if self.native_dtype == "wide_float32" else []
        parts += ["spectrum kept in bfloat16" if self.kept.is_bfloat16 else "spectrum kept"] if self.kept else []
        parts += [f"{self.turns} calls"] if self.turns > 1 else []
        return ", ".join([*parts, f"{self.threads} threads", self.isa])


class GradientProblem(NamedTuple):
    """Both gradients of a convolution, dx as the transposed convolution of dz, and dh.

    ``offsets`` are those of (x, dz, state, dx). ``forced`` is the implementation that surrounding settings ask for.
    """

    transposed: ConvProblem
    filter: FilterGradientProblem
    offsets: tuple[tuple[int, ...], ...] | None
    forced: str | None

    def __str__(self) -> str:
        return f"gradients of {self.filter}"


class FilterGradientProblem(NamedTuple):
    """dh[k,n] = sum_{b,i} dz[b,i,n] x[b,i-k,n], with ``offsets`` of (x, dz, state); ``dh`` has its strides."""

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

    @property
    def turns(self) -> int:
        """How many kernel calls the leading axes take."""
        return 1 if self.offsets is None else len(self.offsets)

    @property
    def native_dtype(self) -> str:
        """Storage and arithmetic."""
        return arithmetic(self.dtype, self.precision)

    def __str__(self) -> str:
        sizes = f"B={self.batch} L={self.length} D={self.channels} K={self.taps}"
        return f"{sizes} {self.dtype}, {order(self.x)} contiguous, {self.threads} threads, {self.isa}"
