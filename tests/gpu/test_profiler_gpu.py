"""The profiler on a GPU: what it asks of the device, by one that is made up; its rivals, on tensors without data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from convscan.ops.causal_conv.cases import Case as ConvCase
from convscan.ops.linear_recurrence.cases import Case as RecurrenceCase
from convscan.profiler import cli, gpu, machine, measure, ours, peers, runner, session
from convscan.profiler.operators import operator
from convscan.profiler.peer import Peer, Prepared
from convscan.profiler.problem import Problem
from convscan.profiler.records import Report
from convscan.profiler.report import html, table
from convscan.profiler.report import json as json_report


@dataclass
class FakeEvent:
    device: FakeGpu
    at: float = -1.0

    def record(self) -> None:
        self.device.log.append("record")
        self.device.now += self.device.tick
        self.at = self.device.now

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.device.log[-1] == "synchronize", "events are read before the device has come to them"
        return 1e3 * (end.at - self.at)


@dataclass
class FakeGpu:
    """Time and memory are what calls make of them; tensors stay where they are."""

    name: str = "Test GPU"
    kind: str = "sm_0"
    processors: int = 4
    memory_bytes: int = 1 << 30
    cache_bytes: int = 1 << 14
    product_size: int = 16
    now: float = 0.0
    live: int = 0
    most: int = 0
    tick: float = 0.0  # passes at every event
    captures: bool = True
    log: list[str] = field(default_factory=list)

    def place(self, tensor: Tensor) -> Tensor:
        memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return memory.copy_(tensor)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def hold(self, seconds: float) -> None:
        self.log.append(f"hold {seconds:.1e}")

    def capture(self, calls: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], Any] | None:
        self.log.append(f"capture {len(calls)}")
        if not self.captures:
            return None
        first, *_ = [call() for call in calls]

        def replay() -> None:
            self.log.append("replay")
            for call in calls:
                call()

        return replay, first

    def allocated(self) -> int:
        return self.live

    def peak(self) -> int:
        return self.most

    def reset_peak(self) -> None:
        self.most = self.live

    def takes(self, seconds: float, transient: int = 0, kept: int = 0) -> Callable[[], Tensor]:
        """A call that lasts so long and allocates so much on its way."""

        def run() -> Tensor:
            self.log.append("run")
            self.now += seconds
            self.most = max(self.most, self.live + transient + kept)
            return torch.empty(0)

        return run


def small(length: int = 30, **others: Any) -> Problem:
    return session.problem_of("causal_conv", ConvCase("few", "test", 2, length, 6, 4, **others), 1)


def prepared(run: Callable[[], Any], **others: Any) -> Prepared:
    return Prepared(run, lambda y: (y,), **others)


def test_a_burst_takes_inputs_in_turn_and_reads_the_clock_of_the_device() -> None:
    device = FakeGpu()
    seconds = (1e-3, 2e-3, 4e-3)
    burst = gpu.GpuMeter(device).bursts([prepared(device.takes(each)) for each in seconds])
    assert burst(2) == pytest.approx([1e-3, 2e-3])
    assert burst(3) == pytest.approx([4e-3, 1e-3, 2e-3])
    # The device is held until the host has handed it all calls, each between two events, and is waited for once.
    first = ["hold 2.0e-04", *["record", "run", "record"] * 2, "synchronize"]
    assert device.log[: len(first)] == first


def test_a_single_call_begins_and_ends_with_an_idle_device() -> None:
    device = FakeGpu()
    _, seconds = gpu.GpuMeter(device).timed(device.takes(3e-3))
    assert seconds == pytest.approx(3e-3)
    assert device.log == ["synchronize", "record", "run", "record", "synchronize"]


def test_short_calls_are_replayed_as_a_graph_of_all_copies_in_turn() -> None:
    device = FakeGpu(tick=1e-6)
    turns = [prepared(device.takes(each)) for each in (1e-5, 3e-5)]
    meter = gpu.GpuMeter(device)
    replays = meter.replays(turns, 2e-5)
    assert replays is not None
    assert device.log[0] == "capture 50"  # a millisecond of calls, as many of each copy
    assert isinstance(replays.answer, Tensor)
    device.log.clear()
    # What passes between two events is shared by all.
    assert replays.burst(3) == pytest.approx([2e-5 + 1e-6 / 50] * 3)
    ran = [entry for entry in device.log if entry in ("record", "replay", "synchronize")]
    assert ran == [*["record", "replay", "record"] * 3, "synchronize"]
    assert meter.replays(turns, gpu.SHORT) is None
    many = meter.replays(turns, 1e-9)
    assert many is not None
    assert device.log[-1 - gpu.MOST_CAPTURED] == f"capture {gpu.MOST_CAPTURED}"
    device.captures = False
    assert meter.replays(turns, 2e-5) is None
    assert measure.Meter().replays(turns, 2e-5) is None


def test_replays_are_recorded_beside_events_where_they_are_right(tmp_path: Path) -> None:
    device = FakeGpu(tick=1e-5)
    problem = session.problem_of("causal_conv", ConvCase("few", "test", 1, 20, 3, 4), 1)
    exact = torch.nn.functional.pad(problem["x"], (0, 0, 3, 0)).unfold(1, 4, 1) @ torch.eye(4)
    exact = (exact * problem["h"].flip(0).T).sum(-1)

    def wrong_in_a_graph() -> Tensor:
        return exact if not any(entry.startswith("capture") for entry in device.log) else torch.zeros_like(exact)

    rivals = [
        Peer("right", "causal_conv", "", lambda p: [], lambda p: prepared(lambda: exact), ours=True),
        Peer("not in graphs", "causal_conv", "", lambda p: [], lambda p: prepared(wrong_in_a_graph), ours=True),
    ]
    budget = runner.Budget(case=0.2, call=1e6, setup=1.0)
    records = []
    for rival in rivals:
        device.log.clear()
        records += runner.run_case(problem, [rival], LIMITS, budget, meter=gpu.GpuMeter(device))
    right, broken = records
    assert right.latency is not None
    assert right.replay is not None
    assert right.replay.median < right.latency.median  # of which each has its own two ticks
    assert right.roofline == pytest.approx(
        LIMITS.limit_seconds("triad", right.bytes, right.flops) * 1e6 / right.replay.median
    )
    assert (broken.status, broken.replay) == ("ok", None)
    assert broken.reason.startswith("as a graph ")
    report = Report(LIMITS, records, session.Options(device="cuda").to_json())
    json_report.write(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["records"]
    assert written[0]["replay_us"].keys() == written[0]["latency_us"].keys()
    assert written[1]["replay_us"] is None
    console = Console(file=StringIO(), width=120)
    console.print(table.block_table(records))
    assert "in a graph" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", ["BLD", "BDL"])
def test_copies_fill_the_cache_twice(layout: str) -> None:
    device, problem = FakeGpu(cache_bytes=1 << 12), small(layout=layout)
    copies = gpu.GpuMeter(device).copies(problem)
    size = problem["x"].nbytes + problem["h"].nbytes + problem.output_bytes
    assert len(copies) == 1 + 2 * device.cache_bytes // size
    assert len(copies) * size >= 2 * device.cache_bytes
    assert len({one["x"].data_ptr() for one in copies}) == len(copies)
    for one in copies:
        assert torch.equal(one["x"], problem["x"])
        assert one["x"].stride() == problem["x"].stride()
    assert len(gpu.GpuMeter(device).copies(small(length=4000))) == 1
    assert len(gpu.GpuMeter(replace(device, cache_bytes=1 << 30)).copies(problem)) == gpu.MOST_COPIES


def test_peak_memory_is_the_allocators() -> None:
    device = FakeGpu(live=1000)
    meter = gpu.GpuMeter(device)
    run = device.takes(0.0, transient=700, kept=300)
    assert meter.peak_bytes(prepared(run), output_bytes=300) == 700
    assert meter.peak_bytes(prepared(run, fresh=False, kept_bytes=50), output_bytes=300) == 1050
    assert meter.peak_bytes(prepared(device.takes(0.0)), output_bytes=300) == 0


def test_limits_are_measured_first_and_shown() -> None:
    device = FakeGpu(tick=1e-6)
    limits = gpu.GpuMeter(device).limits(1e-4)
    # A call lies between two events that a tick parts; arrays inside the cache and 16 times as large.
    (inside, fast), (past, faster) = limits.copy_bandwidth
    assert 0 < inside < device.cache_bytes < past
    assert faster == pytest.approx(fast * past / inside)
    assert limits.peak_flops > 0
    assert (limits.device, limits.busy) == ("cuda", False)
    text = table.machine_lines(limits)
    assert text.startswith("Test GPU (sm_0), 4 multiprocessors")
    assert "products of bfloat16" in text


LIMITS = machine.Machine(
    "test", 2, 2, "none", 1 << 30, 9.0, "Linux", "3", "2", ((1 << 20, 1e10),), ((1 << 20, 1e10),), 1e11, "cuda"
)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_case_from_truth_to_report(direction: str, tmp_path: Path) -> None:
    """Interpreted kernels among rivals, timed by a clock that moves as much for each."""
    device = FakeGpu(tick=1e-5, cache_bytes=1 << 9, captures=False)
    problem = session.problem_of("causal_conv", ConvCase("few", "test", 1, 20, 3, 4), 1, direction)
    wrong = Peer("wrong", "causal_conv", "", lambda p: [], lambda p: prepared(lambda: torch.zeros_like(p["x"])))
    entered = (*session.select_peers("causal_conv", ["triton_direct", "conv1d"], "cuda"), wrong)
    budget = runner.Budget(case=3.0, call=1e6, setup=1.0)
    records = runner.run_case(problem, entered, LIMITS, budget, meter=gpu.GpuMeter(device))
    by_name = {record.implementation: record for record in records}
    assert by_name["wrong"].status == ("wrong" if direction == "forward" else "error") or by_name["wrong"].reason
    for name in ("torch conv1d", "convscan triton_direct"):
        record = by_name[name]
        assert (record.status, record.workspace_bytes) == ("ok", None), record.reason
        assert record.latency is not None
        assert record.latency.median > 0
        assert record.peak_bytes is not None
    report = Report(LIMITS, records, session.Options(device="cuda").to_json())
    json_report.write(report, tmp_path / "report.json")
    html.write(report, tmp_path / "report.html")
    assert '"device": "cuda"' in (tmp_path / "report.json").read_text()
    assert "multiprocessors" in (tmp_path / "report.html").read_text()
    console = Console(file=StringIO(), width=120)
    console.print(table.block_table(records))
    assert "triton_direct" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["profile", "--device", "cuda"]) == 2
    assert "convscan profile: --device cuda: PyTorch finds no GPU" in capsys.readouterr().err


def test_cases_and_rivals_of_each_device() -> None:
    on_gpu = {case.name for _, case in session.select_cases(session.Options(device="cuda"))}
    on_cpu = {case.name for _, case in session.select_cases(session.Options())}
    assert {"gpu-short-bfloat16-time", "gpu-float32-channels", "gpu-1024-bfloat16"} <= on_gpu
    assert not any(name.startswith("gpu-") for name in on_cpu)
    names = {device: {peer.name for peer in session.all_peers("causal_conv", device)} for device in ("cpu", "cuda")}
    assert {"causal-conv1d", "flash-fft-conv", "torch conv1d", "torch fft as stated"} <= names["cuda"]
    assert not names["cuda"] & {"time loop", "numba loop"}
    assert not names["cpu"] & {"causal-conv1d", "flash-fft-conv"}
    assert {peer.name for peer in session.all_peers("linear_recurrence", "cuda")} > {"accelerated-scan"}


CASES = {
    "causal_conv": (ConvCase("a", "test", 2, 256, 6, 4), ConvCase("b", "test", 2, 60, 6, 4, dtype="bfloat16")),
    "linear_recurrence": (RecurrenceCase("a", "test", 2, 64, 6),),
}
RIVALS = [(op, peer) for op in session.OPERATORS for peer in peers.peers(op) if "cuda" in peer.devices]


@pytest.mark.parametrize(("op", "peer"), RIVALS, ids=[f"{op}-{peer.name}" for op, peer in RIVALS])
def test_rivals_follow_their_tensors(op: str, peer: Peer) -> None:
    """Those of PyTorch run where the problem is, here on tensors without data; other packages say what they lack."""
    for case in CASES.get(op, operator(op).cases[:1]):
        problem = session.problem_of(op, case, 1)
        placed = replace(problem, inputs=tree_map_only(Tensor, lambda t: t.to("meta"), dict(problem.inputs)))
        if peer.package != "torch":
            assert f"runs on cuda, not on {placed.device}" in peer.why_not(placed)
            continue
        if peer.why_not(placed) or "compile" in peer.name:  # what is compiled has data
            continue
        ready = peer.prepare(placed)
        for got, like in zip(ready.result(ready.run()), problem.outputs, strict=True):
            assert (got.shape, got.dtype, got.device.type) == (like.shape, like.dtype, "meta")


def test_ours_write_where_the_problem_is() -> None:
    problem = small()
    placed = replace(problem, inputs=tree_map_only(Tensor, lambda t: t.to("meta"), dict(problem.inputs)))
    assert placed.device.type == "meta"
    with FakeTensorMode():
        x, h = torch.empty(2, 30, 6, device="cuda"), torch.empty(4, 6, device="cuda")
        faked = replace(problem, inputs={**problem.inputs, "x": x, "h": h})
        row = next(peer for peer in ours.peers("causal_conv") if peer.name == "convscan triton_rolling")
        assert not row.why_not(faked)
        explanation = ours.explain(faked)
        assert explanation is not None
        assert "triton" in explanation.chosen
