"""What a run found: one record per case, direction and implementation, and who wins by which measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .machine import Machine
from .measure import MEMORY_RESOLUTION, Latency

SCHEMA = "convscan-profile/1"
# Every status a record can have. Only "ok" records have a latency that counts.
STATUSES = ("ok", "wrong", "skipped", "cut off", "error", "extrapolated")
# Bars a machine's noise must not decide: two implementations this close share a title.
TIE = 1.02


@dataclass
class Record:
    """One implementation on one case in one direction."""

    op: str
    case: str
    source: str
    group: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    layout: str
    direction: str
    implementation: str
    version: str
    ours: bool
    status: str
    reason: str = ""
    latency: Latency | None = None
    replay: Latency | None = None
    peak_bytes: int | None = None
    workspace_bytes: int | None = None
    relative_rms: float | None = None
    max_abs: float | None = None
    elements: int = 0
    bytes: int = 0
    flops: int = 0
    roofline: float | None = None
    speedup: float | None = None
    titles: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """What rivals share."""
        return (self.op, self.case, self.direction)

    def to_json(self) -> dict[str, Any]:
        """As docs/profiler.md documents it."""
        latency = self.latency
        return {
            "op": self.op,
            "case": self.case,
            "source": self.source,
            "group": self.group,
            "shape": list(self.shape),
            "axes": self.axes,
            "dtype": self.dtype,
            "layout": self.layout,
            "direction": self.direction,
            "implementation": self.implementation,
            "version": self.version,
            "ours": self.ours,
            "status": self.status,
            "reason": self.reason,
            "latency_us": None if latency is None else asdict(latency),
            "replay_us": None if self.replay is None else asdict(self.replay),
            "peak_bytes": self.peak_bytes,
            "workspace_bytes": self.workspace_bytes,
            "error": None
            if self.relative_rms is None
            else {"relative_rms": _finite(self.relative_rms), "max_abs": _finite(self.max_abs or 0.0)},
            "elements": self.elements,
            "bytes": self.bytes,
            "flops": self.flops,
            "roofline": self.roofline,
            "speedup": self.speedup,
            "titles": self.titles,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass
class Report:
    """A whole run."""

    machine: Machine
    records: list[Record]
    options: dict[str, Any]
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The document ``--json`` writes."""
        return {
            "schema": SCHEMA,
            "machine": self.machine.to_json(),
            "options": self.options,
            "seconds": round(self.seconds, 1),
            "records": [r.to_json() for r in self.records],
        }

    def blocks(self) -> list[list[Record]]:
        """Records by case and direction, in the order they were run."""
        found: dict[tuple[str, str, str], list[Record]] = {}
        for record in self.records:
            found.setdefault(record.key, []).append(record)
        return list(found.values())


def award(block: Sequence[Record]) -> None:
    """Fills speed-ups over the baseline and titles: fastest, leanest, and the Pareto set of latency and memory.

    Memory below the measurement's resolution counts as equal; of equals the faster one is the leaner.
    """
    done = [r for r in block if r.status == "ok" and r.latency is not None]
    base = next((r for r in block if r.implementation == "time loop" and r.latency is not None), None)
    for record in block:
        record.titles = []
        if base is not None and base.latency is not None and record.latency is not None and record.latency.median > 0:
            record.speedup = base.latency.median / record.latency.median
    if not done:
        return
    best = min(_median(r) for r in done)
    for record in done:
        if _median(record) <= best * TIE:
            record.titles.append("fastest")
    weighed = [r for r in done if r.peak_bytes is not None]
    if not weighed:
        return
    leanest = min(weighed, key=lambda r: (_memory(r), _median(r)))
    leanest.titles.append("leanest")
    for record in weighed:
        dominated = any(
            _memory(o) <= _memory(record)
            and _median(o) <= _median(record)
            and (_memory(o) < _memory(record) or _median(o) < _median(record))
            for o in weighed
        )
        if not dominated:
            record.titles.append("pareto")


def _median(record: Record) -> float:
    return math.inf if record.latency is None else record.latency.median


def _memory(record: Record) -> int:
    return max(record.peak_bytes or 0, MEMORY_RESOLUTION)


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm of at least one value."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


@dataclass(frozen=True)
class Summary:
    """convscan's dispatch against the best rival, and against the baseline if any, over the cases of one group."""

    group: str
    direction: str
    cases: int
    wins: int
    against_best: float
    against_baseline: float | None
    rival: str
    worst_case: str
    worst: float


def summarise(report: Report) -> list[Summary]:
    """One line per group and direction: how often convscan is the fastest, and by what factor over the best rival."""
    rows: dict[tuple[str, str], list[tuple[str, float, float | None, str]]] = {}
    for block in report.blocks():
        ours = next((r for r in block if r.implementation == "convscan" and r.status == "ok"), None)
        rivals = [r for r in block if not r.ours and r.status == "ok" and r.latency is not None]
        if ours is None or not rivals:
            continue
        best = min(rivals, key=_median)
        ratio = _median(best) / _median(ours)
        rows.setdefault((ours.group, ours.direction), []).append((ours.case, ratio, ours.speedup, best.implementation))
    found = []
    for (group, direction), cases in rows.items():
        names = [c[3] for c in cases]
        worst = min(cases, key=lambda c: c[1])
        speedups = [c[2] for c in cases if c[2]]
        found.append(
            Summary(
                group,
                direction,
                len(cases),
                sum(c[1] >= 1 for c in cases),
                geometric_mean(c[1] for c in cases),
                geometric_mean(speedups) if speedups else None,
                max(set(names), key=names.count),
                worst[0],
                worst[1],
            )
        )
    return found
