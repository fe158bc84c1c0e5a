"""Our operators inside ExecuTorch against its own ways, on this machine: latency and planned memory.

    python benchmarks/on_executorch.py out.json --document docs/executorch.md

512 channels, time contiguous, two threads. Rivals: PyTorch's depthwise convolution through XNNPACK (K = 4), rfft and
irfft of ExecuTorch (K = L), its scan with XNNPACK (recurrence). The programs of a case run in turns, after their
answers were compared. Latency is that of Method::execute, which ETDump records; but a scan's trace has an event for
every step, so recurrences are timed by the clock around the call, without traces, less what copying the inputs takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from results_table import MARKERS, bytes_text, time_text
from torch import Tensor

import convscan
from convscan.integrations import executorch
from convscan.profiler.machine import measure as measure_machine

CHANNELS, THREADS = 512, 2
CASES = ("K = 4", "K = L", "recurrence")
RIVALS = {"K = 4": "XNNPACK", "K = L": "rfft and irfft", "recurrence": "scan and XNNPACK"}


class OurConv(torch.nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return convscan.causal_conv(x.mT, h.mT).mT


class Depthwise(torch.nn.Module):
    """Filters are weights here, which XNNPACK wants."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(h.shape[0], h.shape[0], h.shape[1], groups=h.shape[0], bias=False)
        self.conv.weight.data = h.flip(-1)[:, None].clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.nn.functional.pad(x, (self.conv.kernel_size[0] - 1, 0)))


class Fft(torch.nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        n = 2 * x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(h, n=n), n=n)[..., : x.shape[-1]]


class OurRecurrence(torch.nn.Module):
    def forward(self, y_init: Tensor, a: Tensor, x: Tensor) -> Tensor:
        return convscan.linear_recurrence(x.mT, y_init, a.mT).mT


class Scan(torch.nn.Module):
    def forward(self, y_init: Tensor, a: Tensor, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def step(y: Tensor, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            y = both[0] * y + both[1]
            return y, y.clone()

        _, ys = scan(step, y_init, (a.permute(2, 0, 1), x.permute(2, 0, 1)), dim=0)
        return ys.permute(1, 2, 0)


@dataclass(frozen=True)
class Line:
    """One case: latencies in seconds, memory in bytes. ``copy`` is what the clock also saw of a recurrence's inputs."""

    case: str
    length: int
    ours: float
    rival: float
    calls: int
    copy: float
    inputs_and_output: int
    planned: int
    workspace: int
    rival_planned: int
    relative_difference: float

    @property
    def ratio(self) -> float:
        """How many times as long the rival takes."""
        return self.rival / self.ours

    @property
    def share(self) -> float:
        """Planned and scratch memory by that of inputs and output."""
        return (self.planned + self.workspace) / self.inputs_and_output


def export_rival(model: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path) -> int:
    """Exports with ExecuTorch alone and XNNPACK; the planned bytes."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with torch.no_grad():
        program = torch.export.export(model.eval(), inputs, strict=False)
    config = EdgeCompileConfig(_check_ir_validity=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=config)
    written = lowered.to_executorch()
    path.write_bytes(written.buffer)
    return sum(written.executorch_program.execution_plan[0].non_const_buffer_sizes)


class Runner:
    """A loaded program with its inputs; ``seconds`` are those of its calls by the clock."""

    def __init__(self, path: Path, inputs: tuple[Tensor, ...], trace: bool) -> None:
        executorch.load_operators()
        from executorch.extension.pybindings.portable_lib import _load_for_executorch, _unsafe_reset_threadpool

        _unsafe_reset_threadpool(THREADS)
        self.module, self.inputs = _load_for_executorch(str(path), enable_etdump=trace), inputs
        self.seconds: list[float] = []

    def __call__(self) -> Tensor:
        began = time.perf_counter()
        output: Tensor = self.module.forward(self.inputs, clone_outputs=False)[0]
        self.seconds.append(time.perf_counter() - began)
        return output

    def execute_seconds(self, folder: Path) -> list[float]:
        """Method::execute of every call, of what ETDump has recorded since the program was loaded."""
        from executorch.devtools import Inspector

        path = folder / "trace"
        self.module.write_etdump_result_to_file(str(path))
        blocks = Inspector(etdump_path=str(path)).event_blocks
        events = (event for block in blocks for event in block.events if event.name == "Method::execute")
        return [1e-3 * t for event in events for t in event.perf_data.raw]


def take_turns(runners: list[Runner], budget: float) -> int:
    """Calls all, again and again; how often."""
    began, calls = time.monotonic(), 0
    while calls < 5 or (time.monotonic() - began < budget and calls < 200):
        for one in runners:
            one()
        calls += 1
    return calls


def measure(case: str, length: int, folder: Path, budget: float) -> Line:
    """Ours and the rival in turns; medians."""
    torch.manual_seed(0)
    x = torch.randn(1, CHANNELS, length)
    inputs: tuple[Tensor, ...]
    if case == "recurrence":
        inputs = (torch.randn(1, CHANNELS), 1 - torch.rand(1, CHANNELS, length) ** 2, x)
        ours, other, given = OurRecurrence(), Scan(), inputs
    else:
        taps = 4 if case == "K = 4" else length
        inputs = (x, torch.randn(CHANNELS, taps) / taps**0.5)
        ours = OurConv()
        other, given = (Depthwise(inputs[1]), (x,)) if taps == 4 else (Fft(), inputs)
    mine = executorch.export(ours, inputs, folder / "ours.pte")
    rival_planned = export_rival(other, given, folder / "rival.pte")
    convscan.reset_peak_workspace()
    traced = Runner(mine.path, inputs, trace=True)
    rival = Runner(folder / "rival.pte", given, trace=case != "recurrence")
    result, expected = (one().clone() for one in (traced, rival))
    scale, difference = float(result.abs().max()), float((result - expected).abs().max())
    assert difference <= 1e-4 * scale, f"{case}, L = {length}: answers differ by {difference}"
    del result, expected
    calls = take_turns([traced, rival], budget)
    executed = traced.execute_seconds(folder)
    ours_seconds, copy = statistics.median(executed[2:]), 0.0
    if case == "recurrence":
        copy = statistics.median(wall - inside for wall, inside in zip(traced.seconds[2:], executed[2:], strict=True))
        rival_seconds = statistics.median(rival.seconds[2:]) - copy
    else:
        rival_seconds = statistics.median(rival.execute_seconds(folder)[2:])
    return Line(
        case=case,
        length=length,
        ours=ours_seconds,
        rival=rival_seconds,
        calls=calls,
        copy=copy,
        inputs_and_output=4 * sum(t.numel() for t in (*inputs, x)),
        planned=mine.planned_bytes,
        workspace=convscan.workspace_memory().peak,
        rival_planned=rival_planned,
        relative_difference=difference / scale,
    )


def table(lines: list[Line]) -> str:
    """The section of the document between its markers."""
    heads = ["case", "L", "convscan", "ExecuTorch's own", "", "memory by inputs and output", "its own"]
    rows = [
        [
            f"{one.case}, {RIVALS[one.case]}",
            str(one.length),
            time_text(1e6 * one.ours),
            time_text(1e6 * one.rival),
            f"{one.ratio:.3g}×",
            f"{one.share:.4f}, of which scratch {bytes_text(one.workspace)}",
            f"{one.rival_planned / one.inputs_and_output:.2f}",
        ]
        for one in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)) + "\n"


def main() -> None:
    """Prints a line for each case, and writes all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the record; cases that are in it and not measured now are kept")
    parser.add_argument("--document", type=Path, help="a file with markers of results, to write the table between")
    parser.add_argument("--case", choices=CASES, help="one only; scratch memory that threads keep is then its own")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    cases = [(name, n) for name in CASES for n in given.lengths if given.case in (None, name)]
    lines: dict[tuple[str, int], Line] = {}
    if given.out.exists():
        lines = {(old["case"], old["length"]): Line(**old) for old in json.loads(given.out.read_text())["cases"]}
    with tempfile.TemporaryDirectory() as folder:
        for name, length in cases:
            line = lines[name, length] = measure(name, length, Path(folder), given.seconds)
            print(
                f"{name:10} L {length:6}: {time_text(1e6 * line.ours)}, rival {time_text(1e6 * line.rival)}, "
                f"{line.ratio:.2f} times; memory {line.share:.4f} of inputs and output",
                flush=True,
            )
    lines = {key: lines[key] for key in sorted(lines, key=lambda key: (CASES.index(key[0]), key[1]))}
    machine = measure_machine(0.01)
    record = {
        "executorch": metadata.version("executorch"),
        "torch": torch.__version__,
        "processor": machine.processor,
        "instruction_sets": machine.instruction_sets,
        "threads": THREADS,
        "channels": CHANNELS,
        "cases": [asdict(line) for line in lines.values()],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    if given.document is not None:
        text = given.document.read_text(encoding="utf-8")
        text = MARKERS.sub(lambda match: match[1] + table(list(lines.values())) + match[2], text)
        given.document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
