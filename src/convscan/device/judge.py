"""The program that judges what is handed in, and runs programs of ExecuTorch: built from ExecuTorch's published wheel
for 64-bit Arm alone, with its libraries and the C library beside it, so that it runs on Android as under emulation."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import elf
from .build import SOURCE, configure_and_build
from .errors import DeviceError
from .grid import GridCase, sizes

JUDGE = "convscan_judge"
VERSION = "1.5.1"  # where executorch is not installed here
COMPILER = "aarch64-linux-gnu-g++"
_PLATFORM = "manylinux_2_28_aarch64"
_COMPONENTS = ("", "_threadpool", "_kernels_optimized", "_backend_xnnpack", "_etdump")
_LOADER = "ld-linux-aarch64.so.1"
_SYSTEM = (_LOADER, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libstdc++.so.6", "libgcc_s.so.1")

File = tuple[Path, str]  # here, and relative to the folder on the device

# Starts it in the folder with its files. The loader and the C library come along: Android has others.
COMMAND = (f"./lib/{_LOADER}", "--library-path", "lib", f"./{JUDGE}")


@dataclass(frozen=True)
class Judge:
    """The program with all that it needs on a device."""

    files: tuple[File, ...]
    command: tuple[str, ...] = COMMAND


def build(folder: Path, wheel: Path | None = None, source: Path = SOURCE) -> Judge:
    """The judge for 64-bit Arm, built in ``folder``; ``wheel`` is that of ExecuTorch for it, downloaded by default.

    Raises :class:`DeviceError` where the cross compiler is absent, or a step fails, with its last words.
    """
    if shutil.which(COMPILER) is None:
        raise DeviceError(
            f"{COMPILER} is not installed, which ExecuTorch's libraries are linked with. To go on: install it "
            "(Debian: apt install g++-aarch64-linux-gnu)"
        )
    executorch = _unpack(folder, wheel)
    program = configure_and_build(
        folder / "build",
        JUDGE,
        source / "cmake/aarch64-gnu.cmake",
        ["-DCONVSCAN_FLOAT32_ONLY=ON", f"-DCONVSCAN_EXECUTORCH={executorch}", "-DCONVSCAN_PYTHON=OFF",
         "-DCONVSCAN_OPENMP=OFF", "-DCONVSCAN_TESTS=OFF"],
        source,
    )  # fmt: skip
    found = elf.vector_extensions(folder / "build/libconvscan.a")
    if found:
        raise DeviceError(f"the kernels have SVE or SME instructions, which phones lack, such as {found[0]}")
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    for name in _SYSTEM:
        shutil.copy(_system_library(name), libraries / name)
    for component in _COMPONENTS:
        shutil.copy(executorch / f"lib/libexecutorch{component}.so", libraries)
    shutil.copy(program, folder / JUDGE)
    judge = existing(folder)
    assert judge is not None
    return judge


def existing(folder: Path) -> Judge | None:
    """What an earlier ``build`` left in that folder, if it did."""
    libraries = sorted((folder / "lib").glob("*.so*"))
    if not (folder / JUDGE).exists() or not libraries:
        return None
    return Judge(((folder / JUDGE, JUDGE), *((path, f"lib/{path.name}") for path in libraries)))


def _unpack(folder: Path, wheel: Path | None) -> Path:
    """Headers and libraries of ExecuTorch for 64-bit Arm."""
    try:
        version = metadata.version("executorch").partition("+")[0]
    except metadata.PackageNotFoundError:
        version = VERSION
    if wheel is None:
        download = folder / "wheel"
        found = sorted(download.glob(f"executorch-{version}-*aarch64.whl"))
        if not found:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            options = ["--only-binary=:all:", "--platform", _PLATFORM, "--dest", str(download)]
            command = [*pip, *options, f"executorch=={version}"]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
            found = sorted(download.glob(f"executorch-{version}-*aarch64.whl"))
            if done.returncode != 0 or not found:
                raise DeviceError(
                    f"ExecuTorch's wheel for 64-bit Arm cannot be downloaded: {done.stdout.strip()[-300:]}. To go on: "
                    "download it elsewhere, and name it (--wheel FILE)"
                )
        wheel = found[0]
    if not wheel.is_file():
        raise DeviceError(f"there is no wheel {wheel}")
    unpacked = folder / f"unpacked-{wheel.stem}"
    if not (unpacked / "complete").exists():
        with zipfile.ZipFile(wheel) as archive:
            wanted = ("executorch/lib/", "executorch/include/")
            archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(wanted)])
        (unpacked / "complete").touch()
    if not (unpacked / "executorch/lib/libexecutorch_etdump.so").exists():
        raise DeviceError(f"{wheel.name} has no C++ libraries. To go on: name one of ExecuTorch {VERSION} or newer")
    return unpacked / "executorch"


def _system_library(name: str) -> Path:
    """A library of the cross compiler's own."""
    done = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True)
    path = Path(done.stdout.strip())
    if not path.is_absolute() or not path.exists():
        raise DeviceError(f"{COMPILER} has no {name}. To go on: apt install libc6-arm64-cross libstdc++6-arm64-cross")
    return path.resolve()


@dataclass(frozen=True)
class Submission:
    """Something to be judged: a program of ExecuTorch (.pte) or a library of kernels (.so) for 64-bit Arm.

    ``pattern`` may have {C}, {L} and {K} in it: a program for each shape.
    """

    name: str
    pattern: str
    op: str | None = None  # the only operator it has

    @classmethod
    def of(cls, pattern: str) -> Submission:
        """Named by its file; raises :class:`DeviceError` for other kinds of file, and where there is none."""
        path = Path(pattern)
        if path.suffix not in (".pte", ".so"):
            raise DeviceError(f"{pattern} is neither a program of ExecuTorch (.pte) nor a library of kernels (.so)")
        if "{" not in pattern:
            if not path.is_file():
                raise DeviceError(f"there is no file {pattern}")
            if path.suffix == ".so":
                try:
                    elf.vector_extensions(path)
                except elf.NotAarch64 as error:
                    raise DeviceError(f"{error}. To go on: build it for 64-bit Arm ({COMPILER} -shared)") from None
        name = path.stem
        for part in ("{C}", "{L}", "{K}"):
            name = name.replace(part, "")
        return cls(name.strip("-_.") or "submission", pattern)

    def file(self, op: str, case: GridCase) -> File | None:
        """The one for a case, and what it is called on the device; None where there is none."""
        if self.op not in (None, op):
            return None
        values = dict(zip("CLK", sizes(case), strict=False))
        text = self.pattern
        for letter, value in values.items():
            text = text.replace(f"{{{letter}}}", value)
        path = Path(text)
        return (path, f"submitted-{path.name}") if path.is_file() else None

    def arguments(self, file: File) -> list[str]:
        """For the judge."""
        kind = "--program" if self.pattern.endswith(".pte") else "--kernels"
        return [kind, f"./{file[1]}", "--name", self.name]


def files(submissions: Sequence[Submission], chosen: Sequence[tuple[str, GridCase]]) -> list[File]:
    """What has to be on the device for all cases, each once."""
    found = (submission.file(op, case) for submission in submissions for op, case in chosen)
    return list(dict.fromkeys(file for file in found if file is not None))


if __name__ == "__main__":  # of `make device-judge`
    build(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
