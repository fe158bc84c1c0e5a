"""Runs implementations over cases: correctness first, then memory, then interleaved timing within a time budget."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import convscan

from . import measure
from .machine import Machine
from .operators import operator
from .peer import Peer, Prepared
from .problem import Problem, Truth, compare, truth
from .records import Record, award

# A case whose checks alone take this many times its budget leaves its remaining rivals out: the machine is busy.
OVERDRAFT = 3.0
CPU = measure.Meter()
# Share of a case's budget that timing gets in any event.
LEAST_TIMING = 0.4


@dataclass(frozen=True)
class Budget:
    """Seconds for one case, for one call of one rival, and for a rival's one-time work (compilation, planning)."""

    case: float
    call: float
    setup: float


@dataclass
class Entrant:
    """A peer on its way through a case: its record, and what is left to time."""

    record: Record
    prepared: Prepared | None = None
    contestant: measure.Contestant | None = None
    replayed: measure.Contestant | None = None  # the same calls as a graph


Progress = Callable[[str], None]


def new_record(problem: Problem, peer: Peer | str, status: str, reason: str = "") -> Record:
    """A record with everything that does not need a run; of a peer, or of something known by its name only."""
    return Record(
        op=problem.op,
        case=problem.name,
        source=problem.case.source,
        group=problem.operator.group(problem.shape),
        shape=problem.shape,
        axes=problem.operator.axes,
        dtype=problem.case.dtype,
        layout=problem.layout,
        direction=problem.direction,
        implementation=peer if isinstance(peer, str) else peer.name,
        version="" if isinstance(peer, str) else peer.version(),
        ours=not isinstance(peer, str) and peer.ours,
        status=status,
        reason=reason,
        elements=problem.elements,
        bytes=problem.bytes,
        flops=problem.flops,
    )


@contextmanager
def _quiet() -> Any:
    """Rivals warn about their own internals; a table is no place for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def enter(
    problem: Problem,
    peer: Peer,
    expected: Truth,
    budget: Budget,
    weigh: bool = True,
    meter: measure.Meter = CPU,
    placed: Sequence[Problem] = (),
) -> Entrant:
    """Prepares, runs once, checks against the truth, measures memory. What goes wrong becomes the record's status.
    ``placed`` are copies of the problem where the meter runs it."""
    placed = placed or meter.copies(problem)
    reasons = peer.why_not(placed[0])
    if reasons:
        return Entrant(new_record(problem, peer, "skipped", "; ".join(reasons)))
    # Rivals' estimates are those of a processor.
    setup, estimate = peer.setup(problem), peer.estimate(placed[0]) if meter is CPU or peer.ours else 0.0
    if setup > budget.setup:
        return Entrant(
            new_record(problem, peer, "cut off", f"compiles for about {setup:.0f} s (limit {budget.setup:.0f} s)")
        )
    if estimate > budget.call:
        reason = f"would take over {estimate:.2g} s a call (limit {budget.call:.2g} s)"
        return Entrant(new_record(problem, peer, "cut off", reason))
    record = new_record(problem, peer, "ok")
    try:
        with _quiet():
            turns = [peer.prepare(one) for one in placed]
            prepared = turns[0]
            workspace = prepared.workspace_bytes if meter.counts_workspace else None
            record.reason = prepared.note
            if workspace is not None:
                convscan.reset_peak_workspace()
            result, seconds = meter.timed(prepared.run)
            extrapolated = prepared.extrapolated() if prepared.extrapolated else None
            if extrapolated is None:
                error = compare(problem, meter.fetched(prepared.result(result)), expected)
                record.relative_rms, record.max_abs = error.relative_rms, error.max_abs
                if error.wrong:
                    record.status, record.reason = "wrong", error.wrong
                    return Entrant(record)
            del result
            if extrapolated is not None:
                record.status = "extrapolated"
                if prepared.extrapolated is not None and peer.op == "causal_conv":
                    prepared.run()  # now with steps sampled over the whole length
                    extrapolated = prepared.extrapolated() or extrapolated
                record.latency = measure.latency_of([extrapolated])
                record.reason = f"a sample of the steps took {seconds:.1f} s"
                return Entrant(record)
            if workspace is not None:
                record.workspace_bytes = workspace()
            if weigh and seconds < budget.call:
                record.peak_bytes = meter.peak_bytes(prepared, problem.output_bytes, repeats=2 if seconds < 0.1 else 1)
                if record.peak_bytes is not None and record.workspace_bytes is not None:
                    record.peak_bytes += record.workspace_bytes  # kept since the first call, so it was not seen
            # The first call pays for page faults and lazy initialisation: a second one tells what a call costs.
            second = meter.timed(turns[-1].run)[1] if seconds < budget.call / 2 else seconds
            replays = meter.replays(turns, min(seconds, second))
            if replays is not None:
                error = compare(problem, meter.fetched(prepared.result(replays.answer)), expected)
                if error.wrong:
                    record.reason = "; ".join(filter(None, (record.reason, f"as a graph {error.wrong}")))
                    replays = None
    except Exception as error:
        record.status, record.reason = "error", f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return Entrant(record)
    contestant = measure.Contestant(meter.bursts(turns), min(seconds, second))
    if seconds >= budget.call:
        contestant.samples = [seconds]
        contestant.spent = float("inf")
        record.reason = "one call only"
    replayed = None if replays is None else measure.Contestant(replays.burst, min(seconds, second))
    return Entrant(record, prepared, contestant, replayed)


def finish(entrants: Sequence[Entrant], machine: Machine) -> list[Record]:
    """Turns samples into latencies, and latencies into shares of the machine's limit, speed-ups and titles."""
    for entrant in entrants:
        record = entrant.record
        if entrant.contestant is not None and entrant.contestant.samples:
            record.latency = measure.latency_of(entrant.contestant.samples)
        if entrant.replayed is not None and entrant.replayed.samples:
            record.replay = measure.latency_of(entrant.replayed.samples)
        if record.latency is not None and record.latency.median > 0:
            limit = machine.limit_seconds(operator(record.op).bandwidth, record.bytes, record.flops)
            # A kernel's own time, where what lies between two launches is known.
            record.roofline = limit * 1e6 / (record.replay or record.latency).median
    records = [e.record for e in entrants]
    award(records)
    return records


def run_case(
    problem: Problem,
    peers: Sequence[Peer],
    machine: Machine,
    budget: Budget,
    progress: Progress = lambda text: None,
    seed: int = 0,
    meter: measure.Meter = CPU,
) -> list[Record]:
    """All implementations of one problem."""
    begin = time.perf_counter()
    gc.collect()
    progress(f"{problem.name}: truth")
    expected = truth(problem, seed)
    placed = meter.copies(problem)
    entrants = []
    for peer in peers:
        progress(f"{problem.name}: {peer.name}")
        if time.perf_counter() - begin > OVERDRAFT * budget.case and not (peer.ours or peer.baseline):
            entrants.append(Entrant(new_record(problem, peer, "cut off", "the case's time was up")))
            continue
        entrants.append(enter(problem, peer, expected, budget, meter=meter, placed=placed))
    progress(f"{problem.name}: timing")
    left = budget.case - (time.perf_counter() - begin)
    contestants = [one for e in entrants for one in (e.contestant, e.replayed) if one is not None]
    with torch.no_grad() if problem.direction == "forward" else torch.enable_grad(), _quiet():
        # Checks may have eaten the budget; times of a handful of calls would not be worth having.
        measure.interleave(contestants, max(left, LEAST_TIMING * budget.case))
    return finish(entrants, machine)
