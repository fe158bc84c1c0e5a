"""From a PyTorch model to an ONNX model."""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import torch

from ..._errors import message
from ..._library import NAMESPACE, composites, steps
from ._lowerings import LOWERINGS, cummax, selective_scan_step


def lower(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program with PyTorch's own operators in the place of convscan's, which exporters and runtimes know.

    Short convolutions are ``conv1d``, recurrences ``torch.ops.higher_order.scan``. All else stays as it is.

    Raises:
        ValueError: an operator that has no such form: packed sequences, complex numbers, kernels of state-space layers.

    >>> import torch, convscan
    >>> class Model(torch.nn.Module):
    ...     def forward(self, x, h):
    ...         return convscan.causal_conv(x, h)
    >>> program = torch.export.export(Model(), (torch.randn(2, 9, 4), torch.randn(3, 4)))
    >>> lowered = convscan.integrations.onnx.lower(program)
    >>> [str(node.target) for node in lowered.graph.nodes if "conv" in str(node.target)]
    ['aten.conv1d.default']
    """
    operators = getattr(torch.ops, NAMESPACE)
    table = {getattr(operators, name).default: function for name, function in {**composites, **LOWERINGS}.items()}
    table[torch.ops.aten.cummax.default] = cummax
    program = _with_steps_composed(program)
    # The first pass takes operators apart that are composed of others.
    for _ in range(2):
        program = program.run_decompositions(table)
    return program


def _with_steps_composed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with functions in the place of operators that overwrite states, which decompositions pass over."""
    functions = {**steps, "selective_scan_step": selective_scan_step}
    overwriting = {getattr(getattr(torch.ops, NAMESPACE), name).default: step for name, step in functions.items()}
    if not any(node.target in overwriting for node in program.graph.nodes):
        return program
    program = copy.deepcopy(program)
    for node in program.graph.nodes:
        node.target = overwriting.get(node.target, node.target)
    program.graph_module.recompile()
    return program


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset_version: int = 20,
    **options: Any,
) -> Any:
    """Exports a model whose layers are convscan's operators to ONNX: convolutions as Conv, recurrences as Scan.

    The model runs wherever ONNX does, without convscan. A Scan carries one state and takes one step at a time, which is
    the operator's definition, not its speed.

    Args:
        model: what to export; in evaluation, unless its training is wanted.
        args, kwargs: example inputs.
        path: where to save it; None for not.
        dynamic_shapes: as for ``torch.export.export``: which sizes may change.
        opset_version: of ONNX.
        options: passed to ``torch.onnx.export``, such as ``input_names``.

    Returns:
        A ``torch.onnx.ONNXProgram``.

    Raises:
        ImportError: onnx or onnxscript are not installed.
        ValueError: an operator that has no form in ONNX, as ``lower``.

    >>> convscan.integrations.onnx.export(model, (x,), "model.onnx")  # doctest: +SKIP
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "Install them with: pip install 'convscan[onnx]'"
        raise ImportError(message("integrations.onnx.export", "onnx and onnxscript must be installed", "none", remedy))
    with torch.no_grad():
        program = lower(torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False))
        found = torch.onnx.export(program, dynamo=True, opset_version=opset_version, verbose=False, **options)
    assert found is not None
    if path is not None:
        found.save(path)
    return found
