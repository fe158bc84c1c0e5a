"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations


def duration(microseconds: float) -> str:
    """Three significant digits in µs, ms or s."""
    for limit, scale, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if microseconds < limit:
            return f"{_three(microseconds / scale)} {unit}"
    return f"{_three(microseconds / 1e6)} s"


def interval(low: float, high: float) -> str:
    """Two durations, the unit once when they share it."""
    first, second = duration(low), duration(high)
    return f"{first.split()[0] if first.split()[1] == second.split()[1] else first} – {second}"


def size(count: int) -> str:
    """Bytes in B, KiB, MiB or GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three(value)} {unit}"
        value /= 1024
    return f"{_three(value)} GiB"


def factor(value: float | None) -> str:
    """A ratio: 0.031×, 1.5×, 34×, 12,000×; a dash where there is nothing to compare with."""
    if value is None:
        return "–"
    return f"{value:,.0f}×" if value >= 100 else f"{_three(value)}×"


def _three(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if value >= 0.1:
        return f"{value:.2f}"
    return f"{value:.2g}"
