"""The operators the profiler knows: every module of this folder holds one ``OPERATOR``; adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from ..problem import Operator


@lru_cache
def operators() -> dict[str, Operator]:
    """Every operator by its name; the foundations first, then by name."""
    found = [importlib.import_module(f"{__name__}.{module.name}").OPERATOR for module in pkgutil.iter_modules(__path__)]
    return {one.name: one for one in sorted(found, key=lambda one: (not one.takes_out, one.name))}


def operator(name: str) -> Operator:
    """The operator of this name."""
    return operators()[name]
