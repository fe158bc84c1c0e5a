"""One step of linear attention with decay, in place: what ``gated_linear_attention_step``, ``ssd_scan_step``,
``mlstm_step`` and ``gated_delta_rule_step`` share. The state that a step is given becomes the next one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _checks, _native
from ..._calls import Calls
from ..._dispatch import Cost, Implementation, register
from ..._errors import message
from ..._gpu import at as memory_at
from ..._gpu import ceil_div, launch, names, power_of_two
from ..._layout import dtype_name, fold
from ..._library import define_step, is_plain, refuse_gradient
from ..._targets import cpu_refusals, gpu_refusals, processor
from ...tuning.gpu import Work, configuration, cost
from ...tuning.table import constants
from .api import arithmetic
from .cpu import DTYPES
from .groups import over_heads

Strides = tuple[int, ...]


class Settings(NamedTuple):
    """What a step depends on beside its tensors."""

    gates: str  # "decay", "ssd", "mlstm" or "delta"
    scale: float = 1.0
    eps: float = 0.0
    softplus: bool = False


class StepProblem(NamedTuple):
    """A step: sizes, and the strides of all tensors in the order of the native call, empty for one that is not given.

    ``offsets`` are those of the tensors for every turn of a loop over leading axes that do not merge into the batch.
    """

    device: str
    dtype: str
    settings: Settings
    batch: int
    groups: int
    heads: int
    keys: int
    values: int
    per_key: bool
    strides: tuple[Strides, ...]
    offsets: tuple[tuple[int, ...], ...] | None
    threads: int
    isa: str

    def __str__(self) -> str:
        sizes = f"B={self.batch} H={self.heads} K={self.keys} V={self.values} {self.dtype}"
        return f"{sizes}, {self.threads} threads, {self.isa}"


class Step:
    """The step of one operator: its name, its prepared calls, and the same in differentiable PyTorch operations.

    ``arguments`` turns those of the public function into tensors, v, state, ..., in the order of the native call;
    ``shared`` are the indices of those without leading axes. ``composed(settings, *tensors)`` returns y and the next
    states, in the order of those given. ``tensors`` declares them for the operator that compilation and export see.
    """

    def __init__(
        self,
        name: str,
        gates: str,
        tensors: str,
        composed: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
        describe: Callable[..., tuple[Settings, Sequence[Tensor | None]]],
        *,
        states: tuple[int, ...],
        queries: int,
        shared: tuple[int, ...] = (),
    ) -> None:
        self.name, self.composed, self.states, self.queries, self.shared = name, composed, states, queries, shared
        self._calls = Calls(name)
        self.prepared = self._calls.prepared

        def described(*args: Any, **kwargs: Any) -> StepProblem:
            settings, tensors = describe(*args, **kwargs)
            assert tensors[0] is not None
            return self._problem(settings, [*tensors, torch.empty_like(tensors[0])])

        rows = (
            Implementation("in_place", "cpu", _refusals, _cost, _prepare),
            Implementation("triton_step", "triton", _gpu_refusals, _gpu_cost, _prepare_gpu),
            Implementation("reference", "any", lambda problem: [], _reference_cost, self._prepare_reference),
        )
        register(name, rows, described)
        self.operator = define_step(
            f"{name}({tensors}, float scale, float eps, bool softplus) -> Tensor",
            lambda *args: self._run(args[-3:], Settings(gates, *args[-3:]), args[:-3]),
            composed=lambda *args: composed(Settings(gates, *args[-3:]), *args[:-3]),
            states=states,
        )

    def run(self, variant: Hashable, settings: Settings, tensors: Sequence[Tensor | None]) -> Tensor:
        """The step on arguments that have been checked and have the dtypes of the native call. ``variant`` is what the
        public function looks for its prepared call by: beside the tensors, it decides the settings."""
        refuse_gradient(self.name, *tensors)
        if torch.compiler.is_compiling():
            return self.operator(*tensors, settings.scale, settings.eps, settings.softplus)  # type: ignore[no-any-return]
        return self._run(variant, settings, tensors)

    def _run(self, variant: Hashable, settings: Settings, tensors: Sequence[Tensor | None]) -> Tensor:
        v = tensors[0]
        assert v is not None
        if is_plain(*tensors):
            y = torch.empty_like(v)
            self._calls.run(variant, *tensors, y, problem=lambda: self._problem(settings, [*tensors, y]))
            return y
        y, after = self.composed(settings, *tensors)
        for at, state in zip(self.states, after, strict=True):
            before = tensors[at]
            assert before is not None
            before.copy_(state)
        return y

    def _problem(self, settings: Settings, tensors: Sequence[Tensor | None]) -> StepProblem:
        v, q = tensors[0], tensors[self.queries]
        assert v is not None
        assert q is not None
        g = tensors[4]
        by_key = settings.gates in ("decay", "delta")
        lead, constant = v.ndim - 2, settings.gates == "decay" and g is not None and g.ndim == 1 and v.ndim != 2
        led = {
            at: tensor
            for at, tensor in enumerate(tensors)
            if tensor is not None and at not in self.shared and not (constant and at == 4)
        }
        folded = fold(v.shape[:lead], [tensor.stride()[:lead] for tensor in led.values()])
        batch = dict(zip(led, folded.strides, strict=True))

        def strides_of(at: int, tensor: Tensor | None) -> Strides:
            if tensor is None:
                return ()
            if at in led:
                return (batch[at], *tensor.stride()[lead:])
            return (0, *tensor.stride()) if constant and at == 4 else tensor.stride()

        offsets = None
        if folded.offsets is not None:
            turns = [dict(zip(led, turn, strict=True)) for turn in folded.offsets]
            offsets = tuple(tuple(turn.get(at, 0) for at in range(len(tensors))) for turn in turns)
        return StepProblem(
            device=v.device.type,
            dtype=dtype_name(v.dtype),
            settings=settings,
            batch=folded.batch,
            groups=q.shape[-2],
            heads=v.shape[-2],
            keys=q.shape[-1],
            values=v.shape[-1],
            per_key=by_key and g is not None and g.ndim == v.ndim,
            strides=tuple(strides_of(at, tensor) for at, tensor in enumerate(tensors)),
            offsets=offsets,
            threads=_native.thread_count(),
            isa=processor(v.device),
        )

    def _prepare_reference(self, problem: StepProblem) -> Callable[..., None]:
        def run(*tensors: Tensor | None) -> None:
            wide = [None if tensor is None else tensor.double() for tensor in tensors[:-1]]
            y, after = self.composed(problem.settings, *wide)
            for at, result in ((-1, y), *zip(self.states, after, strict=True)):
                tensor = tensors[at]
                assert tensor is not None
                tensor.copy_(result)

        return run


def _refusals(problem: StepProblem) -> list[str]:
    return cpu_refusals(problem.device, problem.dtype, DTYPES)


def _bytes(problem: StepProblem) -> int:
    turns = 1 if problem.offsets is None else len(problem.offsets)
    item = 8 if problem.dtype == "float64" else 4
    return 2 * item * turns * problem.batch * problem.heads * problem.keys * problem.values


def _cost(problem: StepProblem) -> Cost:
    known = constants(problem.isa)
    moved = _bytes(problem)
    seconds = known["call"] + moved * known["byte.cached" if moved < known["cache.bytes"] else "byte.memory"]
    return Cost(seconds, problem.threads * (8 * (5 * problem.keys + 3 * problem.values) + 4096))


def _reference_cost(problem: StepProblem) -> Cost:
    return Cost(5e-5 + 1e-9 * _bytes(problem), 4 * _bytes(problem))


def _prepare(problem: StepProblem) -> Callable[..., None]:
    call = _native.AttentionStepCall(
        problem.settings.gates,
        problem.dtype,
        (problem.batch, problem.groups, problem.heads, problem.keys, problem.values),
        problem.per_key,
        problem.settings.softplus,
        problem.settings.scale,
        problem.settings.eps,
        problem.strides,
    )
    if problem.offsets is None:
        return call

    def run(*tensors: Tensor | None) -> None:
        for turn in problem.offsets or ():
            call(
                *(
                    # From its offset on; sizes do not matter to the call.
                    tensor
                    if tensor is None or offset == 0
                    else tensor.as_strided((1,), (1,), tensor.storage_offset() + offset)
                    for tensor, offset in zip(tensors, turn, strict=True)
                )
            )

    return run


# ---- on a GPU ----

# Where the native call has what the kernel takes: v, state, q, k, g, i, bias, skip, z, n, m.
_PLACES: dict[str, tuple[int | None, ...]] = {
    "decay": (0, 1, 2, 3, 4, None, None, None, None, None, None),
    "delta": (0, 1, 2, 3, 4, 5, None, None, None, None, None),
    "ssd": (0, 1, 5, 4, 2, 3, 8, 6, 7, None, None),
    "mlstm": (0, 1, 4, 5, 7, 6, None, None, None, 2, 3),
}
_AXES = (3, 4, 3, 3, 3, 2, 1, 2, 3, 3, 2)  # strides that it takes of each


def _gpu_refusals(problem: StepProblem) -> list[str]:
    return gpu_refusals(problem.device, problem.dtype, DTYPES)


def _columns(problem: StepProblem) -> tuple[int, int, int]:
    """Keys and values that a program has at a time, and its warps."""
    chosen = configuration(problem.isa if problem.device == "cuda" else "default", "attention.step")
    values = power_of_two(problem.values, 1, chosen["values"])
    return power_of_two(problem.keys, 1, max(1, chosen["numbers"] // values)), values, chosen["warps"]


def _gpu_cost(problem: StepProblem) -> Cost:
    _, values, warps = _columns(problem)
    turns = 1 if problem.offsets is None else len(problem.offsets)
    moved = _bytes(problem) / turns * (1.5 if problem.settings.gates == "delta" else 1)
    programs = problem.batch * problem.heads * ceil_div(max(1, problem.values), values) * warps / 4
    unit = "float64" if problem.dtype == "float64" else "float32"
    work = Work(moved, moved, unit, programs)
    small = [Work(0.0)] * (2 if problem.settings.gates == "mlstm" else 0)  # copies of n and m
    return cost(
        problem.device, problem.isa, 8 * problem.batch * problem.heads * (problem.keys + 1), *[work, *small] * turns
    )


def _prepare_gpu(problem: StepProblem) -> Callable[..., None]:
    import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

    from . import triton_step

    gates, wide = problem.settings.gates, torch.float64 if problem.dtype == "float64" else torch.float32
    keys, values, warps = _columns(problem)
    blocks = ceil_div(max(1, problem.values), values)
    places = _PLACES[gates]
    strides: list[int] = []
    for place, axes in zip(places, _AXES, strict=True):
        own = () if place is None else problem.strides[place]
        strides += (*own, *(0,) * (axes - len(own)))
    if gates == "ssd":  # whose state has keys last, and whose rate and skip have no batch
        strides[5], strides[6] = strides[6], strides[5]
        strides[16:18] = [0, *problem.strides[3]]
    given = {name: place is not None and bool(problem.strides[place])
             for name, place in (("HAS_BIAS", places[6]), ("HAS_SKIP", places[7]), ("HAS_Z", places[8]))}  # fmt: skip

    def run(*tensors: Tensor | None) -> None:
        for turn in problem.offsets or ((0,) * len(tensors),):
            of_turn = [None if t is None else memory_at(t, offset) for t, offset in zip(tensors, turn, strict=True)]
            ordered = [None if place is None else of_turn[place] for place in places]
            v, y = of_turn[0], of_turn[-1]
            assert v is not None
            assert y is not None
            after: list[Tensor | None] = [None, None]
            if gates == "mlstm":
                shapes = ((problem.batch, problem.heads, problem.keys), (problem.batch, problem.heads))
                after = [torch.empty(shape, dtype=wide, device=v.device) for shape in shapes]
            launch(
                triton_step.step,
                problem.batch * problem.heads * blocks,
                *names((*ordered, *after, y), v),
                problem.settings.scale,
                problem.settings.eps,
                problem.heads // problem.groups if problem.groups else 1,
                problem.heads,
                problem.keys,
                problem.values,
                blocks,
                *strides,
                *problem.strides[-1],
                KEYS=keys,
                VALUES=values,
                GATES=gates,
                PER_KEY=problem.per_key,
                SOFTPLUS=problem.settings.softplus,
                WIDE=tl.float64 if wide == torch.float64 else tl.float32,
                num_warps=warps,
                **given,
            )
            for place, following in zip((2, 3), after, strict=True):
                if following is not None:
                    former = tensors[place]
                    assert former is not None
                    start = former.storage_offset() + turn[place]
                    former.as_strided(following.shape, problem.strides[place], start).copy_(following)

    return run


def state_of(function: str, name: str, state: Tensor, v: Tensor, shape: Sequence[int], meaning: str) -> None:
    """A state that a step may overwrite: its shape, and the type of arithmetic, which rounding would otherwise cost
    something at every step."""
    _checks.tensor_like(function, name, state, v)
    _checks.has_shape(function, name, state, shape, meaning)
    if state.dtype != arithmetic(v.dtype):
        expectation = f"{name} must have the dtype {dtype_name(arithmetic(v.dtype))}"
        raise TypeError(
            message(function, expectation, dtype_name(state.dtype), f"Convert it once with {name}.to(dtype)")
        )


def written_and_read(
    scale: float, v: Tensor, state: Tensor, q: Tensor, k: Tensor, decay: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y and the next state, of states (..., H, K, V) and decays (..., H, K) or (..., H, 1)."""
    q, k = (over_heads(tensor, v.shape[-2]).to(state.dtype) for tensor in (q, k))
    after = decay.unsqueeze(-1) * state + k.unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
    return (scale * (q.unsqueeze(-1) * after).sum(-2)).to(v.dtype), (after,)
