"""selective_scan and its companions: signatures, checks, registration with PyTorch, derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ... import _checks, _native
from ..._calls import Calls, empty_like, in_huge_pages, run_prepared
from ..._dispatch import Cost, Implementation, choose, register
from ..._errors import message
from ..._layout import dtype_name, fold
from ..._library import below_autograd, define, derivative, is_plain, is_recorded, is_traced, needs_gradient
from ..linear_recurrence.api import linear_recurrence
from . import cpu, reference
from .problem import Projection, SelectiveGradientProblem, SelectiveProblem

REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ANY = (*REAL, torch.complex64, torch.complex128)

_calls = Calls("selective_scan")
_prepared = _calls.prepared


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor:
    """y[t] = sum_n C[t,n] h[t,n] with h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] B[t,n] u[t], in every channel.

    The selective scan of Mamba: a diagonal state-space model whose step size and projections depend on the input.
    dt is delta + delta_bias, or its softplus with ``delta_softplus``. With D, D u[t] is added to y[t]; with z the sum
    is then multiplied by silu(z[t]). For complex A, B and C, which stand for conjugate pairs, y[t] = 2 Re sum_n C h.

    Args:
        u: (..., L, D) with any number of leading axes, in any memory order: a (..., D, L) tensor seen through
            ``transpose(-1, -2)`` is not copied, and the result has the same order. L and every other size may be 0.
        delta: the shape of u.
        A: (D, N), real or complex.
        B, C: (..., L, N); or (..., L, G, N) for G groups of D / G neighbouring channels each, G the same in both; or
            constant in time, (D, N), where u has leading axes (without them a matrix is per step: use ``u[None]``).
            Complex only where A is.
        D: (D,), or None.
        z: the shape of u, or None.
        delta_bias: (D,), or None.
        delta_softplus: whether to apply softplus to the step sizes.
        initial_state: (..., D, N), leading axes as u, or None for zeros; complex where A is.

    Returns:
        y, with the shape and memory order of u. ``selective_scan_with_state`` returns the last state too, and
        ``selective_scan_step`` does a single step.

    dtypes: float32, float64, bfloat16 and float16 of u, delta and z, which are promoted to one another; that is the
    dtype of y. Half types are computed in float32. The other arguments are converted to the type computed in: pass
    parameters and states in float32. If any argument is in double precision, all are.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: one exponential and three multiply-adds for each step, channel and state; nothing of the size L D N is ever in
    memory. The gradient keeps the states of every 64th step and computes the others again. Derivatives of any order, in
    both modes; second and forward-mode ones do use memory for L D N numbers.

    Accuracy: exp(dt A) within 1 ulp; gates that underflow are exact zeros.

    Reference: A. Gu, T. Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, section 3.

    >>> import torch, convscan
    >>> one = torch.ones(3, 1)
    >>> A = torch.log(torch.tensor([[0.5]]))
    >>> y = convscan.selective_scan(torch.tensor([[1.0], [2.0], [3.0]]), one, A, one, one)
    >>> y.flatten().tolist()
    [1.0, 2.5, 4.25]
    """
    if not is_traced():
        y = run_prepared(
            _prepared, delta_softplus, u, delta, A, B, C, D, z, delta_bias, initial_state, None, None, None
        )
        if y is not None:
            return y
    name = "selective_scan"
    tensors = _checked(name, u, delta, A, B, C, D, z, delta_bias, initial_state)
    if is_plain(*tensors):
        y = empty_like(tensors.u)
        _run(tensors, bool(delta_softplus), None, None, y)
        return y
    return cast(Tensor, _operator(*tensors.canonical(), bool(delta_softplus))[0])


def selective_scan_with_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the state after the last step, h[L-1].

    Arguments, dtypes, errors and cost are those of ``selective_scan``. The state, (..., D, N), is in the type computed
    in: given as ``initial_state`` of the next part of a sequence, it continues it exactly. Gradients pass through it.

    Reference: A. Gu, T. Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023.

    >>> import torch, convscan
    >>> one = torch.ones(3, 1)
    >>> y, state = convscan.selective_scan_with_state(one, one, torch.zeros(1, 1), one, one)
    >>> state.tolist()
    [[3.0]]
    """
    tensors = _checked("selective_scan_with_state", u, delta, A, B, C, D, z, delta_bias, initial_state)
    if is_plain(*tensors):
        y, final_state = empty_like(tensors.u), _empty_state(tensors.u, tensors.A)
        _run(tensors, bool(delta_softplus), final_state, None, y)
        return y, final_state
    y, final_state, _ = _operator(*tensors.canonical(), bool(delta_softplus))
    return y, final_state


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """y = sum_n C[n] h[n] after state := h, h[n] = exp(dt A[n]) state[n] + dt B[n] u: a step of ``selective_scan``.

    For generation: ``state`` is overwritten with the next state, in place.

    Args:
        state: (..., D, N), complex where A is. Any dtype; float32 loses nothing between steps of half types.
        u, delta, z: (..., D), as rows of those of ``selective_scan``.
        A, D, delta_bias: as in ``selective_scan``.
        B, C: (..., N); or (..., G, N) for G groups of channels, (D, N) without leading axes being the same as constant.

    Returns:
        y, (..., D).

    dtypes and errors are those of ``selective_scan``; a RuntimeError where a gradient would be needed.

    Cost: reads A and the state once and writes the state: D N exponentials, a few microseconds above that.

    Reference: A. Gu, T. Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, section 3.3.

    >>> import torch, convscan
    >>> state, one = torch.zeros(1, 1), torch.ones(1)
    >>> convscan.selective_scan_step(state, one, one, torch.zeros(1, 1), one, one).tolist()
    [1.0]
    >>> state.tolist()
    [[1.0]]
    """
    if not is_traced():
        y = run_prepared(_prepared, (delta_softplus,), u, delta, A, B, C, D, z, delta_bias, state, state, None, None)
        if y is not None:
            return y
    name = "selective_scan_step"
    if needs_gradient(state, u, delta, A, B, C, D, z, delta_bias):
        expectation = "the state cannot be overwritten where a gradient is needed"
        remedy = "Call under torch.no_grad(), or selective_scan_with_state"
        raise RuntimeError(message(name, expectation, "a tensor that requires grad", remedy))
    if not isinstance(u, Tensor) or u.ndim < 1:
        got = _checks.shape_text(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise (ValueError if isinstance(u, Tensor) else TypeError)(
            message(name, "u must be a torch.Tensor of the shape (..., D)", got)
        )
    _checks.tensor_like(name, "state", state, u)
    b, c = _step_projection(B, u), _step_projection(C, u)
    rows = _checked(name, _one_step(u), _one_step(delta), A, b, c, D, _one_step(z), delta_bias, state)
    given = (u, delta, A, B, C, D, z, delta_bias, state)
    if is_plain(*rows) and all(
        tensor is None or (row is not None and tensor.dtype == row.dtype)
        for tensor, row in zip(given, rows, strict=True)
    ):
        y = torch.empty_like(u)
        _calls.run(
            (delta_softplus,),
            *given,
            state,
            None,
            y,
            problem=lambda: _problem(rows, bool(delta_softplus), state, None, y.unsqueeze(-2)),
        )
        return y
    return cast(Tensor, _step(state, *rows.canonical()[:-1], bool(delta_softplus))).squeeze(-2)


# ---- checks ----


class _Arguments(NamedTuple):
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

    def canonical(self) -> _Arguments:
        """B and C with their axis of groups, as the operator registered with PyTorch takes them."""
        return self._replace(B=_grouped(self.B, self.u), C=_grouped(self.C, self.u))


def _is_constant(projection: Tensor, u: Tensor) -> bool:
    return projection.ndim == 2 and u.ndim != 2


def _grouped(projection: Tensor, u: Tensor) -> Tensor:
    """(D, N), or (..., L, G, N)."""
    return projection.unsqueeze(-2) if projection.ndim == u.ndim and not _is_constant(projection, u) else projection


def _one_step(tensor: Any) -> Any:
    """A row as a signal of one step; what is no row is left to the checks."""
    return tensor.unsqueeze(-2) if isinstance(tensor, Tensor) and tensor.ndim else tensor


def _step_projection(projection: Tensor, u: Tensor) -> Tensor:
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


def _checked(
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
) -> _Arguments:
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
    if initial_state is not None:
        _checks.has_shape(function, state_name, initial_state, (*u.shape[:-2], channels, states), "(..., D, N)")
    dtype = _checks.common_dtype(function, REAL, u=u, delta=delta, z=z)
    _checks.common_dtype(function, REAL, D=D, delta_bias=delta_bias, u=u)
    numbers = {"A": A, "B": B, "C": C, state_name: initial_state}
    allowed = ANY if A.is_complex() else REAL
    _checks.common_dtype(function, ANY, A=A)
    _checks.common_dtype(function, allowed, **numbers)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if any(tensor is not None and tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors):
        dtype = torch.float64
    real = _compute_dtype(dtype)
    number = torch.promote_types(real, torch.complex64) if A.is_complex() else real

    def to(tensor: Tensor | None, wanted: torch.dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(wanted)

    return _Arguments(
        u.to(dtype),
        delta.to(dtype),
        A.to(number),
        B.to(number),
        C.to(number),
        to(D, real),
        to(z, dtype),
        to(delta_bias, real),
        to(initial_state, number),
    )


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- problem and call ----


def _empty_state(u: Tensor, A: Tensor) -> Tensor:
    return torch.empty(*u.shape[:-2], *A.shape, dtype=A.dtype, device=u.device)


def _empty_checkpoints(u: Tensor, A: Tensor) -> Tensor:
    """The states before every tile: (..., tiles times parts of N numbers, D), real."""
    # The tile of the kernels is 64 steps. An axis of tiles by itself would make export think that it stays 1.
    rows = (u.shape[-2] + 63) // 64 * (2 if A.is_complex() else 1) * A.shape[1]
    return u.new_empty((*u.shape[:-2], rows, u.shape[-1]), dtype=_compute_dtype(u.dtype))


def _problem(
    arguments: _Arguments,
    is_softplus: bool,
    final_state: Tensor | None,
    checkpoints: Tensor | None,
    y: Tensor,
) -> SelectiveProblem:
    u, delta, A, B, C, D, z, delta_bias, initial_state = arguments.canonical()
    axes = u.ndim - 2
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, final_state, checkpoints, y)
    still = (0,) * axes
    moving = {0, 1, 6, 8, 9, 10, 11} | {at for at, tensor in ((3, B), (4, C)) if tensor.ndim > 2}
    leading = fold(
        u.shape[:-2],
        [tensor.stride()[:axes] if tensor is not None and at in moving else still for at, tensor in enumerate(tensors)],
    )
    batch = leading.strides

    def triple(at: int) -> tuple[int, int, int] | None:
        tensor = tensors[at]
        return None if tensor is None else (batch[at], tensor.stride(-2), tensor.stride(-1))

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
        u=cast("tuple[int, int, int]", triple(0)),
        delta=cast("tuple[int, int, int]", triple(1)),
        a=(A.stride(0), A.stride(1)),
        b=projection(3),
        c=projection(4),
        d=None if D is None else D.stride(0),
        z=triple(6),
        delta_bias=None if delta_bias is None else delta_bias.stride(0),
        initial_state=triple(8),
        final_state=triple(9),
        checkpoints=checkpoints is not None,
        y=cast("tuple[int, int, int]", triple(11)),
        offsets=leading.offsets,
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _describe(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> SelectiveProblem:
    """The problem of a call of ``selective_scan``, for ``explain``."""
    arguments = _checked("selective_scan", u, delta, A, B, C, D, z, delta_bias, initial_state)
    return _problem(arguments, bool(delta_softplus), None, None, torch.empty_like(arguments.u))


def _run(
    arguments: _Arguments, is_softplus: bool, final_state: Tensor | None, checkpoints: Tensor | None, y: Tensor
) -> None:
    _calls.run(
        is_softplus,
        *arguments,
        final_state,
        checkpoints,
        y,
        problem=lambda: _problem(arguments, is_softplus, final_state, checkpoints, y),
        strict=checkpoints is None,  # checkpoints are part of a gradient, which passes over what cannot keep them
    )


def _kernel(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, is_softplus = args
    arguments = _Arguments(*tensors)
    y, final_state, checkpoints = empty_like(arguments.u), *_empty_states(arguments)
    _run(arguments, is_softplus, final_state, checkpoints, y)
    return y, final_state, checkpoints


def _empty_states(arguments: _Arguments) -> tuple[Tensor, Tensor]:
    u, A = arguments.u, arguments.A
    return _empty_state(u, A), in_huge_pages(_empty_checkpoints(u, A))


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    arguments = _Arguments(*args[:-1])
    u, A = arguments.u, arguments.A
    return torch.empty_like(u), _empty_state(u, A), _empty_checkpoints(u, A)


def _step_kernel(state: Tensor, *args: Any) -> Tensor:
    *tensors, is_softplus = args
    following = state.to(tensors[2].dtype)
    arguments = _Arguments(*(*tensors, following))
    y = torch.empty_like(arguments.u)
    problem = _problem(arguments, is_softplus, following, None, y)
    choose("selective_scan", problem).prepare(problem)(*arguments, following, None, y)
    if following is not state:
        state.copy_(following)
    return y


# ---- derivatives ----


def _spread(projection: Tensor, channels: int) -> Tensor:
    """B or C of every channel: (D, N) or (..., L, D, N)."""
    if projection.ndim == 2 or projection.shape[-2] == channels:
        return projection
    return projection.repeat_interleave(channels // projection.shape[-2], -2)


def _gather(gradient: Tensor, projection: Tensor) -> Tensor:
    """The transpose of ``_spread``."""
    if projection.ndim == 2:
        return gradient.sum_to_size(projection.shape)
    groups = projection.shape[-2]
    return torch.unflatten(gradient, -2, (groups, gradient.shape[-2] // groups)).sum(-2)


def _recur(x: Tensor, initial: Tensor | None, a: Tensor, *, reverse: bool = False) -> Tensor:
    """linear_recurrence over the states of all channels, (..., L, D, N)."""
    y = linear_recurrence(
        x.flatten(-2), None if initial is None else initial.flatten(-2), a.flatten(-2), reverse=reverse
    )
    return torch.unflatten(y, -1, x.shape[-2:])


class _States(NamedTuple):
    """What derivatives need of the forward scan, in differentiable operators: everything of the size (..., L, D, N)."""

    u: Tensor
    dt: Tensor
    slope: Tensor | None  # of the softplus
    b: Tensor
    c: Tensor
    a: Tensor
    h: Tensor
    previous: Tensor

    @staticmethod
    def of(arguments: _Arguments, is_softplus: bool) -> _States:
        u, delta, A, B, C, _, _, delta_bias, initial_state = arguments
        real = _compute_dtype(u.dtype)
        u, dt = u.to(real), delta.to(real)
        dt = dt if delta_bias is None else dt + delta_bias
        slope = torch.sigmoid(dt) if is_softplus else None
        dt = softplus(dt) if is_softplus else dt
        b, c = _spread(B, u.shape[-1]), _spread(C, u.shape[-1])
        a = torch.exp(dt.unsqueeze(-1) * A)
        h = _recur((dt * u).unsqueeze(-1) * b, initial_state, a)
        start = torch.zeros_like(h[..., :1, :, :]) if initial_state is None else initial_state.unsqueeze(-3)
        return _States(u, dt, slope, b, c, a, h, torch.cat([start, h], -3)[..., : u.shape[-2], :, :])

    def sum_states(self, product: Tensor) -> Tensor:
        """What the states contribute to y, of products with C."""
        return 2 * product.sum(-1).real if product.is_complex() else product.sum(-1)

    def ungated(self, D: Tensor | None) -> Tensor:
        """y before it is multiplied by silu(z)."""
        y = self.sum_states(self.c * self.h)
        return y if D is None else y + D * self.u


def _silu_slope(z: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


def _real(product: Tensor) -> Tensor:
    return product.real if product.is_complex() else product


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _composed_gradient(dy: Tensor, dfinal: Tensor | None, arguments: _Arguments, is_softplus: bool) -> _Gradients:
    """The gradient in differentiable operators; empty for arguments that are not there."""
    u_, delta, A, B, C, D, z, delta_bias, initial_state = arguments
    s = _States.of(arguments, is_softplus)
    none = s.u.new_empty(0)
    dy, dz = dy.to(s.u.dtype), none
    if z is not None:
        wide = z.to(s.u.dtype)
        dz = (dy * s.ungated(D) * _silu_slope(wide)).to(z.dtype)
        dy = dy * silu(wide)
    scale = 2 if A.is_complex() else 1
    forcing = scale * s.c.conj_physical() * dy.unsqueeze(-1)
    if dfinal is not None and u_.shape[-2] > 0:
        last = forcing[..., -1:, :, :] + dfinal.unsqueeze(-3)
        forcing = torch.cat([forcing[..., :-1, :, :], last], -3)
    following = torch.cat([s.a[..., 1:, :, :], s.a[..., -1:, :, :]], -3)
    g = _recur(forcing, None, following.conj_physical(), reverse=True)
    carried = s.a.conj_physical() * g
    rate = carried * s.previous.conj_physical()
    projected = _real(s.b.conj_physical() * g).sum(-1)
    du = projected * s.dt
    if D is not None:
        du = du + D * dy
    ddelta = projected * s.u + _real(A.conj_physical() * rate).sum(-1)
    if s.slope is not None:
        ddelta = ddelta * s.slope
    start = none
    if initial_state is not None:
        at_start = carried[..., :1, :, :].sum(-3)
        start = at_start if u_.shape[-2] > 0 or dfinal is None else dfinal
    return (
        du.to(u_.dtype),
        ddelta.to(delta.dtype),
        (s.dt.unsqueeze(-1) * rate).sum_to_size(A.shape),
        _gather(g * (s.dt * s.u).unsqueeze(-1), B),
        _gather(scale * dy.unsqueeze(-1) * s.h.conj_physical(), C),
        none if D is None else (dy * s.u).sum_to_size(D.shape),
        dz,
        none if delta_bias is None else ddelta.sum_to_size(delta_bias.shape),
        start,
    )


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            return cast("tuple[Tensor, Tensor, Tensor]", _operator(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.softplus = inputs
        checkpoints = output[2]
        ctx.mark_non_differentiable(checkpoints)
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, dfinal, _ = gradients
        *tensors, checkpoints = ctx.saved_tensors
        if dy is None and dfinal is None:
            return (None,) * 10
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        results = _gradient(dy, dfinal, checkpoints, *tensors, ctx.softplus)
        needed = zip(results, ctx.needs_input_grad, strict=False)
        return (*(result if needs else None for result, needs in needed), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None]:
        arguments = _Arguments(*ctx.saved_tensors)
        t = _Arguments(*tangents[:9])
        s = _States.of(arguments, ctx.softplus)
        zero = torch.zeros_like(s.u)
        real = s.u.dtype
        tu, tdt, tz = (zero if tangent is None else tangent.to(real) for tangent in (t.u, t.delta, t.z))
        tdt = tdt if t.delta_bias is None else tdt + t.delta_bias
        tdt = tdt if s.slope is None else tdt * s.slope
        exponent = tdt.unsqueeze(-1) * arguments.A
        exponent = exponent if t.A is None else exponent + s.dt.unsqueeze(-1) * t.A
        forcing = (tdt * s.u + s.dt * tu).unsqueeze(-1) * s.b + s.a * s.previous * exponent
        if t.B is not None:
            forcing = forcing + (s.dt * s.u).unsqueeze(-1) * _spread(t.B, s.u.shape[-1])
        th = _recur(forcing, t.initial_state, s.a)
        product = s.c * th if t.C is None else s.c * th + _spread(t.C, s.u.shape[-1]) * s.h
        ty = s.sum_states(product)
        ty = ty if arguments.D is None else ty + arguments.D * tu
        ty = ty if t.D is None else ty + t.D * s.u
        if arguments.z is not None:
            z = arguments.z.to(real)
            ty = ty * silu(z) + s.ungated(arguments.D) * _silu_slope(z) * tz
        start = torch.zeros_like(th[..., :1, :, :]) if t.initial_state is None else t.initial_state.unsqueeze(-3)
        start = (
            start
            if th.shape[-3] or t.initial_state is not None
            else _empty_state(s.u, arguments.A)[..., None, :, :].zero_()
        )
        return ty.to(arguments.u.dtype), torch.cat([start, th], -3)[..., -1, :, :], None


def _gradient_autograd(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> _Gradients:
    """Fused where nobody differentiates the gradient; composed of differentiable operators where someone does."""
    *tensors, is_softplus = args
    if is_recorded(dy, dfinal, *tensors):
        return _composed_gradient(dy, dfinal, _Arguments(*tensors), is_softplus)
    with below_autograd():
        return cast(_Gradients, _gradient(dy, dfinal, checkpoints, *args))


def _one_batch(tensor: Tensor | None, leads: int) -> Tensor | None:
    """The leading axes as one; a copy only where they do not merge."""
    return None if tensor is None else tensor.reshape(math.prod(tensor.shape[:leads]), *tensor.shape[leads:])


def _describe_gradient(
    dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, arguments: _Arguments, is_softplus: bool
) -> SelectiveGradientProblem:
    """Of arguments with one leading axis."""
    u, delta, z = arguments.u, arguments.delta, arguments.z
    forward = _problem(arguments, is_softplus, None, checkpoints, torch.empty_like(u, device="meta"))

    def triple(tensor: Tensor) -> tuple[int, int, int]:
        return cast("tuple[int, int, int]", tensor.stride())

    def like(tensor: Tensor) -> tuple[int, int, int]:
        return triple(torch.empty_like(tensor, device="meta"))

    # Sums for 32 tasks, of at least 64 channels: more would cost more memory than they save time.
    in_group = forward.channels // forward.groups
    wanted = max(1, 32 // max(1, forward.batch * forward.groups))
    return SelectiveGradientProblem(
        forward=forward,
        dy=triple(dy),
        dfinal_state=None if dfinal is None else triple(dfinal),
        du=like(u),
        ddelta=like(delta),
        dz=None if z is None else like(z),
        shard_channels=max(64, -(-in_group // (16 * wanted)) * 16),
    )


def _partial_sums(problem: SelectiveGradientProblem, projection: Tensor, make: Any) -> Tensor:
    """Memory for what shards, or batch entries, have for B or C."""
    if projection.ndim == 2:
        return cast(Tensor, make((problem.forward.batch, *projection.shape), dtype=projection.dtype))
    return cast(Tensor, make((problem.shards, *projection.shape), dtype=projection.dtype))


def _gradient_kernel(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> _Gradients:
    *tensors, is_softplus = args
    given = _Arguments(*tensors)
    leads = given.u.ndim - 2
    fold_axes = [leads if at in (0, 1, 6, 8) or (at in (3, 4) and tensors[at].ndim > 2) else None for at in range(9)]
    batched: Any = [t if axes is None else _one_batch(t, axes) for t, axes in zip(tensors, fold_axes, strict=True)]
    arguments = _Arguments(*batched)
    outer: Any = [_one_batch(tensor, leads) for tensor in (dy, dfinal, checkpoints)]
    dy, dfinal, checkpoints = outer
    problem = _describe_gradient(dy, dfinal, checkpoints, arguments, is_softplus)
    u, delta, A, B, C, D, z, delta_bias, initial_state = arguments
    # Without a single element, nothing writes the sums.
    make = u.new_empty if u.numel() else u.new_zeros
    batch = u.shape[0]

    def per_batch(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else make((batch, *tensor.shape), dtype=tensor.dtype)

    du, ddelta, dz = empty_like(u), empty_like(delta), None if z is None else empty_like(z)
    dinitial = None if initial_state is None else make(tuple(initial_state.shape), dtype=A.dtype)
    da, dd, dbias = per_batch(A), per_batch(D), per_batch(delta_bias)
    db, dc = _partial_sums(problem, B, make), _partial_sums(problem, C, make)
    run = choose("selective_scan_gradient", problem, strict=False).prepare(problem)
    run(*arguments, None, checkpoints, None, dy, dfinal, du, ddelta, da, db, dc, dd, dz, dbias, dinitial)

    def total(parts: Tensor | None, like: Tensor | None) -> Tensor:
        if parts is None or like is None:
            return u.new_empty(0)
        return (parts[0] if parts.shape[0] == 1 else parts.sum(0)).reshape(like.shape)

    return (
        du.reshape(given.u.shape),
        ddelta.reshape(given.delta.shape),
        total(da, A),
        total(db, given.B),
        total(dc, given.C),
        total(dd, D),
        u.new_empty(0) if dz is None else dz.reshape(given.u.shape),
        total(dbias, delta_bias),
        u.new_empty(0) if dinitial is None else dinitial.reshape(tensors[8].shape),
    )


def _gradient_fake(dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any) -> _Gradients:
    u = args[0]
    return cast(
        _Gradients,
        tuple(
            u.new_empty(0)
            if tensor is None
            else torch.empty_like(tensor)
            if at in (0, 1, 6)
            else tensor.new_empty(tensor.shape)
            for at, tensor in enumerate(args[:9])
        ),
    )


def _step_autograd(state: Tensor, *args: Any) -> Tensor:
    with below_autograd():
        return cast(Tensor, _step(state, *args))


# ---- vmap: more channels, for A, D and delta_bias may be mapped too ----

# The axis of channels or groups of every argument.
_CHANNEL_AXES = _Arguments(-1, -1, -2, -2, -2, -1, -1, -1, -2)  # type: ignore[arg-type]


def _into_channels(tensor: Tensor | None, axis: int | None, size: int, channels: int) -> Tensor | None:
    """The mapped axis as the slower part of the axis of channels."""
    if tensor is None:
        return None
    front = tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
    return front.movedim(0, channels - 1).flatten(channels - 1, channels)


def _out_of_channels(tensor: Tensor, size: int, channels: int) -> Tensor:
    return torch.unflatten(tensor, channels, (size, tensor.shape[channels] // size)).movedim(channels - 1, 0)


def _mapped(tensors: Sequence[Tensor | None], axes: Sequence[int | None], size: int) -> list[Tensor | None]:
    return [
        _into_channels(tensor, axis, size, channels)
        for tensor, axis, channels in zip(tensors, axes, cast("tuple[int, ...]", _CHANNEL_AXES), strict=True)
    ]


def _vmap(info: Any, axes: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    y, final_state, checkpoints = _operator(*_mapped(args[:9], axes[:9], size), args[9])
    results = ((y, -1), (final_state, -2), (checkpoints, -1))
    return tuple(_out_of_channels(result, size, channels) for result, channels in results), (0, 0, 0)


def _gradient_vmap(
    info: Any, axes: tuple[int | None, ...], dy: Tensor, dfinal: Tensor | None, checkpoints: Tensor, *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    size = info.batch_size
    outer = (
        _into_channels(dy, axes[0], size, -1),
        _into_channels(dfinal, axes[1], size, -2),
        _into_channels(checkpoints, axes[2], size, -1),
    )
    results = _gradient(*outer, *_mapped(args[:9], axes[3:12], size), args[9])
    there = [tensor is not None for tensor in args[:9]]
    return (
        tuple(
            _out_of_channels(result, size, channels) if given else result
            for result, channels, given in zip(results, cast("tuple[int, ...]", _CHANNEL_AXES), there, strict=True)
        ),
        tuple(0 if given else None for given in there),
    )


def _step_vmap(info: Any, axes: tuple[int | None, ...], state: Tensor, *args: Any) -> tuple[Tensor, int]:
    tensors = (*args[:8], state.to(args[2].dtype))
    (y, following, _), _ = _vmap(info, (*axes[1:9], axes[0], None), *tensors, args[8])
    state.movedim(axes[0] or 0, 0).copy_(following)
    return y, 0


_ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_operator = define(
    f"selective_scan({_ARGUMENTS}, Tensor? initial_state, bool delta_softplus) -> (Tensor, Tensor, Tensor)",
    _kernel,
    fake=_fake,
    autograd=derivative(_SelectiveScan),
    vmap=_vmap,
)
_gradient = define(
    f"selective_scan_gradient(Tensor dy, Tensor? dfinal, Tensor checkpoints, {_ARGUMENTS}, Tensor? initial_state, "
    f"bool delta_softplus) -> ({', '.join(['Tensor'] * 9)})",
    _gradient_kernel,
    fake=_gradient_fake,
    autograd=_gradient_autograd,
    vmap=_gradient_vmap,
)
_step = define(
    f"selective_scan_step(Tensor(a!) state, {_ARGUMENTS}, bool delta_softplus) -> Tensor",
    _step_kernel,
    fake=lambda state, u, *args: torch.empty_like(u),
    autograd=_step_autograd,
    vmap=_step_vmap,
)


# ---- registry ----


def _prepare_reference(problem: SelectiveProblem) -> cpu.Run:
    def run(*tensors: Tensor | None) -> None:
        *arguments, final_state, checkpoints, y = tensors
        assert y is not None
        if final_state is not None and final_state.ndim > y.ndim:  # rows of a single step
            u, delta, A, B, C, D, z, *rest = cast(Any, arguments)
            projections = (_step_projection(P, u) for P in (B, C))
            arguments = [_one_step(u), _one_step(delta), A, *projections, D, _one_step(z), *rest]
            y = _one_step(y)
        definition: Any = (*_Arguments(*cast(Any, arguments)).canonical(), problem.softplus)
        result, states = reference.selective_scan(*definition)
        y.copy_(result)
        if final_state is not None:
            final_state.copy_(states[-1])
        if checkpoints is not None:
            tiles = [states[t] for t in range(0, problem.length, 64)]
            parts = [torch.view_as_real(h) if problem.complex else h.unsqueeze(-1) for h in tiles]
            checkpoints.copy_(torch.cat([h.movedim(-3, -1).flatten(-3, -2) for h in parts] or [checkpoints], -2))

    return run


def _reference_cost(problem: SelectiveProblem) -> Cost:
    # Eight PyTorch operators a step, on numbers in double precision, of which all states are kept.
    gates, elements = cpu.work(problem)
    seconds = problem.turns * (6e-5 * (1 + problem.length) + 1e-8 * gates)
    return Cost(seconds, int(problem.turns * 8 * (3 * gates + 5 * elements)))


def _prepare_composed(problem: SelectiveGradientProblem) -> cpu.Run:
    """The gradient in PyTorch's operators and linear_recurrence, in memory for every state."""

    def run(*tensors: Any) -> None:
        arguments = _Arguments(*tensors[:9])
        dy, dfinal, *results = tensors[12:]
        gradients = _composed_gradient(dy, dfinal, arguments, problem.forward.softplus)
        for result, gradient, argument in zip(results, gradients, arguments, strict=True):
            if result is None or argument is None:
                continue
            if argument.shape == result.shape:
                result.copy_(gradient)
            else:  # sums of parts, of which this is one
                result.zero_()
                result[0] = gradient

    return run


def _composed_cost(problem: SelectiveGradientProblem) -> Cost:
    gates, _ = cpu.work(problem.forward)
    return Cost(1e-4 + 4e-8 * gates, int(12 * cpu.part_bytes(problem.forward) * gates))


_COMPOSED = Implementation("composed", "any", lambda problem: [], _composed_cost, _prepare_composed)
_REFERENCE = Implementation("reference", "any", lambda problem: [], _reference_cost, _prepare_reference)

register("selective_scan", (*cpu.ROWS, _REFERENCE), _describe)
register("selective_scan_gradient", (*cpu.GRADIENT_ROWS, _COMPOSED), _describe_gradient)
