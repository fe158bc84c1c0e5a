"""What the launches of Triton kernels share: the types they compute in, bytes they move, a convolution's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...._gpu import apart, at, ceil_div, names, sequence_of
from ...._layout import NO_STRIDES, Triple, order
from ...._targets import gpu_refusals
from ....tuning.gpu import programs_to_fill
from ..arguments import Run
from ..problem import ConvProblem, FilterGradientProblem, compute_bytes, item_bytes, samples_of

REAL = ("float32", "float64", "bfloat16", "float16")


def refusals(problem: ConvProblem | FilterGradientProblem) -> list[str]:
    """Why no kernel here can run a problem."""
    return gpu_refusals(problem.device, problem.dtype, REAL, "computes real numbers, not")


def gpu_of(problem: ConvProblem | FilterGradientProblem) -> str:
    return problem.isa if problem.device == "cuda" else "default"


def wide(problem: ConvProblem | FilterGradientProblem) -> Any:
    """The type that is computed in."""
    import triton.language as tl

    return tl.float64 if compute_bytes(problem) == 8 else tl.float32


def unit(problem: ConvProblem | FilterGradientProblem) -> str:
    """What the arithmetic of a problem is limited by, where tensor cores have no part in it."""
    return "float64" if compute_bytes(problem) == 8 else "float32"


def bytes_moved(problem: ConvProblem | FilterGradientProblem) -> float:
    """Bytes to read and write at least."""
    return item_bytes(problem.dtype) * ((2 + problem.gates) * samples_of(problem) + problem.filters * problem.taps)


def in_sector(problem: ConvProblem | FilterGradientProblem) -> int:
    """Numbers of a sector of 32 bytes, which is what memory hands out."""
    return 32 // item_bytes(problem.dtype)


def filter_group(problem: ConvProblem) -> int:
    """How many channels share a filter."""
    return problem.group if problem.h[1] or problem.filters > 1 else problem.channels


def reaches_far(points: int, steps: tuple[int, ...]) -> bool:
    """Whether samples of a block of twice as many lie further apart than 32 bits count."""
    return 2 * points * max(map(abs, steps)) >= 1 << 31


def channels_together(problem: ConvProblem | FilterGradientProblem, tiles: int, warps: int) -> int:
    """Channels that a program takes one after another: those side by side in a sector, but fewer where
    programs, of ``tiles`` for each channel, would leave the device empty; then others find the sector in its cache."""
    if order(problem.x) != "channel":
        return 1
    most = max(1, min(problem.channels, in_sector(problem)))
    enough = 4 * programs_to_fill(problem.isa) // warps if problem.device == "cuda" else 0
    while most > 1 and tiles * ceil_div(problem.channels, most) < enough:
        most //= 2
    return most


def _mirrored(strides: Triple | None, length: int) -> tuple[Triple, int]:
    """Strides of a signal that is read from its end, and the offset of the end."""
    if strides is None:
        return NO_STRIDES, 0
    return (strides[0], -strides[1], strides[2]), (length - 1) * strides[1]


class Arguments:
    """A convolution as kernels take it: always y[t] = sum_k h[k] u[t + origin - k], time running backwards where the
    problem is transposed."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = problem
        self.signals = [problem.x, problem.pre_gate, problem.post_gate, problem.y]
        self.strides = [strides or NO_STRIDES for strides in self.signals]
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
            "WIDE": wide(problem),
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
        state = p.state or NO_STRIDES
        x, pre, post, y = self.strides
        past = (state[0], p.state_sequence, *state[1:])
        return (*x, p.h_batch, *p.h, *(p.bias or (0, 0)), *past, *pre, *post, *y)

    @property
    def unpacked_steps(self) -> tuple[int, ...]:
        """The same without the stride from a sequence's state to the next one's."""
        return (*self.steps[:9], *self.steps[10:])


def triton_dtype(problem: ConvProblem) -> Any:
    import triton.language as tl

    return {"bfloat16": tl.bfloat16, "float16": tl.float16}.get(problem.dtype, tl.float32)


def packing(boundaries: Tensor | None, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cu_seqlens on the device and the sequence of each step; x, which is then not read, where nothing is packed."""
    if boundaries is None:
        return x, x
    packed = boundaries.to(x.device)
    return packed, sequence_of(packed, length)


class GradientArguments:
    """The gradient of filters as kernels take it."""

    def __init__(self, problem: FilterGradientProblem) -> None:
        state = problem.state or NO_STRIDES
        gates = (*(problem.x_gate or NO_STRIDES), *(problem.dz_gate or NO_STRIDES))
        self.steps = (*problem.x, *problem.dz, state[0], problem.state_sequence, *state[1:], *gates)
        self.flags: dict[str, Any] = {
            "HAS_STATE": problem.state is not None,
            "HAS_PRE": problem.x_gate is not None,
            "HAS_POST": problem.dz_gate is not None,
        }

    @property
    def unpacked_steps(self) -> tuple[int, ...]:
        """Those without the stride from a sequence's state to the next one's."""
        return (*self.steps[:7], *self.steps[8:])


def filter_gradient(
    problem: FilterGradientProblem, begin: Callable[[Tensor, Tensor | None], Callable[[list[Tensor]], Tensor]]
) -> Run:
    """Prepares the gradient of filters from a kernel's sums.

    ``begin(x, boundaries)`` gives what launches the kernel on x, dz, state, x_gate and dz_gate as they begin in a turn
    of the loop over leading axes. It returns parts (any number, K, D), which add up to the gradient, or with a filter
    for each sequence, (B, K, D), which are theirs.
    """

    def run(
        x: Tensor,
        dz: Tensor,
        state: Tensor | None,
        x_gate: Tensor | None,
        dz_gate: Tensor | None,
        dh: Tensor,
        boundaries: Tensor | None = None,
    ) -> None:
        if problem.length == 0 or problem.batch == 0:
            dh.zero_()
            return
        given = [x, dz, state if problem.state is not None else None, x_gate, dz_gate]
        present, parts_of = names(given, x), begin(x, boundaries)
        for turn, offsets in enumerate(problem.offsets or ((0,) * 6,)):
            parts = parts_of(
                [
                    at(stand_in, 0 if tensor is None else offset)
                    for tensor, stand_in, offset in zip(given, present, offsets, strict=False)
                ]
            )
            # In an order that is always the same.
            if problem.sums_turns:
                total = parts.sum(0)
                dh.copy_(total) if turn == 0 else dh.add_(total)
            else:
                size, strides = (problem.batch, problem.taps, problem.channels), (problem.per_batch, *problem.dh)
                dh.as_strided(size, strides, dh.storage_offset() + offsets[5]).copy_(parts)

    return run
