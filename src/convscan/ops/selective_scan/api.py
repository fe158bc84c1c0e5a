"""selective_scan and its companions: signatures and documentation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ... import _checks
from ..._calls import empty_like, run_prepared
from ..._dispatch import register
from ..._errors import message
from ..._library import is_plain, is_traced, needs_gradient
from .arguments import checked, one_step, problem_of, step_projection
from .operator import ROWS, calls, empty_state, run, scan, step
from .problem import SelectiveProblem

_prepared = calls.prepared


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
    cu_seqlens: Tensor | None = None,
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
        initial_state: (..., D, N), leading axes as u, or None for zeros; complex where A is. With ``cu_seqlens``
            (..., S, D, N).
        cu_seqlens: (S+1,) int32 or int64, on the device of u: S sequences lie behind one another along time, the s-th
            at cu_seqlens[s] <= t < cu_seqlens[s+1], and nothing passes from one to the next. They may be empty.

    Returns:
        y, with the shape and memory order of u. ``selective_scan_with_state`` returns the last state too, and
        ``selective_scan_step`` does a single step.

    dtypes: float32, float64, bfloat16 and float16 of u, delta and z, which are promoted to one another; that is the
    dtype of y. Half types are computed in float32. The other arguments are converted to the type computed in: pass
    parameters and states in float32. If any argument is in double precision, all are.

    Raises:
        ValueError: a shape or device that does not fit, or boundaries that are none.
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
            _prepared, delta_softplus, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, None, None, None
        )
        if y is not None:
            return y
    name = "selective_scan"
    tensors = checked(name, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    if is_plain(*tensors):
        y = empty_like(tensors.u)
        run(tensors, bool(delta_softplus), None, None, y)
        return y
    return cast(Tensor, scan(*tensors.canonical(), bool(delta_softplus))[0])


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
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the state after the last step, h[L-1].

    Arguments, dtypes, errors and cost are those of ``selective_scan``. The state, (..., D, N), with ``cu_seqlens``
    (..., S, D, N), is in the type computed in: given as ``initial_state`` of the next part of a sequence, it continues
    it exactly. Gradients pass through it.

    Reference: A. Gu, T. Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023.

    >>> import torch, convscan
    >>> one = torch.ones(3, 1)
    >>> y, state = convscan.selective_scan_with_state(one, one, torch.zeros(1, 1), one, one)
    >>> state.tolist()
    [[3.0]]
    """
    name = "selective_scan_with_state"
    tensors = checked(name, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    if is_plain(*tensors):
        y, final_state = empty_like(tensors.u), empty_state(tensors.u, tensors.A, cu_seqlens)
        run(tensors, bool(delta_softplus), final_state, None, y)
        return y, final_state
    y, final_state, _ = scan(*tensors.canonical(), bool(delta_softplus))
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
        # A state that is overwritten is given once, as the final one.
        y = run_prepared(
            _prepared, (delta_softplus,), u, delta, A, B, C, D, z, delta_bias, None, None, state, None, None
        )
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
    b, c = step_projection(B, u), step_projection(C, u)
    rows = checked(name, one_step(u), one_step(delta), A, b, c, D, one_step(z), delta_bias, state)
    given = (u, delta, A, B, C, D, z, delta_bias, state)
    if is_plain(*rows) and all(
        tensor is None or (row is not None and tensor.dtype == row.dtype)
        for tensor, row in zip(given, rows, strict=False)
    ):
        y = torch.empty_like(u)
        calls.run(
            (delta_softplus,),
            *given[:-1],
            None,
            None,
            state,
            None,
            y,
            problem=lambda: problem_of(rows, bool(delta_softplus), state, None, y.unsqueeze(-2), in_place=True),
        )
        return y
    return cast(Tensor, step(state, *rows.canonical()[:8], bool(delta_softplus))).squeeze(-2)


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
    cu_seqlens: Tensor | None = None,
) -> SelectiveProblem:
    """The problem of a call of ``selective_scan``, for ``explain``."""
    arguments = checked("selective_scan", u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    return problem_of(arguments, bool(delta_softplus), None, None, torch.empty_like(arguments.u))


register("selective_scan", ROWS, _describe)
