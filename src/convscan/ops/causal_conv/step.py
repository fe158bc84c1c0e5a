"""causal_conv_step: a sample more, with a state of the last ones that is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks
from ..._calls import Calls, run_prepared
from ..._dispatch import Cost, Implementation, register
from ..._errors import message
from ..._gpu import at, ceil_div, launch, names
from ..._layout import Triple, dtype_name, fold
from ..._library import define_step, is_plain, is_traced, refuse_gradient
from ..._targets import gpu_refusals, processor
from ...tuning.gpu import Work, cost, step_tile
from . import api
from .arguments import DTYPES, Operands, check
from .triton.arguments import REAL

RunStep = Callable[..., None]


class StepProblem(NamedTuple):
    """y[i] = activation(sum_k h[k] u[i-k] + bias) for ``length`` samples after the ``size`` ones of the state, which
    takes them in. Strides are (batch, time, channel), of h (tap, channel). ``offsets`` are those of (x, state, y) for
    every turn of a loop over leading axes that do not merge into the batch."""

    device: str
    isa: str
    dtype: str
    batch: int
    length: int
    channels: int
    taps: int
    size: int
    x: Triple
    state: Triple
    h: tuple[int, int] | None  # None: filters that differ along leading axes
    bias: int
    y: Triple
    group: int
    activation: str | None
    is_ring: bool
    picks_rows: bool
    pad: int
    offsets: tuple[tuple[int, ...], ...] | None

    def __str__(self) -> str:
        sizes = f"B={self.batch} L={self.length} D={self.channels} K={self.taps} {self.dtype}"
        return f"{sizes}, {self.isa}"


def _problem(
    x: Tensor,
    state: Tensor,
    h: Tensor,
    bias: Tensor | None,
    y: Tensor,
    activation: str | None,
    taken: Tensor | None,
    rows: Tensor | None,
    pad: int,
) -> StepProblem:
    leading = fold(x.shape[:-2], [x.stride()[:-2], state.stride()[: x.ndim - 2], y.stride()[:-2]])
    strides = list(leading.strides)
    if rows is not None:
        strides[1] = state.stride(0)  # the same for a batch of one
    steps = [(batch, t.stride(-2), t.stride(-1)) for batch, t in zip(strides, (x, state, y), strict=True)]
    channels, filters = x.shape[-1], h.shape[-1]
    return StepProblem(
        device=x.device.type,
        isa=processor(x.device),
        dtype=dtype_name(x.dtype),
        batch=leading.batch,
        length=x.shape[-2],
        channels=channels,
        taps=h.shape[-2],
        size=state.shape[-2],
        x=steps[0],
        state=steps[1],
        h=None if h.ndim > 2 else (h.stride(-2), h.stride(-1) if filters > 1 else 0),
        bias=0 if bias is None else bias.stride(-1),
        y=steps[2],
        group=channels // filters if filters > 1 else 1,
        activation=activation,
        is_ring=taken is not None,
        picks_rows=rows is not None,
        pad=pad,
        offsets=leading.offsets,
    )


# ---- composed of PyTorch's operations ----


def _updated(
    x: Tensor, state: Tensor, h: Tensor, bias: Tensor | None, activation: str | None, taken: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs for x (..., L, D) after the samples in state (..., S, D), and the new state; with ``taken``, a ring."""
    size, past = state.shape[-2], h.shape[-2] - 1
    if taken is None:
        window = state[..., size - past :, :]
        after = torch.cat([state, x.to(state.dtype)], -2)[..., x.shape[-2] :, :]
    else:
        positions = taken.long()[:, None, None]
        steps = torch.arange(-past, 0, device=x.device)[:, None]
        window = state.gather(-2, ((positions + steps) % max(size, 1)).expand(-1, -1, state.shape[-1]))
        # Of more samples than the ring has room for, the last ones stay.
        kept = torch.arange(max(0, x.shape[-2] - size), x.shape[-2], device=x.device)
        places = ((positions + kept[:, None]) % max(size, 1)).expand(-1, -1, state.shape[-1])
        after = state.scatter(-2, places, x[..., kept, :].to(state.dtype))
    # With weights in a wider type the sum is theirs.
    y = api.causal_conv(x, h, bias=bias, activation=activation, initial_state=window)
    return y.to(x.dtype), after


def _picked(
    x: Tensor,
    state: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    taken: Tensor | None,
    rows: Tensor,
    pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and the rows of the state that change with what they become."""
    there = (rows != pad).nonzero().flatten()
    changed = rows.long()[there]
    y, after = _updated(x[there], state[changed], h, bias, activation, None if taken is None else taken[there])
    return torch.zeros_like(x).index_copy_(0, there, y), changed, after


def _composed(
    x: Tensor,
    state: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    taken: Tensor | None,
    rows: Tensor | None,
    pad: int,
) -> tuple[Tensor, tuple[Tensor]]:
    if rows is None:
        y, after = _updated(x, state, h, bias, activation, taken)
        return y, (after,)
    y, changed, after = _picked(x, state, h, bias, activation, taken, rows, pad)
    return y, (state.index_copy(0, changed, after),)


def _prepare_composed(problem: StepProblem) -> RunStep:
    def run(
        x: Tensor, state: Tensor, h: Tensor, bias: Tensor | None, taken: Tensor | None, rows: Tensor | None, y: Tensor
    ) -> None:
        given = (x, state, h, bias, problem.activation, taken)
        if rows is None:
            result, after = _updated(*given)
            state.copy_(after)
        else:
            result, changed, after = _picked(*given, rows, problem.pad)
            state[changed] = after
        y.copy_(result)

    return run


def _composed_cost(problem: StepProblem) -> Cost:
    moved = problem.batch * problem.channels * (problem.taps + 2 * problem.size + 4 * problem.length)
    item = int(getattr(torch, problem.dtype).itemsize)
    if problem.device == "cpu":
        return Cost(1e-5 + 2e-10 * item * moved, item * moved)
    works = (Work(item * moved / 2),) * (4 if not problem.picks_rows else 9)
    return cost(problem.device, problem.isa, item * moved, *works)


# ---- Triton ----


def _refusals(problem: StepProblem) -> list[str]:
    reasons = gpu_refusals(problem.device, problem.dtype, REAL)
    if problem.h is None:
        reasons.append("takes no filters of each sequence")
    return reasons


def _cost(problem: StepProblem) -> Cost:
    channels, warps = step_tile(problem.device, problem.isa, problem.channels)
    rows = problem.batch * ceil_div(problem.channels, channels)
    moved = problem.batch * problem.channels * (2.0 * problem.length + 2 * problem.size)
    filters = problem.channels * problem.taps / problem.group
    item = int(getattr(torch, problem.dtype).itemsize)
    unit = "float64" if problem.dtype == "float64" else "float32"
    flops = 2.0 * problem.batch * problem.channels * problem.length * problem.taps
    works = (Work(item * (moved + filters), flops, unit, rows * warps / 4),) * len(problem.offsets or ((),))
    return cost(problem.device, problem.isa, 0, *works)


def _prepare(problem: StepProblem) -> RunStep:
    import triton.language as tl

    from . import triton_step

    channels, warps = step_tile(problem.device, problem.isa, problem.channels)
    tiles = ceil_div(problem.channels, channels)
    assert problem.h is not None
    steps = (*problem.x, *problem.state, *problem.h, problem.bias, *problem.y)
    turns = problem.offsets or ((0, 0, 0),)

    def run(
        x: Tensor, state: Tensor, h: Tensor, bias: Tensor | None, taken: Tensor | None, rows: Tensor | None, y: Tensor
    ) -> None:
        others = names([bias, taken, rows], x)
        for of_x, of_state, of_y in turns:
            launch(
                triton_step.step,
                problem.batch * tiles,
                at(x, of_x),
                at(state, of_state),
                h,
                *others,
                at(y, of_y),
                problem.length,
                problem.channels,
                problem.taps,
                problem.size,
                problem.pad,
                problem.group,
                tiles,
                *steps,
                CHANNELS=channels,
                ACTIVATION=problem.activation,
                HAS_BIAS=bias is not None,
                IS_RING=problem.is_ring and problem.size > 0,
                PICKS_ROWS=problem.picks_rows,
                WIDE=tl.float64 if problem.dtype == "float64" else tl.float32,
                num_warps=warps,
            )

    return run


# ---- the operator ----

ROWS = (
    Implementation("composed", "any", lambda problem: [], _composed_cost, _prepare_composed),
    Implementation("triton_step", "triton", _refusals, _cost, _prepare),
)
_calls = Calls("causal_conv_step")
_prepared = _calls.prepared


def _kernel(
    x: Tensor,
    state: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    taken: Tensor | None,
    rows: Tensor | None,
    pad: int,
) -> Tensor:
    y = torch.empty_like(x)
    _calls.run(
        (activation, pad),
        *(x, state, h, bias, taken, rows, y),
        problem=lambda: _problem(x, state, h, bias, y, activation, taken, rows, pad),
    )
    return y


_operator = define_step(
    "causal_conv_step(Tensor x, Tensor(a!) state, Tensor h, Tensor? bias, str? activation, Tensor? taken, "
    "Tensor? rows, int pad) -> Tensor",
    _kernel,
    composed=_composed,
    states=(1,),
)


def updated(
    x: Tensor,
    state: Tensor,
    h: Tensor,
    bias: Tensor | None,
    activation: str | None,
    taken: Tensor | None = None,
    rows: Tensor | None = None,
    pad: int = -1,
) -> Tensor:
    """Outputs for x (..., L, D) after the samples in state (..., S, D), S >= K-1, which takes them in.

    With ``taken`` (B,) a state is a ring in which sample t is at t mod S, and sequence b has had taken[b] samples. With
    ``rows`` (B,) sequence b has the row rows[b] of the state; where it is ``pad``, none, and zeros come out.
    """
    given = (x, state, h, bias, activation, taken, rows, pad)
    if is_plain(x, state, h, bias, taken, rows):
        return _kernel(*given)
    return cast(Tensor, _operator(*given))


def causal_conv_step(
    state: Tensor, x: Tensor, h: Tensor, *, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """y = activation(sum_k h[k] u[-k] + bias), u the samples in ``state`` and x: a step of ``causal_conv``.

    For generation: ``state`` is overwritten, in place, with the last samples, of which x is the newest.

    Args:
        state: (..., K-1, D), the samples before x, oldest first: ``causal_conv``'s ``initial_state``. Any dtype.
        x: (..., D), one sample.
        h: (K, D), (K, 1), (K, H) or (..., K, D), as in ``causal_conv``.
        bias: (D,).
        activation: None, "silu" or "gelu".

    Returns:
        y, (..., D).

    dtypes: float32, float64, bfloat16, float16, promoted as by ``causal_conv``; half types are computed in float32.

    Raises:
        ValueError, TypeError: as ``causal_conv``.
        RuntimeError: where a gradient would be needed.

    Cost: reads h and the state once and writes the state. On a GPU it is one kernel, which can be captured in a CUDA
    graph: nothing but y is allocated, and the host reads nothing of the device. For filters of thousands of taps a
    ``stream.ConvStream`` takes O(log² K) a step.

    Reference: T. Dao, A. Gu, causal-conv1d, 2023, ``causal_conv1d_update``.

    >>> import torch, convscan
    >>> state = torch.tensor([[1.0], [2.0]])
    >>> convscan.causal_conv_step(state, torch.tensor([3.0]), torch.tensor([[1.0], [10.0], [100.0]])).tolist()
    [123.0]
    >>> state.flatten().tolist()
    [2.0, 3.0]
    """
    if not is_traced() and isinstance(x, Tensor) and x.ndim:
        y = run_prepared(_prepared, (activation, -1), x.unsqueeze(-2), state, h, bias, None, None, None)
        if y is not None:
            return y.squeeze(-2)
    dtype = _check(state, x, h, bias, activation)
    refuse_gradient("causal_conv_step", state, x, h, bias)
    others = (h.to(dtype), None if bias is None else bias.to(dtype))
    return updated(x.to(dtype).unsqueeze(-2), state, *others, activation).squeeze(-2)


def _check(state: Tensor, x: Tensor, h: Tensor, bias: Tensor | None, activation: str | None) -> torch.dtype:
    """The dtype that x, h and bias promote to."""
    name = "causal_conv_step"
    if not isinstance(x, Tensor) or x.ndim < 1:
        got = _checks.shape_text(x.shape) if isinstance(x, Tensor) else type(x).__name__
        error = ValueError if isinstance(x, Tensor) else TypeError
        raise error(message(name, "x must be a torch.Tensor of the shape (..., D)", got))
    dtype = check(name, Operands(x.unsqueeze(-2), h, bias, activation=activation))
    _checks.tensor_like(name, "state", state, x)
    expected = (*x.shape[:-1], h.shape[-2] - 1, x.shape[-1])
    _checks.has_shape(name, "state", state, expected, "(..., K-1, D)")
    _checks.common_dtype(name, DTYPES, state=state)
    return dtype


def _describe(
    state: Tensor, x: Tensor, h: Tensor, *, bias: Tensor | None = None, activation: str | None = None
) -> StepProblem:
    dtype, sample = _check(state, x, h, bias, activation), x.unsqueeze(-2)
    y = torch.empty_like(sample, dtype=dtype)
    return _problem(sample.to(dtype), state, h, bias, y, activation, None, None, -1)


register("causal_conv_step", ROWS, _describe)
