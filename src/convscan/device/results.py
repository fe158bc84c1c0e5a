"""From the runner's lines to the profiler's records, and the challenge's score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convscan._version import __version__
from convscan.profiler.machine import Machine
from convscan.profiler.measure import Latency
from convscan.profiler.operators import operators
from convscan.profiler.records import SCHEMA, Record, Report, award, geometric_mean
from convscan.profiler.report import html
from convscan.profiler.report.table import block_table
from convscan.profiler.report.units import duration, interval, size

from .grid import GridCase, sizes

BASELINE = "time loop"
NOT_TIMED = "right; not timed, since the processor is emulated"


@dataclass(frozen=True)
class Score:
    """One implementation on the whole grid of one operator: the challenge's mean, and the geometric mean beside it.

    ``cases`` are those in which it is right within the challenge's tolerance; means are over them, in microseconds.
    """

    op: str
    implementation: str
    cases: int
    of: int
    mean_us: float
    geometric_mean_us: float


@dataclass(frozen=True)
class Challenge:
    """What the challenge asks for beside the profiler's records: every line of the runner, the scores, remarks."""

    emulated: bool
    lines: list[dict[str, Any]]
    scores: list[Score]
    remarks: list[str]

    def to_json(self) -> dict[str, Any]:
        """The key ``challenge`` of the report."""
        return asdict(self)


def _matching(found: Sequence[dict[str, Any]], op: str, case: GridCase) -> list[dict[str, Any]]:
    wanted = [int(n) for n in sizes(case)]
    keys = ("channels", "length", "taps")[: len(wanted)]
    return [line for line in found if line.get("op") == op and [line[k] for k in keys] == wanted]


def record(op: str, case: GridCase, line: dict[str, Any], emulated: bool, submitted: Sequence[str] = ()) -> Record:
    """A line of the runner as a record of the profiler."""
    taps = () if op == "linear_recurrence" else (int(sizes(case)[2]),)
    shape = (*case.shape, *taps)
    name, status, latency = line["implementation"], line["status"], line.get("latency_us")
    reason = line.get("reason", "")
    if status == "wrong":
        reason = f"off by {line['max_abs']:.2g} on random inputs, {line['max_abs_ones']:.2g} on ones"
    elif status == "ok" and emulated:
        status, reason, latency = "skipped", NOT_TIMED, None
    elif status == "ok" and not line["within_tolerance"]:
        reason = f"misses the challenge's tolerance of 1e-3: {line['max_abs_ones']:.2g} on ones"
    elif status == "ok" and latency is None:
        status, reason = "cut off", "not timed"
    peak = line.get("peak_bytes", -1)
    return Record(
        op=op,
        case=case.name,
        source=case.source,
        group=operators()[op].group(shape),
        shape=shape,
        axes=operators()[op].axes,
        dtype=case.dtype,
        layout=case.layout,
        direction="forward",
        implementation=name,
        version=__version__,
        ours=name != BASELINE and name not in submitted,
        status=status,
        reason=reason,
        latency=None
        if latency is None
        else Latency(latency["p10"], latency["p50"], latency["p90"], latency["samples"]),
        peak_bytes=None if peak < 0 or emulated else peak,
        workspace_bytes=line.get("workspace_bytes"),
        relative_rms=line.get("relative_rms"),
        max_abs=line.get("max_abs"),
        elements=case.channels * case.length,
        bytes=case.bytes,
        flops=case.flops,
    )


def report(
    described: str,
    limits: dict[str, Any],
    chosen: Sequence[tuple[str, GridCase]],
    found: Sequence[dict[str, Any]],
    emulated: bool,
    options: dict[str, Any],
    remarks: list[str],
    submitted: Sequence[str] = (),
) -> tuple[Report, Challenge]:
    """The profiler's report and the challenge's, of what was pulled. ``convscan`` is the fastest kernel of each shape
    among those that keep the challenge's tolerance; names that were ``submitted`` are none of them."""
    machine = Machine(
        processor=described,
        cores=limits["cores"],
        threads=limits["threads"],
        instruction_sets=f"{limits['architecture']} {limits['isa']}",
        memory_bytes=limits["memory_bytes"],
        load=0.0 if emulated else limits["load"],
        system=limits["system"],
        python="not used",
        torch="not used",
        copy_bandwidth=tuple((int(n), float(b)) for n, b in limits["copy_bandwidth"]),
        triad_bandwidth=tuple((int(n), float(b)) for n, b in limits["triad_bandwidth"]),
        peak_flops=limits["peak_flops"],
    )
    records, kept = [], []
    for op, case in chosen:
        matching = _matching(found, op, case)
        kept += matching
        block = [record(op, case, line, emulated, submitted) for line in matching]
        within = {line["implementation"] for line in matching if line.get("within_tolerance")}
        ours = [r for r in block if r.ours and r.status == "ok" and r.latency and r.implementation in within]
        if ours:
            best = min(ours, key=lambda r: r.latency.median if r.latency else 0.0)
            block.insert(0, replace(best, implementation="convscan", reason=f"runs {best.implementation}", titles=[]))
        for one in block:
            if one.latency is not None and not emulated:
                bandwidth = operators()[op].bandwidth
                one.roofline = machine.limit_seconds(bandwidth, one.bytes, one.flops) / (1e-6 * one.latency.median)
        award(block)
        records += block
    if emulated:  # no time is reported that no device would take
        kept = [line | {"latency_us": None} for line in kept]
    return Report(machine, records, options), Challenge(emulated, kept, scores(chosen, kept, submitted), remarks)


def scores(
    chosen: Sequence[tuple[str, GridCase]], found: Sequence[dict[str, Any]], submitted: Sequence[str] = ()
) -> list[Score]:
    """By operator, those that are right in most cases first, then by the mean of their average latencies."""
    rows = []
    for op in dict.fromkeys(op for op, _ in chosen):
        total = sum(1 for other, _ in chosen if other == op)
        averages: dict[str, list[float]] = {}
        for _, case in (one for one in chosen if one[0] == op):
            block = {
                line["implementation"]: float(line["latency_us"]["avg"])
                for line in _matching(found, op, case)
                if line["status"] == "ok" and line.get("within_tolerance") and line.get("latency_us")
            }
            ours = [value for name, value in block.items() if name != BASELINE and name not in submitted]
            if ours:
                block["convscan"] = min(ours)
            for name, value in block.items():
                averages.setdefault(name, []).append(value)
        rows += [
            Score(op, name, len(values), total, sum(values) / len(values), geometric_mean(values))
            for name, values in averages.items()
        ]
    return sorted(rows, key=lambda s: (s.op, -s.cases, s.mean_us, s.implementation != "convscan"))


def ranks(found: Sequence[Score]) -> list[int]:
    """The place of each within its operator, in the order of ``scores``."""
    before: dict[str, int] = {}
    places = []
    for s in found:
        before[s.op] = before.get(s.op, 0) + 1
        places.append(before[s.op])
    return places


def print_all(console: Console, document: Report, challenge: Challenge) -> None:
    """The tables: a block per case, then the challenge's figures and the scores."""
    if not challenge.emulated:
        for block in document.blocks():
            console.print(block_table(block))
    console.print(challenge_table(challenge))
    if challenge.scores:
        table = Table(title="Score", title_justify="left", header_style="dim", box=None)
        for name in ("operator", "rank", "implementation", "right in", "mean latency", "geometric mean"):
            table.add_column(name, justify="left" if name in ("operator", "implementation") else "right", no_wrap=True)
        for s, rank in zip(challenge.scores, ranks(challenge.scores), strict=True):
            means = (duration(s.mean_us), duration(s.geometric_mean_us))
            table.add_row(s.op, str(rank), s.implementation, f"{s.cases} of {s.of}", *means)
        console.print(table)
    for remark in challenge.remarks:
        console.print(Text(remark, style="yellow"))
    if challenge.emulated:
        console.print(
            Text(
                "Emulated: no times. Instructions are those of one call, per output, exact; the rest is a device's.",
                style="yellow",
            )
        )


def challenge_table(challenge: Challenge) -> Table:
    """One line per case and implementation: latency, memory, and the errors that the tolerance of 1e-3 refers to."""
    table = Table(title="The challenge's figures", title_justify="left", header_style="dim", box=None)
    table.add_column("C, L, K", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    measured = ("instructions", "FMA share") if challenge.emulated else ("min – max", "average", "memory")
    for name in (*measured, "workspace", "error", "on ones", "≤ 1e-3"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in challenge.lines:
        shape = ", ".join(str(line[k]) for k in ("channels", "length", "taps") if line[k])
        if "max_abs" not in line:
            table.add_row(shape, line["implementation"], line["status"], style="dim")
            continue
        table.add_row(
            shape,
            line["implementation"],
            *(_counted(line) if challenge.emulated else _measured(line)),
            "" if line["workspace_bytes"] is None else size(line["workspace_bytes"]),
            f"{line['max_abs']:.1e}",
            f"{line['max_abs_ones']:.1e}",
            "yes" if line["within_tolerance"] else "no",
            style="red" if line["status"] == "wrong" else None,
        )
    return table


def _measured(line: dict[str, Any]) -> tuple[str, str, str]:
    """Least and most latency, its average, peak memory."""
    t, peak = line["latency_us"], line["peak_bytes"]
    memory = "" if peak < 0 else size(peak)
    return ("", "", memory) if t is None else (interval(t["min"], t["max"]), duration(t["avg"]), memory)


def _counted(line: dict[str, Any]) -> tuple[str, str]:
    """Instructions per output, and the share of multiply-adds among vector arithmetic."""
    counts = line.get("instructions")
    if counts is None:
        return ("", "")
    each = counts["instructions"] / (line["channels"] * line["length"])
    return (f"{each:.2f}", f"{counts['multiply_adds'] / max(1, counts['vector']):.0%}")


def write(folder: Path, document: Report, challenge: Challenge) -> list[Path]:
    """``device.json`` (the profiler's schema, and the key ``challenge``) and ``device.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = document.to_json() | {"schema": SCHEMA, "challenge": challenge.to_json()}
    data, page = folder / "device.json", folder / "device.html"
    data.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    html.write(document, page)
    return [data, page]
