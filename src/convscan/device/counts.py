"""Instructions of the kernels on AArch64, counted under emulation: exact, and the same in every run.

    python counts.py RUNNER PLUGIN.c EXPECTED.json             exits with 1 where a kernel takes 2 % more or less
    python counts.py RUNNER PLUGIN.c EXPECTED.json --update    writes what they take now

It needs nothing but Python, qemu-aarch64 and a C compiler for qemu's plugin, so that the native tests run it without
the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CPU = "max,sve=off"
TOLERANCE = 0.02
# Kinds that the gate compares, each by output element.
GATED = ("instructions", "vector", "multiply_adds")


class Shape(NamedTuple):
    """A kernel on one shape; ``contiguous`` is the axis that lies densely in memory. Counts are in proportion to the
    channels, of which there are as many as full vectors need."""

    op: str
    kernel: str
    contiguous: str
    channels: int
    length: int
    taps: int = 0

    @property
    def name(self) -> str:
        """For tables and the file of expected counts."""
        sizes = f"{self.channels}x{self.length}" if self.contiguous == "time" else f"{self.length}x{self.channels}"
        return f"{self.op} {sizes}{f' K={self.taps}' if self.taps else ''} {self.kernel}"

    @property
    def elements(self) -> int:
        """Of the output."""
        return self.channels * self.length

    def arguments(self) -> list[str]:
        """For the runner."""
        sizes = [self.channels, self.length, *([self.taps] if self.taps else [])]
        return [self.op, *map(str, sizes), "--only", self.kernel, "--contiguous", self.contiguous]


def _conv(kernel: str, taps: int, contiguous: str = "time", length: int = 0) -> Shape:
    channels = 16 if contiguous == "time" else 64
    return Shape("causal_conv", kernel, contiguous, channels, length or (4096 if contiguous == "time" else 1024), taps)


SHAPES = (
    _conv("direct", 4),
    _conv("direct", 4, "channels"),
    _conv("direct", 32),
    _conv("direct", 32, "channels"),
    _conv("direct", 128),
    _conv("toeplitz", 128),
    _conv("fft", 128),
    _conv("fft", 128, "channels"),
    _conv("fft", 1024, length=1024),
    _conv("fft", 4096),
    _conv("fft", 1024, "channels"),
    _conv("fft", 16384, length=16384),
    _conv("fft, spectrum kept", 4096),
    _conv("fft, spectrum kept", 16384, length=16384),
    _conv("fft, high precision", 4096),
    Shape("linear_recurrence", "sequential", "time", 16, 4096),
    Shape("linear_recurrence", "parallel", "time", 16, 4096),
    Shape("linear_recurrence", "tiled", "time", 16, 4096),
    Shape("linear_recurrence", "sequential", "channels", 64, 1024),
)


class Block(NamedTuple):
    """Consecutive instructions without a jump in between, and how often a call runs them."""

    address: int
    runs: int
    words: tuple[int, ...]


class Counts(NamedTuple):
    """Of one call on one thread: instructions by kind, and the blocks they are in, if asked for."""

    kinds: dict[str, int]
    blocks: list[Block]


class CountError(RuntimeError):
    """The runner or the emulator did not do what counting needs; the message has their last words."""


def emulator() -> str | None:
    """The path of qemu-aarch64, if there is one."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def build_plugin(source: Path, folder: Path) -> Path | None:
    """The plugin of qemu that counts, built by this machine's C compiler; None without one."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    plugin = folder / "count_plugin.so"
    command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(plugin)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise CountError(f"building qemu's plugin failed:\n{done.stdout}")
    return plugin


def count(
    emulated: Sequence[str],
    plugin: Path,
    command: Sequence[str],
    arguments: Sequence[str],
    blocks: bool = False,
    working_folder: Path | None = None,
) -> Counts:
    """One call: two calls less one, so that nothing else is in it. ``emulated`` is the emulator's command, ``command``
    the runner's."""
    found = []
    for calls in ("1", "2"):
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "counts.txt"
            options = ["-plugin", f"{plugin}{',blocks=on' if blocks else ''}", "-d", "plugin", "-D", str(written)]
            words = [*emulated, *options, *command, *arguments, "--threads", "1", "--calls", calls]
            done = subprocess.run(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=working_folder,
            )
            if done.returncode != 0 or not written.exists():
                raise CountError(f"counting {' '.join(arguments)} failed:\n{done.stdout[-500:]}")
            if '"skipped"' in done.stdout:
                raise CountError(f"{' '.join(arguments)}: the kernel does not run this shape")
            found.append(_read(written.read_text(encoding="utf-8")))
    (once, blocks_of_one), (twice, blocks_of_two) = found
    each = [
        Block(address, runs - blocks_of_one.get((address, words), 0), words)
        for (address, words), runs in blocks_of_two.items()
    ]
    kinds = {kind: twice[kind] - once[kind] for kind in twice}
    return Counts(kinds, [block for block in each if block.runs > 0])


def _read(text: str) -> tuple[dict[str, int], dict[tuple[int, tuple[int, ...]], int]]:
    kinds: dict[str, int] = {}
    blocks: dict[tuple[int, tuple[int, ...]], int] = {}
    for line in text.splitlines():
        name, first, *rest = line.split()
        if name == "block":
            key = int(first, 16), tuple(int(word, 16) for word in rest[1:])
            blocks[key] = blocks.get(key, 0) + int(rest[0])
        else:
            kinds[name] = int(first)
    return kinds, blocks


def by_element(shape: Shape, kinds: dict[str, int]) -> dict[str, float]:
    """Counts by output, as the file of expected ones has them."""
    return {kind: round(kinds[kind] / shape.elements, 4) for kind in GATED}


def measure(
    emulated: Sequence[str], plugin: Path, runner: Path, progress: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, float]]:
    """All shapes, by name."""
    found = {}
    for shape in SHAPES:
        progress(shape.name)
        found[shape.name] = by_element(shape, count(emulated, plugin, [str(runner)], shape.arguments()).kinds)
    return found


def differences(expected: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> list[str]:
    """What has changed by more than the tolerance, a line each; empty where nothing has."""
    lines = [f"{name}: not in the file of expected counts" for name in found if name not in expected]
    lines += [f"{name}: expected, and not counted" for name in expected if name not in found]
    for name in (n for n in found if n in expected):
        for kind, number in found[name].items():
            before = expected[name][kind]
            if abs(number - before) > TOLERANCE * before:
                change = f", {100 * (number / before - 1):+.1f} %" if before else ""
                lines.append(f"{name}: {number:g} {kind.replace('_', '-')} an output, expected {before:g}{change}")
    return lines


def main(words: Sequence[str]) -> int:
    """Compares or updates; the exit code."""
    parser = argparse.ArgumentParser(prog="counts.py")
    parser.add_argument("runner", type=Path)
    parser.add_argument("plugin", type=Path, help="its C source")
    parser.add_argument("expected", type=Path)
    parser.add_argument("--update", action="store_true")
    given = parser.parse_args(words)
    qemu = emulator()
    with tempfile.TemporaryDirectory() as folder:
        plugin = build_plugin(given.plugin, Path(folder))
        if qemu is None or plugin is None:
            print("not counted: there is no qemu-aarch64 or no C compiler", flush=True)
            return 77  # as ctest is told: skipped
        found = measure([qemu, "-cpu", CPU], plugin, given.runner)
    if given.update:
        text: dict[str, Any] = dict(found)
        given.expected.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {given.expected}", flush=True)
        return 0
    lines = differences(json.loads(given.expected.read_text(encoding="utf-8")), found)
    print("\n".join(lines) or f"{len(found)} kernels and shapes take the expected instructions", flush=True)
    if lines:
        print("if that is meant: make device-counts, and commit the file it writes", flush=True)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
