"""Judges a user's implementation: a Python file with ``causal_conv(x, h)`` and/or ``linear_recurrence(x, y_init, a)``.

It runs in a process of its own under a memory and a time limit and is asked, case by case, for an answer and for its
times, interleaved with the others. Public shapes are named cases; held-out shapes are drawn at random per run, in both
memory orders, with K > L, primes and single steps among them. Whatever it does (crash, hang, raise, NaN, wrong shape,
modified input) is its own result and costs the others nothing. The ranking is by geometric mean over all shapes of the
fastest time over one's own; only those correct everywhere can be champion.

The limits contain accidents. They are no defence against malice: judge only files you would run yourself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from convscan.ops.causal_conv import cases as conv_cases
from convscan.ops.linear_recurrence import cases as recurrence_cases

from . import machine, measure, runner, session
from .peer import Peer
from .problem import CaseLike, Problem, Truth, compare, truth
from .records import Record, geometric_mean
from .report.table import block_table
from .session import UsageError

MEMORY_BYTES = 4 << 30
# Importing PyTorch on a busy machine takes seconds; one call on these shapes takes milliseconds outside Python loops.
START_SECONDS, CALL_SECONDS = 60.0, 10.0
HELD_OUT, HELD_OUT_ELEMENTS = 8, 1 << 20
PUBLIC = {
    "causal_conv": ("small-64", "small-512", "small-1024-long", "grid-c512-l4096-k4", "lfm2-prefill"),
    "linear_recurrence": ("small", "grid-c512-l1024", "mingru"),
}


class Failure(Exception):
    """The submission failed; the message says how."""


@dataclass
class Submission:
    """The worker process of one file, restarted after a failure that killed it: later cases are still judged."""

    path: Path
    memory_bytes: int = MEMORY_BYTES
    call_seconds: float = CALL_SECONDS
    functions: tuple[str, ...] = ()
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="convscan-submission-")), repr=False)

    def start(self) -> None:
        """Starts the worker and loads the file."""
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"{__package__}.submission_worker",
                str(self.path),
                str(self.memory_bytes),
                str(torch.get_num_threads()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self.functions = tuple(self._answer(START_SECONDS)["functions"])

    def stop(self) -> None:
        """Kills the worker and whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stops the worker and removes its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        if not ready:
            self.stop()
            raise Failure(f"hung: no answer within {seconds:.0f} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.stop()
            raise Failure(f"crashed with {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if "raised" in answer:
            raise Failure(f"raised {answer['raised']}")
        if "wrong" in answer:
            raise Failure(answer["wrong"])
        return answer

    def ask(self, command: str, seconds: float | None = None, **request: Any) -> dict[str, Any]:
        """One request; a dead worker is started again first."""
        if self._process is None:
            self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"command": command} | request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            raise Failure("exited between calls") from None
        return self._answer(self.call_seconds if seconds is None else seconds)

    def load(self, problem: Problem) -> None:
        """Hands over the arguments of a problem."""
        paths = []
        for k, argument in enumerate(problem.arguments):
            paths.append(str(self._folder / f"{k}.npy"))
            np.save(paths[-1], argument.contiguous().numpy())
        self.ask("load", op=problem.op, inputs=paths, layout=problem.layout)

    def answer(self) -> tuple[torch.Tensor, float]:
        """The submission's answer to the loaded problem, and the seconds it says it took."""
        output = self._folder / "y.npy"
        seconds = self.ask("check", output=str(output))["seconds"]
        return torch.from_numpy(np.load(output, allow_pickle=False)), float(seconds)

    def times(self, calls: int) -> list[float]:
        """Times of single calls as the worker measured them, never less than our own clock allows."""
        begin = time.perf_counter()
        seconds = [
            float(s) for s in self.ask("time", calls=calls, seconds=self.call_seconds * max(1, calls // 4))["seconds"]
        ]
        elapsed = time.perf_counter() - begin
        if len(seconds) != calls or min(seconds) <= 0 or sum(seconds) > elapsed:
            raise Failure("its times contradict the clock outside")
        # The pipe costs well under a millisecond; a clock that runs slow inside shows as the difference.
        missing = elapsed - sum(seconds) - 5e-3
        if missing > sum(seconds):
            seconds = [s + missing / calls for s in seconds]
        return seconds


def enter(submission: Submission, problem: Problem, again: Problem, record: Record) -> measure.Contestant | None:
    """Checks a submission on a problem and on another draw in the same memory; a contestant when both are right."""
    try:
        # The second draw lands in the first one's memory: a submission that keeps results by address shows stale ones.
        for draw in (problem, again):
            submission.load(draw)
            y, seconds = submission.answer()
            error = compare(draw, (y,), truth(draw))
            record.relative_rms, record.max_abs = error.relative_rms, error.max_abs
            if error.wrong:
                record.status, record.reason = "wrong", error.wrong
                return None
    except Failure as failure:
        record.status, record.reason = "error", str(failure)
        return None

    def burst(calls: int) -> list[float]:
        if record.status != "ok":
            return [math.inf] * calls
        try:
            return submission.times(calls)
        except Failure as failure:
            record.status, record.reason = "error", str(failure)
            # Out of the running: an infinite time ends its turns without disturbing the others'.
            return [math.inf] * calls

    return measure.Contestant(burst, seconds)


def _check_after(submission: Submission, problem: Problem, expected: Truth, record: Record) -> None:
    """Once more after the timing: an answer that was right only while it was being looked at is wrong."""
    try:
        submission.load(problem)
        error = compare(problem, (submission.answer()[0],), expected)
    except Failure as failure:
        record.status, record.reason = "error", str(failure)
        return
    if error.wrong:
        record.status, record.reason = "wrong", f"after timing: {error.wrong}"


def held_out(op: str, count: int, seed: int) -> list[CaseLike]:
    """Random shapes: lengths log-uniform with single steps and primes, K up to 2L, both memory orders."""
    random = np.random.default_rng(seed)
    found: list[CaseLike] = []
    for k in range(count):
        length = int(math.exp(random.uniform(0, math.log(8192)))) | 1 if k else 1
        batch = int(random.integers(1, 4))
        channels = min(int(random.integers(1, 300)), max(1, HELD_OUT_ELEMENTS // (batch * length)))
        layout = ("BLD", "BDL")[int(random.integers(2))]
        source = "held out, drawn at random"
        if op == "linear_recurrence":
            found.append(
                recurrence_cases.Case(f"held-out-{k}", source, batch, length, channels, layout=layout, state=True)
            )
        else:
            taps = 2 * length if k == 1 else 1 + int(math.exp(random.uniform(0, math.log(2 * length))))
            found.append(conv_cases.Case(f"held-out-{k}", source, batch, length, channels, taps, layout=layout))
    return found


def public(op: str) -> list[CaseLike]:
    """The named cases a submission is judged on."""
    return [case for case in session.CASES[op] if case.name in PUBLIC[op]]


def judge_case(
    submission: Submission,
    name: str,
    op: str,
    case: CaseLike,
    rivals: Sequence[Peer],
    limits: machine.Machine,
    seed: int,
) -> list[Record]:
    """The submission and its rivals on one case."""
    problem, again = session.problem_of(op, case, seed), session.problem_of(op, case, seed + 1)
    expected = truth(problem, seed)
    budget = runner.Budget(case=2.5, call=1.0, setup=3.0)
    entrants = [runner.enter(problem, peer, expected, budget, weigh=False) for peer in rivals]
    record = runner.new_record(problem, name, "ok")
    contestant = enter(submission, problem, again, record)
    entrants.append(runner.Entrant(record, None, contestant))
    measure.interleave([e.contestant for e in entrants if e.contestant is not None], budget.case / 2)
    if record.status == "ok" and contestant is not None:
        _check_after(submission, problem, expected, record)
    if record.status != "ok":
        entrants[-1].contestant = None
    return runner.finish(entrants, limits)


@dataclass(frozen=True)
class Rank:
    """One implementation's place: the geometric mean over all shapes of the fastest time over its own."""

    implementation: str
    correct: int
    shapes: int
    score: float
    reason: str

    @property
    def everywhere(self) -> bool:
        return self.correct == self.shapes


def ranking(records: Sequence[Record]) -> list[Rank]:
    """Champion first: those correct everywhere by score, then the others by how many shapes they got right."""
    fastest: dict[str, float] = {}
    for record in records:
        if record.status == "ok" and record.latency is not None:
            fastest[record.case] = min(fastest.get(record.case, math.inf), record.latency.median)
    shapes = {record.case for record in records}
    found = []
    for name in dict.fromkeys(record.implementation for record in records):
        own = [r for r in records if r.implementation == name]
        done = [r for r in own if r.status == "ok" and r.latency is not None]
        score = (
            geometric_mean(fastest[r.case] / r.latency.median for r in done if r.latency is not None) if done else 0.0
        )
        reason = next((f"{r.case}: {r.reason}" for r in own if r.status in ("wrong", "error")), "")
        if not reason:
            reason = next((f"{r.case}: {r.status}, {r.reason}" for r in own if r.status != "ok"), "")
        found.append(Rank(name, len(done), len(shapes), score, reason))
    return sorted(found, key=lambda r: (not r.everywhere, -r.score if r.everywhere else -r.correct, -r.score))


def judge(
    path: Path,
    operators: Sequence[str] = tuple(PUBLIC),
    seed: int | None = None,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    on_block: Callable[[list[Record]], None] = lambda block: None,
    submission: Submission | None = None,
    wanted: Sequence[str] = (),
    count: int = HELD_OUT,
) -> dict[str, list[Record]]:
    """Records by operator for a file and its rivals. Without a seed the held-out shapes cannot be foreseen."""
    submission = submission or Submission(path)
    draw = secrets.randbelow(1 << 31) if seed is None else seed
    found: dict[str, list[Record]] = {}
    try:
        submission.start()
        offered = [op for op in operators if op in submission.functions]
        if not offered:
            raise UsageError(f"--submit: {path.name} defines none of {', '.join(operators)}")
        limits = machine.measure(0.04)
        cases = [(op, case) for op in offered for case in (*public(op), *held_out(op, count, draw))]
        for done, (op, case) in enumerate(cases):
            progress(f"{op} {case.name}", done, len(cases))
            block = judge_case(submission, path.name, op, case, session.select_peers(op, wanted), limits, draw)
            found.setdefault(op, []).extend(block)
            on_block(block)
    except Failure as failure:
        raise UsageError(f"--submit: {path.name} {failure}") from None
    finally:
        submission.close()
    return found


def ranking_table(op: str, ranks: Sequence[Rank], name: str) -> Table:
    """The ranking as shown in the terminal."""
    table = Table(
        title=f"{op}: ranking over {ranks[0].shapes} shapes", title_justify="left", header_style="dim", box=None
    )
    table.add_column("", justify="right")
    table.add_column("implementation", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("correct", justify="right")
    table.add_column("first reason", overflow="fold", style="dim")
    for place, rank in enumerate(ranks, 1):
        crown = "champion" if place == 1 and rank.everywhere else (str(place) if rank.everywhere else "–")
        table.add_row(
            crown,
            Text(rank.implementation, style="bold" if rank.implementation == name else ""),
            f"{rank.score:.3f}",
            f"{rank.correct} of {rank.shapes}",
            rank.reason,
        )
    return table


def command(path: Path, operators: Sequence[str], seed: int | None, console: Console) -> int:
    """``convscan profile --submit FILE.py``."""
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"--submit: expected a Python file; got {path}")
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting the submission", total=None)

        def progress(text: str, done: int, total: int) -> None:
            bar.update(task, description=f"{text:<48.48}", completed=done, total=total)

        found = judge(path.resolve(), operators, seed, progress, lambda block: console.print(block_table(block)))
    for op, records in found.items():
        console.print(ranking_table(op, ranking(records), path.name))
        console.print()
    note = "score: geometric mean over the shapes of the fastest time over its own; 1 is the fastest everywhere."
    console.print(Text(note, style="dim"))
    return 0
