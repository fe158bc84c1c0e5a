"""The challenge's cases as programs of ExecuTorch with our operators: how the challenge itself runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from convscan._version import __version__
from convscan.integrations import executorch
from convscan.ops.causal_conv.api import causal_conv
from convscan.ops.linear_recurrence.api import linear_recurrence

from .errors import DeviceError
from .grid import GridCase, sizes
from .judge import Submission

NAME = "convscan, ExecuTorch"


class Convolution(torch.nn.Module):
    """x (1, C, L) and h (C, K) to y (1, C, L)."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return causal_conv(x.mT, h.mT).mT


class Recurrence(torch.nn.Module):
    """y_init (1, C), a and x (1, C, L) to y (1, C, L)."""

    def forward(self, y_init: Tensor, a: Tensor, x: Tensor) -> Tensor:
        return linear_recurrence(x.mT, y_init, a.mT).mT


def export(
    chosen: Sequence[tuple[str, GridCase]], folder: Path, progress: Callable[[str, int, int], None]
) -> list[Submission]:
    """A program for each case, exported where this exporter has not done so before; memory is planned for its shape."""
    folder = folder / __version__
    folder.mkdir(parents=True, exist_ok=True)
    exporter = max(path.stat().st_mtime for path in Path(executorch.__file__).parent.glob("*.py"))
    for index, (op, case) in enumerate(chosen):
        progress(f"exporting {case.name}", index, len(chosen))
        path = folder / _file(op, *sizes(case))
        if path.exists() and path.stat().st_mtime > exporter:
            continue
        channels, length, *taps = (int(n) for n in sizes(case))
        x = torch.empty(1, channels, length)
        try:
            if op == "causal_conv":
                executorch.export(Convolution(), (x, torch.empty(channels, taps[0])), path)
            else:
                executorch.export(Recurrence(), (torch.empty(1, channels), torch.empty_like(x), x), path)
        except executorch.ExecuTorchError as error:
            raise DeviceError(str(error)) from None
    ops = dict.fromkeys(op for op, _ in chosen)
    return [Submission(NAME, str(folder / _file(op, "{C}", "{L}", "{K}")), op) for op in ops]


def _file(op: str, channels: str, length: str, taps: str = "") -> str:
    return f"{op}-{channels}-{length}{'' if op == 'linear_recurrence' else f'-{taps}'}.pte"
