"""The tree's rules: imports point down, the public surface is the one written down, importing does nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convscan

SOURCE = Path(convscan.__file__).parent
SURFACE = Path(__file__).with_name("public_surface.txt")

# Layers from the bottom up. A module imports from its own layer and from those below it.
LAYERS = [
    {"_errors", "_version", "_native"},
    {"_calls", "_layout", "_dispatch", "_library", "_targets", "_gpu", "_triton"},
    {"_checks", "tuning"},
    {"ops"},
    {"nn", "stream"},
    {"compat", "integrations", "distributed"},
    {"profiler", "device"},
]


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Our own modules that a file imports when it is loaded, as parts below ``convscan``."""
    package = path.relative_to(SOURCE).parts[:-1]
    tree = ast.parse(path.read_text())
    inside = {node for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if node in inside:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "convscan":
                    yield tuple(alias.name.split(".")[1:])
        elif isinstance(node, ast.ImportFrom):
            parts = tuple(node.module.split(".")) if node.module else ()
            if node.level == 0:
                if parts[0] == "convscan":
                    yield parts[1:]
                continue
            base = package[: len(package) - (node.level - 1)] + parts
            for alias in node.names:
                yield (*base, alias.name)


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for target in imports(path):
        if not target or target[0] == "__version__":
            assert name == "profiler", f"{path} imports the whole package"
        # The measurement stands above what it measures.
        elif name != "tuning" or path.name not in ("measure.py", "measure_gpu.py", "workloads_gpu.py"):
            assert layer(target[0]) <= layer(name), f"{path} imports {'.'.join(target)}"


def test_reference_imports_nothing_of_ours() -> None:
    for path in SOURCE.glob("ops/*/reference.py"):
        assert list(imports(path)) == []


def test_environment_is_read_in_one_file() -> None:
    readers = {path.name for path in FILES if "os.environ" in path.read_text() and "profiler" not in path.parts}
    assert readers == {"_targets.py"}


def surface() -> str:
    lines = []
    for name in sorted(convscan.__all__):
        value = getattr(convscan, name)
        if inspect.isfunction(value):
            lines.append(f"{name}{inspect.signature(inspect.unwrap(value))}")
        elif inspect.ismodule(value):
            lines += [f"{name}.{inner}" for inner in value.__all__]
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_public_surface_is_the_one_written_down() -> None:
    assert surface() == SURFACE.read_text(), "if the change is meant, write the new surface into public_surface.txt"


def test_importing_starts_nothing() -> None:
    code = (
        "import os, threading, convscan, sys; "
        "assert threading.active_count() == 1, threading.enumerate(); "
        "assert not [m for m in sys.modules if m.startswith('convscan.profiler')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""})


@pytest.mark.parametrize(("name", "succeeds"), [("baseline", True), ("z80", False)])
def test_isa_from_the_environment(name: str, succeeds: bool) -> None:
    code = "import convscan; print(convscan._targets._native.isa())"
    environment = {"PYTHONPATH": str(SOURCE.parent), "PATH": "", "CONVSCAN_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if succeeds and "baseline" in convscan._targets._native.isa_names():
        assert done.stdout.strip() == name
    elif not succeeds:
        assert "ImportError: CONVSCAN_ISA: this build and processor run" in done.stderr
        assert "got 'z80'. Unset it" in done.stderr
