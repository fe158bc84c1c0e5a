"""The challenge's grid on a device: its cases, and the runner called for each when the device is cool."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convscan.ops.causal_conv import cases as conv_cases
from convscan.ops.linear_recurrence import cases as recurrence_cases
from convscan.profiler.problem import CaseLike

from .errors import DeviceError, explain
from .target import RUN, Emulator, Target, lines

OPERATORS = ("causal_conv", "linear_recurrence")
# A short run keeps the narrower half and three of the seven lengths.
QUICK_LENGTHS = (64, 1024, 4096)
# Emulated, what is counted is in proportion to the channels: as many as two threads and full vectors need.
EMULATED_CHANNELS = 16

GridCase = conv_cases.Case | recurrence_cases.Case
Others = Callable[[str, GridCase], list[tuple[str, Sequence[str], list[str]]]]


@dataclass(frozen=True)
class Settings:
    """How the grid is run: the challenge's protocol unless told otherwise."""

    operators: tuple[str, ...] = OPERATORS
    quick: bool = False
    inputs: int = 100
    runs: int = 10
    case_seconds: float = 120.0
    threads: int = 0
    cpus: str | None = None
    cool_seconds: float = 300.0

    def arguments(self) -> list[str]:
        """As the runner takes them."""
        found = ["--inputs", str(self.inputs), "--runs", str(self.runs), "--seconds", f"{self.case_seconds:g}"]
        if self.threads:
            found += ["--threads", str(self.threads)]
        if self.cpus is not None:
            found += ["--cpus", self.cpus]
        return found


def cases(settings: Settings, emulated: bool) -> list[tuple[str, GridCase]]:
    """Operators and cases, small ones first: whoever stops a run has something."""
    found: list[tuple[str, GridCase]] = []
    for op, listed in (("causal_conv", conv_cases.CASES), ("linear_recurrence", recurrence_cases.CASES)):
        for case in listed:
            if "grid" not in case.tags or op not in settings.operators:
                continue
            if settings.quick and (case.channels != 512 or case.length not in QUICK_LENGTHS):
                continue
            found.append((op, narrow(case) if emulated else case))
    unique = {(op, case.name): (op, case) for op, case in found}
    return sorted(unique.values(), key=lambda one: (one[0], one[1].channels * one[1].length, one[1].flops))


def narrow(case: GridCase) -> GridCase:
    """The same case with fewer channels."""
    name = case.name.replace(f"-c{case.channels}-", f"-c{EMULATED_CHANNELS}-")
    source = f"{case.source}; {EMULATED_CHANNELS} channels instead of {case.channels}"
    return dataclasses.replace(case, name=name, source=source, channels=EMULATED_CHANNELS)


def sizes(case: CaseLike) -> list[str]:
    """C, L and, of a convolution, K, as the runner takes them."""
    assert isinstance(case, conv_cases.Case | recurrence_cases.Case)
    found = [case.channels, case.length]
    if isinstance(case, conv_cases.Case):
        found.append(case.taps)
    return [str(n) for n in found]


def wait_until_cool(target: Target, seconds: float, rest: Callable[[float], None] = time.sleep) -> str:
    """Waits for the thermal gate; what there is to say when it never opened, or cannot be read."""
    deadline = time.monotonic() + seconds
    while True:
        heat = target.thermal()
        if heat is None or heat.cool:
            return ""
        if time.monotonic() >= deadline:
            return f"hot: status {heat.status}, {heat.celsius or 0:.0f} °C"
        rest(min(5.0, seconds / 10))


def run(
    target: Target,
    chosen: Sequence[tuple[str, GridCase]],
    settings: Settings,
    progress: Callable[[str, int, int], None],
    others: Others = lambda op, case: [],
) -> list[str]:
    """Runs the cases; the remarks on those that failed or ran hot. Results lie on the target, to be pulled.

    ``others`` are what runs a case beside the runner: a name, a command, and more arguments for it.
    """
    remarks = []
    for index, (op, case) in enumerate(chosen):
        progress(f"{op} {case.name}", index, len(chosen))
        for name, command, more in [("", RUN, []), *others(op, case)]:
            hot = wait_until_cool(target, settings.cool_seconds)
            if hot:
                remarks.append(f"{case.name}: {hot}")
            done = target.run([op, *sizes(case), *settings.arguments(), *more], command)
            if done.code != 0:
                failure = _failure(done.code, done.output)
                if failure is None:
                    raise explain(f"running {case.name}", done.output)
                remarks.append(f"{case.name}{f', {name}' if name else ''}: {failure}")
    return remarks


def count(
    target: Emulator,
    plugin: Path,
    found: list[dict[str, Any]],
    progress: Callable[[str, int, int], None],
    others: Mapping[tuple[Any, ...], tuple[Sequence[str], list[str]]] = MappingProxyType({}),
) -> None:
    """Adds ``instructions``, those of one call by kind, to the lines of implementations that ran. ``others`` has the
    command and the arguments of what the runner does not know, by name, operator, and sizes."""
    ran = [line for line in found if line.get("status") == "ok"]
    for index, line in enumerate(ran):
        progress(f"counting {line['op']} {line['implementation']}", index, len(ran))
        shape = [str(line[k]) for k in ("channels", "length", "taps") if line[k]]
        key = (line["implementation"], line["op"], *shape)
        command, more = others.get(key, (RUN, ["--only", line["implementation"]]))
        line["instructions"] = target.count(plugin, [line["op"], *shape, *more], command)


def _failure(code: int, output: str) -> str | None:
    """Why one case failed while others may not; None where all would."""
    if code == 2:
        raise DeviceError(f"the runner refuses its options: {output.strip()}")
    if code in (132, -4):
        raise DeviceError("the processor lacks an instruction of the runner. To go on: build it anew (device build)")
    if code in (137, -9):
        return "killed by the system, most likely for its memory"
    if code == 3:
        return next((str(line["error"]) for line in lines(output) if "error" in line), "no memory")
    if code > 128 or code < 0:
        return f"crashed with signal {code - 128 if code > 128 else -code}"
    return None


def machine(target: Target, settings: Settings) -> dict[str, Any]:
    """What the runner says of the processor it runs on."""
    words = ["machine"]
    if settings.threads:
        words += ["--threads", str(settings.threads)]
    if settings.cpus is not None:
        words += ["--cpus", settings.cpus]
    done = target.run(words)
    found = lines(done.output)
    if done.code != 0 or not found:
        raise explain("running the runner", done.output)
    return found[0]
