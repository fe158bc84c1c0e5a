"""The profiler end to end: rivals are right, numbers are what they claim, reports say what was found."""

from __future__ import annotations

import json
import math
import mmap
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import convscan
from convscan._targets import TARGETS
from convscan.ops.allpole_filter.cases import Case as FilterCase
from convscan.ops.cauchy.cases import Case as PolesCase
from convscan.ops.causal_conv.cases import Case as ConvCase
from convscan.ops.convolve.cases import Case as SidesCase
from convscan.ops.fft_conv.cases import Case as EinsumCase
from convscan.ops.linear_attention.cases import Case as AttentionCase
from convscan.ops.linear_recurrence.cases import Case as RecurrenceCase
from convscan.ops.opt_ssm_forward.cases import Case as LayerCase
from convscan.ops.selective_scan.cases import Case as SelectiveCase
from convscan.ops.toeplitz_matmul.cases import Case as ToeplitzCase
from convscan.ops.vandermonde.cases import Case as KernelCase
from convscan.profiler import cli, machine, measure, ours, peers, runner, session, signal
from convscan.profiler.operators import operator
from convscan.profiler.operators.fft_conv_s4 import Case as TrainingCase
from convscan.profiler.operators.gated_conv import Case as GatedCase
from convscan.profiler.peer import Peer, Prepared
from convscan.profiler.problem import Problem, truth
from convscan.profiler.records import STATUSES, Record, Report, award, summarise
from convscan.profiler.report import html, table, units
from convscan.profiler.report import json as json_report

MACHINE = machine.Machine(
    "test", 2, 2, "none", 1 << 30, 0.0, "Linux", "3", "2", ((1 << 20, 1e10),), ((1 << 20, 1e10),), 1e11
)
BUDGET = runner.Budget(case=0.5, call=30.0, setup=1.0)
SMALL: dict[str, list[Any]] = {
    "causal_conv": [
        ConvCase("few", "test", 2, 50, 6, 4, activation="silu"),
        ConvCase("long", "test", 1, 40, 3, 40, layout="BDL"),
        ConvCase("longer", "test", 1, 12, 3, 30),
        ConvCase("step", "test", 2, 1, 5, 3, state=True),
        ConvCase("double", "test", 1, 33, 4, 7, dtype="float64"),
        ConvCase("kept", "test", 1, 1200, 3, 1200),
    ],
    "linear_recurrence": [
        RecurrenceCase("few", "test", 2, 50, 6, state=True),
        RecurrenceCase("time", "test", 1, 40, 3, layout="BDL"),
        RecurrenceCase("constant", "test", 1, 33, 3, "complex64", constant=True),
        RecurrenceCase("step", "test", 1, 1, 4, state=True),
    ],
    "gated causal_conv": [
        GatedCase("few", "test", 2, 40, 3, 4),
        GatedCase("packed", "test", 1, 60, 2, 20, sequences=5, dtype="float64"),
    ],
    "convolve": [
        SidesCase("few", "test", 2, 40, 3, 5, origin=2),
        SidesCase("around", "test", 1, 33, 2, 40, circular=True, dtype="float64"),
    ],
    "toeplitz_matmul": [
        ToeplitzCase("few", "test", 2, 3, 20, 4),
        ToeplitzCase("many", "test", 1, 2, 33, 3, dtype="float64"),
    ],
    "fft_conv": [
        EinsumCase("short", "test", 2, 40, 3, 4),
        EinsumCase("long", "test", 1, 33, 2, 50, dtype="float64"),
    ],
    "vandermonde": [KernelCase("few", "test", 3, 4, 50), KernelCase("many", "test", 2, 7, 33, dtype="complex128")],
    "allpole_filter": [
        FilterCase("varying", "test", 2, 40, 3, 4),
        FilterCase("constant", "test", 2, 33, 2, 3, True, dtype="float64"),
    ],
    "cauchy": [PolesCase("few", "test", 2, 3, 4, 50), PolesCase("many", "test", 1, 2, 7, 33, dtype="complex128")],
    "FFTConvS4": [TrainingCase("few", "test", 2, 3, 50), TrainingCase("many", "test", 1, 4, 33, dtype="float64")],
    "gated_delta_rule": [
        AttentionCase("few", "test", 2, 40, 2, 5, 6),
        AttentionCase("keys", "test", 1, 33, 3, 4, 3, per_key=True, dtype="float64"),
    ],
    "gated_linear_attention": [
        AttentionCase("key", "test", 2, 40, 2, 3, 4, per_key=True),
        AttentionCase("step", "test", 1, 33, 2, 4, 5, dtype="float64"),
    ],
    "selective_scan": [
        SelectiveCase("few", "test", 2, 40, 6, 3, state=True),
        SelectiveCase("double", "test", 1, 33, 5, 4, dtype="float64", layout="BDL"),
    ],
    "ssd_scan": [
        AttentionCase("few", "test", 2, 40, 4, 3, 5, groups=2),
        AttentionCase("double", "test", 1, 33, 2, 4, 5, groups=1, dtype="float64"),
    ],
    "mlstm": [
        AttentionCase("few", "test", 2, 40, 2, 3, 4),
        AttentionCase("double", "test", 1, 33, 2, 4, 5, dtype="float64"),
    ],
    "opt_ssm_forward": [
        LayerCase("few", "test", 2, 40, 3, 5),
        LayerCase("many", "test", 1, 33, 2, 16, dtype="float64"),
    ],
}
for step in (op for op in session.OPERATORS if op.endswith("_step")):
    few, many = operator(step).cases[:2]
    SMALL[step] = [few, replace(many, whole=replace(many.whole, dtype="float64"))]
RIVALS = [(op, peer) for op in session.OPERATORS for peer in peers.peers(op)]


def problem_of(op: str, case: Any, direction: str | None = None) -> Problem:
    return session.problem_of(op, case, 1, direction or operator(op).directions(case)[0])


@pytest.mark.parametrize(("op", "peer"), RIVALS, ids=[f"{op}-{peer.name}" for op, peer in RIVALS])
def test_rivals_are_right_or_say_why_not(op: str, peer: Peer) -> None:
    """A rival that is prepared wrongly would be beaten for free."""
    ran = 0
    for case in SMALL[op]:
        for direction in operator(op).directions(case):
            problem = problem_of(op, case, direction)
            record = runner.enter(problem, peer, truth(problem), BUDGET, weigh=False).record
            assert record.status in ("ok", "skipped", "cut off"), f"{case.name} {direction}: {record.reason}"
            assert record.status == "ok" or record.reason
            ran += record.status == "ok"
    assert ran or peer.why_not(problem_of(op, SMALL[op][0])) or peer.setup(problem_of(op, SMALL[op][0])) > BUDGET.setup


def test_inputs_survive_the_rivals() -> None:
    problem = problem_of("causal_conv", SMALL["causal_conv"][0])
    before = [t.clone() for t in problem.arguments]
    expected = truth(problem)
    for peer in peers.peers("causal_conv"):
        runner.enter(problem, peer, expected, BUDGET, weigh=False)
    for old, new in zip(before, problem.arguments, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("op", session.OPERATORS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ours_are_rivals_among_rivals(op: str, direction: str) -> None:
    names = {peer.name for peer in ours.peers(op)}
    dispatched = operator(op).explain is not None
    present = {"any", *(target.name for target in TARGETS if target.why_not() is None)}
    rows = convscan.implementations(op) if dispatched else ()
    registered = {row.name for row in rows if row.target in present} - {"reference"}
    usual = {"convscan", "convscan, fresh output"} if operator(op).takes_out else {"convscan"}
    usual |= {"convscan, spectrum kept"} if operator(op).kept is not None else set()
    assert names == usual | {f"convscan {name}" for name in registered}
    if direction not in operator(op).directions(SMALL[op][0]):
        return
    problem = problem_of(op, SMALL[op][0], direction)
    for record in runner.run_case(problem, ours.peers(op), MACHINE, BUDGET):
        assert record.status == "ok" or (record.status == "skipped" and record.reason), record.reason
        if record.status == "ok":
            assert record.ours
            assert record.version == convscan.__version__
            assert record.workspace_bytes is not None
            # Kept from call to call, it would escape a measurement of one call.
            assert record.peak_bytes is None or record.peak_bytes >= record.workspace_bytes


def test_the_command_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CASE_SECONDS", 0.5)
    files = {kind: tmp_path / f"profile.{kind}" for kind in ("json", "html")}
    arguments = ["profile", "--case", "small-64", "small", "--implementations", "convscan", "--seed", "5"]
    assert cli.main([*arguments, "--json", str(files["json"]), "--html", str(files["html"])]) == 0
    out = capsys.readouterr().out
    assert "convscan, fresh output" in out
    document = json.loads(files["json"].read_text(encoding="utf-8"))
    assert {r["case"] for r in document["records"]} == {"small-64", "small"}
    assert {r["implementation"] for r in document["records"] if not r["ours"]} == {"time loop"}
    assert all(r["status"] == "ok" for r in document["records"] if r["implementation"] == "convscan")
    assert document["options"]["seed"] == 5
    assert "const report = {" in files["html"].read_text(encoding="utf-8")


def test_your_own_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CASE_SECONDS", 0.5)
    np.save(tmp_path / "s.npy", np.random.default_rng(0).standard_normal((300, 2)))
    options = session.Options(implementations=("convscan",), signal=signal.read(tmp_path / "s.npy"))
    report = session.run(options)
    cases = {r.case: r.shape for r in report.records}
    assert cases == {
        "input-k4": (1, 300, 2, 4),
        "input-k128": (1, 300, 2, 128),
        "input-k300": (1, 300, 2, 300),
        "input": (1, 300, 2),
    }
    assert all(r.status == "ok" for r in report.records if r.implementation == "convscan")


def test_explain_prints_every_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "recurrence", "--case", "rg-lru"]) == 0
    out = capsys.readouterr().out
    for row in convscan.implementations("linear_recurrence"):
        assert row.name in out


def test_tune_shows_progress_and_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def tune(progress: Any) -> Path:
        progress("copying", 0.5)
        return tmp_path / "t.json"

    monkeypatch.setattr(convscan.tuning, "tune", tune)
    assert cli.main(["tune"]) == 0
    assert "t.json" in capsys.readouterr().out.replace("\n", "")


def test_resetting_the_peak_frees_every_threads_workspace() -> None:
    """Otherwise an implementation would be charged with what another left behind."""
    x, h = torch.randn(1, 20000, 64), torch.randn(20000, 64)
    convscan.reset_peak_workspace()
    held = convscan.workspace_memory().current  # by other pools' threads, such as ExecuTorch's after its tests
    for _ in range(20):
        convscan.causal_conv(x, h)
        convscan.reset_peak_workspace()
        assert convscan.workspace_memory().current <= held


def stand_in(run: Any, name: str = "stand-in", **keywords: Any) -> Peer:
    def prepare(problem: Problem) -> Prepared:
        return Prepared(lambda: run(problem), lambda y: (y,))

    return Peer(name, "causal_conv", "", lambda problem: [], prepare, **keywords)


def test_a_wrong_answer_gets_no_time() -> None:
    problem = problem_of("causal_conv", SMALL["causal_conv"][0])
    record = runner.run_case(problem, [stand_in(lambda p: torch.zeros_like(p["x"]))], MACHINE, BUDGET)[0]
    assert (record.status, record.latency, record.titles) == ("wrong", None, [])


def test_an_exception_is_an_error_with_its_text() -> None:
    def fail(problem: Problem) -> None:
        raise RuntimeError("no luck\nsecond line")

    problem = problem_of("causal_conv", SMALL["causal_conv"][0])
    record = runner.run_case(problem, [stand_in(fail)], MACHINE, BUDGET)[0]
    assert (record.status, record.reason) == ("error", "RuntimeError: no luck")


def test_what_would_take_too_long_is_cut_off_unrun() -> None:
    problem = problem_of("causal_conv", SMALL["causal_conv"][0])
    slow = stand_in(lambda p: pytest.fail("was run"), estimate=lambda p: 99.0)
    compiled = stand_in(lambda p: pytest.fail("was compiled"), setup=lambda p: 99.0)
    for peer, text in ((slow, "would take over 99 s"), (compiled, "compiles for about 99 s")):
        record = runner.run_case(problem, [peer], MACHINE, BUDGET)[0]
        assert record.status == "cut off"
        assert text in record.reason


def test_a_long_time_loop_is_extrapolated_and_wins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from convscan.profiler.peers import time_loop

    monkeypatch.setattr(time_loop, "BUDGET_SECONDS", 0.01)
    problem = problem_of("causal_conv", ConvCase("long", "test", 1, 20000, 4, 64))
    loop = next(p for p in peers.peers("causal_conv") if p.baseline)
    record = runner.run_case(problem, [loop], MACHINE, BUDGET)[0]
    assert record.status == "extrapolated"
    assert record.latency is not None
    assert record.latency.median > 1e4
    assert (record.relative_rms, record.titles) == (None, [])


def test_latency_quantiles() -> None:
    latency = measure.latency_of([k * 1e-6 for k in range(1, 12)])
    assert (latency.p10, latency.median, latency.p90, latency.samples) == pytest.approx((2.0, 6.0, 10.0, 11))


def test_interleaving_serves_everyone() -> None:
    calls: list[str] = []

    def contestant(name: str, seconds: float) -> measure.Contestant:
        def burst(count: int) -> list[float]:
            calls.append(name)
            return [seconds] * count

        return measure.Contestant(burst, seconds)

    fast, slow = contestant("fast", 1e-6), contestant("slow", 1e-3)
    measure.interleave([fast, slow], 0.05)
    assert calls[:4] == ["fast", "slow", "fast", "slow"]
    assert len(fast.samples) > len(slow.samples) >= 3


@pytest.mark.skipif(not measure.memory_is_measurable(), reason="this kernel cannot reset the high-water mark")
@pytest.mark.parametrize("mebibytes", [8, 64])
def test_peak_memory_is_what_was_touched(mebibytes: int) -> None:
    def touched(mebibytes: int) -> torch.Tensor:
        # Of its own: memory that has been given back may be in huge pages still, of which one more counts as a whole.
        return torch.frombuffer(mmap.mmap(-1, mebibytes << 20), dtype=torch.float32).fill_(1.0)

    def run() -> torch.Tensor:
        scratch = touched(mebibytes)
        return touched(4).mul_(scratch[0])

    prepared = Prepared(run, lambda y: (y,), kept_bytes=1 << 20)
    peak = measure.peak_bytes(prepared, output_bytes=4 << 20)
    assert peak is not None
    assert peak == pytest.approx((mebibytes + 1) << 20, rel=0.025, abs=4 * measure.MEMORY_RESOLUTION)


def test_machine_limits_are_positive_and_bind() -> None:
    found = machine.measure(0.005)
    assert all(b > 0 for _, b in (*found.copy_bandwidth, *found.triad_bandwidth))
    assert found.peak_flops > 0
    assert MACHINE.limit_seconds("copy", 10**10, 1) == pytest.approx(1.0)
    assert MACHINE.limit_seconds("copy", 1, 10**11) == pytest.approx(1.0)


def made(implementation: str, median: float, peak: int | None, status: str = "ok", case: str = "c") -> Record:
    ours = implementation.startswith("convscan")
    latency = measure.Latency(median, median, median, 5) if status in ("ok", "extrapolated") else None
    return Record(
        op="causal_conv",
        case=case,
        source="a <source> & more",
        group="convolution, K ≤ 16",
        shape=(1, 4096, 8, 4),
        axes="BLDK",
        dtype="float32",
        layout="BLD",
        direction="forward",
        implementation=implementation,
        version="1",
        ours=ours,
        status=status,
        reason="" if status == "ok" else "a reason </script>",
        latency=latency,
        peak_bytes=peak,
        relative_rms=1e-7 if status == "ok" else math.inf if status == "wrong" else None,
        max_abs=1e-6 if status == "ok" else math.inf if status == "wrong" else None,
        elements=4096 * 8,
    )


def block() -> list[Record]:
    records = [
        made("time loop", 1000.0, 0, "extrapolated"),
        made("convscan", 1.0, 4 << 20),
        made("convscan direct", 1.01, 0),
        made("rival", 10.0, 0),
        made("big rival", 5.0, 64 << 20),
        made("impostor", 0.1, None, "wrong"),
        made("absent", 0.0, None, "skipped"),
    ]
    award(records)
    return records


def report() -> Report:
    return Report(MACHINE, block(), session.Options().to_json(), 1.0)


def test_titles_and_speedups() -> None:
    titles = {r.implementation: r.titles for r in block()}
    assert titles == {
        "time loop": [],
        "convscan": ["fastest", "pareto"],
        "convscan direct": ["fastest", "leanest", "pareto"],
        "rival": [],
        "big rival": [],
        "impostor": [],
        "absent": [],
    }
    assert [r.speedup for r in block()[:4]] == pytest.approx([1.0, 1000.0, 1000 / 1.01, 100.0])


def test_summary_compares_with_the_best_rival() -> None:
    (row,) = summarise(report())
    assert (row.cases, row.wins, row.rival, row.worst_case) == (1, 1, "big rival", "c")
    assert (row.against_best, row.against_baseline) == pytest.approx((5.0, 1000.0))
    without = [record for record in block() if record.implementation != "time loop"]
    for record in without:
        record.speedup = None
    (row,) = summarise(Report(MACHINE, without, session.Options().to_json(), 1.0))
    assert (row.against_best, row.against_baseline) == (pytest.approx(5.0), None)


def test_a_report_without_a_baseline_is_written_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    records = runner.run_case(
        problem_of("fft_conv", SMALL["fft_conv"][0]), session.all_peers("fft_conv"), MACHINE, BUDGET
    )
    found = Report(MACHINE, records, session.Options().to_json(), 1.0)
    table.print_summary(Console(width=100), found)
    text = capsys.readouterr().out
    assert "nan" not in text
    assert "NaN" not in html.render(found)


@pytest.mark.parametrize(
    ("op", "shape", "group"),
    [
        ("causal_conv", (1, 1, 2048, 3), "convolution, one step"),
        ("causal_conv", (1, 2048, 8, 16), "convolution, K ≤ 16"),
        ("causal_conv", (1, 2048, 8, 17), "convolution, 16 < K < 1024"),
        ("causal_conv", (1, 2048, 8, 2048), "convolution, K ≥ 1024"),
        ("linear_recurrence", (1, 1000000, 4), "recurrence, few channels"),
        ("linear_recurrence", (1, 64, 512), "recurrence, D ≥ 512"),
    ],
)
def test_groups(op: str, shape: tuple[int, ...], group: str) -> None:
    assert operator(op).group(shape) == group


def test_json_is_the_documented_schema(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    json_report.write(report(), path)
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert document["schema"] == "convscan-profile/1"
    text = (Path(__file__).parent.parent / "docs" / "profiler.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z0-9_]+)` \|", text, flags=re.MULTILINE))
    for record in document["records"]:
        assert set(record) <= documented
        assert record["status"] in STATUSES
    assert set(document["machine"]) <= documented
    assert len(path.read_text(encoding="utf-8").splitlines()) > len(document["records"])


def test_html_is_self_contained() -> None:
    page = html.render(report())
    assert html.MARKER not in page
    assert page.count("</script>") == 1
    for pattern in (r"<link\b", r"<script[^>]+src", r"@import", r"\bfetch\(", r"https?://(?!www\.w3\.org/2000/svg)"):
        assert not re.search(pattern, page), pattern


def browser() -> str | None:
    return next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium on this machine")
def test_html_draws_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "profile.html"
    html.write(report(), path)
    command = [
        str(browser()),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=2000",
        "--dump-dom",
    ]
    dom = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    # The script sets the attribute last: it ran to the end, without an exception.
    assert f'data-ready="{len(block())}"' in dom
    assert dom.count("<svg") == 3
    assert dom.count("<circle") >= 8
    assert "5.00×" in dom
    shot = tmp_path / "shot.png"
    command = [*command[:-1], "--window-size=1280,1800", f"--screenshot={shot}", path.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert shot.stat().st_size > 20_000


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.block_table(block()))
    table.print_summary(console, report())
    text = console.export_text()
    assert "…" not in text
    row = next(line for line in text.splitlines() if "convscan direct" in line)
    for part in ("1.01 µs", "990×", "0 B", "1.0e-07", "★ ▼ ●"):
        assert part in row
    assert "≈ 1.00 ms" in text
    assert "wrong: impostor (a reason </script>)" in text


@pytest.mark.parametrize(("us", "text"), [(0.5, "0.50 µs"), (12.34, "12.3 µs"), (4321, "4.32 ms"), (2e6, "2.00 s")])
def test_durations(us: float, text: str) -> None:
    assert units.duration(us) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (4096, "4.00 KiB"), (3 << 20, "3.00 MiB"), (5 << 30, "5.00 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert units.size(count) == text


def wav(kind: int, bits: int, channels: int, body: bytes) -> bytes:
    frame = bits // 8 * channels
    header = struct.pack("<HHIIHH", kind, channels, 8000, 8000 * frame, frame, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + header + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("kind", "bits", "body"),
    [
        (1, 8, bytes([192, 64])),
        (1, 16, struct.pack("<2h", 1 << 14, -(1 << 14))),
        (1, 24, b"\x00\x00\x40\x00\x00\xc0"),
        (1, 32, struct.pack("<2i", 1 << 30, -(1 << 30))),
        (3, 32, struct.pack("<2f", 0.5, -0.5)),
        (3, 64, struct.pack("<2d", 0.5, -0.5)),
    ],
)
def test_wav_formats(tmp_path: Path, kind: int, bits: int, body: bytes) -> None:
    path = tmp_path / "s.wav"
    path.write_bytes(wav(kind, bits, 1, body))
    assert signal.read(path).tolist() == [[0.5], [-0.5]]
    path.write_bytes(wav(kind, bits, 2, body))
    assert signal.read(path).tolist() == [[0.5, -0.5]]


def test_npy_signals(tmp_path: Path) -> None:
    path = tmp_path / "s.npy"
    np.save(path, np.arange(6.0).reshape(3, 2))
    assert signal.read(path).shape == (3, 2)
    np.save(path, np.array([1, "a", None], dtype=object), allow_pickle=True)
    with pytest.raises(signal.SignalError, match="not a plain"):
        signal.read(path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["profile", "--case", "nonsense"], "no case is called 'nonsense'"),
        (["profile", "--implementations", "nonsense"], "nothing is called 'nonsense'"),
        (["profile", "--input", "missing.wav"], "missing.wav does not exist"),
        (["profile", "--submit", "missing.py"], "expected a Python file"),
        (["profile", "--json", "no/such/folder/x.json"], "does not exist"),
        (["explain", "conv"], "name a case"),
        (["explain", "conv", "--shape", "1,2,3"], "--taps"),
        (["explain", "conv", "--shape", "1,2,3", "--taps", "2", "--dtype", "float33"], "--dtype"),
    ],
)
def test_user_errors_are_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["profile", "--op", "sum"], ["profile", "--threads", "0"], ["nonsense"], []])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
