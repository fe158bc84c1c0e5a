"""What the kernels take on a phone, without one: counted instructions, modelled cycles, a latency predicted from both.

Nothing here is measured on a device. Instructions and multiply-adds are exact; cycles are llvm-mca's, which knows the
cores and no memory; the prediction is the larger of what the fast cores compute together and what memory delivers at
its peak.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convscan.profiler.report.units import duration

from . import counts, mca
from .counts import Shape

CHANNELS = 512  # of predicted latencies, as in the challenge


class Cluster(NamedTuple):
    """Cores of a kind: the name of the model, how many, and their highest clock."""

    core: str
    number: int
    hertz: float


class Phone(NamedTuple):
    """A Galaxy S24: the cores that get work, the slow ones left out; memory's peak, and the last-level cache."""

    name: str
    clusters: tuple[Cluster, ...]
    bandwidth: float
    cache_bytes: float


PHONES = (
    Phone(
        "Snapdragon 8 Gen 3",
        (Cluster("cortex-x4", 1, 3.39e9), Cluster("cortex-a720", 3, 3.1e9), Cluster("cortex-a720", 2, 2.9e9)),
        77e9,
        12e6,
    ),
    Phone(
        "Exynos 2400",
        (Cluster("cortex-x4", 1, 3.2e9), Cluster("cortex-a720", 2, 2.9e9), Cluster("cortex-a720", 3, 2.6e9)),
        68e9,
        8e6,
    ),
)


@dataclass(frozen=True)
class Line:
    """A kernel and shape: all by output but for ``of_transforms`` (vector arithmetic over M log2 M, of convolutions by
    transforms of M complex points) and ``predicted_us`` (by phone, of 512 channels)."""

    name: str
    instructions: float
    vector: float
    multiply_adds: float
    memory: float
    bytes: float
    cycles: dict[str, float]
    of_transforms: float | None
    predicted_us: dict[str, float]
    bound: dict[str, str]


def moved(shape: Shape) -> float:
    """Bytes of an output that have to move, all arrays read or written once."""
    if shape.op == "linear_recurrence":
        return 12.0
    return 8.0 + 4.0 * min(shape.taps, shape.length) / shape.length


def predict(shape: Shape, cycles: dict[str, float], phone: Phone) -> tuple[float, str]:
    """Seconds of a call with 512 channels on the fast cores, and what binds them."""
    outputs = CHANNELS * shape.length
    computed = outputs / sum(c.number * c.hertz / cycles[c.core] for c in phone.clusters)
    total = outputs * moved(shape)
    delivered = total / phone.bandwidth if total > phone.cache_bytes else 0.0
    return (delivered, "memory") if delivered > computed else (computed, "arithmetic")


def line(shape: Shape, found: counts.Counts, llvm: mca.Tools) -> Line:
    """Everything about one shape."""
    kinds, out = found.kinds, shape.elements
    pieces = mca.pieces(found.blocks)
    cycles = {core: mca.cycles(pieces, kinds["instructions"], core, llvm) / out for core in mca.CORES}
    predicted = {phone.name: predict(shape, cycles, phone) for phone in PHONES}
    of_transforms = None
    if shape.kernel.startswith("fft") and shape.taps == shape.length:
        points = shape.length  # complex ones: 2 M >= L + K - 1
        of_transforms = kinds["vector"] / (shape.channels * points * math.log2(points))
    return Line(
        name=shape.name,
        instructions=kinds["instructions"] / out,
        vector=kinds["vector"] / out,
        multiply_adds=kinds["multiply_adds"] / out,
        memory=(kinds["vector_loads"] + kinds["vector_stores"]) / out,
        bytes=moved(shape),
        cycles=cycles,
        of_transforms=of_transforms,
        predicted_us={name: 1e6 * seconds for name, (seconds, _) in predicted.items()},
        bound={name: what for name, (_, what) in predicted.items()},
    )


def measure(
    emulated: Sequence[str], plugin: Path, runner: Path, llvm: mca.Tools, progress: Callable[[str, int, int], None]
) -> list[Line]:
    """All shapes of the counts."""
    lines = []
    for index, shape in enumerate(counts.SHAPES):
        progress(shape.name, index, len(counts.SHAPES))
        lines.append(line(shape, counts.count(emulated, plugin, [str(runner)], shape.arguments(), blocks=True), llvm))
    return lines


def write(path: Path, lines: Sequence[Line], llvm: mca.Tools) -> None:
    """As JSON."""
    whole = {"llvm": llvm.version, "channels": CHANNELS, "lines": [asdict(one) for one in lines]}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def print_all(console: Console, lines: Sequence[Line], llvm: mca.Tools) -> None:
    """The table, and how to read it."""
    table = Table(title="By output element", title_justify="left", header_style="dim", box=None)
    table.add_column("kernel", no_wrap=True)
    cores = [core.removeprefix("cortex-").upper() for core in mca.CORES]
    heads = [
        "instr.",
        "FMAs",
        "share",
        "memory",
        *cores,
        "bytes",
        "M log M",
        *(f"{p.name.split()[0]}*" for p in PHONES),
    ]
    for head in heads:
        table.add_column(head, justify="right")
    for one in lines:
        table.add_row(
            one.name,
            f"{one.instructions:.2f}",
            f"{one.multiply_adds:.2f}",
            f"{one.multiply_adds / max(one.vector, 1e-9):.0%}",
            f"{one.memory:.2f}",
            *(f"{one.cycles[core]:.2f}" for core in mca.CORES),
            f"{one.bytes:.1f}",
            "" if one.of_transforms is None else f"{one.of_transforms:.2f}",
            *(f"{duration(one.predicted_us[p.name])} {'m' if one.bound[p.name] == 'memory' else 'a'}" for p in PHONES),
        )
    console.print(table)
    notes = (
        "Counted under emulation, exact: instructions, FMAs, their share of vector arithmetic, vector loads and stores "
        "(memory).",
        f"Modelled: cycles of one core, by llvm-mca {llvm.version}, without caches and memory.",
        f"* Predicted, not measured: a call with {CHANNELS} channels on the fast cores of a Galaxy S24 "
        f"({' or '.join(phone.name for phone in PHONES)}) together; the larger of their arithmetic (a) and, where the "
        "arrays exceed the last-level cache, of memory at its peak (m).",
        "M log M: vector arithmetic of convolutions by transforms of M complex points, over M log2 M a channel.",
    )
    for note in notes:
        console.print(Text(note, style="dim"))
