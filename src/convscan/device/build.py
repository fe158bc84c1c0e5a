"""Builds the static runner: by the cross compiler of PyPI's ziglang, or by a CMake toolchain file such as an NDK's."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from . import counts, elf
from .errors import DeviceError
from .target import RUNNER

SOURCE = Path(__file__).resolve().parents[3]
MOST_BYTES = 600_000


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise DeviceError(f"{name} is not installed. To go on: pip install 'convscan[device]'")
    return found


def build(folder: Path, toolchain: Path | None = None, source: Path = SOURCE) -> Path:
    """The runner for 64-bit Arm, built in ``folder``; a second call builds what has changed.

    ``toolchain`` is a CMake toolchain file, such as ``build/cmake/android.toolchain.cmake`` of an Android NDK. Without
    it ziglang's compiler makes a program that needs no library of the device; the first build takes about two minutes.

    Raises :class:`DeviceError` with the compiler's last words, and where the runner has instructions that phones lack.
    """
    if not (source / "csrc/tools/runner.cpp").exists():
        raise DeviceError(
            "the runner is built from the project's sources, which an installed package lacks. To go on: run the "
            "command in a checkout (pip install --editable .)"
        )
    options = []
    if toolchain is None:
        if importlib.util.find_spec("ziglang") is None:
            raise DeviceError(
                "no cross compiler: ziglang is not installed. To go on: pip install 'convscan[device]', or name the "
                "toolchain file of an Android NDK (--toolchain FILE)"
            )
        toolchain = source / "cmake/aarch64-zig.cmake"
    elif not toolchain.exists():
        raise DeviceError(f"there is no toolchain file {toolchain}")
    else:  # what an NDK's file reads; others ignore it
        options = ["-DANDROID_ABI=arm64-v8a", "-DANDROID_PLATFORM=android-26", "-DANDROID_STL=c++_static"]
    switches = ["PYTHON=OFF", "OPENMP=OFF", "TESTS=OFF", "RUNNER=ON"]
    options += [f"-DCONVSCAN_{switch}" for switch in switches]
    runner = configure_and_build(folder, RUNNER, toolchain, options, source)
    return check(runner, sorted(folder.glob(f"CMakeFiles/{RUNNER}.dir/**/*.o*")))


def configure_and_build(folder: Path, target: str, toolchain: Path, options: list[str], source: Path) -> Path:
    """A program of the project's, for another machine; raises :class:`DeviceError` with the compiler's last words."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    _run(
        [
            cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_TOOLCHAIN_FILE={toolchain.resolve()}", f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release", *options,
        ]
    )  # fmt: skip
    _run([cmake, "--build", str(folder), "--target", target])
    return folder / target


def build_counter(folder: Path, source: Path = SOURCE) -> Path | None:
    """The plugin of qemu that counts instructions, built by this machine's C compiler; None without one."""
    return counts.build_plugin(source / "csrc/tools/count_plugin.c", folder)


def check(runner: Path, objects: list[Path]) -> Path:
    """The runner, if every 64-bit Arm processor can run what was compiled into it."""
    try:
        found = [line for path in objects for line in elf.vector_extensions(path)]
        elf.vector_extensions(runner)  # its C++ runtime has some, which asks first; but it must be for this processor
    except elf.NotAarch64 as error:
        raise DeviceError(f"{error}. To go on: name a toolchain file for 64-bit Arm (--toolchain FILE)") from None
    if found:
        raise DeviceError(
            f"the kernels have {len(found)} SVE or SME instructions, which phones lack, such as {found[0]}. To go on: "
            "take -mcpu and -march out of the toolchain's flags"
        )
    return runner


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        words = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise DeviceError(f"building failed:\n{words}")
