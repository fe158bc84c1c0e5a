"""Model files of transformers before 5.15.

There a class has two ways, one for CUDA by functions of causal_conv1d and mamba_ssm, and a slow one for all else. The
one for CUDA, with convscan's functions behind its names, takes the place of the slow one: the model file's own code
with other globals, so that nothing changes for tensors that are on a GPU. Layers with a delta rule keep the functions
that they use as attributes, which are others while ``forward`` runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from ...compat.fla import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from ...compat.mamba_ssm import mamba_chunk_scan_combined, selective_scan_fn, selective_state_update
from ._functions import SILU, Function, delta_rule, delta_rule_step, is_served

_FAST, _SLOW = "cuda_kernels_forward", ("slow_forward", "torch_forward")
_RULE, _STEP = "chunk_gated_delta_rule", "recurrent_gated_delta_rule"

# The names by which model files know the functions of other packages, and what computes them.
_NAMES: dict[str, Any] = {
    # Some enter the CUDA device of their tensors.
    "torch": types.SimpleNamespace(**{**vars(torch), "cuda": types.SimpleNamespace(device=contextlib.nullcontext)}),
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "selective_scan_fn": selective_scan_fn,
    "selective_state_update": selective_state_update,
    "_lazy_load_causal_conv1d": lambda: (causal_conv1d_update, causal_conv1d_fn),
}
_OPERATORS = {
    "causal_conv1d_fn": "causal_conv",
    "mamba_chunk_scan_combined": "ssd_scan",
    "selective_scan_fn": "selective_scan",
}
# By the names and in the order of the functions of model files.
_KEPT = {_RULE: delta_rule(chunk_gated_delta_rule), _STEP: delta_rule_step(fused_recurrent_gated_delta_rule)}


def slow_ways(module: types.ModuleType) -> Iterator[tuple[type, str]]:
    """The classes of a model file that have two ways, with the name of the slow one."""
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__ and _FAST in vars(cls):
            yield from ((cls, name) for name in _SLOW if name in vars(cls))


def keepers(module: types.ModuleType) -> Iterator[type]:
    """The classes of a model file that keep the functions of a delta rule as attributes."""
    for cls in vars(module).values():
        own = isinstance(cls, type) and cls.__module__ == module.__name__
        if own and {"__init__", "forward"} <= vars(cls).keys() and {_RULE, _STEP} <= set(_names(cls, "__init__")):
            yield cls


def operators(cls: type) -> str:
    """What the fast way of a class is computed by."""
    names = _names(cls, _FAST)
    return ", ".join(operator for name, operator in _OPERATORS.items() if name in names or "_lazy_load" in name)


def refusal(cls: type, slow: str) -> str | None:
    """Why the fast way of a class cannot take the place of the slow one, or None. It may take more, behind the rest."""
    fast, other = (_parameters(vars(cls)[name])[2:] for name in (_FAST, slow))
    if fast[: len(other)] != other:
        return f"the parameters of {_FAST} and {slow} differ"
    if "time_step_min" in _names(cls, slow):
        return f"{_FAST} and {slow} clamp the step differently"
    return None


def _names(cls: type, method: str) -> tuple[str, ...]:
    """The names that the code of a method uses, attributes included."""
    return inspect.unwrap(vars(cls)[method]).__code__.co_names  # type: ignore[no-any-return]


def _parameters(function: Function) -> list[str]:
    return list(inspect.signature(inspect.unwrap(function)).parameters)


def fast_way(module: types.ModuleType, cls: type, original: Function) -> Function:
    """What takes the place of ``original``, the slow way of a class."""
    fast = inspect.unwrap(vars(cls)[_FAST])
    kernels = types.FunctionType(fast.__code__, {**vars(module), **_NAMES}, fast.__name__, fast.__defaults__)
    names = _parameters(original)[2:]

    @functools.wraps(original)
    def replacement(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        cache = given.get("cache_params", given.get("past_key_values"))
        differentiated = cache is not None and torch.is_grad_enabled()
        served = is_served(hidden_states) and getattr(self, "activation", None) in SILU and not differentiated
        if not served or _goes_on(self, cache, hidden_states, given):
            return original(self, hidden_states, *args, **kwargs)
        # In training the fast way is one function of mamba_ssm, which does not know what is padding.
        training, self.training = self.training, False
        try:
            return kernels(self, hidden_states, *args, **kwargs)
        finally:
            self.training = training

    return replacement


def _goes_on(layer: Any, cache: Any, hidden_states: Tensor, given: dict[str, Any]) -> bool:
    """Whether more than one token follows those in the cache, which the fast way was not made for."""
    if cache is None or hidden_states.shape[1] == 1:
        return False
    position = given.get("cache_position")
    if position is not None:
        return bool(position[0] > 0)
    previous = getattr(cache, "has_previous_state", False)
    return bool(previous(layer.layer_idx) if callable(previous) else previous)


def with_functions(original: Function) -> Function:
    """What takes the place of ``original``, the forward of a class that keeps its functions."""

    @functools.wraps(original)
    def replacement(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_served(hidden_states):
            return original(self, hidden_states, *args, **kwargs)
        ours = dict(_KEPT)
        if getattr(self, "activation", None) in SILU:
            ours["causal_conv1d_fn"] = causal_conv1d_fn
            if not torch.is_grad_enabled():
                ours["causal_conv1d_update"] = causal_conv1d_update
        attributes = vars(self)
        before = {name: attributes[name] for name in ours if name in attributes}
        attributes.update({name: ours[name] for name in before})
        try:
            return original(self, hidden_states, *args, **kwargs)
        finally:
            attributes.update(before)

    return replacement
