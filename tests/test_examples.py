"""The examples run and say that their checks passed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(importlib.util.find_spec("heartpy") is None, reason="heartpy, which ships the recording, is absent")
@pytest.mark.parametrize("taps", ["1000", "16384"])
def test_a_real_recording_agrees_with_scipy(taps: str) -> None:
    output = run(str(EXAMPLES / "convolve_recording.py"), "--taps", taps)
    assert f"68476 samples, 1 channel(s), {taps} taps" in output
    assert "largest deviation" in output


@pytest.mark.skipif(importlib.util.find_spec("heartpy") is None, reason="heartpy, which ships the recording, is absent")
def test_streams_of_a_real_recording_agree_with_the_whole() -> None:
    output = run(str(EXAMPLES / "stream_recording.py"), "--taps", "4000")
    assert "68476 samples, 1 channel(s), 4000 taps" in output
    assert output.count("largest deviation") == 3


def load(name: str) -> ModuleType:
    """An example as a module."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", ["digits", "text"])
def test_training_follows_plain_pytorch_and_generation_follows_training(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)  # small steps on a busy machine: two threads would wait for each other
    example = load("train_sequence_models")
    if task == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn, which ships the digits, is absent")
        ours, theirs = example.train_digits(20, compare=True)
    else:
        ours, theirs = example.train_text(6, compare=True)
    assert max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)) < 1e-3
    assert ours.losses[-1] < ours.losses[0] - (0.1 if task == "digits" else 0.5)
    output = capsys.readouterr().out
    if task == "digits":
        assert float(re.findall(r"logits differ by (\S+)", output)[0]) < 1e-4
    else:
        assert len(output.partition("nats a character\n")[2]) >= 400
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the curves, is absent")
    example.plot(tmp_path / "curves.png", {task: [ours, theirs]})
    assert (tmp_path / "curves.png").stat().st_size > 10_000
