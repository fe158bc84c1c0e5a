"""Writes the table of results in the README from a profiler report.

    convscan profile --json report.json
    python benchmarks/results_table.py report.json README.md

Forward cases only: convscan with ``out=`` against the fastest rival and against PyTorch's own ways, medians of one run,
and the memory beyond inputs and output. Losing cases stand beside winning ones.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

Record = dict[str, Any]
COLUMNS = {
    "FFT as stated": "torch fft as stated",
    "FFT, spectrum kept": "torch fft, spectrum kept",
    "conv1d": "torch conv1d",
    "time loop": "time loop",
}
MARKERS = re.compile(r"(<!-- results: begin -->\n).*?(<!-- results: end -->)", re.DOTALL)


def time_text(microseconds: float) -> str:
    """Three digits and a unit."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1e3 else f"{microseconds:.3g} µs"


def bytes_text(count: int | None) -> str:
    """Whole units; nothing where it was not measured."""
    if count is None:
        return "–"
    return f"{count / 2**20:.3g} MiB" if count >= 1 << 20 else f"{count / 2**10:.3g} KiB"


def median(record: Record | None) -> float | None:
    """Median latency of a correct answer, or the extrapolated one of a baseline."""
    if record is None or record["latency_us"] is None or record["status"] not in ("ok", "extrapolated"):
        return None
    value: float = record["latency_us"]["median"]
    return value


def row(block: dict[str, Record]) -> str | None:
    """One case; None where it has no time or no rival."""
    ours = block.get("convscan")
    time = median(ours)
    rivals = {name: t for name, r in block.items() if not r["ours"] and (t := median(r)) is not None}
    if ours is None or time is None or not rivals:
        return None
    best = min(rivals, key=lambda name: rivals[name])
    ratios = [f"{rivals[name] / time:.3g}×" if name in rivals else "–" for name in COLUMNS.values()]
    chosen = ours["reason"].removeprefix("dispatch chose ")
    cells = [
        f"{ours['case']} {tuple(ours['shape'])}",
        time_text(time),
        chosen,
        f"{best}, {rivals[best] / time:.2g}×",
        *ratios,
        bytes_text(ours["peak_bytes"]),
        bytes_text(block[best]["peak_bytes"]),
    ]
    return f"| {' | '.join(cells)} |"


def table(report: dict[str, Any]) -> str:
    """The section between the markers."""
    blocks: dict[tuple[str, str], dict[str, Record]] = {}
    for record in report["records"]:
        if record["direction"] == "forward":
            blocks.setdefault((record["op"], record["case"]), {})[record["implementation"]] = record
    machine = report["machine"]
    head = ["case (B, L, D, K)", "convscan", "runs", "best rival", *COLUMNS, "memory", "its memory"]
    machine_text = f"{machine['cores']} cores of {machine['processor']} ({machine['instruction_sets']})"
    lines = [
        f"`make profile` on {machine_text}, PyTorch {machine['torch']},",
        f"{machine['threads']} threads, float32, forward; medians of one interleaved run. Ratios say how many times",
        "longer the others take; a dash is a rival that was cut off, left out or cannot do the case. Memory: the peak",
        "beyond inputs and output, of convscan and of the best rival. Losing cases are shown too; the whole record,",
        "with errors, is in [benchmarks/results](benchmarks/results).",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(text for block in blocks.values() if (text := row(block)) is not None),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replaces the section of the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what convscan profile --json wrote")
    parser.add_argument("document", type=Path, help="the file that has the two markers")
    arguments = parser.parse_args()
    text = table(json.loads(arguments.report.read_text(encoding="utf-8")))
    document = arguments.document.read_text(encoding="utf-8")
    changed, count = MARKERS.subn(lambda match: match[1] + text + match[2], document)
    if count != 1:
        raise SystemExit(f"{arguments.document} must have the markers of the results once; it has them {count} times")
    arguments.document.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
