"""What cannot be done, and how to go on."""

from __future__ import annotations

import importlib.util


class ExecuTorchError(RuntimeError):
    """ExecuTorch, a compiler, sources or a model's operators stand in the way. The message says what to do."""


def require_executorch() -> None:
    """Raises :class:`ExecuTorchError` where ExecuTorch is not installed."""
    if importlib.util.find_spec("executorch") is None:
        raise ExecuTorchError("executorch is not installed. To go on: pip install 'convscan[executorch]'")
