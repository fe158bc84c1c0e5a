"""The ``convscan`` command: profile, tune, explain, device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from convscan import __version__
from convscan.device import cli as device
from convscan.device.errors import DeviceError

from . import session, signal
from .operators import operators
from .report import html, json, table
from .session import Options, UsageError

OPERATOR_NAMES = {one.short: name for name, one in operators().items()}
# Wide enough for every column when the output goes to a file or a pipe.
PLAIN_WIDTH = 120


class _Parser(argparse.ArgumentParser):
    """One clear line and exit code 2 instead of argparse's usage dump."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = _Parser(prog="convscan", description="Causal convolutions and linear recurrences, measured.")
    top.add_argument("--version", action="version", version=f"convscan {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, parser_class=_Parser, metavar="profile | tune | explain | device"
    )

    profile = commands.add_parser("profile", help="measure every implementation on real model shapes; who wins")
    profile.add_argument("--op", choices=tuple(OPERATOR_NAMES), help="one operator only")
    profile.add_argument("--case", nargs="+", default=[], metavar="NAME", help="these cases only")
    profile.add_argument("--grid", action="store_true", help="the challenge's whole grid as well")
    profile.add_argument("--large", action="store_true", help="cases that need gigabytes as well")
    profile.add_argument("--backward", action="store_true", help="forward + backward as well")
    profile.add_argument("--quick", action="store_true", help="a few cases, at most 40 seconds")
    profile.add_argument("--json", type=Path, metavar="FILE", help="write every record (schema: docs/profiler.md)")
    profile.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with charts")
    profile.add_argument("--input", type=Path, metavar="FILE", help="profile on your own signal (.wav, .npy)")
    profile.add_argument("--submit", type=Path, metavar="FILE.py", help="judge your own implementation")
    profile.add_argument(
        "--implementations", nargs="+", default=[], metavar="TEXT", help="those whose name contains TEXT"
    )
    profile.add_argument("--threads", type=_positive, metavar="N", help="threads for everyone (default: PyTorch's)")
    profile.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    profile.add_argument("--seed", type=int, metavar="N", help="seed of the inputs (default 0; --submit: random)")

    tune = commands.add_parser("tune", help="measure this machine once, so that dispatch knows it")
    tune.add_argument("--threads", type=_positive, metavar="N", help="threads (default: PyTorch's)")

    explain = commands.add_parser("explain", help="every implementation's predicted time, workspace or refusal")
    explain.add_argument(
        "op", choices=tuple(short for short, name in OPERATOR_NAMES.items() if operators()[name].explain)
    )
    explain.add_argument("--case", metavar="NAME", help="a named case of the profiler")
    explain.add_argument("--shape", type=_shape, metavar="B,L,D", help="or a shape of your own")
    explain.add_argument("--taps", type=_positive, metavar="K", help="filter taps (conv)")
    explain.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, …")
    explain.add_argument("--layout", choices=("BLD", "BDL"), default="BLD", help="which axis is contiguous")
    device.add_parser(commands)
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number; got {text}")
    return value


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected B,L,D; got {text}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 2 for a request that cannot be carried out."""
    arguments = parser().parse_args(argv)
    command = {"profile": _profile, "tune": _tune, "explain": _explain, "device": _device}[arguments.command]
    try:
        if getattr(arguments, "threads", None):
            torch.set_num_threads(arguments.threads)
        return command(arguments)
    except (UsageError, signal.SignalError, DeviceError) as error:
        print(f"convscan {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"convscan {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, force_terminal=False)


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")


def _profile(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.json, arguments.html)
    selected = tuple(OPERATOR_NAMES.values()) if arguments.op is None else (OPERATOR_NAMES[arguments.op],)
    if arguments.submit is not None:
        from . import submit

        judged = tuple(op for op in selected if op in submit.PUBLIC)
        return submit.command(arguments.submit, judged, arguments.seed, _console())
    options = Options(
        operators=selected,
        cases=tuple(arguments.case),
        grid=arguments.grid,
        large=arguments.large,
        backward=arguments.backward,
        quick=arguments.quick,
        implementations=tuple(arguments.implementations),
        seed=arguments.seed or 0,
        device=arguments.device,
        signal=None if arguments.input is None else signal.read(arguments.input),
    )
    session.check(options)
    console = _console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)

        def progress(text: str, done: int, total: int) -> None:
            bar.update(task, description=f"{text:<58.58}", completed=done, total=total)

        report = session.run(options, progress, lambda block: console.print(table.block_table(block)))
    table.print_summary(console, report)
    console.print(Text(f"{table.machine_lines(report.machine)}\n{report.seconds:.0f} s", style="dim"))
    for path, writer in ((arguments.json, json.write), (arguments.html, html.write)):
        if path is not None:
            writer(report, path)
            console.print(f"wrote {path}", highlight=False)
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    from convscan import tuning

    console = _console()
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("measuring this machine", total=1.0)
        path = tuning.tune(progress=lambda text, share: bar.update(task, description=text, completed=share))
    console.print(f"dispatch now uses {path}", highlight=False)
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    op = OPERATOR_NAMES[arguments.op]
    if arguments.case is None and arguments.shape is None:
        raise UsageError("name a case (--case NAME) or give a shape (--shape B,L,D)")
    if arguments.case is not None:
        _, case = session.select_cases(Options(operators=(op,), cases=(arguments.case,)))[0]
    else:
        own_case = operators()[op].own_case
        if own_case is None:
            raise UsageError(f"{arguments.op}: name a case (--case NAME)")
        case = own_case(arguments.shape, arguments.taps, _dtype(arguments.dtype), arguments.layout)
        if case is None:
            raise UsageError(f"{arguments.op}: give the number of filter taps (--taps K)")
    current = session.problem_of(op, case, 0)
    from . import ours

    print(ours.explain(current))
    return 0


def _device(arguments: argparse.Namespace) -> int:
    return device.command(arguments, _console())


def _dtype(name: str) -> str:
    if not hasattr(torch, name) or not isinstance(getattr(torch, name), torch.dtype):
        raise UsageError(f"--dtype: expected a PyTorch dtype; got {name!r}")
    return name
