"""What the documents say is true: their examples run, their links lead somewhere, their commands exist."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import convscan

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def modules() -> list[str]:
    """Every module of the package that can be imported without a third party's package."""
    found = pkgutil.walk_packages(convscan.__path__, "convscan.")
    others = ("._native", "submission_worker", ".executorch._lowering")
    return ["convscan", *sorted(m.name for m in found if not m.name.endswith(others))]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module).failed == 0


def test_public_functions_have_an_equation_or_effect_and_an_example() -> None:
    for name in convscan.__all__:
        item = getattr(convscan, name)
        if not callable(item):
            continue
        assert item.__doc__, f"convscan.{name} has no docstring"
        assert item.__doc__.splitlines()[0].endswith((".", "]", ")", ":")), (
            f"convscan.{name}: {item.__doc__.splitlines()[0]}"
        )
    for operator in (convscan.causal_conv, convscan.fft_conv, convscan.linear_recurrence, convscan.opt_ssm_forward):
        assert ">>>" in str(operator.__doc__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


DOCUMENTS_WITH_EXAMPLES = (
    "README",
    "docs/compat",
    "docs/convolutions",
    "docs/deployment",
    "docs/layers",
    "docs/linear-attention",
    "docs/selective-scan",
    "docs/state-space",
    "docs/streaming",
    "docs/transformers",
)


@pytest.mark.parametrize("name", [f"{name}.md" for name in DOCUMENTS_WITH_EXAMPLES])
def test_examples_of_documents_run(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "docs/deployment.md":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.chdir(tmp_path)  # where examples write files
    examples = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), {})
    assert name != "README.md" or "direct" in capsys.readouterr().out


def test_layers_are_in_their_document() -> None:
    text = (ROOT / "docs/layers.md").read_text(encoding="utf-8")
    for name in convscan.nn.__all__:
        assert f"`{name}(" in text
        assert ">>>" in str(getattr(convscan.nn, name).__doc__)


def test_streams_are_in_their_document() -> None:
    text = (ROOT / "docs/streaming.md").read_text(encoding="utf-8")
    for name in convscan.stream.__all__:
        assert f"`{name}" in text
        assert name == "Stream" or ">>>" in str(getattr(convscan.stream, name).__doc__)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for path in DOCUMENTS:
        for target in re.findall(r"`make ([a-z-]+)", path.read_text(encoding="utf-8")):
            assert target in targets, f"{path.name} names make {target}"


def test_environment_variables_are_documented() -> None:
    source = (ROOT / "src/convscan/_targets.py").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for variable in set(re.findall(r"CONVSCAN_[A-Z]+", source)):
        assert variable in readme


def test_public_functions_are_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("causal_conv", "linear_recurrence", "explain", "force", "workspace_limit", "workspace_memory"):
        assert name in convscan.__all__
        assert name in readme
