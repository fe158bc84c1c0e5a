"""Launches of every gradient of a short convolution in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, names, power_of_two
from ...._layout import order
from ....tuning.gpu import Work, configuration, cost
from ..arguments import memory_like
from ..problem import BackwardProblem, ConvProblem, compute_bytes, item_bytes, samples_of
from .arguments import Arguments, gpu_of, packing, refusals, unit


def backward_refusals(problem: BackwardProblem) -> list[str]:
    """Why no kernel of all gradients can run a problem."""
    forward = problem.forward
    reasons = refusals(forward)
    if forward.offsets is not None:
        reasons.append("takes leading axes that merge into one only")
    if forward.h_batch or (forward.bias is not None and forward.bias[0] != 0):
        reasons.append("adds gradients of filters and bias up over the batch")
    if forward.batch == 0 or forward.length == 0 or forward.channels == 0:
        reasons.append("has nothing to sum")
    return reasons


def transform_backward_refusals(problem: BackwardProblem, of_forward: Callable[[ConvProblem], list[str]]) -> list[str]:
    """Why no kernel can by the transforms of a convolution."""
    reasons = of_forward(problem.forward)
    reasons += [reason for reason in backward_refusals(problem) if reason not in reasons]
    if not (problem.needs[0] and problem.needs[1]):
        reasons.append("computes the gradients of x and h together")
    return reasons


def _direct_refusals(problem: BackwardProblem) -> list[str]:
    reasons = backward_refusals(problem)
    if problem.forward.origin != 0:
        reasons.append("takes causal filters only")
    return reasons


def backward_tile_refusals(problem: BackwardProblem) -> list[str]:
    reasons = _direct_refusals(problem)
    # Sums of each tap for a tile of time are kept in registers.
    if problem.forward.taps > 8:
        reasons.append("keeps the sums of up to 8 taps in registers")
    return reasons


def backward_rolling_refusals(problem: BackwardProblem) -> list[str]:
    forward = problem.forward
    reasons = _direct_refusals(problem)
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
        along = "time" if order(forward.x) == "time" else "channel"
        name = "rolling" if kernel == "rolling" else f"tile.{along}"
        chosen = configuration(gpu_of(forward), f"conv.backward.{name}")
        self.warps = chosen["warps"]
        wide = 2 if unit(forward) == "float64" else 1
        if kernel == "rolling":
            self.time, self.steps, self.unroll = 1, chosen["steps"], chosen["unroll"]
            most = chosen["channels"] if forward.taps <= 4 and wide == 1 else 32 * self.warps
            self.channels = power_of_two(forward.channels, 32, most)
            self.warps = min(self.warps, max(1, self.channels // 32))
        else:
            self.channels = power_of_two(forward.channels, 1, chosen["channels"])
            self.time = power_of_two(forward.length, 1, max(1, chosen["numbers"] // self.channels // wide))
            self.steps = self.time * chosen["tiles"]
        self.channel_tiles = ceil_div(forward.channels, self.channels)
        self.chunks = ceil_div(forward.length, self.steps)
        self.programs = forward.batch * self.chunks * self.channel_tiles
        self.partial = (self.chunks, forward.batch, forward.taps + 1, forward.channels)


def backward_cost(kernel: str) -> Callable[[BackwardProblem], Cost]:
    def cost_of(problem: BackwardProblem) -> Cost:
        forward = problem.forward
        plan, samples = _BackwardPlan(forward, kernel), samples_of(forward)
        item = compute_bytes(forward)
        partial = float(item * math.prod(plan.partial))
        arrays = 3 + 2 * forward.gates  # x, dy, dx, and of each gate itself and its gradient
        moved = item_bytes(forward.dtype) * arrays * samples + partial
        if kernel == "rolling":
            flops = samples * (6 * forward.taps + 12)
            again = item_bytes(forward.dtype) * 3 * samples * forward.taps / plan.steps
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


def gradient_memory(
    x: Tensor, state: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None, kind: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Memory for the gradients of x, of its gates and of the initial state."""
    # Of gates that broadcast, what will be summed is not rounded before.
    dpre, dpost = (
        None if gate is None else memory_like(x, x.dtype if gate.shape == x.shape else kind)
        for gate in (pre_gate, post_gate)
    )
    dstate = None if state is None else torch.empty(state.shape, dtype=x.dtype, device=x.device)
    return memory_like(x), dpre, dpost, dstate


def prepare_backward(kernel: str) -> Callable[[BackwardProblem], Callable[..., tuple[Tensor | None, ...]]]:
    def prepare(problem: BackwardProblem) -> Callable[..., tuple[Tensor | None, ...]]:
        from .. import triton_gradient

        forward = problem.forward
        plan, arguments = _BackwardPlan(forward, kernel), Arguments(forward)
        x_steps, h_steps, bias_steps, state_steps = (arguments.steps[a:b] for a, b in ((0, 3), (3, 6), (6, 8), (8, 12)))
        kind = torch.float64 if unit(forward) == "float64" else torch.float32
        flags = {**arguments.flags, "K": forward.taps, "CHANNELS": plan.channels}

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
            dx, dpre, dpost, dstate = gradient_memory(x, state, pre_gate, post_gate, kind)
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
                bounds, sequences = packing(packed, x, forward.length)
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
