"""Arguments of selective_scan and its companions: shapes and dtypes checked, and the problem that they make."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._errors import message
from ..._layout import dtype_name, fold
from ..._targets import processor
from .problem import Projection, SelectiveProblem

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ANY = (*REAL, torch.complex64, torch.complex128)
# The arguments of every operator that is registered with PyTorch, and those of whole sequences.
ONE_STEP = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
SEQUENCES = f"{ONE_STEP}, Tensor? initial_state, Tensor? cu_seqlens"


class Arguments(NamedTuple):
    """The tensors of a call, converted to the dtypes that kernels take, in the order in which they take them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None = None

    def canonical(self) -> Arguments:
        """B and C with their axis of groups, as the operator registered with PyTorch takes them."""
        return self._replace(B=grouped(self.B, self.u), C=grouped(self.C, self.u))

    def during(self, steps: slice) -> Arguments:
        """Some steps of canonical arguments."""

        def signal(tensor: Tensor) -> Tensor:
            return tensor[..., steps, :]

        def projection(tensor: Tensor) -> Tensor:
            return tensor if tensor.ndim == 2 else tensor[..., steps, :, :]

        return self._replace(
            u=signal(self.u),
            delta=signal(self.delta),
            B=projection(self.B),
            C=projection(self.C),
            z=None if self.z is None else signal(self.z),
        )


def _is_constant(projection: Tensor, u: Tensor) -> bool:
    return projection.ndim == 2 and u.ndim != 2


def grouped(projection: Tensor, u: Tensor) -> Tensor:
    """(D, N), or (..., L, G, N)."""
    return projection.unsqueeze(-2) if projection.ndim == u.ndim and not _is_constant(projection, u) else projection


def one_step(tensor: Any) -> Any:
    """A row as a signal of one step; what is no row is left to the checks."""
    return tensor.unsqueeze(-2) if isinstance(tensor, Tensor) and tensor.ndim else tensor


def step_projection(projection: Tensor, u: Tensor) -> Tensor:
    """B or C of a step with an axis of one step: (D, N), (..., 1, N) or (..., 1, G, N)."""
    if not isinstance(projection, Tensor):
        return projection  # left to the checks
    if projection.ndim == u.ndim + 1:
        return projection.unsqueeze(-3)
    return projection.unsqueeze(-2) if projection.ndim == u.ndim else projection


def _check_projection(function: str, name: str, projection: Tensor, u: Tensor, states: int) -> int:
    """Checks B or C; returns the number of groups, 0 where it is constant."""
    channels = u.shape[-1]
    if _is_constant(projection, u):
        _checks.has_shape(function, name, projection, (channels, states), "(D, N)")
        return 0
    leads = tuple(u.shape[:-1])
    if projection.ndim == u.ndim:
        _checks.has_shape(function, name, projection, (*leads, states), "(..., L, N)")
        return 1
    if projection.ndim != u.ndim + 1:
        expectation = (
            f"{name} must have the shape (..., L, N) = {_checks.shape_text((*leads, states))}, or one axis more"
        )
        raise ValueError(message(function, expectation, _checks.shape_text(projection.shape)))
    groups = projection.shape[-2]
    _checks.has_shape(function, name, projection, (*leads, groups, states), "(..., L, G, N)")
    if groups == 0 or channels % groups != 0:
        expectation = f"{name} must have a number of groups that divides the channels, {channels}"
        raise ValueError(message(function, expectation, groups))
    return groups


def checked(
    function: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> Arguments:
    """Checks shapes, devices and dtypes, and converts to the dtypes that the operator takes."""
    _checks.signal(function, "u", u)
    named = {"delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    state_name = "state" if function == "selective_scan_step" else "initial_state"
    named[state_name] = initial_state
    for name, tensor in named.items():
        if tensor is not None or name in ("delta", "A", "B", "C"):
            _checks.tensor_like(function, name, cast(Tensor, tensor), u)
    channels = u.shape[-1]
    for name in ("delta", "z"):
        signal = named[name]
        if signal is not None:
            _checks.has_shape(function, name, signal, u.shape, "of u")
    if A.ndim != 2 or A.shape[0] != channels:
        expectation = f"A must have the shape (D, N) with D = {channels}"
        raise ValueError(message(function, expectation, _checks.shape_text(A.shape)))
    states = A.shape[1]
    groups = [_check_projection(function, name, named[name], u, states) for name in ("B", "C")]  # type: ignore[arg-type]
    if 0 not in groups and groups[0] != groups[1]:
        expectation = f"C must have as many groups as B, {groups[0]}"
        raise ValueError(message(function, expectation, groups[1], "Expand the one with fewer"))
    for name in ("D", "delta_bias"):
        parameter = named[name]
        if parameter is not None:
            _checks.has_shape(function, name, parameter, (channels,), "(D,)")
    sequences = () if cu_seqlens is None else (_checks.packed(function, cu_seqlens, u),)
    if initial_state is not None:
        meaning = "(..., S, D, N)" if sequences else "(..., D, N)"
        expected = (*u.shape[:-2], *sequences, channels, states)
        _checks.has_shape(function, state_name, initial_state, expected, meaning)
    dtype = _checks.common_dtype(function, REAL, u=u, delta=delta, z=z)
    _checks.common_dtype(function, REAL, D=D, delta_bias=delta_bias, u=u)
    numbers = {"A": A, "B": B, "C": C, state_name: initial_state}
    allowed = ANY if A.is_complex() else REAL
    _checks.common_dtype(function, ANY, A=A)
    _checks.common_dtype(function, allowed, **numbers)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if any(tensor is not None and tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors):
        dtype = torch.float64
    real = compute_dtype(dtype)
    number = torch.promote_types(real, torch.complex64) if A.is_complex() else real

    def to(tensor: Tensor | None, wanted: torch.dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(wanted)

    return Arguments(
        u.to(dtype),
        delta.to(dtype),
        A.to(number),
        B.to(number),
        C.to(number),
        to(D, real),
        to(z, dtype),
        to(delta_bias, real),
        to(initial_state, number),
        cu_seqlens,
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem_of(
    arguments: Arguments,
    is_softplus: bool,
    final_state: Tensor | None,
    checkpoints: Tensor | None,
    y: Tensor,
    *,
    in_place: bool = False,
) -> SelectiveProblem:
    """The problem of these tensors. ``in_place``: the initial state is overwritten with the final one."""
    u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens = arguments.canonical()
    axes = u.ndim - 2
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, None, final_state, checkpoints, y)
    still = (0,) * axes
    moving = {0, 1, 6, 8, 10, 11, 12} | {at for at, tensor in ((3, B), (4, C)) if tensor.ndim > 2}
    leading = fold(
        u.shape[:-2],
        [tensor.stride()[:axes] if tensor is not None and at in moving else still for at, tensor in enumerate(tensors)],
        innermost=checkpoints is not None,  # whose batch entries kernels take to be neighbours
    )
    batch = leading.strides

    def triple(at: int) -> tuple[int, int, int] | None:
        tensor = tensors[at]
        return None if tensor is None else (batch[at], tensor.stride(-2), tensor.stride(-1))

    def states(at: int) -> tuple[int, int, int, int] | None:
        tensor, strides = tensors[at], triple(at)
        return None if tensor is None or strides is None else (*strides, 0 if cu_seqlens is None else tensor.stride(-3))

    def projection(at: int) -> Projection:
        tensor = cast(Tensor, tensors[at])
        if tensor.ndim == 2:
            return Projection((0, 0, *tensor.stride()), True)  # type: ignore[arg-type]
        return Projection((batch[at], tensor.stride(-3), tensor.stride(-2), tensor.stride(-1)), False)

    groups = [tensor.shape[-2] for tensor in (B, C) if tensor.ndim > 2]
    return SelectiveProblem(
        device=u.device.type,
        dtype=dtype_name(u.dtype),
        complex=A.is_complex(),
        softplus=is_softplus,
        batch=leading.batch,
        length=u.shape[-2],
        channels=u.shape[-1],
        states=A.shape[1],
        groups=groups[0] if groups else 1,
        sequences=None if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        u=cast("tuple[int, int, int]", triple(0)),
        delta=cast("tuple[int, int, int]", triple(1)),
        a=(A.stride(0), A.stride(1)),
        b=projection(3),
        c=projection(4),
        d=None if D is None else D.stride(0),
        z=triple(6),
        delta_bias=None if delta_bias is None else delta_bias.stride(0),
        initial_state=states(8),
        final_state=states(10),
        in_place=in_place,
        checkpoints=checkpoints is not None,
        y=cast("tuple[int, int, int]", triple(12)),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=processor(u.device),
    )
