"""``convscan device``: build, push, run, pull, or all of it (profile), on a phone or under emulation."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import build, grid, mca, report, results
from .errors import DeviceError
from .grid import OPERATORS, Settings
from .target import FOLDER, RUNNER, Emulator, Phone, Target, lines

COMMANDS = {
    "build": "build the static runner",
    "push": "copy the runner to the device",
    "run": "run the grid there",
    "pull": "fetch the results and report them",
    "profile": "all of these, and remove everything from the device",
    "report": "without a device: instructions, modelled cycles, predicted latency",
}
SHORT = {"conv": "causal_conv", "recurrence": "linear_recurrence"}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """The command's options."""
    device = commands.add_parser("device", help="profile the kernels on an Arm phone, or under emulation")
    device.add_argument("action", choices=tuple(COMMANDS), help="; ".join(f"{k}: {v}" for k, v in COMMANDS.items()))
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
    target: Target | None = None
    if action != "build":  # a device that is absent is said before minutes of building
        target = (
            Emulator(out / "emulated") if arguments.qemu else Phone(arguments.serial, arguments.adb, arguments.folder)
        )
    if action in ("build", "profile"):
        runner = build.build(out, arguments.toolchain)
        console.print(f"built {runner}, {runner.stat().st_size / 1000:.0f} kB", highlight=False)
    if target is None:
        return 0
    if action in ("push", "profile"):
        target.push(runner)
    current = settings(arguments)
    chosen = grid.cases(current, target.emulated)
    remarks: list[str] = []
    try:
        if action in ("run", "profile"):
            remarks = _run(target, chosen, current, console)
        if action in ("pull", "profile"):
            found = lines(target.pull(out).read_text(encoding="utf-8"))
            limits = next((line for line in reversed(found) if "peak_flops" in line), None)
            if limits is None:
                raise DeviceError("nothing has been run since the runner was pushed. To go on: convscan device run")
            if isinstance(target, Emulator):
                _count(target, out, found, console)
            options = {"quick": current.quick, "inputs": current.inputs, "runs": current.runs, "cpus": current.cpus}
            document, challenge = results.report(
                target.describe(), limits, chosen, found, target.emulated, options, remarks
            )
            document.seconds = time.monotonic() - started
            results.print_all(console, document, challenge)
            for path in results.write(out, document, challenge):
                console.print(f"wrote {path}", highlight=False)
    finally:
        if action == "profile":
            target.clean()
    return 0


def _report(out: Path, toolchain: Path | None, console: Console) -> int:
    """Counts and models the kernels of a runner that is built for it."""
    llvm = mca.tools()
    emulator = Emulator(out / "emulated")
    runner = build.build(out, toolchain)
    plugin = build.build_counter(out)
    if plugin is None:
        raise DeviceError("there is no C compiler for qemu's plugin. To go on: install one (Debian: apt install gcc)")
    with _progress(console) as bar:
        task = bar.add_task("")
        lines = report.measure(
            emulator.command,
            plugin,
            runner,
            llvm,
            lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
    report.print_all(console, lines, llvm)
    path = out / "report.json"
    report.write(path, lines, llvm)
    console.print(f"wrote {path}", highlight=False)
    return 0


def _count(target: Emulator, out: Path, found: list[dict[str, Any]], console: Console) -> None:
    plugin = build.build_counter(out)
    if plugin is None:
        console.print("instructions are not counted: there is no C compiler for qemu's plugin", style="yellow")
        return
    with _progress(console) as bar:
        task = bar.add_task("")
        grid.count(
            target,
            plugin,
            found,
            lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _run(target: Target, chosen: list[tuple[str, grid.GridCase]], current: Settings, console: Console) -> list[str]:
    grid.machine(target, current)
    with _progress(console) as bar:
        task = bar.add_task("", total=len(chosen))
        return grid.run(
            target, chosen, current, lambda text, done, total: bar.update(task, description=text, completed=done)
        )
