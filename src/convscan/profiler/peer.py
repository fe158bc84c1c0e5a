"""What the profiler asks of an implementation. Every rival is one file in ``peers/`` holding a tuple ``PEERS``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import convscan

from .problem import Problem, as_tuple


@dataclass(frozen=True)
class Prepared:
    """An implementation bound to one problem.

    ``run`` does the whole work once and returns what the implementation naturally returns; ``result`` turns that into
    tensors of the operator's shapes and is not timed. ``kept_bytes`` counts what preparation allocated and keeps for
    the calls (planned buffers, a kept spectrum): it belongs to the peak. ``fresh`` says whether every run allocates its
    output, which is then subtracted from the measured peak. ``workspace_bytes`` is an exact account, where the
    implementation keeps one. ``extrapolated`` gives the seconds a whole run would take when `run` did only a part;
    ``note`` says what a reader of the report wants to know.
    """

    run: Callable[[], Any]
    result: Callable[[Any], Sequence[Tensor]]
    kept_bytes: int = 0
    fresh: bool = True
    workspace_bytes: Callable[[], int] | None = None
    extrapolated: Callable[[], float | None] | None = None
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """One implementation of one operator: what it is called, what it cannot do, and how it is run.

    ``estimate`` is a lower bound in seconds that needs no run, for those whose cost grows beyond any budget;
    ``setup`` the seconds of one-time work (compilation) worth asking before starting it. ``devices`` are the kinds of
    device on which it takes part.
    """

    name: str
    op: str
    package: str
    why_not: Callable[[Problem], list[str]]
    prepare: Callable[[Problem], Prepared]
    estimate: Callable[[Problem], float] = lambda problem: 0.0
    setup: Callable[[Problem], float] = lambda problem: 0.0
    ours: bool = False
    baseline: bool = False
    devices: tuple[str, ...] = ("cpu",)

    def version(self) -> str:
        """Version of the package that does the work, empty when it has none."""
        if self.ours:
            return convscan.__version__
        if not self.package:
            return ""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""


def missing(*modules: str) -> list[str]:
    """A reason for each module that cannot be imported; nothing is imported to find out."""
    return [f"{name} is not installed" for name in modules if importlib.util.find_spec(name.split(".")[0]) is None]


def unsupported(
    problem: Problem,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    backward: bool = False,
    state: bool = False,
) -> list[str]:
    """Reasons that most rivals share: dtype, no gradient, no initial state."""
    reasons = []
    if dtypes is not None and problem.dtype not in dtypes:
        reasons.append(f"does not do {problem.case.dtype}")
    if problem.direction == "backward" and not backward:
        reasons.append("has no gradient")
    if problem.inputs.get("initial_state") is not None and not state:
        reasons.append("takes no initial state")
    return reasons


def on_gpu(problem: Problem, module: str) -> list[str]:
    """Why a package of kernels for GPUs cannot run a problem at all."""
    device = problem.device.type
    return [*([] if device == "cuda" else [f"runs on cuda, not on {device}"]), *missing(module)]


def time_last(t: Tensor) -> Tensor:
    """`t` as a contiguous (B, D, L): the same memory when the case is time contiguous, a copy otherwise."""
    return t.transpose(-1, -2).contiguous()


def on_rows(problem: Problem, function: Callable[..., Tensor], *gates: Tensor) -> Prepared:
    """``from_torch`` for a convolution of (B, D, L) signals, gates among them, with filters (D, K)."""
    return from_torch(
        problem,
        function,
        (time_last(problem["x"]), problem["h"].t().contiguous(), *map(time_last, gates)),
        result=lambda y: y.transpose(1, 2),
        gradients=lambda g: (g[0].transpose(1, 2), g[1].t(), *(of_gate.transpose(1, 2) for of_gate in g[2:])),
        cotangent=time_last,
    )


def activate(problem: Problem, y: Tensor) -> Tensor:
    """A convolution's activation, in place where no gradient is needed, for rivals that have none of their own."""
    activation = problem.inputs["activation"]
    if activation is None:
        return y
    if activation == "silu":
        activated: Tensor = torch.nn.functional.silu(y, inplace=not y.requires_grad)
        return activated
    return torch.nn.functional.gelu(y)


def from_torch(
    problem: Problem,
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    result: Callable[[Any], Tensor | Sequence[Tensor]] = lambda y: y,
    gradients: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda g: g,
    cotangent: Callable[[Tensor], Tensor] = lambda g: g,
    kept_bytes: int = 0,
) -> Prepared:
    """A PyTorch function of differentiable arguments, forward alone or forward and autograd's backward.

    `arguments` are in the rival's favourite memory order; `result` (of all outputs), `gradients` and `cotangent` (of
    each output) translate views.
    """
    if problem.direction == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(*arguments)

        return Prepared(forward, lambda y: as_tuple(result(y)), kept_bytes=kept_bytes)
    leaves = [t.detach().requires_grad_() for t in arguments]
    start = tuple(cotangent(g) for g in problem.cotangents)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(as_tuple(function(*leaves)), leaves, start)

    return Prepared(backward, lambda g: gradients(g), kept_bytes=kept_bytes)
