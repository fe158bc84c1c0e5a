"""A run of the profiler: which cases, which implementations, how much time for each, and the report at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from . import gpu, measure, ours, peers, problem, runner
from .operators import operator, operators
from .peer import Peer
from .problem import CaseLike, Operator, Problem
from .records import Record, Report

OPERATORS = tuple(operators())
CASES: dict[str, Sequence[CaseLike]] = {name: one.cases for name, one in operators().items()}
# Seconds for a whole run, reached by giving every case its share of what is left.
DEFAULT_SECONDS, QUICK_SECONDS = 270.0, 26.0
# A case never gets more than this: a long run has more cases, not longer ones.
CASE_SECONDS = 8.0


class UsageError(ValueError):
    """The request cannot be carried out; the message is for the user."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    operators: tuple[str, ...] = OPERATORS
    cases: tuple[str, ...] = ()
    grid: bool = False
    large: bool = False
    backward: bool = False
    quick: bool = False
    implementations: tuple[str, ...] = ()
    seed: int = 0
    signal: Tensor | None = field(default=None, compare=False)
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """As the report stores it."""
        return {
            "operators": list(self.operators),
            "cases": list(self.cases),
            "grid": self.grid,
            "large": self.large,
            "backward": self.backward,
            "quick": self.quick,
            "implementations": list(self.implementations),
            "seed": self.seed,
            "device": self.device,
            "input": None if self.signal is None else list(self.signal.shape),
        }


def all_peers(op: str, device: str = "cpu") -> tuple[Peer, ...]:
    """Baseline, ours, then the rivals of a device."""
    rivals = tuple(p for p in peers.peers(op) if device in p.devices)
    return (*(p for p in rivals if p.baseline), *ours.peers(op), *(p for p in rivals if not p.baseline))


def select_peers(op: str, wanted: Sequence[str], device: str = "cpu") -> tuple[Peer, ...]:
    """The implementations whose name contains one of `wanted` (all when empty); the baseline always runs."""
    return tuple(
        p
        for p in all_peers(op, device)
        if not wanted or p.baseline or any(text.lower() in p.name.lower() for text in wanted)
    )


def select_cases(options: Options) -> list[tuple[str, CaseLike]]:
    """The cases to run, in order, with their operator."""
    chosen = [(op, case) for op in options.operators for case in CASES[op] if _is_chosen(op, case, options)]
    known = {case.name for op in options.operators for case in CASES[op]}
    unknown = [name for name in options.cases if name not in known]
    if unknown:
        listed = ", ".join(sorted(known))
        raise UsageError(f"--case: no case is called {unknown[0]!r}; the cases are {listed}")
    return chosen


def _is_chosen(op: str, case: CaseLike, options: Options) -> bool:
    if options.cases:
        return case.name in options.cases
    if options.quick:
        return "quick" in case.tags
    if "gpu" in case.tags:
        return options.device == "cuda"
    if options.device == "cuda" and any("gpu" in one.tags for one in CASES[op]):
        return False  # of an operator that has cases for GPUs
    asked = {"grid": options.grid, "large": options.large, "operator": len(options.operators) == 1}
    return "default" in case.tags or any(asked[tag] for tag in asked.keys() & case.tags)


def check(options: Options) -> None:
    """Raises UsageError when a device, case or implementation does not exist, before anything is measured."""
    if options.device == "cuda" and gpu.why_not() is not None:
        raise UsageError(f"--device cuda: {gpu.why_not()}")
    select_cases(options)
    names = sorted({p.name for op in options.operators for p in all_peers(op, options.device)})
    for text in options.implementations:
        if not any(text.lower() in name.lower() for name in names):
            raise UsageError(f"--implementations: nothing is called {text!r}; there are {', '.join(names)}")


def problem_of(op: str, case: Any, seed: int, direction: str = "forward") -> Problem:
    """The problem of a named case with its seeded inputs."""
    one = operator(op)
    return problem.make(one, case, one.inputs(case, seed), direction, seed)


def problems(options: Options) -> Iterator[Callable[[], Problem]]:
    """What to run, made one at a time: inputs of a large case take gigabytes."""
    for op, case in select_cases(options) if options.signal is None else []:
        for direction in _directions(operator(op), case, options):
            yield partial(problem_of, op, case, options.seed, direction)
    if options.signal is not None:
        for op in options.operators:
            for case, arguments in operator(op).signal_cases(options.signal, options.seed, _source(options.signal)):
                for direction in _directions(operator(op), case, options):
                    yield partial(problem.make, operator(op), case, arguments, direction, options.seed)


def _directions(one: Operator, case: Any, options: Options) -> Sequence[str]:
    possible = one.directions(case)
    return possible if options.backward else possible[:1]


def _source(signal: Tensor) -> str:
    length, channels = signal.shape
    return f"your signal, {length} samples of {channels} channel{'s' if channels > 1 else ''}"


def run(
    options: Options,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    on_block: Callable[[list[Record]], None] = lambda block: None,
    seconds: float | None = None,
) -> Report:
    """Runs everything `options` asks for. `progress` gets (what, cases done, cases in all). After
    ``seconds``, where they are given, no case begins any more."""
    check(options)
    return run_with(meter_of(options.device), options, progress, on_block, seconds)


def meter_of(device: str) -> measure.Meter:
    """What times calls there."""
    return gpu.GpuMeter(gpu.Cuda()) if device == "cuda" else runner.CPU


def run_with(
    meter: measure.Meter,
    options: Options,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    on_block: Callable[[list[Record]], None] = lambda block: None,
    seconds: float | None = None,
) -> Report:
    """``run`` with a meter of the caller's."""
    makers = list(problems(options))
    if not makers:
        raise UsageError("no case to run; see --case, --grid and --large")
    begin = time.perf_counter()
    progress("measuring the machine", 0, len(makers))
    report = Report(meter.limits(0.04 if options.quick else 0.08), [], options.to_json())
    # A run somebody asked to be longer (the grid, large cases, gradients) has more cases at the usual time for each.
    total = (
        QUICK_SECONDS if options.quick else max(DEFAULT_SECONDS, 6.0 * len(makers) * (options.grid or options.large))
    )
    total = total if seconds is None else seconds
    for done, make in enumerate(makers):
        left = total - (time.perf_counter() - begin)
        if seconds is not None and left <= 0:
            progress(f"out of time: {len(makers) - done} cases left out", done, len(makers))
            break
        share = max(0.3, min(CASE_SECONDS, left / (len(makers) - done)))
        current = make()
        block = runner.run_case(
            current,
            select_peers(current.op, options.implementations, options.device),
            report.machine,
            runner.Budget(
                case=share,
                call=max(0.15, 0.2 * share),
                # Someone who names an implementation waits for it to compile.
                setup=120.0 if options.implementations else 0.5 * share,
            ),
            lambda text, done=done: progress(text, done, len(makers)),  # type: ignore[misc]
            options.seed,
            meter,
        )
        report.records += block
        on_block(block)
        del current
    report.seconds = time.perf_counter() - begin
    return report
