"""Selection: pure, explainable, forced and limited from outside."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import convscan
import oracle
from convscan import _dispatch, _targets, tuning
from convscan._dispatch import Cost, Implementation
from convscan.ops.causal_conv import cases as conv_cases
from convscan.ops.linear_recurrence import cases as scan_cases
from convscan.tuning import table

X, H = torch.ones(2, 64, 8), torch.ones(4, 8)


def row(name: str, seconds: float, workspace: int, reasons: tuple[str, ...] = ()) -> Implementation:
    return Implementation(
        name, "cpu", lambda problem: list(reasons), lambda problem: Cost(seconds, workspace), lambda problem: print
    )


@pytest.fixture
def operator() -> Iterator[str]:
    rows = (row("quick", 1e-6, 100), row("lean", 1e-3, 1), row("broken", 1e-9, 0, ("has no hands", "nor feet")))
    _dispatch.register("example", rows, lambda size: size)
    yield "example"
    del _dispatch._operators["example"]
    _dispatch.forget()


def test_the_cheapest_that_can_and_fits(operator: str) -> None:
    assert _dispatch.select(operator, 1).name == "quick"
    assert _dispatch.select(operator, 1, 50).name == "lean"
    with pytest.raises(MemoryError, match=r"example: no implementation fits in 0 bytes of workspace; .* needs 1\."):
        _dispatch.select(operator, 1, 0)


def test_force_and_its_refusal(operator: str) -> None:
    with convscan.force("lean"):
        assert _dispatch.choose(operator, 1).name == "lean"
    with convscan.force("broken"):
        with pytest.raises(ValueError, match="'broken' cannot run this problem: has no hands; nor feet"):
            _dispatch.choose(operator, 1)
        assert _dispatch.choose(operator, 1, strict=False).name == "quick"
    assert _dispatch.choose(operator, 1).name == "quick"
    with (
        pytest.raises(ValueError, match=r"force: implementation must be one of .*; got misspelt"),
        convscan.force("misspelt"),
    ):
        pass


def test_force_stays_in_its_thread(operator: str) -> None:
    seen: list[str] = []
    with convscan.force("lean"):
        thread = threading.Thread(target=lambda: seen.append(_dispatch.choose(operator, 1).name))
        thread.start()
        thread.join()
    assert seen == ["quick"]


def test_workspace_limit(operator: str) -> None:
    with convscan.workspace_limit(10), convscan.workspace_limit(50):
        assert _dispatch.choose(operator, 1).name == "lean"
    with pytest.raises(ValueError, match="must not be negative; got -1"), convscan.workspace_limit(-1):
        pass


def test_explanation_names_every_candidate(operator: str) -> None:
    text = str(convscan.explain(operator, 1))
    assert text.splitlines()[2].startswith("* quick")
    assert "cannot: has no hands; nor feet" in text
    with convscan.workspace_limit(50):
        limited = convscan.explain(operator, 1)
    assert limited.chosen == "lean"
    assert "more workspace than the limit of 50 B" in str(limited)


def test_explain_takes_functions_and_names() -> None:
    by_function = convscan.explain(convscan.causal_conv, X, H, activation="silu")
    assert by_function == convscan.explain("causal_conv", X, H, activation="silu")
    assert {candidate.name for candidate in by_function.candidates} == {
        row.name for row in convscan.implementations("causal_conv")
    }
    assert "B=2 L=64 D=8 K=4 float32, channel contiguous, silu" in str(by_function)
    with pytest.raises(ValueError, match=r"the operator must be one of .*\bcausal_conv\b"):
        convscan.explain("convolution", X, H)


def test_forced_results_agree() -> None:
    x, h = torch.randn(2, 50, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    for name in oracle.rows("causal_conv"):
        with convscan.force(name):
            torch.testing.assert_close(convscan.causal_conv(x, h), convscan.causal_conv(x, h.clone()))


def test_a_limit_of_nothing_leaves_a_memory_error() -> None:
    with (
        convscan.workspace_limit(0),
        pytest.raises(MemoryError, match="no implementation fits in 0 bytes"),
    ):
        convscan.causal_conv(X, H)


def test_every_case_has_a_choice_and_positive_costs() -> None:
    for case in conv_cases.CASES:
        if case.length * case.channels * max(1, case.taps // case.length) > 1 << 22:
            continue
        explanation = convscan.explain("causal_conv", **conv_cases.inputs(case))
        assert all(
            c.cost is None or (c.cost.seconds > 0 and c.cost.workspace_bytes >= 0) for c in explanation.candidates
        )
        assert explanation.chosen != "reference"
    for scan_case in scan_cases.CASES:
        if scan_case.length * scan_case.channels <= 1 << 22:
            assert convscan.explain("linear_recurrence", **scan_cases.inputs(scan_case)).chosen != "reference"


def test_cases_are_named_once_and_sourced() -> None:
    for cases in (conv_cases.CASES, scan_cases.CASES):
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.source and case.bytes > 0 and case.flops > 0 for case in cases)


@pytest.mark.slow
def test_tune_stores_and_uses_its_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCAN_TUNING", str(tmp_path / "deep" / "table.json"))
    seen: list[float] = []
    path = tuning.tune(lambda what, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    measured = json.loads(path.read_text())
    isa = _targets._native.isa()
    assert table.constants(isa) == {**table.constants(isa), **measured[isa]}
    table.forget()
    _dispatch.forget()


def test_an_unreadable_tuning_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    path.write_text("{")
    monkeypatch.setenv("CONVSCAN_TUNING", str(path))
    table.forget()
    with pytest.raises(ValueError, match="the tuning file must be readable JSON"):
        table.constants("avx2")
    monkeypatch.delenv("CONVSCAN_TUNING")
    table.forget()
    assert table.constants("avx2")["call"] > 0


def test_workspace_is_counted() -> None:
    convscan.reset_peak_workspace()
    memory = convscan.workspace_memory()
    assert memory.peak >= memory.current >= 0
    assert memory.tables >= 0


def test_threads_follow_torch() -> None:
    before = torch.get_num_threads()
    try:
        convscan.set_num_threads(1)
        assert torch.get_num_threads() == _targets._native.thread_count() == 1
    finally:
        convscan.set_num_threads(before)
    with pytest.raises(ValueError, match="set_num_threads: threads must be at least 1; got 0"):
        convscan.set_num_threads(0)


@pytest.mark.parametrize("time_contiguous", [False, True])
def test_samples_of_a_state_count(time_contiguous: bool) -> None:
    """One sample behind a long state: nothing that steps tap by tap, or that takes the filter for a short one."""
    h, state = torch.empty(65536, 64), torch.empty(65535, 64)
    if time_contiguous:
        h, state = (tensor.mT.contiguous().mT for tensor in (h, state))
    found = convscan.explain("causal_conv", torch.empty(1, 64), h, initial_state=state)
    assert found.chosen in ("direct", "fft")
    seconds = {c.name: c.cost.seconds for c in found.candidates if c.cost is not None}
    assert seconds["reference"] > 1
    assert seconds["recurrence"] > 1


@pytest.mark.parametrize(("channels", "taps"), [(2048, 3), (1536, 4), (2560, 4), (4096, 4), (1024, 128)])
def test_steps_of_generation_are_sums(channels: int, taps: int) -> None:
    """One sample of a model's short filters: its states' taps are summed, not made states of a recurrence."""
    state = torch.empty(1, taps - 1, channels)
    found = convscan.explain(
        "causal_conv", torch.empty(1, 1, channels), torch.empty(taps, channels), initial_state=state
    )
    assert found.chosen == "direct"
