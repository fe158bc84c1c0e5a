"""The rivals: every module of this folder is read for its ``PEERS``; adding a rival is adding a file."""

from __future__ import annotations

import importlib
import pkgutil

from ..peer import Peer


def peers(op: str) -> tuple[Peer, ...]:
    """Every rival of an operator, baseline first, then by file and place in it. Imports no third-party package."""
    found: list[Peer] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        found += importlib.import_module(f"{__name__}.{module.name}").PEERS
    return tuple(sorted((p for p in found if p.op == op), key=lambda p: not p.baseline))
