"""The examples run and say that their checks passed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

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
