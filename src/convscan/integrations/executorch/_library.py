"""The operators' library for ExecuTorch's runtime here: compiled with the user's compiler, kept, loaded once."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from ... import _native
from ..._targets import cache_folder, cxx_compiler
from ..._version import __version__
from ._errors import ExecuTorchError, require_executorch

_SOURCES = ("call.cpp", "convolution.cpp", "recurrence.cpp")
# What the wheel's own libraries were compiled with; without the second, profiling scopes would record nothing.
DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")


def wheel_folder() -> Path:
    """Where the installed ExecuTorch has its headers and libraries.

    Raises :class:`ExecuTorchError` where it is absent, or has no C++ runtime.
    """
    require_executorch()
    import executorch  # installed or not: not before somebody asks

    folder = Path(next(iter(executorch.__path__)))
    if not (folder / "lib/libexecutorch.so").exists():
        raise ExecuTorchError(
            f"executorch {metadata.version('executorch')} has no C++ runtime in its wheel. "
            "To go on: pip install 'executorch>=1.5'"
        )
    return folder


def source_folder() -> Path:
    """The folder with ``executorch/`` and ``include/``: of the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "csrc", package.parents[1] / "csrc"):
        if (folder / "executorch/call.cpp").exists():
            return folder
    raise ExecuTorchError("the sources of the operators' library are missing. To go on: install convscan anew")


def _compiler() -> str:
    named = cxx_compiler()
    for name in (named,) if named else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return found
    asked = f"{named} (of CXX)" if named else "a C++ compiler (c++, g++ or clang++)"
    raise ExecuTorchError(
        f"{asked} is not installed, and ExecuTorch's operators are compiled where they are used. "
        "To go on: install one (Debian: apt install g++), or name one by the variable CXX"
    )


def operators_library() -> Path:
    """The library for this machine's ExecuTorch, compiled now if it is not there yet (some seconds).

    It stands in the user's cache folder, under a name of its own for each version of convscan, ExecuTorch and compiler.

    Raises :class:`ExecuTorchError` where ExecuTorch or a compiler is absent, or the compiler fails (with its words).
    """
    wheel, sources, compiler = wheel_folder(), source_folder(), _compiler()
    files = [sources / "executorch" / name for name in (*_SOURCES, "call.h")] + [sources / "include/convscan.h"]
    native = Path(_native.__file__).resolve()
    state = native.stat()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    parts = [
        __version__,
        metadata.version("executorch"),
        version,
        str(native),
        str(state.st_size),
        str(state.st_mtime_ns),
    ]
    digest = hashlib.sha256("\n".join([*parts, str(wheel), *(f.read_text() for f in files)]).encode()).hexdigest()[:16]
    library = cache_folder() / "executorch" / digest / "libconvscan_executorch.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    # Written beside it and moved there, so that no process loads half a library.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        fresh = Path(folder) / library.name
        done = subprocess.run(
            compile_command(compiler, wheel, sources, [str(native)], fresh),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            words = "\n".join(done.stdout.strip().splitlines()[-12:])
            raise ExecuTorchError(f"compiling the operators for ExecuTorch failed ({compiler}):\n{words}")
        os.replace(fresh, library)
    return library


def compile_command(compiler: str, wheel: Path, sources: Path, kernels: list[str], library: Path) -> list[str]:
    """The compiler's command line: headers and libraries of the wheel, and the C interface of ``kernels``."""
    include = wheel / "include"
    folders = (sources, sources / "include", include, include / "executorch/runtime/core/portable_type/c10")
    return [
        compiler,
        *("-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,defs"),
        *(f"-I{folder}" for folder in folders[:2]),
        *(part for folder in folders[2:] for part in ("-isystem", str(folder))),
        *(f"-D{name}" for name in DEFINITIONS),
        *(str(sources / "executorch" / name) for name in _SOURCES),
        *("-o", str(library)),
        *(f"-L{wheel / 'lib'}", "-lexecutorch", "-lexecutorch_threadpool", f"-Wl,-rpath,{wheel / 'lib'}"),
        *kernels,
    ]


@functools.cache
def load_operators() -> None:
    """Makes the operators known to ExecuTorch's runtime in this process; compiles their library first if need be.

    Programs loaded by ``load`` need no call of this; those loaded by ExecuTorch's own functions do, once.

    Raises :class:`ExecuTorchError`, see ``operators_library``.
    """
    library = operators_library()
    import executorch.extension.pybindings.portable_lib  # noqa: F401  # the runtime, before what registers with it

    ctypes.CDLL(str(library))
