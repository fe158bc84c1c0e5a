"""The statement's loop over time, in PyTorch, all channels of one step at once: the baseline every speed-up refers to.

Long cases would take hours: beyond its budget the loop runs a sample of the steps and the time of the whole is
extrapolated. Such a record is labelled ``extrapolated``, has no error (it has no complete answer), and cannot win.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..peer import Peer, Prepared, activate, unsupported
from ..problem import Problem

BUDGET_SECONDS = 0.15
LONGEST_BACKWARD = 4096


def _why_not(problem: Problem) -> list[str]:
    reasons = unsupported(problem, backward=True, state=True)
    if problem.direction == "backward" and problem.size("L") > LONGEST_BACKWARD:
        reasons.append(f"autograd would record more than {LONGEST_BACKWARD} steps")
    return reasons


def convolve(x: Tensor, h: Tensor, state: Tensor | None = None) -> Tensor:
    """y[i] = sum of h[k] x[i-k]: one product of a window with the reversed filter per time step.

    Steps are taken apart once: the gradient of a slice is a whole signal of zeros, and L of them cost L² traffic.
    """
    length, taps = x.shape[1], h.shape[0]
    history = x.new_zeros((x.shape[0], taps - 1, x.shape[2])) if state is None else state
    steps = torch.cat([history, x], dim=1).unbind(1)
    reverse = h.flip(0)
    return torch.stack([(torch.stack(steps[i : i + taps], 1) * reverse).sum(1) for i in range(length)], dim=1)


def recur(x: Tensor, y_init: Tensor, a: Tensor) -> Tensor:
    """y[i] = a[i] y[i-1] + x[i], one time step after the other."""
    y, steps = y_init, []
    for coefficient, sample in zip(a.expand(x.shape).unbind(1), x.unbind(1), strict=True):
        y = coefficient * y + sample
        steps.append(y)
    return torch.stack(steps, dim=1)


def _backward(problem: Problem) -> Prepared:
    leaves = [t.detach().requires_grad_() for t in problem.arguments]

    def run() -> tuple[Tensor, ...]:
        if problem.op == "causal_conv":
            y = activate(problem, convolve(leaves[0], leaves[1], problem.inputs["initial_state"]))
        else:
            y = recur(*leaves)
        return torch.autograd.grad(y, leaves, problem.cotangent)

    return Prepared(run, lambda g: g)


class _ForwardLoop:
    """The loop writing into one output, able to stop at its budget and say what the rest would have taken."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.whole_seconds: float | None = None
        self.y = torch.empty_like(problem["x"])
        self.sampled = False
        self.stride = 1

    def run(self) -> Tensor:
        step = self._conv_step() if self.problem.op == "causal_conv" else self._recurrence_step()
        length = self.problem.size("L")
        stride = self.stride if self.problem.op == "causal_conv" else 1
        begin = time.perf_counter()
        done = 0
        for i in range(0, length, stride):
            step(i)
            done += 1
            if done % 64 == 0 and time.perf_counter() - begin > BUDGET_SECONDS:
                break
        elapsed = time.perf_counter() - begin
        if done < length:
            self.sampled = True
        if self.sampled and stride == 1:
            # Later steps of a long filter cost more than early ones: sample evenly over the whole from now on.
            self.stride = max(2, length // max(64, done // 8))
        self.whole_seconds = elapsed * length / done if self.sampled and done else None
        return activate(self.problem, self.y) if self.problem.op == "causal_conv" else self.y

    def _conv_step(self) -> Callable[[int], None]:
        x, h, y = self.problem["x"], self.problem["h"], self.y
        taps, state = self.problem.size("K"), self.problem.inputs["initial_state"]
        reverse = h.flip(0)

        def step(i: int) -> None:
            first = max(0, i - taps + 1)
            window = x[:, first : i + 1]
            if state is not None and i < taps - 1:
                window = torch.cat([state[:, i:], window], dim=1)
            y[:, i] = (window * reverse[taps - window.shape[1] :]).sum(1)

        return step

    def _recurrence_step(self) -> Callable[[int], None]:
        x, y = self.problem["x"], self.y
        a = self.problem["a"].expand(x.shape)
        before = self.problem["y_init"]

        def step(i: int) -> None:
            nonlocal before
            before = y[:, i] = a[:, i] * before + x[:, i]

        return step


def _prepare(problem: Problem) -> Prepared:
    if problem.direction == "backward":
        return _backward(problem)
    loop = _ForwardLoop(problem)
    return Prepared(loop.run, lambda y: (y,), fresh=False, extrapolated=lambda: loop.whole_seconds)


def _estimate(problem: Problem) -> float:
    """Backward has no shortcut: windows of K samples are stored and differentiated at memory speed."""
    taps = problem.size("K") if problem.op == "causal_conv" else 1
    return 0.0 if problem.direction == "forward" else problem["x"].numel() * taps * 1e-8


PEERS = tuple(
    Peer("time loop", op, "torch", _why_not, _prepare, estimate=_estimate, baseline=True)
    for op in ("causal_conv", "linear_recurrence")
)
