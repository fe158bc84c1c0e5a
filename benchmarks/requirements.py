"""Checks a profiler report against the project's performance requirements.

    convscan profile --grid --backward --json report.json
    python benchmarks/requirements.py report.json

Every line is one requirement on one case: what was asked, what was reached. Ratios are medians within one run. The exit
code is 1 when something is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Record = dict[str, Any]
Block = dict[str, Record]
CONVOLUTION_WAYS = ("torch conv1d", "torch fft as stated")
KEPT = "torch fft, spectrum kept"


@dataclass(frozen=True)
class Requirement:
    """A quantity on the cases that `applies` selects, at least or at most a bound."""

    text: str
    applies: Callable[[Record], bool]
    quantity: Callable[[Block], float | None]
    bound: float
    at_least: bool = True


def median(block: Block, name: str) -> float | None:
    """Median latency of an implementation that answered correctly (or the extrapolated baseline)."""
    record = block.get(name)
    if record is None or record["latency_us"] is None or record["status"] not in ("ok", "extrapolated"):
        return None
    value: float = record["latency_us"]["median"]
    return value


def ratio(*rivals: str) -> Callable[[Block], float | None]:
    """The fastest of some rivals over convscan."""

    def quantity(block: Block) -> float | None:
        ours = median(block, "convscan")
        times = [t for t in (median(block, name) for name in rivals) if t is not None]
        return min(times) / ours if ours and times else None

    return quantity


def best_rival(*but: str) -> Callable[[Block], float | None]:
    """The fastest rival, some left out, over convscan."""

    def quantity(block: Block) -> float | None:
        names = [n for n, r in block.items() if not r["ours"] and r["status"] == "ok" and n not in but]
        return ratio(*names)(block) if names else None

    return quantity


def roofline(block: Block) -> float | None:
    """convscan's share of the machine's limit."""
    record = block.get("convscan")
    return None if record is None or record["status"] != "ok" else record["roofline"]


def workspace(block: Block) -> float | None:
    """convscan's own workspace in KiB, exact."""
    record = block.get("convscan")
    if record is None or record["workspace_bytes"] is None:
        return None
    return float(record["workspace_bytes"]) / 1024


def error(block: Block) -> float | None:
    """convscan's relative RMS error."""
    record = block.get("convscan")
    return None if record is None or record["error"] is None else record["error"]["relative_rms"]


def peak_share(rival: str) -> Callable[[Block], float | None]:
    """convscan's peak memory over a rival's."""

    def quantity(block: Block) -> float | None:
        ours, theirs = (block.get(name, {}).get("peak_bytes") for name in ("convscan", rival))
        return None if ours is None or not theirs else ours / theirs

    return quantity


def overhead(block: Block) -> float | None:
    """Microseconds that convscan takes beyond those of the bytes at the machine's bandwidth."""
    ours, share = median(block, "convscan"), roofline(block)
    return None if ours is None or share is None else ours * (1 - share)


def case(op: str, name: str, direction: str = "forward") -> Callable[[Record], bool]:
    """One case of an operator."""
    return lambda record: (record["op"], record["case"], record["direction"]) == (op, name, direction)


def is_step(record: Record) -> bool:
    """Steps of generation."""
    return bool(record["op"].endswith("_step"))


def conv(test: Callable[[int, int, int], bool], direction: str = "forward") -> Callable[[Record], bool]:
    """Convolutions whose (L, D, K) pass a test."""

    def applies(record: Record) -> bool:
        return record["op"] == "causal_conv" and record["direction"] == direction and test(*record["shape"][1:])

    return applies


def recurrence(test: Callable[[int, int], bool], direction: str = "forward") -> Callable[[Record], bool]:
    """Recurrences whose (L, D) pass a test."""

    def applies(record: Record) -> bool:
        return record["op"] == "linear_recurrence" and record["direction"] == direction and test(*record["shape"][1:])

    return applies


def kernel(op: str) -> Callable[[Record], bool]:
    """Kernels of state-space layers at the size that the requirement names."""
    return lambda record: (
        record["op"] == op and record["case"] == "h256-n64-l16384" and record["direction"] == "forward"
    )


def short(length: int, channels: int, taps: int) -> bool:
    return taps <= 16 and channels >= 512 and length >= 2048


def whole(length: int, channels: int, taps: int) -> bool:
    return taps == length and 1024 <= length <= 65536 and channels >= 64


def requirements(threads: int) -> Iterator[Requirement]:
    """The table of requirements; memory bounds are per thread."""
    medium = conv(lambda length, channels, taps: 32 <= taps <= 512 and taps < length)
    wide = recurrence(lambda length, channels: channels >= 512 and length > 1)
    long = recurrence(lambda length, channels: channels <= 8 and length >= 100_000)
    yield Requirement("K ≤ 16: × conv1d", conv(short), ratio("torch conv1d"), 10)
    yield Requirement("K ≤ 16: share of copy bandwidth", conv(short), roofline, 0.8)
    yield Requirement("K ≤ 16: workspace KiB", conv(short), workspace, 64 * threads, at_least=False)
    yield Requirement("32 ≤ K ≤ 512: × the better PyTorch way", medium, ratio(*CONVOLUTION_WAYS), 8)
    yield Requirement("32 ≤ K ≤ 512: workspace KiB", medium, workspace, 1024 * threads, at_least=False)
    yield Requirement("K = L: × PyTorch FFT as stated", conv(whole), ratio("torch fft as stated"), 8)
    yield Requirement("K = L: × PyTorch FFT, spectrum kept", conv(whole), ratio(KEPT), 4)
    yield Requirement("K = L: × best other rival", conv(whole), best_rival("torch fft as stated", KEPT), 2.5)
    yield Requirement("recurrence D ≥ 512: × time loop", wide, ratio("time loop"), 20)
    yield Requirement("recurrence D ≥ 512: × Numba", wide, ratio("numba loop"), 1.5)
    yield Requirement("recurrence D ≥ 512: share of triad bandwidth", wide, roofline, 0.8)
    yield Requirement("recurrence D ≥ 512: workspace KiB", wide, workspace, 64 * threads, at_least=False)
    yield Requirement("few channels: × best rival", long, best_rival(), 3)
    for op, rival in (("vandermonde", "torch einsum of powers"), ("cauchy", "torch einsum of reciprocals")):
        wide_kernel = kernel(op)
        yield Requirement(f"{op}: × PyTorch einsum", wide_kernel, ratio(rival), 8)
        yield Requirement(f"{op}: workspace KiB", wide_kernel, workspace, 1024 * threads, at_least=False)
        yield Requirement(f"{op}: relative RMS error", wide_kernel, error, 5e-6, at_least=False)
    mamba, training = (case("selective_scan", "mamba-130m", direction) for direction in ("forward", "backward"))
    yield Requirement("selective scan: × Hugging Face", mamba, ratio("huggingface torch"), 25)
    yield Requirement("selective scan: × mambapy", mamba, ratio("mambapy pscan"), 5)
    yield Requirement("selective scan, training step: × mambapy", training, ratio("mambapy pscan"), 10)
    yield Requirement(
        "selective scan, training step: of mambapy's peak", training, peak_share("mambapy pscan"), 1 / 8, False
    )
    yield Requirement("ssd scan: × Hugging Face", case("ssd_scan", "mamba2-130m"), ratio("huggingface torch"), 3)
    yield Requirement("GLA: × chunked PyTorch", case("gated_linear_attention", "gla-340m"), ratio("torch chunked"), 5)
    delta = case("gated_delta_rule", "gated-deltanet")
    yield Requirement("gated delta rule: × Hugging Face", delta, ratio("huggingface torch"), 5)
    yield Requirement("steps: µs beyond bytes / bandwidth", is_step, overhead, 3, at_least=False)
    backward = conv(lambda length, channels, taps: length > 1, "backward")
    yield Requirement("convolution, backward: × autograd", backward, ratio(*CONVOLUTION_WAYS), 5)
    backward = recurrence(lambda length, channels: length > 1, "backward")
    yield Requirement("recurrence, backward: × autograd of the loop", backward, ratio("time loop"), 5)


def main() -> int:
    """Prints the table; 1 when a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what convscan profile --json wrote")
    report = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    blocks: dict[tuple[str, str, str], Block] = {}
    for record in report["records"]:
        blocks.setdefault((record["op"], record["case"], record["direction"]), {})[record["implementation"]] = record
    table = Table(box=None, header_style="dim")
    for name in ("requirement", "case", "asked", "reached", ""):
        table.add_column(name, justify="right" if name in ("asked", "reached") else "left", no_wrap=True)
    missed = 0
    for requirement in requirements(report["machine"]["threads"]):
        for (_, case, _), block in blocks.items():
            reached = requirement.quantity(block) if requirement.applies(next(iter(block.values()))) else None
            if reached is None:
                continue
            met = reached >= requirement.bound if requirement.at_least else reached <= requirement.bound
            missed += not met
            sign = "≥" if requirement.at_least else "≤"
            verdict = "[green]reached[/]" if met else "[red]missed[/]"
            table.add_row(requirement.text, case, f"{sign} {requirement.bound:g}", f"{reached:.3g}", verdict)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
