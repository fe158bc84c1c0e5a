"""The Triton kernels of the selective scan and its gradient: what they can run, what they would cost, how they are
launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._dispatch import Cost, Implementation
from ..._gpu import Chunks, as_pairs, at, ceil_div, chunks_of, launch, power_of_two
from ..._layout import NO_STRIDES
from ..._targets import gpu_refusals
from ...tuning.gpu import Work, configuration, cost, seconds
from . import cpu
from .problem import Quadruple, SelectiveGradientProblem, SelectiveProblem

STEPS = 64  # of a chunk: the states that the gradient begins with are as far apart
_NO_STATE: Quadruple = (0, 0, 0, 0)
_BOUNDARIES, _FINAL, _CHECKPOINTS, _Y = 9, 10, 11, 12


def _refusals(problem: SelectiveProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, cpu.DTYPES)


class _Plan:
    """Tiles of channels, the chunks of all sequences, and how the states between them come to be known."""

    def __init__(self, problem: SelectiveProblem, kernel: str = "selective") -> None:
        gpu = problem.isa if problem.device == "cuda" else "default"
        chosen = configuration(gpu, kernel)
        # Chunks and numbers of the state that a program carries at a time.
        self.carry = configuration(gpu, "selective.carry")
        self.problem, self.warps, self.gpu = problem, chosen["warps"], gpu
        self.parts = 2 if problem.complex else 1
        self.item = cpu.part_bytes(problem)
        self.in_group = problem.channels // problem.groups
        # Numbers of twice the size, or two of them, take twice the registers.
        most = max(1, chosen["channels"] * 4 // (self.item * self.parts))
        self.time = power_of_two(problem.length, 1, STEPS)
        # What is short takes more channels, for a thread to have some of them.
        self.channels = power_of_two(self.in_group, 1, max(most, min(128, most * STEPS // self.time)))
        self.sequences = problem.sequences or 1
        self.chunks = chunks_of(problem.length, STEPS, self.sequences)
        self.group_tiles = ceil_div(self.in_group, self.channels)
        self.tiles = problem.groups * self.group_tiles
        self.state = problem.states * self.parts * problem.channels
        self.samples = float(problem.batch * problem.length * problem.channels)
        self.signal = self.samples * getattr(torch, problem.dtype).itemsize

    @property
    def kept(self) -> int:
        """Numbers of the states before all chunks."""
        return self.problem.batch * self.chunks * self.state

    def programs(self, *, serial: bool) -> int:
        return self.problem.batch * self.tiles * (self.sequences if serial else self.chunks)

    def work(self, arrays: float, gates: float, local: float, *, serial: bool) -> list[Work]:
        """``arrays`` of the size of u, and ``gates`` exponentials with their scans for each state; what chunks add to
        the states before takes as many of ``local`` arrays."""
        unit = "float64" if self.item == 8 else "float32"
        # Two operations for each instruction that compiled kernels have for a step, channel and state on Hopper: 150
        # with a scan along time, 253 of the gradient with its two scans.
        each = self.samples * self.problem.states * self.parts**2
        kept = float(self.item * self.kept)
        turn = _Turn(self) if gates == 1 and _Turn.is_possible(self) else None
        operations = turn.operations if turn else 300.0 if gates == 1 else 169.0 * gates
        programs = (turn or self).programs(serial=serial) * (turn or self).warps / 4
        main = Work(arrays * self.signal + kept, operations * each, unit, programs)
        if serial:
            # A tile is loaded before it is scanned: what one program does is not hidden by itself.
            steps = ceil_div(self.problem.length, STEPS)
            # By scans a state after the other; in turn four steps, whose samples have been asked for before.
            waits = 2.5e-7 * STEPS / turn.unroll if turn else 1e-6 + 1e-7 * self.problem.states
            return [main._replace(latency=steps * waits)]
        chunked = self.programs(serial=False) * self.warps / 4
        carried = self.problem.batch * self.sequences * ceil_div(self.state, self.carry["numbers"])
        waits = 1e-6 * ceil_div(ceil_div(self.problem.length, STEPS), self.carry["window"])
        return [
            Work(local * self.signal + kept, 44 * each, unit, chunked),
            Work(2 * kept, 20.0 * self.kept, unit, carried, latency=waits),
            main,
        ]

    def is_serial(self, arrays: float, gates: float, local: float) -> bool:
        """Whether programs go through all chunks, where there are enough of them."""
        if self.problem.length <= STEPS or self.problem.in_place:
            return True
        gpu = self.gpu if self.gpu != "default" else "NVIDIA A100"
        serial, chunked = (seconds(gpu, *self.work(arrays, gates, local, serial=choice)) for choice in (True, False))
        return serial <= chunked

    def tiling(self) -> tuple[int, ...]:
        return self.in_group, self.group_tiles, self.tiles

    def flags(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        import triton.language as tl

        problem = self.problem
        return {
            "STEPS": STEPS,
            "COMPLEX": problem.complex,
            "PACKED": problem.sequences is not None,
            "WIDE": tl.float64 if self.item == 8 else tl.float32,
        }


class _Turn:
    """Programs that have all states of some channels in registers and take their steps in turn."""

    def __init__(self, plan: _Plan) -> None:
        chosen = configuration(plan.gpu, "selective.turn")
        self.plan, self.unroll = plan, min(chosen["unroll"], plan.time)
        self.channels = power_of_two(plan.in_group, 32, chosen["channels"])
        self.warps = max(1, self.channels // 32)
        self.group_tiles = ceil_div(plan.in_group, self.channels)

    @staticmethod
    def is_possible(plan: _Plan) -> bool:
        """For real states in float32 that fit these registers."""
        few = plan.problem.states <= configuration(plan.gpu, "selective.turn")["states"]
        return few and plan.item == 4 and not plan.problem.complex

    @property
    def operations(self) -> float:
        """For each step, channel and state: two for each of 14 instructions; where threads read places apart, what 32
        of them do one after the other in the first-level cache, for four arrays."""
        problem = self.plan.problem
        beside = all(one is None or one[2] == 1 for one in (problem.u, problem.delta, problem.z, problem.y))
        return 28.0 if beside else 28.0 + 2 * 4 * 4 * 32.0 / max(1, problem.states)

    def programs(self, *, serial: bool) -> int:
        plan = self.plan
        tiles = plan.problem.groups * self.group_tiles
        return plan.problem.batch * tiles * (plan.sequences if serial else plan.chunks)

    def tiling(self) -> tuple[int, ...]:
        return self.plan.in_group, self.group_tiles, self.plan.problem.groups * self.group_tiles

    def flags(self) -> dict[str, Any]:
        problem = self.plan.problem
        states, packed = power_of_two(problem.states), problem.sequences is not None
        return {"STEPS": STEPS, "UNROLL": self.unroll, "STATES": states, "CHANNELS": self.channels, "PACKED": packed}


def _chunks(cu_seqlens: Tensor | None, problem: SelectiveProblem, stand_in: Tensor) -> Chunks:
    if cu_seqlens is None:
        return Chunks(stand_in, stand_in)
    return Chunks.of(cu_seqlens, problem.length, STEPS)


def _doubled(strides: tuple[int, ...], problem: SelectiveProblem) -> tuple[int, ...]:
    return tuple(2 * n for n in strides) if problem.complex else strides


# ---- forward ----

_ARRAYS, _GATES, _LOCAL = 3, 1, 2  # u, delta, y, and z where it is there


def _is_serial(plan: _Plan) -> bool:
    return plan.is_serial(_ARRAYS + (plan.problem.z is not None), _GATES, _LOCAL)


def _workspace(plan: _Plan, serial: bool) -> int:
    """Bytes of states and of what chunks add to them."""
    problem = plan.problem
    if serial:
        return 0 if problem.checkpoints else 2 * problem.batch * plan.sequences * plan.state * plan.item
    totals = problem.batch * plan.chunks * problem.channels
    return plan.item * ((1 if problem.checkpoints else 2) * plan.kept + totals)


def _cost(problem: SelectiveProblem) -> Cost:
    plan = _Plan(problem)
    serial = _is_serial(plan)
    work = plan.work(_ARRAYS + (problem.z is not None), _GATES, _LOCAL, serial=serial)
    table = 0 if problem.sequences is None else 8 * (4 * plan.chunks + 3 * plan.sequences)
    return cost(problem.device, problem.isa, _workspace(plan, serial) + table, *work * problem.turns)


def _prepare(problem: SelectiveProblem) -> cpu.Run:
    from . import triton_selective as kernels

    plan = _Plan(problem)
    serial = _is_serial(plan)

    def run(*given: Tensor | None) -> None:
        u = given[0]
        assert u is not None
        tensors = list(given)
        if problem.in_place:
            tensors[8] = tensors[_FINAL]
        chunks = _chunks(given[_BOUNDARIES], problem, u)
        for turn in problem.offsets or ((0,) * 13,):
            of_turn = [
                u if tensor is None else at(as_pairs(tensor), offset * (2 if tensor.is_complex() else 1))
                for tensor, offset in zip(tensors, turn, strict=True)
            ]
            _launch(kernels, plan, serial, of_turn, [tensor is not None for tensor in tensors], chunks)

    return run


def _empty(like: Tensor, plan: _Plan, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64 if plan.item == 8 else torch.float32, device=like.device)


def _launch(kernels: Any, plan: _Plan, serial: bool, tensors: list[Tensor], there: list[bool], chunks: Chunks) -> None:
    """``tensors`` are those of a turn, with one that is never read in place of those that are not ``there``."""
    problem = plan.problem
    u, delta, a, b, c, d, z, bias, start, _, final, kept, y = tensors
    has_z, has_bias, has_start, has_final = there[6], there[7], there[8], there[_FINAL]
    of_a, of_b, of_c = (_doubled(s, problem) for s in (problem.a, problem.b.strides, problem.c.strides))
    of_z, of_bias = problem.z or NO_STRIDES, problem.delta_bias or 0
    of_start, of_final = (
        _doubled(strides or _NO_STATE, problem)
        for strides in (problem.final_state if problem.in_place else problem.initial_state, problem.final_state)
    )
    if there[_CHECKPOINTS]:
        before = kept
    elif serial and plan.chunks == 1:
        before = final if has_final else u  # which no state between chunks is read from or written to
    else:
        before = _empty(u, plan, problem.batch, 2 * plan.sequences if serial else plan.chunks, plan.state)
    flags, sizes = plan.flags(), (problem.length, problem.channels, problem.states)
    options = {"SOFTPLUS": problem.softplus, "HAS_Z": has_z, "HAS_BIAS": has_bias, "num_warps": plan.warps}
    if not serial:
        local = _empty(u, plan, problem.batch, plan.chunks, plan.state)
        totals = _empty(u, plan, problem.batch, plan.chunks, problem.channels)
        launch(
            kernels.local_states,
            plan.programs(serial=False),
            u,
            delta,
            a,
            b,
            z,
            bias,
            local,
            totals,
            chunks.table,
            *sizes,
            *plan.tiling(),
            plan.chunks,
            *problem.u,
            *problem.delta,
            *of_a,
            *of_b,
            *of_z,
            of_bias,
            CHANNELS=plan.channels,
            CONSTANT=problem.b.is_constant,
            GRADIENT=False,
            **flags,
            **options | {"HAS_Z": False},
        )
        ends = ((start, has_start, of_start), (final, has_final, of_final))
        _carry(kernels, plan, local, totals, a, before, ends, chunks, gradient=False)
    turn = _Turn(plan) if _Turn.is_possible(plan) else None
    if turn is None:
        kernel, programs, tiling = kernels.outputs, plan.programs(serial=serial), plan.tiling()
        own = flags | {"TIME": plan.time, "CHANNELS": plan.channels, "IN_PLACE": problem.in_place}
    else:
        kernel, programs, tiling = kernels.outputs_by_channel, turn.programs(serial=serial), turn.tiling()
        own, options["num_warps"] = turn.flags(), turn.warps
    launch(
        kernel,
        programs,
        u,
        delta,
        a,
        b,
        c,
        d,
        z,
        bias,
        start,
        before,
        final,
        y,
        chunks.bounds,
        chunks.table,
        *sizes,
        *tiling,
        plan.chunks,
        plan.sequences,
        *problem.u,
        *problem.delta,
        *of_a,
        *of_b,
        *of_c,
        problem.d or 0,
        *of_z,
        of_bias,
        *of_start,
        *of_final,
        *problem.y,
        CONSTANT_B=problem.b.is_constant,
        CONSTANT_C=problem.c.is_constant,
        HAS_D=there[5],
        HAS_START=has_start,
        HAS_FINAL=has_final,
        SERIAL=serial,
        KEEP=there[_CHECKPOINTS],
        **own,
        **options,
    )


def _carry(
    kernels: Any,
    plan: _Plan,
    local: Tensor,
    totals: Tensor,
    a: Tensor,
    between: Tensor,
    ends: tuple[tuple[Tensor, bool, tuple[int, ...]], ...],
    chunks: Chunks,
    *,
    gradient: bool,
) -> None:
    """From the state that a sequence begins with to the one that it ends with; each with its strides."""
    problem = plan.problem
    (start, has_start, of_start), (final, has_final, of_final) = ends
    blocks = ceil_div(problem.states * problem.channels, plan.carry["numbers"])
    launch(
        kernels.between_chunks,
        problem.batch * plan.sequences * blocks,
        local,
        totals,
        a,
        start,
        between,
        final,
        chunks.bounds,
        problem.length,
        problem.channels,
        problem.states,
        plan.chunks,
        plan.sequences,
        blocks,
        *_doubled(problem.a, problem),
        *of_start,
        *of_final,
        WINDOW=plan.carry["window"],
        NUMBERS=plan.carry["numbers"],
        HAS_START=has_start,
        HAS_FINAL=has_final,
        GRADIENT=gradient,
        num_warps=plan.carry["warps"],
        **plan.flags(),
    )


ROWS: tuple[Implementation, ...] = (Implementation("triton_by_state", "triton", _refusals, _cost, _prepare),)


# ---- gradient ----


def _gradient_plan(problem: SelectiveGradientProblem) -> _Plan:
    plan = _Plan(problem.forward, "selective.gradient")
    plan.time = STEPS
    return plan


def _gradient_refusals(problem: SelectiveGradientProblem) -> list[str]:
    return _refusals(problem.forward)


def _gradient_arrays(problem: SelectiveGradientProblem) -> tuple[float, float, float]:
    has_z = problem.forward.z is not None
    # u, delta, dy, du, ddelta, z and dz; of the states before chunks also what is summed of A, half of it read again.
    return 5 + 2 * has_z, 3, 2 + has_z


def _is_gradient_serial(problem: SelectiveGradientProblem, plan: _Plan) -> bool:
    return plan.is_serial(*_gradient_arrays(problem))


def _parts_of_sums(plan: _Plan) -> tuple[int, int]:
    """Numbers that are summed for A and the channels, of every chunk, and for B and C, of every tile of channels."""
    problem = plan.problem
    per_step = problem.batch * problem.length * problem.groups * problem.states * plan.parts * plan.group_tiles
    projections = sum(plan.kept if one.is_constant else per_step for one in (problem.b, problem.c))
    return plan.kept + 2 * plan.chunks * problem.batch * problem.channels, projections


def _gradient_cost(problem: SelectiveGradientProblem) -> Cost:
    forward, plan = problem.forward, _gradient_plan(problem)
    serial = _is_gradient_serial(problem, plan)
    by_chunk, projections = _parts_of_sums(plan)
    sums = float(plan.item * (by_chunk + projections))
    work = plan.work(*_gradient_arrays(problem), serial=serial)
    work = [*work[:-1], work[-1]._replace(moved=work[-1].moved + sums), Work(sums)]
    workspace = sums + 2 * plan.item * (forward.batch * plan.sequences * plan.state if serial else plan.kept)
    return cost(forward.device, forward.isa, workspace, *work)


def _prepare_gradient(problem: SelectiveGradientProblem) -> cpu.Run:
    from . import triton_selective as kernels

    forward, plan = problem.forward, _gradient_plan(problem)
    serial = _is_gradient_serial(problem, plan)
    batch, length, channels, states = forward.batch, forward.length, forward.channels, forward.states

    def parts_of(result: Tensor | None, is_constant: bool) -> Tensor | None:
        """Where programs store what a result is the sum of."""
        if result is None:
            return None
        shape = (plan.chunks, *result.shape)
        if not is_constant:
            shape = (plan.group_tiles, *result.shape[1:])
        # Of sequences packed, not every chunk is there.
        make = torch.zeros if is_constant and forward.sequences is not None else torch.empty
        return make(shape, dtype=result.dtype, device=result.device)

    def add_up(parts: Tensor | None, result: Tensor | None, is_constant: bool) -> None:
        if parts is None or result is None:
            return
        if is_constant:
            result.copy_(parts.sum(0))
        else:  # of shards, the first has all
            result.zero_()
            result[0] = parts.sum(0)

    def run(*tensors: Any) -> None:
        u, delta, a, b, c, d, z, bias, _, cu_seqlens, _, kept, _, *others = tensors
        dy, dfinal, du, ddelta, da, db, dc, dd, dz, dbias, dinitial = others
        forms = (True, forward.b.is_constant, forward.c.is_constant, True, True)
        results = (da, db, dc, dd, dbias)
        sums = [parts_of(result, form) for result, form in zip(results, forms, strict=True)]

        def named(tensor: Tensor | None) -> Tensor:
            return u if tensor is None else as_pairs(tensor)  # type: ignore[no-any-return]

        chunks = _chunks(cu_seqlens, forward, u)
        of_a, of_b, of_c = (_doubled(s, forward) for s in (forward.a, forward.b.strides, forward.c.strides))
        of_z, of_bias = forward.z or NO_STRIDES, forward.delta_bias or 0
        of_dfinal = _doubled(problem.dfinal_state or _NO_STATE, forward)
        flags, sizes = plan.flags(), (length, channels, states)
        options = dict(SOFTPLUS=forward.softplus, HAS_Z=z is not None, HAS_BIAS=bias is not None, num_warps=plan.warps)
        behind = _empty(u, plan, batch, 2 * plan.sequences if serial else plan.chunks, plan.state)
        if not serial:
            local = torch.empty_like(behind)
            totals = _empty(u, plan, batch, plan.chunks, channels)
            launch(
                kernels.local_states,
                plan.programs(serial=False),
                dy,
                delta,
                named(a),
                named(c),
                named(z),
                named(bias),
                local,
                totals,
                chunks.table,
                *sizes,
                *plan.tiling(),
                plan.chunks,
                *problem.dy,
                *forward.delta,
                *of_a,
                *of_c,
                *of_z,
                of_bias,
                CHANNELS=plan.channels,
                CONSTANT=forward.c.is_constant,
                GRADIENT=True,
                **flags,
                **options,
            )
            in_sequence = channels * states
            of_dinitial = _doubled((plan.sequences * in_sequence, states, 1, in_sequence), forward)
            ends = (
                (named(dfinal), dfinal is not None, of_dfinal),
                (named(dinitial), dinitial is not None, of_dinitial),
            )
            _carry(kernels, plan, local, totals, named(a), behind, ends, chunks, gradient=True)
        launch(
            kernels.gradients,
            plan.programs(serial=serial),
            u,
            delta,
            *(named(tensor) for tensor in (a, b, c, d, z, bias)),
            kept,
            behind,
            named(dfinal),
            dy,
            du,
            ddelta,
            named(dz),
            *(named(tensor) for tensor in (*sums, dinitial)),
            chunks.bounds,
            chunks.table,
            *sizes,
            batch,
            forward.groups,
            *plan.tiling(),
            plan.chunks,
            plan.sequences,
            *forward.u,
            *forward.delta,
            *of_a,
            *of_b,
            *of_c,
            forward.d or 0,
            *of_z,
            of_bias,
            *of_dfinal,
            *problem.dy,
            *problem.du,
            *problem.ddelta,
            *(problem.dz or NO_STRIDES),
            CHANNELS=plan.channels,
            CONSTANT_B=forward.b.is_constant,
            CONSTANT_C=forward.c.is_constant,
            HAS_D=d is not None,
            HAS_DFINAL=dfinal is not None,
            HAS_DINITIAL=dinitial is not None,
            SERIAL=serial,
            **flags,
            **options,
        )
        for parts, result, form in zip(sums, results, forms, strict=True):
            add_up(parts, result, form)

    return run


GRADIENT_ROWS: tuple[Implementation, ...] = (
    Implementation("triton_by_state", "triton", _gradient_refusals, _gradient_cost, _prepare_gradient),
)
