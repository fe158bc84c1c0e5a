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

NAMESPACE = "convscan"
PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})
_library = torch.library.Library(NAMESPACE, "DEF")


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
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors has to be recorded for backward."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_recorded(*tensors: torch.Tensor | None) -> bool:
    """Inside an Autograd kernel: whether this level differentiates the call, in either mode."""
    return needs_gradient(*tensors) or any(
        tensor is not None and forward_ad.unpack_dual(tensor, level=0).tangent is not None for tensor in tensors
    )


# Looked up once: is_plain is a good part of what a call on a tiny input costs.
_is_compiling = torch.compiler.is_compiling
_is_transformed = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state
_grad_is_enabled = torch.is_grad_enabled


def is_plain(first: torch.Tensor, second: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether nothing watches a call: no compilation, tracing, transform, mode, forward-mode level or gradient.

    Also false for whatever is not an ordinary tensor.
    """
    if _is_compiling() or type(first) not in PLAIN_TYPES or type(second) not in PLAIN_TYPES:
        return False
    if _grad_is_enabled():
        if first.requires_grad or second.requires_grad:
            return False
        for tensor in others:
            if tensor is not None and (not isinstance(tensor, torch.Tensor) or tensor.requires_grad):
                return False
    return not (
        forward_ad._current_level >= 0
        or _is_transformed()
        or _dispatch_modes()
        or _function_modes()
        or _tracing_state() is not None
    )
