"""``convscan device``: build, push, run, pull, or all of it (profile), on a phone or under emulation."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import build, grid, judge, mca, programs, report, results
from .errors import DeviceError
from .grid import OPERATORS, GridCase, Settings
from .judge import Judge, Submission
from .target import FOLDER, RUNNER, Emulator, Phone, Target, lines

Result = TypeVar("Result")

COMMANDS = {
    "build": "build the static runner",
    "push": "copy the runner to the device",
    "run": "run the grid there",
    "pull": "fetch the results and report them",
    "profile": "all of these, and remove everything from the device",
    "submit": "profile, and judge these files beside our kernels: programs of ExecuTorch, libraries of kernels",
    "report": "without a device: instructions, modelled cycles, predicted latency",
}
WHOLE = ("profile", "submit")  # everything from building to cleaning up
SHORT = {"conv": "causal_conv", "recurrence": "linear_recurrence"}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """The command's options."""
    device = commands.add_parser("device", help="profile the kernels on an Arm phone, or under emulation")
    device.add_argument("action", choices=tuple(COMMANDS), help="; ".join(f"{k}: {v}" for k, v in COMMANDS.items()))
    device.add_argument("files", nargs="*", metavar="FILE", help="submit: .pte or .so; {C}, {L}, {K} stand for sizes")
    device.add_argument("--executorch", action="store_true", help="our operators inside ExecuTorch as well")
    device.add_argument("--wheel", type=Path, metavar="FILE", help="ExecuTorch's wheel for aarch64 (default: PyPI's)")
    device.add_argument("--serial", metavar="S", help="the device, where several are connected (see: adb devices)")
    device.add_argument("--qemu", action="store_true", help="under qemu-aarch64 on this machine instead of a device")
    device.add_argument("--cpus", type=_cpus, metavar="LIST", help="the device's processors to run on, such as 4-7")
    device.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: one a processor)")
    device.add_argument("--op", choices=tuple(SHORT), help="one operator only")
    device.add_argument("--quick", action="store_true", help="a part of the grid, 3 inputs, 3 runs (with --qemu 1, 1)")
    device.add_argument("--out", type=Path, default=Path("build/device"), metavar="FOLDER", help="runner and reports")
    device.add_argument("--toolchain", type=Path, metavar="FILE", help="CMake toolchain file (default: ziglang's)")
    device.add_argument("--adb", default="adb", metavar="PATH", help="the adb program")
    device.add_argument("--folder", default=FOLDER, metavar="PATH", help=f"folder on the device (default: {FOLDER})")
    device.add_argument("--cool", type=float, default=300.0, metavar="S", help="longest wait for a cool device, a case")


def _cpus(text: str) -> str:
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise argparse.ArgumentTypeError(f"expected a list of processors such as 4-7 or 0,4-6; got {text}")
    return text


def settings(arguments: argparse.Namespace) -> Settings:
    """What was asked for; the whole protocol on a device unless it should be quick."""
    inputs, runs = (100, 10) if not arguments.quick else (3, 3)
    if arguments.qemu:
        inputs, runs = 1, 1
    return Settings(
        operators=OPERATORS if arguments.op is None else (SHORT[arguments.op],),
        quick=arguments.quick,
        inputs=inputs,
        runs=runs,
        threads=arguments.threads,
        cpus=arguments.cpus,
        cool_seconds=arguments.cool,
    )


def command(arguments: argparse.Namespace, console: Console) -> int:
    """Carries out one action; raises :class:`DeviceError`."""
    action, out = arguments.action, arguments.out.resolve()
    started = time.monotonic()
    runner = out / RUNNER
    if action == "push" and not runner.exists():
        raise DeviceError(f"there is no runner in {out}. To go on: convscan device build")
    if action == "report":
        return _report(out, arguments.toolchain, console)
    if (action == "submit") != bool(arguments.files):
        raise DeviceError("files are what submit judges. To go on: convscan device submit FILE.pte or FILE.so")
    submissions = [Submission.of(pattern) for pattern in arguments.files]
    target: Target | None = None
    if action != "build":  # a device that is absent is said before minutes of building
        target = (
            Emulator(out / "emulated") if arguments.qemu else Phone(arguments.serial, arguments.adb, arguments.folder)
        )
    if action in ("build", *WHOLE):
        runner = build.build(out, arguments.toolchain)
        console.print(f"built {runner}, {runner.stat().st_size / 1000:.0f} kB", highlight=False)
    if target is None:
        if arguments.executorch:
            built = judge.build(out / "judge", arguments.wheel)
            console.print(f"built {built.files[0][0]}, which runs programs of ExecuTorch", highlight=False)
        return 0
    current = settings(arguments)
    chosen = grid.cases(current, target.emulated)
    submitted = tuple(one.name for one in submissions)
    if arguments.executorch and action in WHOLE:
        submissions += _with_progress(console, lambda progress: programs.export(chosen, out / "programs", progress))
    judged = _Judged(judge.build(out / "judge", arguments.wheel) if submissions else None, submissions)
    if action in ("push", *WHOLE):
        target.push([(runner, RUNNER), *judged.files(chosen)])
    remarks: list[str] = []
    try:
        if action in ("run", *WHOLE):
            grid.machine(target, current)
            remarks = _with_progress(
                console, lambda progress: grid.run(target, chosen, current, progress, judged.commands)
            )
        if action in ("pull", *WHOLE):
            found = lines(target.pull(out).read_text(encoding="utf-8"))
            limits = next((line for line in reversed(found) if "peak_flops" in line), None)
            if limits is None:
                raise DeviceError("nothing has been run since the runner was pushed. To go on: convscan device run")
            if isinstance(target, Emulator):
                _count(target, out, found, judged.by_line(chosen), console)
            options = {"quick": current.quick, "inputs": current.inputs, "runs": current.runs, "cpus": current.cpus}
            document, challenge = results.report(
                target.describe(), limits, chosen, found, target.emulated, options, remarks, submitted
            )
            document.seconds = time.monotonic() - started
            results.print_all(console, document, challenge)
            for path in results.write(out, document, challenge):
                console.print(f"wrote {path}", highlight=False)
    finally:
        if action in WHOLE:
            target.clean()
    return 0


@dataclass(frozen=True)
class _Judged:
    """What is judged beside our kernels: a program for it, and the submissions."""

    judge: Judge | None
    submissions: list[Submission]

    def files(self, chosen: list[tuple[str, GridCase]]) -> list[tuple[Path, str]]:
        """All that has to be on the device."""
        return [] if self.judge is None else [*self.judge.files, *judge.files(self.submissions, chosen)]

    def commands(self, op: str, case: GridCase) -> list[tuple[str, Sequence[str], list[str]]]:
        """Name, command and arguments of each for a case."""
        if self.judge is None:
            return []
        files = ((one, one.file(op, case)) for one in self.submissions)
        return [(one.name, self.judge.command, one.arguments(file)) for one, file in files if file is not None]

    def by_line(self, chosen: list[tuple[str, GridCase]]) -> dict[tuple[Any, ...], tuple[Sequence[str], list[str]]]:
        """Command and arguments by name, operator and sizes."""
        return {
            (name, op, *grid.sizes(case)): (command, arguments)
            for op, case in chosen
            for name, command, arguments in self.commands(op, case)
        }


def _report(out: Path, toolchain: Path | None, console: Console) -> int:
    """Counts and models the kernels of a runner that is built for it."""
    llvm = mca.tools()
    emulator = Emulator(out / "emulated")
    runner = build.build(out, toolchain)
    plugin = build.build_counter(out)
    if plugin is None:
        raise DeviceError("there is no C compiler for qemu's plugin. To go on: install one (Debian: apt install gcc)")
    lines = _with_progress(console, lambda progress: report.measure(emulator.command, plugin, runner, llvm, progress))
    report.print_all(console, lines, llvm)
    path = out / "report.json"
    report.write(path, lines, llvm)
    console.print(f"wrote {path}", highlight=False)
    return 0


def _count(
    target: Emulator,
    out: Path,
    found: list[dict[str, Any]],
    others: dict[tuple[Any, ...], tuple[Sequence[str], list[str]]],
    console: Console,
) -> None:
    plugin = build.build_counter(out)
    if plugin is None:
        console.print("instructions are not counted: there is no C compiler for qemu's plugin", style="yellow")
        return
    _with_progress(console, lambda progress: grid.count(target, plugin, found, progress, others))


def _with_progress(console: Console, work: Callable[[Callable[[str, int, int], None]], Result]) -> Result:
    """Calls ``work`` with a function that shows what is done, how many of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        return work(lambda text, done, total: bar.update(task, description=text, completed=done, total=total))
