"""Kernels for GPUs, run by Triton's interpreter on the CPU, which has to be asked for before Triton is imported."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # Triton is made for Linux only, and an extra of the package
else:
    asked = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("triton.language")
    os.environ.pop("TRITON_INTERPRET")
    if asked is not None:
        os.environ["TRITON_INTERPRET"] = asked


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run on tensors of the CPU for the length of a test. They round to bfloat16 and multiply matrices of it as
    devices do: the interpreter of Triton 3.7 cuts off, and multiplies the bits as integers."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    tl = importlib.import_module("triton.language")
    cut = interpreter.InterpreterBuilder.cast_impl

    def rounded(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            values = torch.from_numpy(np.ascontiguousarray(source.data, np.float32)).bfloat16()
            return interpreter.TensorHandle(values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return cut(self, source, dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounded)

    def widened(one: Any) -> Any:
        if one.dtype.scalar != tl.bfloat16:
            return one
        values = torch.from_numpy(np.ascontiguousarray(one.data).view(np.int16)).view(torch.bfloat16)
        return interpreter.TensorHandle(values.float().numpy(), tl.float32)

    multiply = interpreter.InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return multiply(self, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, rounded)

    def scanned(self: Any, given: Any) -> list[Any]:
        """Whole rows at a time, where the interpreter takes every element by itself."""
        along = [np.moveaxis(one.handle.data, self.axis, 0) for one in given]
        steps = [[self.to_tensor(part, one.dtype) for part in parts] for parts, one in zip(along, given, strict=True)]
        rows = [tuple(one[0] for one in steps)] if len(steps[0]) else []
        for index in range(1, len(steps[0])):
            joined = self.combine_fn.fn(*rows[-1], *(one[index] for one in steps))
            rows.append(joined if isinstance(joined, tuple) else (joined,))
        return [
            self.to_tensor(np.stack([row[at].handle.data for row in rows], self.axis), one.dtype)
            for at, one in enumerate(given)
        ]

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scanned)
