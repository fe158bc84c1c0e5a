"""The native kernels of the selective scan: what each can run, what it would cost, and how it is called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import Cost, Implementation
from ..._targets import cpu_refusals
from ...tuning.table import kernel_seconds
from .problem import SelectiveGradientProblem, SelectiveProblem

DTYPES = ("float32", "float64", "bfloat16", "float16")
# u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, final_state, checkpoints, y
Run = Callable[..., None]
_ZEROS = (0, 0, 0)
_NO_STATE = (0, 0, 0, 0)
_BOUNDARIES = 9  # where those tensors have cu_seqlens


def _refusals(problem: SelectiveProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _step_refusals(problem: SelectiveProblem) -> list[str]:
    reasons = _refusals(problem)
    reasons += ["keeps no states for a gradient"] if problem.checkpoints else []
    return reasons if problem.sequences is None else [*reasons, "takes no packed sequences"]


def part_bytes(problem: SelectiveProblem) -> int:
    """Bytes of a real number of the type computed in."""
    return 8 if problem.dtype == "float64" else 4


def work(problem: SelectiveProblem) -> tuple[float, float]:
    """Gates exp(dt A) to compute in one call, and elements of u. A complex gate takes as long as three."""
    elements = problem.batch * problem.length * problem.channels
    return (3 if problem.complex else 1) * elements * problem.states, elements


def _seconds(problem: SelectiveProblem, kernel: str, tasks: float) -> float:
    units, elements = work(problem)
    states = problem.batch * (problem.sequences or 1) * problem.channels * problem.states
    return problem.turns * kernel_seconds(
        problem.isa,
        f"selective.{kernel}",
        problem.dtype,
        units=units,
        elements=elements,
        moved=(3 + (problem.z is not None)) * elements * getattr(torch, problem.dtype).itemsize
        + 3 * part_bytes(problem) * states,
        workers=max(1.0, min(problem.threads, tasks)),
        threads=problem.threads,
    )


def _over_channels_cost(problem: SelectiveProblem) -> Cost:
    # 64 steps of 64 channels in seven arrays at most, and the rates and states of as many channels.
    parts = 2 if problem.complex else 1
    workspace = part_bytes(problem) * 64 * (7 * 64 + 64 * parts + 3 * parts * problem.states)
    tasks = problem.batch * problem.groups * -(-problem.channels // problem.groups // 16)
    # A tile of channels is as large for a single step, and its table of rates is made for it.
    steps = max(1.0, 4 / max(1, problem.length))
    lanes = max(1.0, 8 / max(1, problem.channels // problem.groups))
    return Cost(steps * lanes * _seconds(problem, "over_channels", tasks), problem.threads * workspace)


def _over_states_cost(problem: SelectiveProblem) -> Cost:
    workspace = 0 if problem.final_state else 16 * part_bytes(problem) * 2 * problem.states
    lanes = max(1.0, 8 / max(1, problem.states))
    tasks = problem.batch * -(-problem.channels // 128)
    return Cost(lanes * _seconds(problem, "over_states", tasks), problem.threads * workspace)


def _call(kernel: str, problem: SelectiveProblem) -> _native.SelectiveCall:
    return _native.SelectiveCall(
        kernel,
        problem.dtype,
        (problem.batch, problem.length, problem.channels, problem.states, problem.groups, problem.sequences or 1),
        problem.complex,
        problem.softplus,
        problem.u,
        problem.delta,
        problem.a,
        problem.b.strides,
        problem.b.is_constant,
        problem.c.strides,
        problem.c.is_constant,
        problem.d or 0,
        problem.z or _ZEROS,
        problem.delta_bias or 0,
        problem.initial_state or _NO_STATE,
        problem.y,
        problem.final_state or _NO_STATE,
        problem.in_place,
    )


def byte_offsets(tensors: tuple[Tensor | None, ...], offsets: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The addresses of tensors in every turn of a loop; 0 for None."""
    bases = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    items = [0 if tensor is None else tensor.element_size() for tensor in tensors]
    return [
        tuple(base + item * offset for base, item, offset in zip(bases, items, turn, strict=True)) for turn in offsets
    ]


def _prepare(kernel: str) -> Callable[[SelectiveProblem], Run]:
    def prepare(problem: SelectiveProblem) -> Run:
        call = _call(kernel, problem)
        if problem.offsets is None and problem.sequences is None:
            return call
        # A tensor that is not there, or that all turns share, stays where it is.
        offsets = problem.offsets or ((0,) * 13,)

        def run(*tensors: Tensor | None) -> None:
            with _checks.read_boundaries("selective_scan", tensors[_BOUNDARIES], problem.length) as boundaries:
                moved = (*tensors[:_BOUNDARIES], boundaries, *tensors[_BOUNDARIES + 1 :])
                for addresses in byte_offsets(moved, offsets):
                    call.run_at(addresses)

        return run

    return prepare


ROWS: tuple[Implementation, ...] = (
    Implementation("over_channels", "cpu", _refusals, _over_channels_cost, _prepare("over_channels")),
    Implementation("over_states", "cpu", _step_refusals, _over_states_cost, _prepare("over_states")),
)


# ---- gradient ----


def _gradient_refusals(problem: SelectiveGradientProblem) -> list[str]:
    return _refusals(problem.forward)


def _gradient_cost(problem: SelectiveGradientProblem) -> Cost:
    forward = problem.forward
    parts = 2 if forward.complex else 1
    # Rows, copies, gates and states of a tile, and six numbers for each channel and state.
    workspace = part_bytes(forward) * 64 * (14 * 64 + 128 * parts + 7 * parts * forward.states)
    tasks = forward.batch * forward.groups * problem.shards
    # States again, and as much work back.
    return Cost(2.5 * _seconds(forward, "over_channels", tasks), forward.threads * workspace)


def _prepare_gradient(problem: SelectiveGradientProblem) -> Run:
    call = _native.SelectiveGradientCall(
        _call("over_channels", problem.forward),
        problem.dy,
        problem.dfinal_state or _NO_STATE,
        problem.du,
        problem.ddelta,
        problem.dz or _ZEROS,
        problem.shard_channels,
    )

    def run(*tensors: Tensor | None) -> None:
        with _checks.read_boundaries("selective_scan", tensors[_BOUNDARIES], problem.forward.length) as boundaries:
            call(*tensors[:_BOUNDARIES], boundaries, *tensors[_BOUNDARIES + 1 :])

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("over_channels", "cpu", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
