"""Turns convscan on and off in transformers' model files, those that are loaded and those that will be."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NamedTuple

from ..._errors import message
from ._functions import Function
from ._places import Found, is_model_file, places, users

# Versions of transformers whose model files convscan has been tested with, oldest and newest.
TESTED = ((4, 57), (5, 24))


class _Replaced(NamedTuple):
    found: Found
    original: Function
    replacement: Function


class Switch:
    """What has been replaced, and the finder that waits for model files to be loaded."""

    def __init__(self) -> None:
        self._replaced: list[_Replaced] = []
        self._refused: list[Found] = []
        self._finder = _Finder(self._serve)

    def on(self) -> None:
        """Serves all model files that are loaded, and from now on those that will be."""
        sys.meta_path.insert(0, self._finder)
        for name, module in list(sys.modules.items()):
            if is_model_file(name):
                self._serve(module)

    def off(self) -> None:
        """Puts everything back that is still as ``on`` left it."""
        sys.meta_path.remove(self._finder)
        for found, original, replacement in self._replaced:
            if found.original is replacement:
                setattr(found.holder, found.name, original)
        self._replaced.clear()

    def _serve(self, module: types.ModuleType) -> None:
        for found in places(module):
            if found.refusal is not None:
                self._refused.append(found)
                continue
            original = found.original
            replacement = found.place.make(original)
            setattr(found.holder, found.name, replacement)
            self._replaced.append(_Replaced(found, original, replacement))

    def rows(self) -> list[Row]:
        """What is served, and what is not."""
        served = [Row(*_described(found), None) for found, _, _ in self._replaced]
        return served + [Row(*_described(found), found.refusal) for found in self._refused]


def _described(found: Found) -> tuple[str, tuple[str, ...], str, str]:
    model = found.module.__name__.split(".")[2]
    classes = users(found.module, found.name) if found.holder is found.module else [found.holder.__name__]
    return model, tuple(classes), str(found), found.place.operator


class Row(NamedTuple):
    """A function or method of a loaded model file, and what computes it.

    ``model`` is the folder of the model file in transformers, ``classes`` are those that call the function, and
    ``refusal`` says why convscan left it alone, if it did.
    """

    model: str
    classes: tuple[str, ...]
    function: str
    operator: str
    refusal: str | None


class Report(NamedTuple):
    """What ``report`` found; its text is a line for each function."""

    enabled: bool
    version: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        if not self.enabled:
            return f"transformers {self.version}: convscan is off; enable() turns it on"
        lines = [f"transformers {self.version}: convscan serves on the CPU"]
        if not self.rows:
            lines.append("  nothing yet: no model file with functions that convscan knows has been loaded")
        for row in self.rows:
            by = f"by {row.operator}" if row.refusal is None else f"not served: {row.refusal}"
            lines.append(f"  {row.model}: {row.function} of {', '.join(row.classes) or 'no class'}, {by}")
        return "\n".join(lines)


class _Finder(MetaPathFinder):
    """Finds model files where Python would find them, and has ``loaded`` called with each."""

    def __init__(self, loaded: Callable[[types.ModuleType], None]) -> None:
        self._loaded = loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if not is_model_file(fullname):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._loaded)
        return spec


class _Loader(Loader):
    """Loads a module as another loader does, and gives that one back its place."""

    def __init__(self, loader: Any, loaded: Callable[[types.ModuleType], None]) -> None:
        self._loader, self._loaded = loader, loaded

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._loaded(module)


_lock = threading.RLock()
_switch: Switch | None = None


class Enabled:
    """What ``enable`` returns; at the end of a with block convscan is as it was before."""

    def __init__(self, was_on: bool) -> None:
        self._was_on = was_on

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if not self._was_on:
            disable()

    def __str__(self) -> str:
        return str(report())

    __repr__ = __str__


def version() -> str:
    """That of the transformers that is installed, without importing it."""
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        remedy = "Install it with: pip install transformers"
        raise ImportError(
            message("integrations.transformers", "transformers must be installed", "none", remedy)
        ) from None


def enable() -> Enabled:
    """Has Hugging Face's models compute their convolutions, scans and linear attention by convscan, on the CPU.

    Models that are loaded already are served as well as those to come; nothing of a model changes but the speed. Where
    ``transformers`` has a PyTorch function for what causal_conv1d, mamba_ssm and fla would compute, convscan's takes
    its place in the model file; the recurrence of RecurrentGemma, the memory of xLSTM and the gated convolutions of LFM
    are methods, which are replaced in their classes. All else, and tensors elsewhere than on the CPU, go on as before.

    Returns:
        An object that turns convscan off again at the end of a with block, unless it was on before.

    Raises:
        ImportError: transformers is not installed. Of a version that convscan was not tested with, a warning says so;
        functions whose parameters are not the known ones are left alone, and ``report`` lists them.

    >>> from convscan.integrations import transformers as integration
    >>> with integration.enable():  # doctest: +SKIP
    ...     model.generate(**inputs)
    """
    global _switch
    found = version()
    with _lock:
        was_on = _switch is not None
        if not was_on:
            _warn(found)
            _switch = Switch()
            _switch.on()
    return Enabled(was_on)


def _warn(found: str) -> None:
    oldest, newest = TESTED
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if len(release) < 2 or not oldest <= release <= newest:
        tested = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
        text = message(
            "convscan.integrations.transformers.enable",
            f"tested with transformers {tested}",
            found,
            "Only functions whose parameters are the known ones are served; report() lists them",
        )
        warnings.warn(text, stacklevel=3)


def disable() -> None:
    """Puts back everything that ``enable`` replaced; does nothing where convscan is off."""
    global _switch
    with _lock:
        if _switch is not None:
            _switch.off()
            _switch = None


def report() -> Report:
    """Which functions of which classes of loaded model files convscan serves, and which not, with the reason.

    >>> from convscan.integrations import transformers as integration
    >>> print(integration.report())  # doctest: +ELLIPSIS
    transformers ...: convscan is off; enable() turns it on
    """
    with _lock:
        rows = () if _switch is None else tuple(_switch.rows())
        return Report(_switch is not None, version(), rows)
