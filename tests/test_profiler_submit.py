"""Submissions that misbehave are reported as what they did, and cost the others nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from convscan.ops.causal_conv.cases import Case as ConvCase
from convscan.profiler import runner, session, submit
from convscan.profiler.measure import Latency, interleave
from convscan.profiler.records import Record

# One file for all: what it does depends on the length it is given.
MISBEHAVING = """
import os, time
import torch

kept = {}

def right(x, h):
    n = x.shape[1] + h.shape[0]
    y = torch.fft.irfft(torch.fft.rfft(x, n, dim=1) * torch.fft.rfft(h, n, dim=0), n, dim=1)
    return y[:, : x.shape[1]]

def causal_conv(x, h):
    print("a submission may print")
    length = x.shape[1]
    if length == 11:
        raise ValueError("not today")
    if length == 12:
        return right(x, h) * float("nan")
    if length == 13:
        x.zero_()
        return right(x, h)
    if length == 14:
        return right(x, h)[:, 1:]
    if length == 15:
        return right(x, h).double()
    if length == 16:
        return [1.0]
    if length == 17:
        return kept.setdefault(x.data_ptr(), right(x, h))
    if length == 18:
        time.sleep(60)
    if length == 19:
        import ctypes
        ctypes.string_at(0)
    if length == 20:
        os._exit(0)
    if length == 21:
        torch.zeros(1 << 33)
    return right(x, h)
"""
EXPECTED = {
    11: ("error", "raised ValueError: not today"),
    12: ("wrong", "NaN"),
    13: ("error", "modified its input"),
    14: ("wrong", "shape"),
    15: ("wrong", "float64"),
    16: ("error", "returned list"),
    17: ("wrong", "off by"),
    18: ("error", "hung"),
    19: ("error", "crashed with SIGSEGV"),
    20: ("error", "exited with code 0"),
    21: ("error", "raised RuntimeError"),
}


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Iterator[submit.Submission]:
    path = tmp_path_factory.mktemp("submission") / "mine.py"
    path.write_text(MISBEHAVING)
    one = submit.Submission(path, call_seconds=5.0)
    one.start()
    yield one
    one.close()


def judged(submission: submit.Submission, length: int) -> tuple[Record, bool]:
    case = ConvCase(f"l{length}", "test", 1, length, 3, 4)
    first, again = (session.problem_of("causal_conv", case, seed) for seed in (0, 1))
    record = runner.new_record(first, "mine.py", "ok")
    contestant = submit.enter(submission, first, again, record)
    if contestant is not None:
        interleave([contestant], 0.01)
    return record, contestant is not None


@pytest.mark.parametrize("length", EXPECTED)
def test_misbehaviour_is_named(submission: submit.Submission, length: int) -> None:
    record, timed = judged(submission, length)
    status, reason = EXPECTED[length]
    assert (record.status, timed) == (status, False)
    assert reason in record.reason


def test_the_next_case_is_judged_after_a_crash(submission: submit.Submission) -> None:
    judged(submission, 19)
    record, timed = judged(submission, 30)
    assert (record.status, record.reason, timed) == ("ok", "", True)


def test_held_out_shapes_are_seeded_and_varied() -> None:
    first, same, other = (submit.held_out("causal_conv", 8, seed) for seed in (5, 5, 6))
    assert first == same != other
    assert any(case.length == 1 for case in first)
    assert any(case.taps > case.length for case in first)  # type: ignore[attr-defined]


def record(case: str, implementation: str, microseconds: float, status: str = "ok") -> Record:
    latency = Latency(microseconds, microseconds, microseconds, 3) if status == "ok" else None
    about = {"op": "causal_conv", "source": "", "group": "", "shape": (1, 1, 1, 1), "axes": "BLDK"}
    about |= {"dtype": "float32", "layout": "BLD"}
    return Record(
        **about,  # type: ignore[arg-type]
        case=case,
        direction="forward",
        implementation=implementation,
        version="",
        ours=False,
        status=status,
        latency=latency,
    )


def test_ranking_is_by_geometric_mean_and_correct_everywhere_first() -> None:
    records = [
        record("a", "steady", 2.0), record("b", "steady", 2.0),
        record("a", "quick once", 1.0), record("b", "quick once", 16.0),
        record("a", "fast but wrong", 0.5), record("b", "fast but wrong", 0.5, "wrong"),
    ]  # fmt: skip
    ranks = submit.ranking(records)
    assert [r.implementation for r in ranks] == ["steady", "quick once", "fast but wrong"]
    assert ranks[0].everywhere
    assert not ranks[2].everywhere
    assert ranks[0].score == pytest.approx(math.sqrt(0.25 * 1.0))


def test_a_file_without_operators_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(session.UsageError, match="defines none of"):
        submit.judge(path, seed=0)


def test_a_file_that_raises_at_import_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise SystemExit('no')")
    with pytest.raises(session.UsageError, match="raised SystemExit"):
        submit.judge(path, seed=0)
