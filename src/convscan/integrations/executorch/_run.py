"""Exported programs on this machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ._library import load_operators


class Program:
    """A program in ExecuTorch's runtime; calling it runs ``forward``. Buffers that it changes keep their values from
    call to call: a decoder's state lives in its program."""

    def __init__(self, path: Path, trace: bool) -> None:
        load_operators()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "This API is experimental"
            from executorch.extension.pybindings.portable_lib import _load_for_executorch

        self._trace = trace
        self._module = _load_for_executorch(str(path), enable_etdump=trace)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """The outputs, as many as the model has."""
        return tuple(self._module.forward(inputs, clone_outputs=True))

    def write_trace(self, path: str | Path) -> None:
        """Writes what ``load(..., trace=True)`` recorded since then: an ETDump, for executorch.devtools.Inspector."""
        if not self._trace:
            raise ValueError("Program.write_trace: nothing was recorded; load the program with trace=True")
        self._module.write_etdump_result_to_file(str(path))


def load(path: str | Path, *, trace: bool = False) -> Program:
    """Loads a program for this machine, with convscan's operators; ``trace`` records its times (ETDump).

    Raises :class:`ExecuTorchError` where the operators' library cannot be had, FileNotFoundError without the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"executorch.load: there is no file {path}")
    return Program(path, trace)
