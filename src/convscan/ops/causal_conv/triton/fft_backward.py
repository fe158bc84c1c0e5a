"""Launches of every gradient of a long convolution in one pass, by transforms in registers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...._dispatch import Cost
from ...._gpu import ceil_div, launch, names
from ....tuning.gpu import Work, configuration, cost
from ..problem import BackwardProblem, ConvProblem, item_bytes, kept_for, samples_of
from .arguments import Arguments, filter_group, gpu_of, reaches_far
from .backward import gradient_memory, transform_backward_refusals
from .fft import FORM, FftPlan, fft_refusals, kept_bytes, of_sectors

_PROGRAMS = 512  # to fill a device a few times over
_LEAST_BLOCKS = 4  # of a program: it computes one more where another has the blocks behind


def fft_backward_refusals(problem: BackwardProblem) -> list[str]:
    return transform_backward_refusals(problem, fft_refusals)


class _FftBackwardPlan(FftPlan):
    """Programs of a channel, each for some elements of the batch and a chunk of the blocks of these."""

    def __init__(self, problem: BackwardProblem) -> None:
        forward = problem.forward
        super().__init__(forward)
        self.warps = max(1, min(configuration(gpu_of(forward), "conv.backward.fft")["warps"], self.points // 256))
        self.needs_post = forward.post_gate is not None and problem.needs[5]
        self.transforms = 4 if forward.activation is not None or self.needs_post else 3
        wanted = ceil_div(_PROGRAMS, max(1, forward.channels))
        self.each = ceil_div(forward.batch, min(wanted, forward.batch))
        groups = ceil_div(forward.batch, self.each)
        chunks = max(1, min(ceil_div(wanted, groups), self.blocks // _LEAST_BLOCKS))
        self.chunk_blocks = ceil_div(self.blocks, chunks)
        self.chunks = ceil_div(self.blocks, self.chunk_blocks)
        self.parts = groups * self.chunks
        self.programs = self.parts * forward.channels
        self.overlaps = self.blocks > 1 and forward.taps > 1

    @property
    def computed(self) -> int:
        """Blocks of a row, with those that two programs compute."""
        return self.blocks + self.chunks - 1


def fft_backward_cost(problem: BackwardProblem) -> Cost:
    forward = problem.forward
    plan, samples = _FftBackwardPlan(problem), samples_of(forward)
    item, rows = item_bytes(forward.dtype), forward.batch * forward.channels
    arrays = 3 + 2 * forward.gates  # x, dy, dx, and of each gate itself and its gradient
    partial = 4.0 * plan.programs * (forward.taps + 1)
    spectra, made = kept_bytes(FORM, forward, plan.points)
    each = plan.flops(is_real=False)
    # Each row has the spectrum of its filter from the cache, and what its blocks share.
    each_spectrum = spectra / max(1, forward.filters)
    again = 4.0 * rows * (forward.taps - 1) * (plan.computed - 1) * 3 + each_spectrum * rows
    of_filters = Work(made + item * forward.filters * forward.taps, forward.filters * each, plan.unit, forward.filters)
    works = (
        *((of_filters,) if made else ()),
        Work(
            item * arrays * samples + spectra + partial,
            (plan.transforms * rows * plan.computed + plan.programs) * each,
            plan.unit,
            plan.programs * plan.warps / 4,
            again,
            shared=of_sectors(forward, item * arrays * samples),
        ),
        Work(partial + 4.0 * forward.channels * forward.taps),
    )
    carried = 4.0 * plan.programs * (forward.taps - 1) if plan.overlaps else 0.0
    return cost(forward.device, forward.isa, made + partial + carried, *works)


def prepare_fft_backward(problem: BackwardProblem) -> Callable[..., tuple[Tensor | None, ...]]:
    from .. import triton_fft_backward

    forward: ConvProblem = problem.forward
    plan, arguments = _FftBackwardPlan(problem), Arguments(forward)
    steps = arguments.unpacked_steps
    taps, channels = forward.taps, forward.channels
    reads_spectrum = kept_for(FORM, forward) is not None

    def run(
        dy: Tensor,
        x: Tensor,
        h: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        packed: Tensor | None = None,
        spectrum: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        dx, dpre, dpost, dstate = gradient_memory(x, state, pre_gate, post_gate, torch.float32)
        dpost = dpost if plan.needs_post else None
        past = state if forward.state is not None else None
        partial = x.new_empty(plan.parts, channels, taps, dtype=torch.float32)
        of_bias = x.new_empty(plan.parts, channels, dtype=torch.float32)
        carried = x.new_empty(plan.programs if plan.overlaps else 0, taps - 1, dtype=torch.float32)
        launch(
            triton_fft_backward.backward,
            plan.programs,
            x,
            spectrum if reads_spectrum else plan.spectra(forward, h),
            *names([bias, past, pre_gate, post_gate, dy, dx, dpre, dpost, dstate], x),
            partial,
            of_bias,
            carried,
            plan.tables(x),
            forward.length,
            channels,
            forward.batch,
            plan.each,
            taps,
            forward.origin,
            filter_group(forward),
            plan.blocks,
            plan.chunks,
            plan.chunk_blocks,
            *steps[:3],
            *steps[7:],
            dx.stride(-2),
            dx.stride(-1),
            PRECISION=plan.precision,
            NEEDS_POST=plan.needs_post,
            FAR=reaches_far(plan.points, (*steps, forward.channels)),
            OVERLAPS=plan.overlaps,
            num_warps=plan.warps,
            num_stages=1,  # loads of ``carried`` must not run ahead
            **plan.constants,
            **arguments.flags,
        )
        # In an order that is always the same.
        dbias = None if bias is None else of_bias.sum(0)
        return dx, partial.sum(0).T, dbias, dstate, dpre, dpost

    return run
