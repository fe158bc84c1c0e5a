"""Where in transformers' model files convscan takes the place of something, and how these places are told apart.

A place is known by its name and by the names of its parameters: one whose parameters differ from those written down
here belongs to a version that convscan does not know, and is left alone.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import _functions, _methods, _older
from ._functions import Function


class Place(NamedTuple):
    """A function or method of model files: its maker, its parameters in order, and the operator that computes it."""

    make: Callable[[Function], Function]
    parameters: tuple[str, ...]
    operator: str


class Found(NamedTuple):
    """A place in a loaded model file: what holds it, its name there, and why it is not served, if it is not."""

    module: types.ModuleType
    holder: Any
    name: str
    place: Place
    refusal: str | None

    @property
    def original(self) -> Function:
        """What is there now."""
        return vars(self.holder)[self.name]  # type: ignore[no-any-return]

    def __str__(self) -> str:
        holder = "" if self.holder is self.module else f"{self.holder.__name__}."
        return f"{holder}{self.name}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SELECTIVE = _names("hidden_states dt A B C D z delta_bias delta_softplus return_last_state use_mambapy")
_STEP = _names("state hidden_states dt A B C D dt_bias dt_softplus z kwargs")
_RULE = _names("query key value g beta chunk_size initial_state output_final_state use_qk_l2norm_in_kernel kwargs")
_RULE_STEP = _names("query key value g beta initial_state output_final_state use_qk_l2norm_in_kernel kwargs")
_DUAL = _names(
    "hidden_states dt A B C chunk_size D dt_bias initial_states dt_softplus dt_limit return_final_states kwargs"
)

# Functions at the top of model files. When one is loaded, transformers looks for those of causal_conv1d, mamba_ssm and
# fla, and falls back on these.
FUNCTIONS = {
    "causal_conv1d_fn": Place(
        _functions.short_conv, _names("hidden_states weight bias activation kwargs"), "causal_conv"
    ),
    "causal_conv1d_update": Place(
        _functions.short_conv_step, _names("hidden_states conv_state weight bias activation"), "causal_conv"
    ),
    "mamba_selective_scan": Place(
        _functions.selective, (*_SELECTIVE, "use_associative_scan", "kwargs"), "selective_scan"
    ),
    "mamba_selective_state_update": Place(_functions.selective_step, _STEP, "selective_scan_step"),
    "mamba2_chunk_scan": Place(_functions.dual, _DUAL, "ssd_scan"),
    "mamba2_selective_state_update": Place(_functions.dual_step, _STEP, "ssd_scan_step"),
    "torch_chunk_gated_delta_rule": Place(_functions.delta_rule, _RULE, "gated_delta_rule"),
    "torch_recurrent_gated_delta_rule": Place(_functions.delta_rule_step, _RULE_STEP, "gated_delta_rule_step"),
    "chunk_kimi_delta_attention": Place(_functions.delta_rule, _RULE, "gated_delta_rule"),
    "recurrent_kimi_delta_attention": Place(_functions.delta_rule_step, _RULE_STEP, "gated_delta_rule_step"),
}

_GATED = _names("self hidden_states cache attention_mask kwargs")

# Methods of classes in model files, by the names of both.
METHODS = {
    ("RecurrentGemmaRglru", "_rnn_scan"): Place(
        _methods.rg_lru_scan,
        _names("self hidden_states recurrent_gate reset recurrent_states acc_dtype"),
        "linear_recurrence",
    ),
    ("RecurrentGemmaRglru", "forward"): Place(
        _methods.rg_lru, _names("self activations position_ids"), "linear_recurrence"
    ),
    ("xLSTMBackend", "forward"): Place(
        _methods.mlstm_backend,
        _names("self query key value igate fgate c_initial n_initial m_initial return_last_states mode"),
        "mlstm",
    ),
    ("Lfm2ShortConv", "forward"): Place(_methods.gated_short_conv, _GATED, "causal_conv"),
    ("Lfm2MoeShortConv", "forward"): Place(_methods.gated_short_conv, _GATED, "causal_conv"),
    ("Lfm3ShortConv", "forward"): Place(_methods.gated_short_conv, _GATED, "causal_conv"),
}


def is_model_file(name: str) -> bool:
    """Whether a module of this name is a model file of transformers."""
    return name.startswith("transformers.models.") and name.rpartition(".")[2].startswith("modeling_")


def places(module: types.ModuleType) -> Iterator[Found]:
    """All places of a loaded model file that convscan knows the name of."""
    keepers = list(_older.keepers(module))
    for name, place in FUNCTIONS.items():
        # Where layers keep their functions, it is no use to replace these.
        if callable(getattr(module, name, None)) and not keepers:
            yield Found(module, module, name, place, _refusal(vars(module)[name], place))
    for (holder, name), place in METHODS.items():
        cls = getattr(module, holder, None)
        if isinstance(cls, type) and name in vars(cls):
            yield Found(module, cls, name, place, _refusal(vars(cls)[name], place))
    for cls, name in _older.slow_ways(module):
        place = Place(functools.partial(_older.fast_way, module, cls), (), _older.operators(cls))
        yield Found(module, cls, name, place, _older.refusal(cls, name))
    for cls in keepers:
        place = Place(_older.with_functions, (), "gated_delta_rule")
        yield Found(module, cls, "forward", place, None)


def _refusal(function: Function, place: Place) -> str | None:
    """Why convscan does not take the place of this function, or None."""
    found = tuple(inspect.signature(function).parameters)
    if found == place.parameters:
        return None
    return f"its parameters ({', '.join(found)}) are not those that convscan knows"


def users(module: types.ModuleType, name: str) -> list[str]:
    """The classes of a model file whose methods call its function of this name."""
    return [
        cls.__name__
        for cls in vars(module).values()
        if isinstance(cls, type)
        and cls.__module__ == module.__name__
        and any(name in code.co_names for method in vars(cls).values() for code in _codes(method))
    ]


def _codes(method: Any) -> Iterator[types.CodeType]:
    """The code of a method, behind its decorators."""
    if isinstance(method, types.FunctionType):
        yield inspect.unwrap(method).__code__
