"""From a PyTorch model to a program of ExecuTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...nn._kept import KeptFilters, constant_filters
from ._errors import ExecuTorchError, require_executorch


@contextmanager
def _evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation, and back to what each module was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _unchanged_buffers(model: torch.nn.Module) -> Iterator[None]:
    """A call inside leaves the states of the model as they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            if not torch.equal(buffer, values):
                buffer.copy_(values)


def _largest(inputs: tuple[Any, ...], dynamic_shapes: Any) -> tuple[Any, ...]:
    """Inputs as large as the program's may become, for what depends on the length alone."""
    if dynamic_shapes is None:
        return inputs
    each = list(dynamic_shapes.values()) if isinstance(dynamic_shapes, Mapping) else list(dynamic_shapes)
    return tuple(_enlarged(one, shape) for one, shape in zip(inputs, each, strict=False))


def _enlarged(tensor: Any, shape: Any) -> Any:
    if not isinstance(tensor, Tensor) or not shape:
        return tensor
    axes = shape.items() if isinstance(shape, Mapping) else enumerate(shape)
    sizes = list(tensor.shape)
    for axis, size in axes:
        most = getattr(size, "max", None)
        if isinstance(most, int):
            sizes[axis] = most
    return tensor if sizes == list(tensor.shape) else tensor.new_zeros(sizes)


@dataclass(frozen=True)
class Exported:
    """What was written.

    ``operators`` are the calls of convscan's operators, in order; ``delegates`` how many parts XNNPACK took, ``others``
    the operators that neither has. ``planned_bytes`` is the memory that the program plans for its inputs, outputs and
    what lies between; the operators' scratch memory comes to it (``convscan.workspace_memory()``). ``record``, beside
    the program, is what executorch.devtools.Inspector wants as ``etrecord``.
    """

    path: Path
    record: Path
    operators: tuple[str, ...]
    delegates: int
    others: tuple[str, ...]
    planned_bytes: int


def export(
    model: torch.nn.Module,
    example_inputs: Sequence[Any],
    path: str | Path,
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | list[Any] | None = None,
) -> Exported:
    """Writes a program that computes what ``model(*example_inputs)`` does in evaluation, with convscan's operators.

    Each call of an operator is one call in the program, with the transposes and slices around it folded in:
    ``causal_conv`` and ``convolve`` of any number of taps, ``linear_recurrence``, and the layers of ``convscan.nn``
    made of them. XNNPACK takes what it can of the rest. Filters of state-space layers, and all else that depends on
    parameters alone, are computed now and stored as constants.

    Args:
        model: run as in ``eval()``; it is not changed.
        example_inputs: what ``model`` is called with. Shapes and dtypes are kept, values are not.
        path: of the program (``.pte``); the Inspector's record is written beside it (``.etrecord``).
        dynamic_shapes: as of ``torch.export.export``, with a ``max`` for every dimension: memory is planned for that.

    Returns:
        what was written, see ``Exported``.

    Buffers that the model writes in place (``self.state.copy_(...)``) are states of the program.

    Raises:
        ExecuTorchError: ExecuTorch is not installed; a number of channels that may vary; operators without kernels.
        whatever ``torch.export.export`` raises.

    >>> import torch, convscan
    >>> from convscan.integrations import executorch
    >>> layer = convscan.nn.ShortConv(64)
    >>> written = executorch.export(layer, (torch.randn(1, 128, 64),), "short_conv.pte")     # doctest: +SKIP
    >>> written.operators                                                                    # doctest: +SKIP
    ('causal_conv',)
    """
    require_executorch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        from . import _lowering

        inputs = tuple(example_inputs)
        with _evaluation(model), torch.no_grad(), constant_filters():
            if any(isinstance(vars(module).get("_kept"), KeptFilters) for module in model.modules()):
                with _unchanged_buffers(model):
                    model(*_largest(inputs, dynamic_shapes))
            exported = torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            # First functional: only then is it known which buffers are written, and are no constants.
            exported = constant_prop_pass(exported.run_decompositions({}))
        for name, constant in exported.constants.items():
            if isinstance(constant, torch.nn.Parameter):  # of `to` the same type, which constants may not be
                exported.constants[name] = constant.detach()
        try:
            lowered = to_edge_transform_and_lower(
                exported,
                transform_passes=[_lowering.FoldViews()],
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                generate_etrecord=True,
            )
        except Exception as error:  # what a pass raises comes wrapped
            if isinstance(error.__cause__, ExecuTorchError):
                raise error.__cause__ from None
            raise
        program = lowered.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True))
    path = Path(path)
    record = path.with_suffix(".etrecord")
    path.write_bytes(program.buffer)
    program.get_etrecord().save(str(record))
    graph = lowered.exported_program().graph_module
    plan = program.executorch_program.execution_plan[0]
    return Exported(
        path=path,
        record=record,
        operators=tuple(_lowering.operator_names(graph)),
        delegates=len(plan.delegates),
        others=tuple(
            sorted({f"{op.name}.{op.overload}" for op in plan.operators if not op.name.startswith("convscan")})
        ),
        planned_bytes=sum(plan.non_const_buffer_sizes),
    )
