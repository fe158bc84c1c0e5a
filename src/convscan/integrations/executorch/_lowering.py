"""A pass over the edge program: convscan's operators become those of a runtime, with the transposes and slices around
them folded in."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from executorch.exir.dialects._ops import ops as edge_ops
from executorch.exir.pass_base import ExportPass, PassResult
from torch.fx import GraphModule, Node

from . import _operators
from ._errors import ExecuTorchError
from ._operators import NAMESPACE


@dataclass
class _Seen:
    """A node as an operator reads it: its base, whether time is its last axis, and the first channel."""

    base: Node
    time_last: bool = False
    first: int = 0

    @property
    def view(self) -> list[int]:
        return [int(self.time_last), self.first]


def _name(node: Node) -> str:
    """``aten.permute_copy`` or ``convscan.causal_conv``; empty for what is no operator."""
    return str(getattr(node.target, "_name", "")).replace("::", ".").partition(".out")[0].removesuffix(".default")


def _copied(node: Node) -> Node | None:
    """What a node copies as it is."""
    if _name(node).startswith(("aten.alias_copy", "aten.clone", "dim_order_ops._clone_dim_order")):
        arguments: tuple[Any, ...] = node.args
        source: Node = arguments[0]
        return source if source.meta["val"].dtype == node.meta["val"].dtype else None
    return None


def _without_leading_axis(node: Node) -> Node | None:
    """What a node gives a first axis of size 1, or one behind such axes: to what broadcasts it is the same."""
    if not _name(node).startswith("aten.unsqueeze_copy"):
        return None
    arguments: tuple[Any, ...] = node.args
    shape = node.meta["val"].shape
    alone = all(isinstance(size, int) and size == 1 for size in shape[: arguments[1] % len(shape)])
    return arguments[0] if alone else None


def _swaps_last_axes(node: Node) -> bool:
    rank = node.meta["val"].ndim
    arguments: tuple[Any, ...] = node.args
    if _name(node).startswith("aten.permute_copy"):
        order = [axis % rank for axis in arguments[1]]
        return rank >= 2 and order == [*range(rank - 2), rank - 1, rank - 2]
    if _name(node).startswith("aten.transpose_copy"):
        return {axis % rank for axis in arguments[1:3]} == {rank - 1, rank - 2}
    return False


def _slice(node: Node) -> tuple[Node, int, int] | None:
    """Base, axis and first index of a slice of consecutive elements."""
    arguments: tuple[Any, ...] = node.args
    if _name(node).startswith("aten.slice_copy"):
        base, axis, start, _, step = arguments + (0, None, None, 1)[len(arguments) - 1 :]
        if step == 1 and isinstance(start, int | None) and (start or 0) >= 0:
            return base, axis % base.meta["val"].ndim, start or 0
    if node.target is operator.getitem:
        split, index = arguments
        if _name(split).startswith("aten.split_with_sizes_copy"):
            base, sizes, *rest = split.args
            axis, first = (rest[0] if rest else split.kwargs.get("dim", 0)), sum(sizes[:index])
            if isinstance(first, int):
                return base, axis % base.meta["val"].ndim, first
    return None


def _look_through(node: Node, slices: bool) -> _Seen:
    """Through swaps of the last two axes and, where allowed, slices of the channels, down to what is computed."""
    seen = _Seen(node)
    while (source := _copied(seen.base)) is not None or seen.base.meta["val"].ndim >= 2:
        if source is not None:
            seen.base = source
            continue
        if _swaps_last_axes(seen.base):
            seen.base, seen.time_last = seen.base.args[0], not seen.time_last  # type: ignore[assignment]
            continue
        cut = _slice(seen.base) if slices else None
        rank = seen.base.meta["val"].ndim
        if cut is None or cut[1] != rank - (2 if seen.time_last else 1):
            break
        seen.base, seen.first = cut[0], seen.first + cut[2]
    return seen


def _channels(node: Node) -> int:
    channels = node.meta["val"].shape[-1]
    if not isinstance(channels, int):
        raise ExecuTorchError(f"{_name(node)}: the number of channels must be fixed; only lengths and batches may vary")
    return channels


_BROADCAST = ("a", "pre_gate", "post_gate")


def _with_views(
    names: tuple[str, ...], arguments: dict[str, Any], sliced: tuple[str, ...], channels: int
) -> tuple[dict[str, Any], list[int]]:
    """The arguments with their bases in place of views, and the views of all but the output."""
    views = []
    for name in names[:-1]:
        node = arguments[name]
        while name in _BROADCAST and node is not None and (inner := _without_leading_axis(node)) is not None:
            node = inner
        # A single channel that repeats is not a slice of several.
        slices = name in sliced and isinstance(node, Node) and node.meta["val"].shape[-1] == channels
        seen = None if node is None else _look_through(node, slices)
        arguments[name] = None if seen is None else seen.base
        views += [0, 0] if seen is None else seen.view
    return arguments, views


def _conv(node: Node) -> tuple[dict[str, Any], list[int], int]:
    tensors = ("x", "h", "bias", "initial_state", "pre_gate", "post_gate", "cu_seqlens")
    options = ("activation", "origin", "transposed", "precision", "spectrum")
    arguments: dict[str, Any] = dict(zip((*tensors, *options), node.args, strict=True))
    if arguments.pop("spectrum") is not None:
        raise ExecuTorchError("causal_conv: kept spectra are not exported; give the filter itself")
    channels = _channels(arguments["x"])
    arguments, views = _with_views(_operators.CONV_VIEWS, arguments, ("x", "pre_gate", "post_gate"), channels)
    return arguments, views, channels


def _scan(node: Node) -> tuple[dict[str, Any], list[int], int]:
    names = ("x", "y_init", "a", "cu_seqlens", "reverse")
    arguments: dict[str, Any] = dict(zip(names, node.args, strict=True))
    channels = _channels(arguments["x"])
    arguments, views = _with_views(_operators.SCAN_VIEWS, arguments, ("x", "a"), channels)
    return arguments, views, channels


_RULES: dict[str, Callable[[Node], tuple[dict[str, Any], list[int], int]]] = {
    "convscan.causal_conv": _conv,
    "convscan.linear_recurrence": _scan,
}


class FoldViews(ExportPass):  # type: ignore[misc, unused-ignore]
    """Replaces convscan's operators by those that the runtime has."""

    def call(self, graph_module: GraphModule) -> PassResult:
        graph, changed = graph_module.graph, False
        for node in list(graph.nodes):
            rule = _RULES.get(_name(node))
            if node.op != "call_function" or rule is None:
                continue
            arguments, views, channels = rule(node)
            for name, given in arguments.items():
                while isinstance(given, Node) and (source := _copied(given)) is not None:
                    arguments[name] = given = source
            users = list(node.users)
            swapped = bool(users) and all(user.op == "call_function" and _swaps_last_axes(user) for user in users)
            arguments["views"], arguments["channels"] = [*views, int(swapped), 0], channels
            with graph.inserting_before(node):
                target = getattr(getattr(edge_ops.edge, NAMESPACE), _name(node).partition(".")[2]).default
                new = graph.call_function(target, tuple(arguments.values()))
            new.meta = {key: value for key, value in node.meta.items() if key != "val"}
            value = (users[0] if swapped else node).meta["val"]
            new.meta["val"] = value.new_empty(value.shape)
            for old in users if swapped else [node]:
                old.replace_all_uses_with(new)
            changed = True
        if changed:
            graph.eliminate_dead_code()
            graph_module.recompile()
        return PassResult(graph_module, changed)


def operator_names(graph_module: GraphModule) -> list[str]:
    """The calls of convscan's operators in a program, in order."""
    return [
        _name(node).removeprefix(f"{NAMESPACE}.")
        for node in graph_module.graph.nodes
        if node.op == "call_function" and _name(node).startswith((f"{NAMESPACE}.", "convscan."))
    ]
