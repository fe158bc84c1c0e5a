"""One registration of an operator with PyTorch: kernel, shape rule, derivative and vmap rule.

``torch.library.custom_op`` offers no forward-mode derivative and costs some 15 µs a call. Registering with the
dispatcher costs about 2 µs and has everything: the derivative is a ``torch.autograd.Function`` run from the operator's
Autograd kernel, so that compilation, export and every function transform see one opaque operator.
"""

# mypy: disable-error-code="no-untyped-call"
# The registration functions of torch.library have no annotations.
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from . import _native
from ._dispatch import settings_variable
from ._errors import message

NAMESPACE = "convscan"
_TYPICAL_SIZE = 16
_library = torch.library.Library(NAMESPACE, "DEF")

# Operators that are composed of others, by name, and of what.
composites: dict[str, Callable[..., Any]] = {}

# Steps, by name: what they compute in PyTorch's operations, overwriting the states.
steps: dict[str, Callable[..., torch.Tensor]] = {}


@contextmanager
def below_autograd() -> Iterator[None]:
    """Calls inside go to the kernels, past the Autograd kernels of the same level.

    ``autograd.Function.forward`` runs with gradients off. They are turned on again for the sake of nested function
    transforms, whose outer levels record their own derivative of the same call.
    """
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def derivative(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The Autograd kernel of an operator whose derivative ``function`` has.

    ``function.forward`` must call the operator inside ``below_autograd()``; ``setup_context``, ``backward`` and ``jvp``
    must be built of differentiable operators, which makes higher derivatives come by themselves.
    """

    def kernel(*args: Any) -> Any:
        # Function.apply would hand the call to functorch, which is already running this very level: the dispatcher
        # calls the Autograd kernel once per level of grad and jvp. The C++ implementation records one level.
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]

    return kernel


def define(
    schema: str,
    kernel: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    autograd: Callable[..., Any],
    vmap: Callable[..., Any],
) -> Any:
    """Registers ``convscan::<schema>`` and returns the operator."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", vmap, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def define_composite(schema: str, function: Callable[..., Any]) -> Any:
    """Registers ``convscan::<schema>``, composed of other operators, and returns the operator.

    Compilation and export record what ``function`` calls, without tracing how it came to call it.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, function, "CompositeImplicitAutograd")
    composites[name] = function
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def leading_axis(tensor: Any, axis: int | None, size: int) -> Any:
    """In a vmap rule, an argument with the mapped axis in front; what is no tensor as it is."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def one_by_one(
    operator: Callable[..., tuple[torch.Tensor, ...]],
    size: int,
    axes: tuple[int | None, ...],
    arguments: tuple[Any, ...],
    out_axes: tuple[int | None, ...],
) -> tuple[torch.Tensor, ...]:
    """In a vmap rule, the mapped calls one after the other: what boundaries that differ between them come to."""
    # Of an argument that is a list there is a list of axes.
    calls = (
        tuple(
            each.select(axis, i) if isinstance(axis, int) else each for each, axis in zip(arguments, axes, strict=True)
        )
        for i in range(size)
    )
    results = zip(*(operator(*call) for call in calls), strict=True)
    return tuple(each[0] if axis is None else torch.stack(each) for each, axis in zip(results, out_axes, strict=True))


def with_leading_axis(
    operator: Callable[..., tuple[torch.Tensor, ...]],
    size: int,
    axes: tuple[int | None, ...],
    arguments: tuple[Any, ...],
    out_axes: tuple[int | None, ...],
    boundaries: int,
) -> tuple[torch.Tensor, ...]:
    """The vmap rule of an operator that takes any leading axes: one more, of all tensors but the boundaries of packed
    sequences, the argument ``boundaries``."""
    if axes[boundaries] is not None:
        return one_by_one(operator, size, axes, arguments, out_axes)
    pairs = enumerate(zip(arguments, axes, strict=True))
    return operator(*(each if at == boundaries else leading_axis(each, axis, size) for at, (each, axis) in pairs))


def define_step(
    schema: str,
    kernel: Callable[..., torch.Tensor],
    *,
    composed: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]],
    states: tuple[int, ...],
) -> Any:
    """Registers ``convscan::<schema>``, a step of generation, and returns the operator.

    A step returns a tensor like its first argument and overwrites those at ``states``, of which it has no gradient.
    ``composed`` returns the same and the next states, in PyTorch's operations.
    """
    name = schema.partition("(")[0]

    def autograd(*args: Any) -> torch.Tensor:
        refuse_gradient(name, *(arg for arg in args if isinstance(arg, torch.Tensor)))
        with below_autograd():
            return operator(*args)  # type: ignore[no-any-return]

    def vmap(info: Any, axes: tuple[int | None, ...], *args: Any) -> tuple[torch.Tensor, int]:
        if any(axes[at] is None for at in states):
            raise ValueError(message(name, "a state must be mapped over like what it takes in", "one for all"))
        (y,) = one_by_one(lambda *row: (step(*row),), info.batch_size, axes, args, (0,))
        return y, 0

    def step(*args: Any) -> torch.Tensor:
        y, after = composed(*args)
        for at, state in zip(states, after, strict=True):
            args[at].copy_(state)
        return y

    operator = define(schema, kernel, fake=lambda x, *args: torch.empty_like(x), autograd=autograd, vmap=vmap)
    steps[name] = step
    return operator


def refuse_gradient(name: str, *tensors: torch.Tensor | None) -> None:
    """Raises where a step would have to be differentiated."""
    if needs_gradient(*tensors):
        expectation = "a step overwrites its state, which cannot be differentiated"
        remedy = "Call it under torch.no_grad(), or the whole-sequence operator with one step"
        raise RuntimeError(message(name, expectation, "a tensor that requires grad", remedy))


def likely_size(size: int | torch.SymInt) -> int:
    """A size, or the one that export saw of a size that may change: enough to choose by, where any choice works."""
    if isinstance(size, int):
        return size
    hint: int | None = size.node.hint
    return _TYPICAL_SIZE if hint is None else hint


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors has to be recorded for backward."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Inside an Autograd kernel: whether this level differentiates the call, in either mode."""
    return needs_gradient(*tensors) or has_tangent(*tensors)


def has_tangent(*tensors: torch.Tensor | None) -> bool:
    """Inside an Autograd kernel: whether this level differentiates the call in forward mode."""
    return any(tensor is not None and forward_ad.unpack_dual(tensor, level=0).tangent is not None for tensor in tensors)


def use_exchange_table(table: object) -> None:
    """Tells the native module what it has to know of PyTorch to run a call past the dispatcher.

    ``table`` is DLPack's table of functions, by which PyTorch 2.10 and later describe a tensor to C; with None the
    module asks for attributes, which takes longer.
    """
    _native.use_torch(
        tensor=torch.Tensor,
        parameter=torch.nn.Parameter,
        watchers=(
            torch._C._are_functorch_transforms_active,
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._is_tracing,
        ),
        is_grad_enabled=torch.is_grad_enabled,
        forward_ad=forward_ad,
        settings=settings_variable,
        exchange=table,
    )


use_exchange_table(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))

# Is replaced by True where Dynamo traces, which cannot look into native functions.
is_traced = torch.compiler.is_dynamo_compiling


def is_watched() -> bool:
    """Whether compilation, export, a function transform or a mode of PyTorch sees the calls that are being made."""
    watchers = (torch._C._are_functorch_transforms_active, torch._C._len_torch_dispatch_stack, torch._C._is_tracing)
    return is_traced() or any(watcher() for watcher in watchers)


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing watches a call (no compilation, tracing, transform, mode, forward-mode level or gradient) and all
    its tensors are ordinary ones on the CPU, whose memory has their values."""
    return not is_traced() and _native.is_plain(*tensors)
