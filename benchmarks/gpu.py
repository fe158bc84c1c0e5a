"""Profiles the GPU that is there: ``convscan profile --device cuda``, forwards and backwards, within a given time.

    python benchmarks/gpu.py [--seconds 330] [--json FILE] [--html FILE]

Copies and products are measured first, then each case that is meant for GPUs: every kernel of convscan and every rival
that is installed (or whose folder is on PYTHONPATH), each checked against double precision before it is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from convscan.profiler import session
from convscan.profiler.report import html, json, table

OPERATORS = ("causal_conv", "gated causal_conv", "linear_recurrence")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=330.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path)
    given = parser.parse_args()
    options = session.Options(operators=OPERATORS, backward=True, device="cuda")
    console = Console(width=120)
    try:
        report = session.run(
            options, on_block=lambda block: console.print(table.block_table(block)), seconds=given.seconds
        )
    except session.UsageError as reason:
        print(f"{reason}; benchmarks/gpu_resources.py compiles every kernel without one", file=sys.stderr)
        return 1
    table.print_summary(console, report)
    console.print(table.machine_lines(report.machine))
    for path, writer in ((given.json, json.write), (given.html, html.write)):
        if path is not None:
            writer(report, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
