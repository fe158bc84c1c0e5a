"""The terminal report: one block per case, a summary by group of cases, readable at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..machine import Machine
from ..records import Record, Report, Summary, summarise
from .units import duration, factor, interval, size

MARKS = {"fastest": "★", "leanest": "▼", "pareto": "●"}
LEGEND = "★ fastest (within 2 %)   ▼ leanest   ● Pareto set of latency and memory   ≈ extrapolated"
ORDER = {"ok": 0, "extrapolated": 1, "wrong": 2, "cut off": 3, "error": 4, "skipped": 5}


def shape_text(record: Record) -> str:
    """B=1 L=4096 D=2048 K=4."""
    return " ".join(f"{letter}={n}" for letter, n in zip(record.axes, record.shape, strict=True))


def machine_lines(machine: Machine) -> str:
    """The machine and its measured limits in two lines, and a third when others were using it."""
    copies = " / ".join(f"{b / 1e9:.0f}" for _, b in machine.copy_bandwidth)
    triads = " / ".join(f"{b / 1e9:.0f}" for _, b in machine.triad_bandwidth)
    sets = " / ".join(size(s) for s, _ in machine.copy_bandwidth)
    if machine.device != "cpu":
        return (
            f"{machine.processor} ({machine.instruction_sets}), {machine.cores} multiprocessors, "
            f"{size(machine.memory_bytes)}, PyTorch {machine.torch}, Python {machine.python}\n"
            f"measured limits: copy {copies} GB/s, triad {triads} GB/s over {sets}; products of bfloat16 "
            f"{machine.peak_flops / 1e12:.3g} TFLOP/s"
        )
    warning = f"\nthe machine was busy (load {machine.load:.1f} on {machine.cores} cores): expect noise"
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, {machine.instruction_sets}, "
        f"{size(machine.memory_bytes)}, PyTorch {machine.torch}, Python {machine.python}\n"
        f"measured limits: copy {copies} GB/s, triad {triads} GB/s over {sets}; {machine.peak_flops / 1e9:.0f} GFLOP/s"
        f"{warning if machine.busy else ''}"
    )


def block_table(block: Sequence[Record]) -> RenderableType:
    """One case in one direction, fastest first; what was not run in lines below."""
    first = block[0]
    order = {"BLD": "channels contiguous, ", "BDL": "time contiguous, "}.get(first.layout, "")
    title = Text.assemble(
        (f"{first.op} ", "bold"),
        (first.case, "bold cyan"),
        f"  {shape_text(first)}  {first.dtype}, {order}{_direction(first.direction)}",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    table.add_column("", no_wrap=True, width=len(MARKS) + 2)
    table.add_column("implementation", no_wrap=True, min_width=30)
    has_replays = any(record.replay is not None for record in block)
    replayed = ("in a graph",) if has_replays else ()
    for name in ("median", "p10 – p90", *replayed, "speed-up", "memory", "error", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(block, key=lambda r: (ORDER[r.status], r.latency.median if r.latency else 0.0))
    for record in ranked:
        if record.latency is None:
            continue
        table.add_row(*_cells(record, has_replays=has_replays), style=_style(record))
    parts: list[RenderableType] = [title, Text(first.source, style="dim"), table]
    note = next((r.reason for r in block if r.implementation == "convscan" and r.status == "ok"), "")
    if note:
        parts.append(Text(note, style="dim"))
    for status in ("wrong", "error", "cut off", "skipped"):
        # Rivals that share a reason share its statement.
        reasons: dict[str, list[str]] = {}
        for record in ranked:
            if record.status == status:
                reasons.setdefault(record.reason, []).append(record.implementation)
        if reasons:
            style = "red" if status in ("wrong", "error") else "dim"
            text = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
            parts.append(Text(f"{status}: {text}", style=style))
    return Group(*parts, Text(""))


def _direction(direction: str) -> str:
    return "forward" if direction == "forward" else "forward + backward"


def _style(record: Record) -> str:
    if record.ours:
        return "green" if record.implementation == "convscan" else "default"
    return "default" if record.status == "ok" else "dim"


def _cells(record: Record, *, has_replays: bool) -> tuple[str, ...]:
    marks = " ".join(MARKS[t] for t in record.titles)
    latency = record.latency
    assert latency is not None
    about = "≈ " if record.status == "extrapolated" else ""
    spread = interval(latency.p10, latency.p90) if latency.samples > 1 else "one call"
    return (
        marks,
        record.implementation,
        about + duration(latency.median),
        spread,
        *(("" if record.replay is None else duration(record.replay.median),) if has_replays else ()),
        "" if record.speedup is None else factor(record.speedup),
        "" if record.peak_bytes is None else size(record.peak_bytes),
        _error(record),
        "" if record.roofline is None or about else f"{100 * record.roofline:.0f} %",
    )


def _error(record: Record) -> str:
    return "" if record.relative_rms is None else f"{record.relative_rms:.1e}"


def summary_table(rows: Sequence[Summary]) -> Table:
    """Who wins, by group of cases."""
    table = Table(
        title="convscan against the best rival of each case", title_justify="left", header_style="dim", box=None
    )
    table.add_column("cases", no_wrap=True)
    for name in ("fastest in", "× best rival", "× time loop"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("usual best rival", no_wrap=True)
    table.add_column("least ahead", overflow="fold")
    for row in rows:
        group = row.group if row.direction == "forward" else f"{row.group}, backward"
        style = "green" if row.wins == row.cases else ("yellow" if row.against_best >= 1 else "red")
        table.add_row(
            group,
            Text(f"{row.wins} of {row.cases}", style=style),
            factor(row.against_best),
            factor(row.against_baseline),
            row.rival,
            f"{row.worst_case} ({factor(row.worst)})",
        )
    return table


def champions_table(report: Report) -> Table:
    """How often each implementation is the fastest, the leanest, or in the Pareto set."""
    counts: dict[str, dict[str, int]] = {}
    cases = 0
    for block in report.blocks():
        cases += 1
        for record in block:
            for title in record.titles:
                counts.setdefault(record.implementation, {}).setdefault(title, 0)
                counts[record.implementation][title] += 1
    table = Table(title=f"Titles over {cases} cases", title_justify="left", header_style="dim", box=None)
    table.add_column("implementation", no_wrap=True)
    for title in MARKS:
        table.add_column(f"{MARKS[title]} {title}", justify="right")
    ranked = sorted(counts, key=lambda name: [-counts[name].get(title, 0) for title in MARKS])
    for name in ranked[:12]:
        table.add_row(name, *(str(counts[name].get(title, 0) or "") for title in MARKS))
    return table


def print_summary(console: Console, report: Report) -> None:
    """The end of a run."""
    rows = summarise(report)
    if rows:
        console.print(summary_table(rows))
        console.print()
    console.print(champions_table(report))
    console.print()
    console.print(Text(LEGEND, style="dim"))
    console.print(
        Text(
            "memory: most resident during a call beyond inputs and output, plus buffers and spectra kept between calls "
            "(resolution 256 KiB). error: relative RMS against float64. limit: share of the measured bandwidth or "
            "multiply-add peak, whichever binds.",
            style="dim",
        )
    )
