"""The constants in use: the user's measurements where there are any, else the shipped defaults.

default.json was measured on a busy AMD Zen 3 with two cores, for baseline and AVX2, except for estimates of the cost
of a call, of handing work over and of a cached byte, and the FFT's and the parallel scan's element, set by hand.
Convolutions, the selective scan, linear attention, the delta rule and memory with AVX-512 were measured on a quiet
Zen 5 with two cores; ``conv.direct.channel``, ``conv.direct.time`` and the element of ``conv.fft.channel`` set by hand
such that the faster one is taken over 8192 x 1024 for 16 to 128 taps (with channels contiguous they meet at some 90:
4.2 ms, along time at 64: 3.3 ms). The rest of AVX-512 is AVX2
with 0.6 of the arithmetic, NEON is the baseline, until somebody measures them with ``convscan tune``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from .._errors import message
from .._targets import tuning_file

Constants = Mapping[str, float]
# Lanes per vector halve with float64; the half types are computed in float32 and pay for two conversions.
RELATIVE_COST = {
    "float32": 1.0,
    "float64": 2.0,
    "wide_float32": 2.0,
    "bfloat16": 1.3,
    "float16": 1.2,
    "complex64": 3.0,
    "complex128": 6.0,
}


@lru_cache
def _tables() -> tuple[Mapping[str, Any], ...]:
    shipped = json.loads(files(__package__).joinpath("default.json").read_text())
    file = tuning_file()
    if not file.is_file():
        return (shipped,)
    try:
        return (json.loads(file.read_text()), shipped)
    except (ValueError, OSError) as error:
        remedy = f"Run `convscan tune` again or delete {file}"
        raise ValueError(message("convscan", "the tuning file must be readable JSON", error, remedy)) from error


def stored() -> Mapping[str, Any]:
    """The user's own measurements, by instruction set and GPU."""
    return _tables()[0] if len(_tables()) > 1 else {}


@lru_cache
def constants(isa: str) -> Constants:
    """Seconds per unit of work on one instruction set; see default.json for the names."""
    merged: dict[str, float] = {}
    for table in reversed(_tables()):
        merged.update(table.get(isa, {}))
    if not merged:
        # An instruction set that nobody has measured yet: the slowest measured one is the careful guess.
        merged.update(_tables()[-1]["baseline"])
    return merged


def forget() -> None:
    """Reads the tables again at the next selection."""
    _tables.cache_clear()
    constants.cache_clear()


def kernel_seconds(
    isa: str, kernel: str, dtype: str, *, units: float, elements: float, moved: float, workers: float, threads: int
) -> float:
    """Predicted seconds of one kernel call.

    ``units`` of its inner loop and ``elements`` to load and store, shared by ``workers`` threads, run while the
    ``moved`` bytes come from memory. A call that uses several threads pays for handing the work over.
    """
    known = constants(isa)
    scale = RELATIVE_COST[dtype]
    compute = scale * (units * known[f"{kernel}.unit"] + elements * known[f"{kernel}.element"]) / workers
    # Half of the last-level cache and less stays cached between producer and consumer.
    memory = moved * known["byte.cached" if moved < known["cache.bytes"] else "byte.memory"]
    handoff = known["handoff"] if threads > 1 and compute * workers > known["handoff"] else 0.0
    # Neither hides the other completely: of two kernels that both wait for memory, the one with less to do wins.
    return known["call"] + handoff + math.hypot(compute, memory)
