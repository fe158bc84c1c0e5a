"""Launches of every gradient of a long convolution by transforms in passes over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, names
from ....tuning.gpu import Work, configuration, cost
from ..problem import BackwardProblem, ConvProblem, item_bytes, samples_of
from .arguments import Arguments, gpu_of, reaches_far
from .backward import gradient_memory, transform_backward_refusals
from .fft import kept_bytes
from .fft_passes import FORM, Passes, PassesPlan, passes_refusals


def passes_backward_refusals(problem: BackwardProblem) -> list[str]:
    return transform_backward_refusals(problem, passes_refusals)


class _BackwardPlan(PassesPlan):
    """Planes of u and of dz; of several blocks, which overlap by whole rows of the transform."""

    def __init__(self, problem: BackwardProblem) -> None:
        forward = problem.forward
        # Eight columns of 1024 points, whose sectors would be whole, spill 1000 bytes of a thread's registers on
        # NVIDIA's devices; four do on AMD's.
        least = configuration(gpu_of(forward), "conv.backward.fft.passes")["columns"]
        super().__init__(forward, planes=2, least=least)
        self.needs_post = forward.post_gate is not None and problem.needs[5]
        self.needs_z = forward.activation is not None or self.needs_post
        if self.blocks > 1:
            self.behind = ceil_div(self.behind, self.rest) * self.rest
            self.further = 2 * self.points - self.behind
            self.blocks = ceil_div(forward.length, self.further)
            self.rows = forward.batch * self.blocks
        self.overlaps = self.blocks > 1 and forward.taps > 1

    def carried(self, channels: int) -> tuple[int, ...]:
        """What the programs of some channels hand on from block to block."""
        if not self.overlaps:
            return (1,)
        return self.tiles * channels * self.problem.batch, self.behind // self.rest, self.tile


def passes_backward_cost(problem: BackwardProblem) -> Cost:
    forward = problem.forward
    plan = _BackwardPlan(problem)
    rows, filters = plan.rows * forward.channels / plan.parts, forward.filters / plan.parts
    channels = forward.channels / plan.parts
    array = item_bytes(forward.dtype) * samples_of(forward) / plan.parts
    taps = item_bytes(forward.dtype) * filters * forward.taps
    spectra, made = (one / plan.parts for one in kept_bytes(FORM, forward, plan.points))
    has_pre, has_post = forward.pre_gate is not None, forward.post_gate is not None
    works = plan.filters_works(filters, taps) if made else []
    again = plan.rows_work(filters, 1, 0, 3).flops if plan.is_made else 0.0

    def by_rows(transforms: int, moves: int, more: float) -> Work:
        work = plan.rows_work(rows, transforms, moves, plan.passes, spectra + more)
        return work._replace(flops=work.flops + again)

    works.append(plan.columns_work(rows, array * (1 + has_pre), plan.passes))
    if plan.needs_z:
        works.append(by_rows(2, 2, 0.0))
        one = plan.columns_work(rows, array * (1 + has_post + plan.needs_post), plan.passes)
        works.append(one._replace(flops=2 * one.flops, moved=one.moved + 8.0 * plan.points * rows))
    else:
        works.append(plan.columns_work(rows, array * (1 + has_post), plan.passes))
    by_channel = by_rows(3, 3, 8.0 * plan.points * channels)
    works.append(by_channel._replace(programs=by_channel.programs / max(1, plan.rows)))
    works.append(plan.columns_work(rows, array * (1 + 3 * has_pre), plan.passes))
    works.append(plan.columns_work(channels, 4.0 * channels * forward.taps, plan.passes))
    memory = 8.0 * plan.points * plan.channels * (2 * plan.rows + (plan.rows > 1))
    return cost(forward.device, forward.isa, made + memory, *works * plan.parts)


def prepare_passes_backward(problem: BackwardProblem) -> Callable[..., tuple[Tensor | None, ...]]:
    from .. import triton_fft_passes_backward as kernels

    forward: ConvProblem = problem.forward
    plan, arguments = _BackwardPlan(problem), Arguments(forward)
    steps, flags = arguments.unpacked_steps, arguments.flags
    x_steps, bias, state, pre, post, of_dy = (
        steps[a:b] for a, b in ((0, 3), (6, 8), (8, 11), (11, 14), (14, 17), (17, 20))
    )
    taps, batch, length = forward.taps, forward.batch, forward.length
    far = reaches_far(plan.points, (*steps, forward.channels))

    def run(
        dy: Tensor,
        x: Tensor,
        h: Tensor,
        given_bias: Tensor | None,
        given_state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        packed: Tensor | None = None,
        spectrum: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        dx, dpre, dpost, dstate = gradient_memory(x, given_state, pre_gate, post_gate, torch.float32)
        dpost = dpost if plan.needs_post else None
        past = given_state if forward.state is not None else None
        of_bias, of_state, of_pre, of_post, to_pre, to_post, to_state = names(
            [given_bias, past, pre_gate, post_gate, dpre, dpost, dstate], x
        )
        passes = Passes(plan, x, far, spectrum if plan.is_kept else None)
        of_u, of_dz = (passes.memory(plan.channels, plan.rows) for _ in range(2))
        of_h = of_u if plan.rows == 1 else passes.memory(plan.channels, 1)
        dh = x.new_empty(forward.channels, taps, dtype=torch.float32)
        dbias = x.new_empty(forward.channels, dtype=torch.float32)
        r_steps = (dx.stride(-2), dx.stride(-1))
        for first in range(0, forward.channels, plan.channels):
            count = min(plan.channels, forward.channels - first)
            shape, beside = (count, plan.rows, first, 0), plan.beside(count)
            filters = passes.filters(h, first, count)
            sums = x.new_empty(plan.tiles * count * plan.rows, dtype=torch.float32) if flags["HAS_BIAS"] else None
            passes.columns(
                (x, of_pre, of_state, of_u), shape, length, forward.origin, (*x_steps, *pre, *state),
                HAS_PRE=flags["HAS_PRE"], HAS_STATE=flags["HAS_STATE"],
            )  # fmt: skip
            if plan.needs_z:
                passes.rows(of_u, of_dz, filters, shape)
                launch(
                    kernels.between,
                    plan.tiles * count * plan.rows,
                    *(of_dz, of_bias, of_post, dy, to_post, passes.of_columns, x if sums is None else sums, beside),
                    *(length, forward.channels, plan.rows, plan.blocks, first, plan.further, plan.behind),
                    *(bias[1], *post, *of_dy, *r_steps),
                    **plan.sizes,
                    PRECISION=plan.precision,
                    NEEDS_POST=plan.needs_post,
                    FAR=far,
                    num_warps=plan.back_warps,
                    **{name: flags[name] for name in ("ACTIVATION", "HAS_BIAS", "HAS_POST")},
                )
            else:
                passes.columns(
                    (dy, of_post, dy, of_dz), shape, length, 0, (*of_dy, *post, 0, 0, 0), sums,
                    HAS_PRE=flags["HAS_POST"], OF_RESULTS=True,
                )  # fmt: skip
            passes.rows_backward((of_u, of_dz, of_h, filters), shape)
            launch(
                kernels.gradients_back,
                plan.tiles * count * batch,
                *(of_dz, x, of_pre, dx, to_pre, to_state, x.new_empty(plan.carried(count), dtype=torch.float32)),
                *(passes.of_columns, beside, length, forward.channels, batch, plan.blocks, first),
                *(taps, forward.origin, plan.further, plan.behind, *x_steps, *pre, *r_steps),
                **plan.sizes,
                PRECISION=plan.precision,
                HAS_STATE=flags["HAS_STATE"],
                HAS_PRE=flags["HAS_PRE"],
                OVERLAPS=plan.overlaps,
                FAR=far,
                num_warps=plan.back_warps,
                num_stages=1,  # loads of ``carried`` must not run ahead
            )
            one_row = (count, 1, first, 0)
            passes.columns_back(of_h, (x, x, dh), one_row, (taps, 2 * plan.points, 0), (*[0] * 6, 1, taps))
            if sums is not None:
                # In an order that is always the same.
                parts = sums.view(count // beside, plan.rows * plan.tiles, beside)
                dbias[first : first + count] = parts.sum(1).flatten()
        return dx, dh.T, dbias if given_bias is not None else None, dstate, dpre, dpost

    return run
