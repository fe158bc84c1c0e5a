"""The Triton kernels of the convolution: what each can run, what it would cost, and how it is launched."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import apart, at, ceil_div, launch, names, power_of_two, sequence_of
from ..._layout import Triple, order
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost, seconds
from .problem import BackwardProblem, ConvProblem, FilterGradientProblem

REAL = ("float32", "float64", "bfloat16", "float16")
Run = Callable[..., None]
_NO_STRIDES = (0, 0, 0)
# Filters up to here are unrolled: more taps than registers hold gain nothing from it.
_UNROLLED = 32
# Taps of which one program sums up the gradient.
_GRADIENT_TAPS = 4


def refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    """Why no kernel here can run a problem."""
    return gpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def _gpu(problem: ConvProblem | FilterGradientProblem) -> str:
    return problem.isa if problem.device == "cuda" else "default"


def _item(problem: ConvProblem | FilterGradientProblem) -> int:
    return int(getattr(torch, problem.dtype).itemsize)


def _wide(problem: ConvProblem | FilterGradientProblem) -> Any:
    """The type that is computed in."""
    import triton.language as tl

    return tl.float64 if problem.native_dtype in ("float64", "wide_float32") else tl.float32


def unit(problem: ConvProblem | FilterGradientProblem) -> str:
    """What the arithmetic of a problem is limited by, where tensor cores have no part in it."""
    return "float64" if problem.native_dtype in ("float64", "wide_float32") else "float32"


def _samples(problem: ConvProblem | FilterGradientProblem) -> float:
    return float(problem.turns * problem.batch * problem.channels * problem.length)


def _moved(problem: ConvProblem | FilterGradientProblem) -> float:
    """Bytes to read and write at least."""
    return _item(problem) * ((2 + problem.gates) * _samples(problem) + problem.filters * problem.taps)


def _mirrored(strides: Triple | None, length: int) -> tuple[Triple, int]:
    """Strides of a signal that is read from its end, and the offset of the end."""
    if strides is None:
        return _NO_STRIDES, 0
    return (strides[0], -strides[1], strides[2]), (length - 1) * strides[1]


class _Arguments:
    """A convolution as kernels take it: always y[t] = sum_k h[k] u[t + origin - k], time running backwards where the
    problem is transposed."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.signals = [problem.x, problem.pre_gate, problem.post_gate, problem.y]
        self.strides = [strides or _NO_STRIDES for strides in self.signals]
        self.starts = [0, 0, 0, 0]
        if problem.transposed:
            ends = [_mirrored(strides, problem.length) for strides in self.signals]
            self.strides, self.starts = [strides for strides, _ in ends], [start for _, start in ends]
        self.flags: dict[str, Any] = {
            "ACTIVATION": problem.activation,
            "HAS_BIAS": problem.bias is not None,
            "HAS_STATE": problem.state is not None,
            "HAS_PRE": problem.pre_gate is not None,
            "HAS_POST": problem.post_gate is not None,
            "WIDE": _wide(problem),
        }

    def tensors(self, given: tuple[Tensor | None, ...]) -> list[list[Tensor]]:
        """x, h, bias, state, pre_gate, post_gate, y as they begin in each turn of the loop over leading axes."""
        x, y = given[0], given[-1]
        assert x is not None
        assert y is not None
        if self.problem.taps > 1 or self.problem.origin > 0:
            # Programs run in any order: what they share with others must stay until all have read it.
            x, pre = apart(x, y), None if given[4] is None else apart(given[4], y)
            given = (x, *given[1:4], pre, *given[5:])
        present = names([*given[:6], y], x)
        first = [self.starts[0], 0, 0, 0, *self.starts[1:]]
        turns = self.problem.offsets or ((0,) * 7,)
        return [
            [
                at(tensor, offset + start) if original is not None else tensor
                for tensor, original, offset, start in zip(present, [*given[:6], y], turn, first, strict=True)
            ]
            for turn in turns
        ]

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides of h, bias and state, then of the gates and y; those of x come first."""
        p = self.problem
        state = p.state or _NO_STRIDES
        x, pre, post, y = self.strides
        past = (state[0], p.state_sequence, *state[1:])
        return (*x, p.h_batch, *p.h, *(p.bias or (0, 0)), *past, *pre, *post, *y)

    @property
    def unpacked_steps(self) -> tuple[int, ...]:
        """The same without the stride from a sequence's state to the next one's."""
        return (*self.steps[:9], *self.steps[10:])


# ---- direct: a tile of outputs, the samples of each tap read anew ----


def _tile(problem: ConvProblem | FilterGradientProblem) -> tuple[int, int, int]:
    """Steps, channels and warps of a program, no larger than the signal."""
    chosen = configuration(_gpu(problem), f"conv.direct.{order(problem.x)}")
    channels = power_of_two(problem.channels, 1, chosen["channels"])
    time = power_of_two(problem.length, 1, chosen["time"] * chosen["channels"] // channels)
    return min(time, 1024), channels, chosen["warps"]


def _direct_cost(problem: ConvProblem) -> Cost:
    time, channels, _ = _tile(problem)
    programs = problem.turns * problem.batch * ceil_div(problem.length, time) * ceil_div(problem.channels, channels)
    taps = problem.taps
    # A sample of each tap comes from the first-level cache, an instruction for 32 of them: as 4 operations where
    # vectors are loaded, 8 where taps shift their alignment.
    flops = _samples(problem) * taps * (2 + (4 if order(problem.x) == "channel" else 8))
    workspace = 4 * problem.length if problem.sequences else 0
    return cost(
        problem.device,
        problem.isa,
        workspace,
        *(Work(_moved(problem) / problem.turns, flops / problem.turns, unit(problem), programs),) * problem.turns,
    )


def _prepare_direct(problem: ConvProblem) -> Run:
    from . import triton_direct

    arguments = _Arguments(problem)
    time, channels, warps = _tile(problem)
    time_tiles, channel_tiles = ceil_div(problem.length, time), ceil_div(problem.channels, channels)

    def run(*given: Tensor | None) -> None:
        bounds = given[7] if len(given) > 7 else None
        for tensors in arguments.tensors(given[:7]):
            x = tensors[0]
            packed = x if bounds is None else bounds.to(x.device)
            sequences = x if bounds is None else sequence_of(packed, problem.length)
            launch(
                triton_direct.tile,
                problem.batch * time_tiles * channel_tiles,
                *tensors,
                packed,
                sequences,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                problem.group,
                time_tiles,
                channel_tiles,
                *arguments.steps,
                K=problem.taps if problem.taps <= _UNROLLED else 0,
                TIME=time,
                CHANNELS=channels,
                PACKED=bounds is not None,
                BACKWARDS=problem.transposed,
                num_warps=warps,
                **arguments.flags,
            )

    return run


# ---- rolling: the last K samples in registers ----


def _rolling_refusals(problem: ConvProblem) -> list[str]:
    reasons = refusals(problem)
    if problem.taps > _UNROLLED:
        reasons.append(f"keeps up to {_UNROLLED} samples in registers")
    if problem.sequences:
        reasons.append("takes no packed sequences")
    if abs(problem.x[2]) != 1:
        reasons.append("takes contiguous channels only")
    return reasons


class _Rolling:
    """How ``rolling`` cuts a problem up."""

    def __init__(self, problem: ConvProblem | FilterGradientProblem) -> None:
        chosen = configuration(_gpu(problem), "conv.rolling")
        # Twice the taps and samples of each channel of a thread are in registers.
        most = chosen["channels"] if problem.taps <= 8 and unit(problem) == "float32" else 32 * chosen["warps"]
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 32, most)
        self.warps = min(self.warps, max(1, self.channels // 32))
        self.unroll = chosen["unroll"]
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Longer chunks read less twice, shorter ones occupy the device.
        self.steps = max(chosen["steps"], power_of_two(4 * problem.taps))
        self.chunks = ceil_div(max(1, problem.length), self.steps)
        self.programs = problem.batch * self.chunks * self.channel_tiles


def _rolling_cost(problem: ConvProblem) -> Cost:
    plan = _Rolling(problem)
    again = (problem.taps - 1) / plan.steps * _item(problem) * _samples(problem)
    flops = 2 * _samples(problem) * (problem.taps + 4)
    fill = plan.programs * plan.warps / 4  # in programs of four warps
    work = Work(_moved(problem) / problem.turns, flops / problem.turns, unit(problem), fill, again / problem.turns)
    return cost(problem.device, problem.isa, 0, *(work,) * problem.turns)


def _prepare_rolling(problem: ConvProblem) -> Run:
    from . import triton_direct

    arguments = _Arguments(problem)
    plan = _Rolling(problem)

    def run(*given: Tensor | None) -> None:
        for tensors in arguments.tensors(given[:7]):
            launch(
                triton_direct.rolling,
                plan.programs,
                *tensors,
                problem.length,
                problem.channels,
                problem.origin,
                problem.group,
                plan.chunks,
                plan.channel_tiles,
                *arguments.unpacked_steps,
                K=problem.taps,
                CHANNELS=plan.channels,
                STEPS=plan.steps,
                UNROLL=plan.unroll,
                num_warps=plan.warps,
                **arguments.flags,
            )

    return run


def _reads_no_spectrum(prepare: Callable[[ConvProblem], Run]) -> Callable[[ConvProblem], Run]:
    def prepared(problem: ConvProblem) -> Run:
        run = prepare(problem)
        if problem.kept is None:
            return run
        return lambda *tensors: run(*tensors[:6], *tensors[7:])

    return prepared


# ---- toeplitz: products of matrices ----


def _toeplitz_refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = refusals(problem)
    if unit(problem) == "float64":
        reasons.append("multiplies in float32 only")
    if problem.sequences:
        reasons.append("takes no packed sequences")
    return reasons


def _precision(problem: ConvProblem | FilterGradientProblem, is_gated: bool) -> str:
    """How products are formed so that they are as exact as float32's: see ``_triton.dot``."""
    if torch.version.hip is not None:
        return "exact"
    if problem.dtype == "float32":
        return "three"
    # A product of two half numbers has 22 bits at most, which two halves of 11 hold.
    return "left" if is_gated else "half"


# Tensor-core passes of each way, and the unit that they run on.
_PASSES = {"exact": (1, "float32"), "three": (3, "tf32"), "left": (2, "tf32"), "half": (1, "half")}


class _ToeplitzPlan:
    """Rows of N steps, and how many of them a program multiplies."""

    def __init__(self, problem: ConvProblem) -> None:
        chosen = configuration(_gpu(problem), "conv.toeplitz")
        self.n, self.warps, self.stages = chosen["n"], chosen["warps"], chosen["stages"]
        self.rows = power_of_two(ceil_div(max(1, problem.length), self.n), 16, chosen["rows"])
        # As many channels as a sector of 32 bytes holds, one after another, share what comes from memory.
        self.channels = min(problem.channels, 32 // _item(problem)) if order(problem.x) == "channel" else 1
        self.channels = max(1, self.channels)
        self.row_tiles = ceil_div(problem.length, self.n * self.rows)
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        self.programs = problem.batch * self.row_tiles * self.channel_tiles
        self.matrices = ceil_div(problem.taps - 1, self.n) + 1


def _toeplitz_cost(problem: ConvProblem) -> Cost:
    plan = _ToeplitzPlan(problem)
    passes, core = _PASSES[_precision(problem, problem.pre_gate is not None)]
    flops = 2.0 * passes * _samples(problem) * plan.matrices * plan.n
    # Besides, a sample and a number of a block from the first-level cache for each matrix, strided ones in 8 turns.
    loads = _samples(problem) * plan.matrices * (1 + plan.n / plan.rows) * (8 if order(problem.x) == "channel" else 1)
    work = Work(_moved(problem), flops, core, plan.programs)
    caches = Work(0.0, 4 * loads, "float32", plan.programs)
    gpu = problem.isa if problem.device == "cuda" else "NVIDIA A100"
    work = work._replace(latency=seconds(gpu, caches))
    return cost(problem.device, problem.isa, 0, *(work,) * problem.turns)


def _prepare_toeplitz(problem: ConvProblem) -> Run:
    from . import triton_toeplitz

    arguments, plan = _Arguments(problem), _ToeplitzPlan(problem)

    def run(*given: Tensor | None) -> None:
        for tensors in arguments.tensors(given[:7]):
            launch(
                triton_toeplitz.products,
                plan.programs,
                *tensors,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                problem.group,
                plan.row_tiles,
                plan.channel_tiles,
                *arguments.unpacked_steps,
                ROWS=plan.rows,
                N=plan.n,
                CHANNELS=plan.channels,
                PRECISION=_precision(problem, problem.pre_gate is not None),
                HALF=_triton_dtype(problem),
                num_warps=plan.warps,
                num_stages=plan.stages,
                **arguments.flags,
            )

    return run


# ---- fft: a transform of each block in registers ----

_SHORTEST, _LONGEST = 256, 4096  # complex points of a transform: two factors of 16, and what registers hold


def _factors(points: int) -> tuple[int, int, int]:
    """Of a power of two, each at least 16: three where they fit, for less to multiply."""
    if points == 4096:
        return 16, 16, 16
    first = 1 << ((points.bit_length() - 1) // 2)
    return first, points // first, 1


@lru_cache(maxsize=32)
def _tables(points: int, device: torch.device) -> Tensor:
    """For each factor N of ``triton_fft`` its matrix (N, N) and, but for the last, its twiddles (N, points / N), each
    as real and imaginary parts. Angles are exact before they are rounded."""
    factors = [n for n in _factors(points) if n > 1]
    parts: list[Tensor] = []
    left, before = points, 1
    for index, n in enumerate(factors):
        k, rest = torch.arange(n)[:, None], left // n
        columns = torch.arange(points // n)[None, :] // before
        # In units of a quarter turn divided by the points, modulo a whole one.
        matrix = -4 * k * torch.arange(n)[None, :] * (points // n)
        twiddles = -4 * k * columns * (points // left)
        if index == 0:  # the weights exp(i pi j / 2 M), j = n1 (M / N1) + n'
            matrix = matrix + torch.arange(n)[None, :] * rest
            twiddles = twiddles + columns
        for table in (matrix, twiddles) if index + 1 < len(factors) else (matrix,):
            angle = (table % (4 * points)).double() * (math.pi / (2 * points))
            parts += [angle.cos().flatten(), angle.sin().flatten()]
        left, before = rest, before * n
    return torch.cat(parts).float().to(device)


def _fft_points(problem: ConvProblem | FilterGradientProblem) -> int:
    """The transform with the least work: one block, or several that overlap by the taps."""
    whole = power_of_two(ceil_div(problem.length + problem.taps - 1, 2), _SHORTEST)
    candidates = [m for m in (256, 512, 1024, 2048, 4096) if m <= whole and 2 * m >= 2 * problem.taps]
    if whole <= _LONGEST and 2 * whole > problem.taps - 1:
        candidates.append(whole)

    def work(points: int) -> float:
        return points * sum(_factors(points)) * ceil_div(problem.length, 2 * points - problem.taps + 1)

    return min(candidates, key=work, default=0)


def _fft_refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    reasons = _toeplitz_refusals(problem)
    if not reasons and _fft_points(problem) == 0:
        reasons.append(f"holds transforms of up to {_LONGEST} points in registers")
    return reasons


def _fft_precision(problem: ConvProblem | FilterGradientProblem) -> str:
    """11 bits between steps are enough for bfloat16, of which results keep 8; for float16 they were 5 times off."""
    if torch.version.hip is not None:
        return "exact"
    return "one" if problem.dtype == "bfloat16" else "three"


def _fft_flops(points: int, passes: int) -> float:
    """Of one transform by products of matrices."""
    return 8.0 * points * sum(n for n in _factors(points) if n > 1) * passes


class _FftPlan:
    """Blocks of a problem."""

    def __init__(self, problem: ConvProblem | FilterGradientProblem) -> None:
        self.points = _fft_points(problem)
        self.factors = _factors(self.points)
        self.warps = max(1, min(configuration(_gpu(problem), "conv.fft")["warps"], self.points // 256))
        self.blocks = ceil_div(problem.length, 2 * self.points - problem.taps + 1)
        self.channels = 1
        if order(problem.x) == "channel":
            self.channels = max(1, min(problem.channels, 32 // _item(problem)))
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        self.programs = problem.batch * self.blocks * self.channel_tiles
        self.passes, self.unit = {"exact": (1, "float32"), "three": (3, "tf32"), "one": (1, "tf32")}[
            _fft_precision(problem)
        ]


def _fft_cost(problem: ConvProblem) -> Cost:
    plan = _FftPlan(problem)
    filters = problem.filters * (problem.batch if problem.h_batch else 1)
    kept = 8.0 * plan.points * filters
    transform = _fft_flops(plan.points, plan.passes)
    overlap = _item(problem) * problem.batch * problem.channels * (problem.taps - 1) * (plan.blocks - 1)
    works = (
        Work(kept + _item(problem) * filters * problem.taps, filters * transform, plan.unit, filters),
        Work(
            _moved(problem) / problem.turns + kept,
            2 * transform * problem.batch * plan.blocks * problem.channels,
            plan.unit,
            plan.programs * plan.warps / 4,
            overlap,
        ),
    )
    return cost(problem.device, problem.isa, kept, *works * problem.turns)


def _prepare_fft(problem: ConvProblem) -> Run:
    from . import triton_fft

    arguments, plan = _Arguments(problem), _FftPlan(problem)
    n1, n2, n3 = plan.factors
    filters = problem.filters
    batches = problem.batch if problem.h_batch else 1
    precision = _fft_precision(problem)

    def run(*given: Tensor | None) -> None:
        for tensors in arguments.tensors(given[:7]):
            x, h, *others = tensors
            tables = _tables(plan.points, x.device) if not x.is_meta else x.new_empty(1, dtype=torch.float32)
            spectrum = torch.empty(batches * filters, 2 * plan.points, dtype=torch.float32, device=x.device)
            factors = {"N1": n1, "N2": n2, "N3": n3}
            launch(
                triton_fft.spectra,
                batches * filters,
                h,
                tables,
                spectrum,
                problem.taps,
                filters,
                problem.h_batch,
                *problem.h,
                PRECISION="exact" if torch.version.hip else "three",
                num_warps=plan.warps,
                **factors,
            )
            steps = arguments.unpacked_steps
            launch(
                triton_fft.convolution,
                plan.programs,
                x,
                spectrum,
                *others,
                tables,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                problem.group if problem.h[1] or filters > 1 else problem.channels,
                filters if problem.h_batch else 0,
                plan.blocks,
                plan.channel_tiles,
                *steps[:3],
                *steps[6:],
                CHANNELS=plan.channels,
                PRECISION=precision,
                num_warps=plan.warps,
                **factors,
                **arguments.flags,
            )

    return run


def _triton_dtype(problem: ConvProblem) -> Any:
    import triton.language as tl

    return {"bfloat16": tl.bfloat16, "float16": tl.float16}.get(problem.dtype, tl.float32)


ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", refusals, _direct_cost, _reads_no_spectrum(_prepare_direct)),
    Implementation("triton_rolling", "triton", _rolling_refusals, _rolling_cost, _reads_no_spectrum(_prepare_rolling)),
    Implementation(
        "triton_toeplitz", "triton", _toeplitz_refusals, _toeplitz_cost, _reads_no_spectrum(_prepare_toeplitz)
    ),
    Implementation("triton_fft", "triton", _fft_refusals, _fft_cost, _reads_no_spectrum(_prepare_fft)),
)


# ---- gradient of the filter ----


class _GradientPlan:
    """How ``filter_gradient_tile`` cuts a problem up: partial sums of chunks of time."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(_gpu(problem), f"conv.direct.{order(problem.x)}")
        self.warps = chosen["warps"]
        self.channels = power_of_two(problem.channels, 1, chosen["channels"])
        self.taps = power_of_two(problem.taps, 1, _GRADIENT_TAPS)
        tile = 16 * 32 * self.warps // (2 if unit(problem) == "float64" else 1) // self.taps
        self.time = power_of_two(problem.length, 1, max(1, tile // self.channels))
        self.channel_tiles = ceil_div(problem.channels, self.channels)
        # Enough programs to fill a device, and no more partial sums than that takes.
        rows = problem.batch * self.channel_tiles * ceil_div(problem.taps, self.taps)
        self.chunks = max(1, min(ceil_div(problem.length, 4 * self.time), ceil_div(2048, max(1, rows))))
        self.steps = self.time * ceil_div(ceil_div(problem.length, self.chunks), self.time)
        self.programs = problem.batch * self.chunks * self.channel_tiles
        self.partial = (self.chunks, problem.batch, problem.taps, problem.channels)

    @property
    def numbers(self) -> int:
        return math.prod(self.partial)


def _gradient_cost(problem: FilterGradientProblem) -> Cost:
    plan = _GradientPlan(problem)
    item = 8 if unit(problem) == "float64" else 4
    groups = ceil_div(problem.taps, plan.taps)
    moved = _item(problem) * (2 + problem.gates) * _samples(problem) / problem.turns
    flops = _samples(problem) * problem.taps * (2 + (4 if order(problem.x) == "channel" else 8)) / problem.turns
    partial = plan.numbers * item
    works = (
        Work(moved, flops, unit(problem), plan.programs * groups, moved * (groups - 1) / 2),
        Work(2 * partial, plan.numbers, unit(problem)),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def _prepare_gradient(problem: FilterGradientProblem) -> Run:
    from . import triton_direct

    plan = _GradientPlan(problem)
    state = problem.state or _NO_STRIDES
    gates = (*(problem.x_gate or _NO_STRIDES), *(problem.dz_gate or _NO_STRIDES))
    strides = (*problem.x, *problem.dz, state[0], problem.state_sequence, *state[1:], *gates)
    kind = torch.float64 if unit(problem) == "float64" else torch.float32

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        given = [x, dz, state, x_gate, dz_gate]
        packed = x if boundaries is None else boundaries.to(x.device)
        sequences = x if boundaries is None else sequence_of(packed, problem.length)
        partial = torch.empty(plan.partial, dtype=kind, device=x.device)
        if problem.length == 0 or problem.batch == 0:
            dh.zero_()
            return
        for turn, offsets in enumerate(problem.offsets or ((0,) * 6,)):
            tensors = [
                at(stand_in, 0 if tensor is None else offset)
                for tensor, stand_in, offset in zip(given, names(given, x), offsets, strict=False)
            ]
            launch(
                triton_direct.filter_gradient_tile,
                (plan.programs, ceil_div(problem.taps, plan.taps)),
                *tensors,
                partial,
                packed,
                sequences,
                problem.length,
                problem.channels,
                problem.taps,
                problem.origin,
                plan.chunks,
                plan.channel_tiles,
                plan.steps,
                *strides,
                TIME=plan.time,
                CHANNELS=plan.channels,
                K=plan.taps,
                HAS_STATE=problem.state is not None,
                HAS_PRE=problem.x_gate is not None,
                HAS_POST=problem.dz_gate is not None,
                PACKED=boundaries is not None,
                WIDE=_wide(problem),
                num_warps=plan.warps,
            )
            # In an order that is always the same.
            if problem.sums_turns:
                total = partial.sum((0, 1))
                dh.copy_(total) if turn == 0 else dh.add_(total)
            else:
                size = (problem.batch, problem.taps, problem.channels)
                strides_of_dh = (problem.per_batch, *problem.dh)
                dh.as_strided(size, strides_of_dh, dh.storage_offset() + offsets[5]).copy_(partial.sum(0))

    return run


class _CorrelationPlan:
    """How ``correlations`` cuts a problem up."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        chosen = configuration(_gpu(problem), "conv.toeplitz.gradient")
        self.n, self.warps = chosen["n"], chosen["warps"]
        rows = ceil_div(max(1, problem.length), self.n)
        self.rows = power_of_two(rows, 16, chosen["rows"])
        self.matrices = ceil_div(problem.taps - 1, self.n) + 1
        # Sums of chunks are added afterwards: as few as fill a device.
        programs = problem.batch * problem.channels * self.matrices
        self.chunks = max(1, min(ceil_div(rows, self.rows), ceil_div(1024, max(1, programs))))
        self.steps = self.rows * ceil_div(ceil_div(rows, self.chunks), self.rows)
        self.blocks = (self.chunks, problem.batch, problem.channels, self.matrices, self.n, self.n)
        self.programs = problem.batch * self.chunks * problem.channels

    @property
    def numbers(self) -> int:
        """Of all blocks."""
        return math.prod(self.blocks)


def _correlation_cost(problem: FilterGradientProblem) -> Cost:
    plan = _CorrelationPlan(problem)
    passes, core = _PASSES["exact" if torch.version.hip else "three"]
    samples = _samples(problem) / problem.turns
    moved = _item(problem) * (2 + problem.gates) * samples
    # Memory of contiguous channels is read in sectors of which one number counts.
    again = moved * (plan.matrices - 1) + (7 * moved if order(problem.x) == "channel" else 0)
    flops = 2.0 * passes * samples * plan.matrices * plan.n
    works = (
        Work(moved + 4 * plan.numbers, flops, core, plan.programs * plan.matrices, again),
        Work(8.0 * plan.numbers, plan.numbers),
        Work(4.0 * plan.numbers / plan.chunks, plan.numbers),
    )
    return cost(problem.device, problem.isa, 8 * plan.numbers, *works * problem.turns)


def _prepare_correlation(problem: FilterGradientProblem) -> Run:
    from . import triton_toeplitz

    plan = _CorrelationPlan(problem)
    state = problem.state or _NO_STRIDES
    strides = (*problem.x, *problem.dz, *state)
    gates = (*(problem.x_gate or _NO_STRIDES), *(problem.dz_gate or _NO_STRIDES))

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        given = [x, dz, state if problem.state is not None else None, x_gate, dz_gate]
        blocks = torch.empty(plan.blocks, dtype=torch.float32, device=x.device)
        size = (problem.batch, problem.taps, problem.channels)
        gradients = torch.empty(size, dtype=torch.float32, device=x.device)
        if problem.length == 0 or problem.batch == 0:
            dh.zero_()
            return
        for turn, offsets in enumerate(problem.offsets or ((0,) * 6,)):
            tensors = [
                at(stand_in, 0 if tensor is None else offset)
                for tensor, stand_in, offset in zip(given, names(given, x), offsets, strict=False)
            ]
            launch(
                triton_toeplitz.correlations,
                (plan.programs, plan.matrices),
                *tensors,
                blocks,
                problem.length,
                problem.channels,
                problem.batch,
                problem.taps,
                problem.origin,
                plan.chunks,
                plan.matrices,
                plan.steps,
                *strides,
                *gates,
                ROWS=plan.rows,
                N=plan.n,
                PRECISION="exact" if torch.version.hip else "three",
                HAS_STATE=problem.state is not None,
                HAS_PRE=problem.x_gate is not None,
                HAS_POST=problem.dz_gate is not None,
                num_warps=plan.warps,
            )
            summed = blocks.sum(0) if plan.chunks > 1 else blocks
            launch(
                triton_toeplitz.diagonals,
                (problem.batch * problem.channels, ceil_div(problem.taps, 64)),
                summed,
                gradients,
                problem.taps,
                problem.channels,
                plan.matrices,
                N=plan.n,
                TAPS=64,
                num_warps=4,
            )
            if problem.sums_turns:
                total = gradients.sum(0)
                dh.copy_(total) if turn == 0 else dh.add_(total)
            else:
                strides_of_dh = (problem.per_batch, *problem.dh)
                dh.as_strided(size, strides_of_dh, dh.storage_offset() + offsets[5]).copy_(gradients)

    return run


class _FftGradientPlan(_FftPlan):
    """As many programs of a channel as fill a device, each for some elements of the batch."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        super().__init__(problem)
        parts = (
            problem.batch if problem.per_batch or not problem.sums_turns else ceil_div(512, max(1, problem.channels))
        )
        self.each = ceil_div(max(1, problem.batch), max(1, min(parts, problem.batch)))
        self.parts = ceil_div(max(1, problem.batch), self.each)
        self.programs = self.parts * problem.channels


def _fft_gradient_cost(problem: FilterGradientProblem) -> Cost:
    plan = _FftGradientPlan(problem)
    transforms = 2 * problem.batch * plan.blocks * problem.channels + plan.programs
    moved = _item(problem) * (2 + problem.gates) * _samples(problem) / problem.turns
    again = 7 * moved if order(problem.x) == "channel" else 0.0
    partial = 4.0 * plan.programs * problem.taps
    flops = transforms * _fft_flops(plan.points, plan.passes)
    works = (
        Work(moved + partial, flops, plan.unit, plan.programs * plan.warps / 4, again),
        Work(partial + 4.0 * problem.channels * problem.taps),
    )
    return cost(problem.device, problem.isa, partial, *works * problem.turns)


def _prepare_fft_gradient(problem: FilterGradientProblem) -> Run:
    from . import triton_fft

    plan = _FftGradientPlan(problem)
    n1, n2, n3 = plan.factors
    state = problem.state or _NO_STRIDES
    strides = (*problem.x, *problem.dz, *state)
    gates = (*(problem.x_gate or _NO_STRIDES), *(problem.dz_gate or _NO_STRIDES))

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        given = [x, dz, state if problem.state is not None else None, x_gate, dz_gate]
        partial = torch.empty(plan.parts, problem.channels, problem.taps, dtype=torch.float32, device=x.device)
        if problem.length == 0 or problem.batch == 0:
            dh.zero_()
            return
        tables = _tables(plan.points, x.device) if not x.is_meta else x.new_empty(1, dtype=torch.float32)
        for turn, offsets in enumerate(problem.offsets or ((0,) * 6,)):
            tensors = [
                at(stand_in, 0 if tensor is None else offset)
                for tensor, stand_in, offset in zip(given, names(given, x), offsets, strict=False)
            ]
            launch(
                triton_fft.filter_gradient,
                plan.programs,
                *tensors,
                partial,
                tables,
                problem.length,
                problem.channels,
                problem.batch,
                plan.each,
                problem.taps,
                problem.origin,
                plan.blocks,
                *strides,
                *gates,
                N1=n1,
                N2=n2,
                N3=n3,
                PRECISION=_fft_precision(problem),
                HAS_STATE=problem.state is not None,
                HAS_PRE=problem.x_gate is not None,
                HAS_POST=problem.dz_gate is not None,
                num_warps=plan.warps,
            )
            if problem.sums_turns:
                total = partial.sum(0).T
                dh.copy_(total) if turn == 0 else dh.add_(total)
            else:
                size = (problem.batch, problem.taps, problem.channels)
                strides_of_dh = (problem.per_batch, *problem.dh)
                dh.as_strided(size, strides_of_dh, dh.storage_offset() + offsets[5]).copy_(partial.mT)

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_direct", "triton", refusals, _gradient_cost, _prepare_gradient),
    Implementation("triton_toeplitz", "triton", _toeplitz_refusals, _correlation_cost, _prepare_correlation),
    Implementation("triton_fft", "triton", _fft_refusals, _fft_gradient_cost, _prepare_fft_gradient),
)


# ---- every gradient in one pass ----


def like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient: time contiguous where x is, else channels contiguous, leading axes in order."""
    if abs(x.stride(-2)) == 1 and abs(x.stride(-1)) != 1:
        return torch.empty(*x.shape[:-2], x.shape[-1], x.shape[-2], dtype=dtype or x.dtype, device=x.device).mT
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def _backward_refusals(problem: BackwardProblem) -> list[str]:
    forward = problem.forward
    reasons = refusals(forward)
    if forward.offsets is not None:
        reasons.append("takes leading axes that merge into one only")
    if forward.h_batch:
        reasons.append("takes no filters of each sequence")
    if forward.batch == 0 or forward.length == 0 or forward.channels == 0:
        reasons.append("has nothing to sum")
    return reasons


def _backward_tile_refusals(problem: BackwardProblem) -> list[str]:
    reasons = _backward_refusals(problem)
    # Sums of each tap for a tile of time are kept in registers.
    if problem.forward.taps > 8:
        reasons.append("keeps the sums of up to 8 taps in registers")
    return reasons


def _backward_rolling_refusals(problem: BackwardProblem) -> list[str]:
    forward = problem.forward
    reasons = _backward_refusals(problem)
    if forward.taps > 16:
        reasons.append("keeps up to 16 samples and gradients in registers")
    if forward.sequences:
        reasons.append("takes no packed sequences")
    if abs(forward.x[2]) != 1:
        reasons.append("takes contiguous channels only")
    return reasons


class _BackwardPlan:
    """How the kernels of all gradients cut a problem up."""

    def __init__(self, forward: ConvProblem, kernel: str) -> None:
        chosen = configuration(_gpu(forward), f"conv.backward.{kernel}")
        self.warps = chosen["warps"]
        wide = 2 if unit(forward) == "float64" else 1
        if kernel == "rolling":
            self.time, self.steps, self.unroll = 1, chosen["steps"], chosen["unroll"]
            most = chosen["channels"] if forward.taps <= 4 and wide == 1 else 32 * self.warps
            self.channels = power_of_two(forward.channels, 32, most)
            self.warps = min(self.warps, max(1, self.channels // 32))
        else:
            along = "time" if order(forward.x) == "time" else "channel"
            self.channels = power_of_two(forward.channels, 1, chosen[f"{along}.channels"])
            self.time = power_of_two(forward.length, 1, chosen["elements"] // self.channels // wide)
            self.steps = self.time * chosen["tiles"]
        self.channel_tiles = ceil_div(forward.channels, self.channels)
        self.chunks = ceil_div(forward.length, self.steps)
        self.programs = forward.batch * self.chunks * self.channel_tiles
        self.partial = (self.chunks, forward.batch, forward.taps + 1, forward.channels)


def _backward_cost(kernel: str) -> Callable[[BackwardProblem], Cost]:
    def cost_of(problem: BackwardProblem) -> Cost:
        forward = problem.forward
        plan, samples = _BackwardPlan(forward, kernel), _samples(forward)
        item = 8 if unit(forward) == "float64" else 4
        partial = float(item * math.prod(plan.partial))
        arrays = 3 + 2 * forward.gates  # x, dy, dx, and of each gate itself and its gradient
        moved = _item(forward) * arrays * samples + partial
        if kernel == "rolling":
            flops = samples * (6 * forward.taps + 12)
            again = _item(forward) * 3 * samples * forward.taps / plan.steps
        else:
            loads = forward.taps**2 if forward.activation else 2 * forward.taps
            flops = samples * loads * (2 + (4 if order(forward.x) == "channel" else 8))
            again = 0.0
        programs = plan.programs * plan.warps / 4
        works = [Work(moved, flops, unit(forward), programs, again), Work(partial, partial / 4)]
        if forward.state is not None and kernel == "tile":
            works.append(Work(0.0, 0.0))
        return cost(forward.device, forward.isa, partial, *works)

    return cost_of


def _prepare_backward(kernel: str) -> Callable[[BackwardProblem], Callable[..., tuple[Tensor | None, ...]]]:
    def prepare(problem: BackwardProblem) -> Callable[..., tuple[Tensor | None, ...]]:
        from . import triton_gradient

        forward = problem.forward
        plan, arguments = _BackwardPlan(forward, kernel), _Arguments(forward)
        x_steps, h_steps, bias_steps, state_steps = (arguments.steps[a:b] for a, b in ((0, 3), (3, 6), (6, 8), (8, 12)))
        kind = torch.float64 if unit(forward) == "float64" else torch.float32
        flags = {name: value for name, value in arguments.flags.items() if name != "HAS_BIAS"}
        flags |= {"HAS_BIAS": forward.bias is not None, "K": forward.taps, "CHANNELS": plan.channels}

        def run(
            dy: Tensor,
            x: Tensor,
            h: Tensor,
            bias: Tensor | None,
            state: Tensor | None,
            pre_gate: Tensor | None,
            post_gate: Tensor | None,
            packed: Tensor | None,
            spectrum: Tensor | None = None,
        ) -> tuple[Tensor | None, ...]:
            dx = like(x)
            # Of gates that broadcast, what will be summed is not rounded before.
            dpre, dpost = (
                None if gate is None else like(x, x.dtype if gate.shape == x.shape else kind)
                for gate in (pre_gate, post_gate)
            )
            dstate = None if state is None else torch.empty(state.shape, dtype=x.dtype, device=x.device)
            partial = torch.empty(plan.partial, dtype=kind, device=x.device)
            past = state if forward.state is not None else None
            tensors = names([x, h, bias, past, pre_gate, post_gate, dy, dx, dpre, dpost, dstate, partial], x)
            gates = arguments.steps[12:18]
            last = (*gates, *forward.y)
            if kernel == "rolling":
                launch(
                    triton_gradient.rolling,
                    plan.programs,
                    *tensors,
                    forward.length,
                    forward.channels,
                    forward.batch,
                    forward.group,
                    plan.chunks,
                    plan.channel_tiles,
                    *x_steps,
                    *h_steps,
                    *bias_steps,
                    state_steps[0],
                    *state_steps[2:],
                    *last,
                    STEPS=plan.steps,
                    UNROLL=plan.unroll,
                    num_warps=plan.warps,
                    **flags,
                )
            else:
                bounds = x if packed is None else packed.to(x.device)
                sequences = x if packed is None else sequence_of(bounds, forward.length)
                heads = [(False, plan.chunks, plan.time)]
                if past is not None and forward.taps > 1:
                    heads.append((True, max(1, forward.sequences), power_of_two(forward.taps - 1)))
                for is_head, chunks, time in heads:
                    launch(
                        triton_gradient.tile,
                        forward.batch * chunks * plan.channel_tiles,
                        *tensors,
                        bounds,
                        sequences,
                        forward.length,
                        forward.channels,
                        forward.batch,
                        forward.group,
                        chunks,
                        plan.channel_tiles,
                        plan.steps,
                        *x_steps,
                        *h_steps,
                        *bias_steps,
                        *state_steps,
                        *last,
                        dx.stride(-2),
                        dx.stride(-1),
                        TIME=time,
                        PACKED=packed is not None,
                        HEAD=is_head,
                        num_warps=plan.warps,
                        **flags,
                    )
            # In an order that is always the same.
            total = partial.sum((0, 1))
            return dx, total[:-1], total[-1], dstate, dpre, dpost

        return run

    return prepare


BACKWARD_ROWS: tuple[Implementation, ...] = (
    Implementation(
        "triton_rolling", "triton", _backward_rolling_refusals, _backward_cost("rolling"), _prepare_backward("rolling")
    ),
    Implementation(
        "triton_direct", "triton", _backward_tile_refusals, _backward_cost("tile"), _prepare_backward("tile")
    ),
)
