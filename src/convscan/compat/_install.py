"""Registers the stand-ins under the names of the libraries that they stand for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from .._errors import message
from . import accelerated_scan, causal_conv1d, fla, flashfftconv, mamba_ssm, torchlpc

Names = Mapping[str, Mapping[str, Any]]

_conv1d = {
    "causal_conv1d_fn": causal_conv1d.causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d.causal_conv1d_update,
}
_varlen = {"causal_conv1d_varlen_states": causal_conv1d.causal_conv1d_varlen_states}
_conv1d_interface = {**_conv1d, "causal_conv1d_update_ref": causal_conv1d.causal_conv1d_update}
_scan, _scan_later = {"scan": accelerated_scan.scan}, {"scan": accelerated_scan.scan_by_later_names}
_long, _depthwise = (
    {"FlashFFTConv": flashfftconv.FlashFFTConv},
    {"FlashDepthWiseConv1d": flashfftconv.FlashDepthWiseConv1d},
)

_mamba = {"mamba_inner_fn": mamba_ssm.mamba_inner_fn, "selective_scan_fn": mamba_ssm.selective_scan_fn}
# Reference functions of the originals, which programs call where there is no GPU: the same arguments and results.
_mamba_interface = {
    **_mamba,
    "mamba_inner_ref": mamba_ssm.mamba_inner_fn,
    "selective_scan_ref": mamba_ssm.selective_scan_fn,
}
_update = {
    "selective_state_update": mamba_ssm.selective_state_update,
    "selective_state_update_ref": mamba_ssm.selective_state_update,
}
_dual = {
    "mamba_chunk_scan_combined": mamba_ssm.mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": mamba_ssm.mamba_split_conv1d_scan_combined,
}

# The modules below fla.ops, and how the names of the functions in them end.
_fla_modules = {
    "delta_rule": ("_delta_rule",),
    "gated_delta_rule": ("_gated_delta_rule", "_gdn"),
    "gla": ("_gla",),
    "hgrn": ("_hgrn",),
    "kda": ("_kda",),
    "lightning_attn": ("_lightning_attn",),
    "linear_attn": ("_linear_attn",),
    "retention": ("_retention",),
    "simple_gla": ("_simple_gla",),
}
_fla = {name: getattr(fla, name) for name in fla.__all__}


def _ending(endings: Iterable[str]) -> dict[str, Any]:
    """The functions of fla called chunk, fused_chunk or fused_recurrent with one of these endings."""
    beginnings = ("chunk", "fused_chunk", "fused_recurrent")
    names = {beginning + ending for beginning in beginnings for ending in endings}
    return {name: function for name, function in _fla.items() if name in names}


# Of each library the modules that programs import from, with what is found in them.
LIBRARIES: Mapping[str, Names] = {
    "causal_conv1d": {
        "": {**_conv1d, **_varlen},
        "causal_conv1d_interface": _conv1d_interface,
        "causal_conv1d_varlen": _varlen,
    },
    "accelerated_scan": {
        "": {},
        "warp": _scan,
        "triton": _scan,
        "ref": _scan,
        "scalar": _scan_later,
        "complex": _scan_later,
    },
    "flashfftconv": {"": {**_long, **_depthwise}, "conv": _long, "depthwise_1d": _depthwise},
    "mamba_ssm": {
        "": _mamba,
        "ops": {},
        "ops.selective_scan_interface": _mamba_interface,
        "ops.triton": {},
        "ops.triton.selective_state_update": _update,
        "ops.triton.ssd_combined": _dual,
    },
    "torchlpc": {"": {"sample_wise_lpc": torchlpc.sample_wise_lpc}},
    "fla": {
        "": {},
        "ops": _fla,
        **{f"ops.{module}": _ending(endings) for module, endings in _fla_modules.items()},
    },
}


class Installation:
    """What ``install`` registered; ``undo()``, or the end of a with block, takes it back.

    ``registered`` are the libraries that convscan stands in for, ``present`` those that were left as they are because
    they can be imported.
    """

    def __init__(self, registered: Mapping[str, Iterable[ModuleType]], present: tuple[str, ...]) -> None:
        self.registered, self.present = tuple(registered), present
        self._modules = [module for modules in registered.values() for module in modules]

    def undo(self) -> None:
        """Takes the modules out of ``sys.modules`` again; what has been imported from them stays as it is."""
        for module in self._modules:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
        self._modules = []

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        done = ", ".join(self.registered) or "none"
        left = ", ".join(self.present) or "none"
        return f"convscan stands in for: {done}; left alone, because installed: {left}"

    __repr__ = __str__


def install(*libraries: str) -> Installation:
    """Makes ``import causal_conv1d`` and its like find convscan's stand-ins, where the original is not installed.

    Call it before the program imports them. Nothing is registered under a name that can be imported already; nothing is
    patched.

    Args:
        libraries: which, by their import names; all that convscan stands in for if none is named.

    Returns:
        An ``Installation``, which says what was done and can undo it, also as a with block.

    Raises:
        ValueError: a library that convscan has no stand-in for.

    >>> import convscan
    >>> with convscan.compat.install("accelerated_scan") as done:
    ...     from accelerated_scan.warp import scan
    ...     print(done)
    convscan stands in for: accelerated_scan; left alone, because installed: none
    """
    unknown = [name for name in libraries if name not in LIBRARIES]
    if unknown:
        expectation = f"libraries must be among {', '.join(LIBRARIES)}"
        raise ValueError(message("install", expectation, ", ".join(unknown)))
    registered: dict[str, list[ModuleType]] = {}
    present = []
    for name in libraries or LIBRARIES:
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            present.append(name)
            continue
        registered[name] = _modules(name, LIBRARIES[name])
        sys.modules.update({module.__name__: module for module in registered[name]})
    return Installation(registered, tuple(present))


def _modules(library: str, names: Names) -> list[ModuleType]:
    """Packages before what is in them, each with a specification: programs ask for it to see what is installed."""
    modules: dict[str, ModuleType] = {}
    for inner, contents in names.items():
        name = f"{library}.{inner}" if inner else library
        is_package = not inner or any(other.startswith(f"{inner}.") for other in names)
        module = ModuleType(name, f"convscan.compat.{library} in the place of {name}.")
        module.__spec__ = ModuleSpec(name, None, origin="convscan.compat", is_package=is_package)
        module.__dict__.update(contents)
        if is_package:
            module.__path__ = []
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
        modules[name] = module
    return list(modules.values())
