"""ssd_scan: signature and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ... import _checks
from ..._calls import run_prepared
from ..._dispatch import register
from ..._errors import message
from ..._library import is_traced
from ..linear_attention.api import DTYPES, ROWS, Attended, attend, describe
from ..linear_attention.arguments import gate, grouped, sequences, shaped, with_heads, with_time
from ..linear_attention.problem import AttentionProblem
from ..linear_attention.step import Settings, Step, state_of, written_and_read

_NAME = "ssd_scan"


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y[t] = S[t] C[t] + D x[t], S[t] = exp(dt[t] A) S[t-1] + dt[t] x[t] B[t]^T, in every head.

    The state-space layer of Mamba-2, with the arguments of its ``mamba_chunk_scan_combined``. ``ssd_scan_with_state``
    also returns the last state, and ``ssd_scan_step`` computes one step of generation.

    Args:
        x: (..., L, H, P), any number of leading axes, any strides. L and every other size may be 0.
        dt: (..., L, H), the step; with ``dt_softplus``, softplus(dt + dt_bias) is.
        A: (H,), negative for a state that fades.
        B, C: (..., L, G, N) for G groups of H / G heads in a row.
        D: (H,) or (H, P); None for zero.
        z: (..., L, H, P); y is multiplied with silu(z). None for no gate.
        dt_bias: (H,), added to dt; None for zero.
        dt_softplus: take softplus of dt.
        initial_state: (..., H, P, N), the state before the first step; None for zeros. With ``cu_seqlens``
            (..., S, H, P, N).
        cu_seqlens: (S+1,) int32 or int64, on the device of x: S sequences lie behind one another along time, the s-th
            at cu_seqlens[s] <= t < cu_seqlens[s+1], and nothing passes from one to the next. They may be empty.

    Returns:
        y, with the shape of x.

    dtypes: float32, float64, bfloat16, float16; those of x, B and C are promoted as in any PyTorch operator. Half types
    are computed in float32, which everything else is converted to.

    Raises:
        ValueError: a shape or device that does not fit, groups that do not divide the heads, or boundaries that are
        none. TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: some 2 P N multiply-adds a step and head, and products of B and C that the heads of a group share; tiles of 64
    steps as dense products, with the states in the cache between them. Nothing but the arguments is kept for the
    gradient, which costs some seven such products, and sqrt(L) states of workspace. Second derivatives keep the states
    of all steps.

    Reference: T. Dao, A. Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality, 2024.

    >>> import torch, convscan
    >>> x, dt = torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1), torch.ones(3, 1)
    >>> B = C = torch.ones(3, 1, 1)
    >>> convscan.ssd_scan(x, dt, torch.tensor([0.5]).log(), B, C).flatten().tolist()
    [1.0, 2.5, 5.25]
    """
    return _scan(_NAME, x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, cu_seqlens).y


def ssd_scan_with_state(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y of ``ssd_scan``, and the state behind the last step, the next call's ``initial_state``.

    Returns:
        y, with the shape of x, and the last state, (..., H, P, N), with ``cu_seqlens`` (..., S, H, P, N); float32 where
        x has a half type. Both are differentiable.

    Arguments, dtypes, errors and cost as in ``ssd_scan``.

    >>> import torch, convscan
    >>> x = B = C = torch.ones(3, 1, 1)
    >>> convscan.ssd_scan_with_state(x, torch.ones(3, 1), torch.zeros(1), B, C)[1].tolist()
    [[[3.0]]]
    """
    name = f"{_NAME}_with_state"
    found = _scan(name, x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, cu_seqlens)
    return found.y, found.state


def _check(
    name: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> torch.dtype:
    with_heads(name, "x", x)
    heads, width = x.shape[-2:]
    shaped(name, "dt", dt, x, x.shape[:-1], "(..., L, H)", "x")
    shaped(name, "A", A, x, (heads,), "(H,)", "x")
    grouped(name, "B", B, x, None, "(..., L, G, N)", "x")
    grouped(name, "C", C, x, B.shape[-1], "(..., L, G, N)", "x")
    _checks.has_shape(name, "C", C, B.shape, "of B")
    if D is not None:
        _checks.tensor_like(name, "D", D, x)
        if tuple(D.shape) not in ((heads,), (heads, width)):
            expectation = f"D must have the shape (H,) = ({heads},) or (H, P) = ({heads}, {width})"
            raise ValueError(message(name, expectation, _checks.shape_text(D.shape)))
        _checks.common_dtype(name, DTYPES, D=D)
    if z is not None:
        shaped(name, "z", z, x, x.shape, "of x", "x")
    if dt_bias is not None:
        shaped(name, "dt_bias", dt_bias, x, (heads,), "(H,)", "x")
    of_sequences = sequences(name, cu_seqlens, x)
    if initial_state is not None:
        shape = (*x.shape[:-3], *of_sequences, heads, width, B.shape[-1])
        meaning = "(..., S, H, P, N)" if of_sequences else "(..., H, P, N)"
        shaped(name, "initial_state", initial_state, x, shape, meaning, "x")
    return _checks.common_dtype(name, DTYPES, x=x, B=B, C=C)


def _scan(
    name: str,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Attended:
    dtype = _check(name, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    step = gate(dt, dtype) if dt_bias is None else gate(dt, dtype) + gate(dt_bias, dtype)
    step = softplus(step) if dt_softplus else step
    skip = None if D is None else gate(D if D.ndim == 2 else D.unsqueeze(-1).expand(x.shape[-2:]), dtype)
    found = attend(
        C.to(dtype),
        B.to(dtype),
        x.to(dtype),
        step * gate(A, dtype),
        scale=1.0,
        w=step,
        skip=skip,
        state=None if initial_state is None else gate(initial_state, dtype).transpose(-1, -2),
        cu_seqlens=cu_seqlens,
        turned=True,
    )
    y = found.y if z is None else found.y * silu(z.to(dtype))
    return found._replace(y=y, state=found.state.transpose(-1, -2))


def _describe(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> AttentionProblem:
    """The problem of a call of ``ssd_scan``, for ``explain``."""
    dtype = _check(_NAME, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens)
    return describe(C, x.to(dtype), dt, cu_seqlens, False)


register(_NAME, ROWS, _describe)


# ---- one step ----


def ssd_scan_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """y = S C + D x and state = S, of S = exp(dt A) state + dt x B^T: one step, in place.

    Args:
        state: (..., H, P, N), overwritten with the next state; the last state of ``ssd_scan_with_state``, or zeros.
            float32 where x has a half type.
        x, z: (..., H, P).
        dt: (..., H).
        B, C: (..., G, N).
        A, D, dt_bias, dt_softplus: as in ``ssd_scan``.

    Returns:
        y, with the shape of x.

    Raises:
        ValueError, TypeError: as ``ssd_scan``, and for a state of another dtype.
        RuntimeError: where a gradient is needed.

    Cost: the state is read and written once, and some 3 µs a call where gates have the type of arithmetic.

    >>> import torch, convscan
    >>> state, one = torch.ones(1, 1, 1), torch.ones(1, 1)
    >>> convscan.ssd_scan_step(state, one, torch.ones(1), torch.tensor([0.5]).log(), one, one).item(), state.item()
    (1.5, 1.5)
    """
    if not is_traced():
        y = run_prepared(_step.prepared, dt_softplus, x, state, dt, A, B, C, D, z, dt_bias, None)
        if y is not None:
            return y
    dt_softplus = bool(dt_softplus)
    arguments = _step_arguments(state, x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus)
    return _step.run(dt_softplus, *arguments)


def _step_arguments(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Settings, Sequence[Tensor | None]]:
    """Checks the arguments of a step, and puts them into the order and the dtypes of the native call."""
    name = f"{_NAME}_step"
    timed = [with_time(name, argument, tensor) for argument, tensor in (("x", x), ("B", B), ("C", C))]
    _checks.tensor_like(name, "dt", dt, x)
    z_timed = None if z is None else with_time(name, "z", z)
    _checks.has_shape(name, "dt", dt, x.shape[:-1], "(..., H)")
    dtype = _check(name, timed[0], dt.unsqueeze(-2), A, timed[1], timed[2], D, z_timed, dt_bias, None, None)
    state_of(name, "state", state, x.to(dtype), (*x.shape, B.shape[-1]), "(..., H, P, N)")
    return Settings("ssd", softplus=bool(dt_softplus)), (
        x.to(dtype),
        state,
        gate(dt, dtype),
        gate(A, dtype),
        B.to(dtype),
        C.to(dtype),
        None if D is None else gate(D, dtype),
        None if z is None else z.to(dtype),
        None if dt_bias is None else gate(dt_bias, dtype),
    )


def _composed_step(
    settings: Settings,
    x: Tensor,
    state: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    step = dt if dt_bias is None else dt + dt_bias
    step = (softplus(step) if settings.softplus else step).unsqueeze(-1)
    wide = x.to(state.dtype)
    decay = (step * A.unsqueeze(-1)).exp()
    y, (after,) = written_and_read(1.0, wide * step, state.transpose(-1, -2), C, B, decay)
    y = y if D is None else y + (D if D.ndim == 2 else D.unsqueeze(-1)) * wide
    return (y if z is None else y * silu(z.to(y.dtype))).to(x.dtype), (after.transpose(-1, -2),)


_step = Step(
    f"{_NAME}_step",
    "ssd",
    "Tensor x, Tensor(a!) state, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias",
    _composed_step,
    _step_arguments,
    states=(1,),
    queries=5,
    shared=(3, 6, 8),
)
