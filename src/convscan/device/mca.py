"""Cycles of the kernels on the cores of phones, by llvm-mca's models, from the blocks of instructions that a call runs.

Blocks that lie behind one another and run equally often are one piece of a loop. llvm-mca repeats each piece, with what
one repetition leaves to the next, so that a loop whose steps wait for each other shows it. Caches and memory are not in
it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from .counts import Block
from .errors import DeviceError

CORES = ("cortex-x4", "cortex-a720", "cortex-a520")
# Older versions have other models of these cores, or none.
LEAST_VERSION = 22
_REPETITIONS = 100
# Pieces that make up less of all instructions are left out, and the cycles scaled to what is in.
_LEAST_SHARE = 0.002


class Piece(NamedTuple):
    """Blocks in a row, run equally often."""

    runs: int
    words: tuple[int, ...]


class Tools(NamedTuple):
    """llvm-mc and llvm-mca of one version."""

    mc: str
    mca: str
    version: str


def tools() -> Tools:
    """The newest LLVM that is installed; raises :class:`DeviceError` without one that knows the cores."""
    best = None
    for suffix in ("", *(f"-{n}" for n in range(LEAST_VERSION, LEAST_VERSION + 20))):
        mc, mca = shutil.which(f"llvm-mc{suffix}"), shutil.which(f"llvm-mca{suffix}")
        if mc is None or mca is None:
            continue
        text = subprocess.run([mca, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)(\.[\d.]+)?", text)
        if version and int(version[1]) >= LEAST_VERSION:
            best = Tools(mc, mca, version[0].removeprefix("version "))
    if best is None:
        raise DeviceError(
            f"llvm-mca {LEAST_VERSION} or newer is not installed. To go on: install it (Debian: apt install "
            f"llvm-{LEAST_VERSION})"
        )
    return best


def pieces(blocks: Sequence[Block]) -> list[Piece]:
    """The pieces that matter, the most instructions first."""
    # Where blocks overlap, for a jump led into the middle of one, they stay apart.
    ordered = sorted(blocks, key=lambda block: (block.address, len(block.words)))
    joined: list[list[Block]] = []
    for block in ordered:
        last = joined[-1][-1] if joined else None
        follows = last is not None and last.address + 4 * len(last.words) == block.address
        if last is not None and follows and abs(block.runs - last.runs) <= 0.02 * last.runs:
            joined[-1].append(block)
        else:
            joined.append([block])
    found = [Piece(max(b.runs for b in row), tuple(w for b in row for w in b.words)) for row in joined]
    total = sum(piece.runs * len(piece.words) for piece in found)
    found = [piece for piece in found if piece.runs * len(piece.words) >= _LEAST_SHARE * total]
    return sorted(found, key=lambda piece: -piece.runs * len(piece.words))


def cycles(found: Sequence[Piece], total_instructions: int, core: str, llvm: Tools) -> float:
    """Of one call."""
    regions = []
    for index, piece in enumerate(found):
        data = " ".join(f"0x{byte:02x}" for word in piece.words for byte in word.to_bytes(4, "little"))
        text = subprocess.run(
            [llvm.mc, "--disassemble", "-triple=aarch64", "-mattr=+v9a"], input=data, capture_output=True, text=True
        ).stdout
        lines = [line for line in text.splitlines() if line.startswith("\t") and not line.startswith("\t.")]
        regions.append("\n".join([f"# LLVM-MCA-BEGIN {index}", *lines, "# LLVM-MCA-END"]))
    done = subprocess.run(
        [llvm.mca, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={_REPETITIONS}", "-instruction-info=0",
         "-resource-pressure=0", "-skip-unsupported-instructions=any"],
        input="\n".join(regions) + "\n", capture_output=True, text=True,
    )  # fmt: skip
    each = [int(number) for number in re.findall(r"^Total Cycles:\s+(\d+)$", done.stdout, re.MULTILINE)]
    if len(each) != len(found):
        raise DeviceError(f"llvm-mca failed:\n{done.stderr[-500:]}")
    sum_of = sum(piece.runs * number / _REPETITIONS for piece, number in zip(found, each, strict=True))
    seen = sum(piece.runs * len(piece.words) for piece in found)
    return sum_of * total_instructions / seen
