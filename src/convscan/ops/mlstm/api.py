"""mlstm: signature and checks, the stabiliser, the division by the normaliser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ... import _checks
from ..._calls import run_prepared
from ..._dispatch import register
from ..._errors import message
from ..._library import define_composite, is_traced
from ..gated_linear_attention.api import default_scale
from ..linear_attention.api import ROWS, attend, describe
from ..linear_attention.arguments import gate, keys_and_values, sequences, shaped, with_time
from ..linear_attention.problem import AttentionProblem
from ..linear_attention.step import Settings, Step, state_of, written_and_read
from ..linear_recurrence.api import linear_recurrence
from ..packed import Packed

_NAME = "mlstm"
# Gates beyond this are as closed, or as open, as any: exp(-1e4) is zero in every type, and sums of these stay finite.
_CLOSED = 1e4

State = tuple[Tensor, Tensor, Tensor]


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """y[t] = C[t]^T q[t] / (max(|n[t]^T q[t]|, exp(-m[t])) + eps), the matrix memory of xLSTM.

    In every head, with the stabiliser m[t] = max(log sigmoid(f[t]) + m[t-1], i[t]), which keeps exponentials bounded,
    and F = exp(log sigmoid(f[t]) + m[t-1] - m[t]), I = exp(i[t] - m[t]),

        C[t] = F C[t-1] + I k[t] v[t]^T,   n[t] = F n[t-1] + I k[t],

    where q is multiplied by ``scale`` first. ``mlstm_with_state`` also returns the last state, and ``mlstm_step``
    computes one step of generation.

    Args:
        q, k: (..., L, H, K), any number of leading axes, any strides. L and every other size may be 0. Fewer heads than
            those of v are groups, of which each serves as many heads in a row.
        v: (..., L, H, V).
        i, f: (..., L, H), the gates before their activation: of the input gate the exponential, of the forget gate the
            sigmoid. Minus infinity closes a gate exactly.
        scale: factor of q, by default 1 / sqrt(K).
        eps: added to the divisor.
        initial_state: (C, n, m) before the first step, (..., H, K, V), (..., H, K) and (..., H); None for zeros. With
            ``cu_seqlens`` each has an axis S in front of H.
        cu_seqlens: (S+1,) int32 or int64, on the device of v: S sequences lie behind one another along time, the s-th
            at cu_seqlens[s] <= t < cu_seqlens[s+1], and nothing passes from one to the next. They may be empty.

    Returns:
        y, with the shape of v.

    dtypes: float32, float64, bfloat16, float16; those of q, k and v are promoted as in any PyTorch operator. Half types
    are computed in float32, which gates and states are converted to.

    Raises:
        ValueError: a shape or device that does not fit, or boundaries that are none.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: that of ``gated_linear_attention`` with decays by step and one column of values more, and one pass over y.

    Reference: M. Beck et al., xLSTM: Extended Long Short-Term Memory, 2024; M. Beck, K. Pöppel, P. Lippe, S.
    Hochreiter, Tiled Flash Linear Attention, 2025.

    >>> import torch, convscan
    >>> q = k = torch.ones(2, 1, 1)
    >>> v = torch.tensor([[[1.0]], [[3.0]]])
    >>> gates = torch.zeros(2, 1), torch.full((2, 1), 100.0)  # of weight one, and never forgetting
    >>> [round(value, 4) for value in convscan.mlstm(q, k, v, *gates).flatten().tolist()]
    [1.0, 2.0]
    """
    return _attend(_NAME, q, k, v, i, f, scale, eps, initial_state, cu_seqlens)[0]


def mlstm_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    """y of ``mlstm``, and the state (C, n, m) behind the last step, the next call's ``initial_state``.

    Returns:
        y, with the shape of v, and the last state: (..., H, K, V), (..., H, K) and (..., H), with ``cu_seqlens`` an
        axis S in front of H; float32 where v has a half type. All are differentiable.

    Arguments, dtypes, errors and cost as in ``mlstm``.

    >>> import torch, convscan
    >>> q = k = v = torch.ones(3, 1, 1)
    >>> C, n, m = convscan.mlstm_with_state(q, k, v, torch.zeros(3, 1), torch.full((3, 1), 100.0))[1]
    >>> C.item(), n.item(), m.item()
    (3.0, 3.0, 0.0)
    """
    return _attend(f"{_NAME}_with_state", q, k, v, i, f, scale, eps, initial_state, cu_seqlens)


def _check(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: State | None,
    cu_seqlens: Tensor | None,
) -> torch.dtype:
    dtype = keys_and_values(name, q, k, v)
    shaped(name, "i", i, v, v.shape[:-1], "(..., L, H)")
    shaped(name, "f", f, v, v.shape[:-1], "(..., L, H)")
    of_sequences = sequences(name, cu_seqlens, v)
    if initial_state is not None:
        if not isinstance(initial_state, tuple) or len(initial_state) != 3:
            remedy = "Pass the state that mlstm_with_state returned"
            raise TypeError(
                message(name, "initial_state must be a tuple (C, n, m)", type(initial_state).__name__, remedy)
            )
        lead = (*v.shape[:-3], *of_sequences, v.shape[-2])
        letters = "(..., S, H" if of_sequences else "(..., H"
        shaped(name, "C of initial_state", initial_state[0], v, (*lead, q.shape[-1], v.shape[-1]), f"{letters}, K, V)")
        shaped(name, "n of initial_state", initial_state[1], v, (*lead, q.shape[-1]), f"{letters}, K)")
        shaped(name, "m of initial_state", initial_state[2], v, lead, f"{letters})")
    return dtype


def _keeps(i: Tensor, log_f: Tensor, before: Tensor, packed: Packed) -> Tensor:
    """Where m[t] = log f[t] + m[t-1], and not i[t]: what came before still is the largest.

    Any answer gives a valid stabiliser, so that it may come from running sums in double precision.
    """
    i, log_f, before = i.detach().double(), log_f.detach().double(), before.detach().double()
    total = log_f.cumsum(-2)
    height = i - total
    # With every sequence lifted above all of the one before, one running maximum serves them all.
    lift = (height.max() - height.min() + 1 if height.numel() else 1) * packed.sequence.unsqueeze(-1)
    lifted = height + lift
    start = before - (total - log_f)  # of each step, what is right at the first of its sequence
    at_first = start.index_select(-2, packed.first.index_select(0, packed.sequence))
    return (lifted.cummax(-2).values > lifted) | (at_first > height)


def _stabiliser(
    i: Tensor, log_f: Tensor, initial: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """m[t] = max(log f[t] + m[t-1], i[t]), m[t-1], and m behind the last step of every sequence."""
    length = i.shape[-2]
    packed = Packed.of(cu_seqlens, length, i.device)
    shape = (*i.shape[:-2], 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1, i.shape[-1])
    start = i.new_zeros(shape) if initial is None else (initial.unsqueeze(-2) if cu_seqlens is None else initial)
    if length == 0:
        return i, i, start.squeeze(-2) if cu_seqlens is None else start
    before_first = start.index_select(-2, packed.sequence)
    keeps = _keeps(i, log_f, before_first, packed)
    # The choice made, m is a linear recurrence, with all its derivatives.
    carries = (keeps & ~packed.is_first).to(i.dtype)
    forcing = torch.where(keeps, log_f + before_first * packed.is_first.to(i.dtype), i)
    m = linear_recurrence(forcing, None, carries)
    previous = torch.where(packed.is_first, before_first, torch.cat([m[..., :1, :], m[..., :-1, :]], -2))
    if cu_seqlens is None:
        return m, previous, m[..., -1, :]
    return m, previous, torch.where(packed.has_steps, m.index_select(-2, packed.last), start)


def _floor(m: Tensor) -> Tensor:
    """exp(-m), what the divisor is at least; where it would overflow, y is zero long before."""
    return (-m).clamp(max=80.0 if m.dtype == torch.float32 else 700.0).exp()


def _attend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    scale: float | None,
    eps: float,
    initial_state: State | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, State]:
    dtype = _check(name, q, k, v, i, f, initial_state, cu_seqlens)
    C, n, m = (None,) * 3 if initial_state is None else initial_state
    factor = default_scale(q) if scale is None else float(scale)
    arguments = (q.to(dtype), k.to(dtype), v.to(dtype), i, f, C, n, m, cu_seqlens, factor, float(eps))
    # One operator for compilation and export, in which nothing of the stabiliser is traced.
    y, *last = (_operator if torch.compiler.is_compiling() else _compute)(*arguments)
    return y, (last[0], last[1], last[2])


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = v.dtype
    C, n, m = (None if state is None else gate(state, dtype) for state in (C, n, m))
    i = gate(i, dtype).clamp(-_CLOSED, _CLOSED)
    log_f = logsigmoid(gate(f, dtype)).clamp(min=-_CLOSED)
    m, m_previous, m_last = _stabiliser(i, log_f, m, cu_seqlens)
    found = attend(
        q,
        k,
        v,
        log_f + m_previous - m,
        scale=scale,
        w=(i - m).exp(),
        state=C,
        sum_state=n,
        cu_seqlens=cu_seqlens,
        sums=True,
    )
    divisor = torch.maximum(found.sums.abs(), _floor(m)) + eps
    return (found.y / divisor.unsqueeze(-1)).to(dtype), found.state, found.sum_state, m_last


_operator = define_composite(
    "mlstm(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? C, Tensor? n, Tensor? m, Tensor? cu_seqlens, "
    "float scale, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _compute,
)


def _describe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
) -> AttentionProblem:
    """The problem of a call of ``mlstm``, for ``explain``."""
    dtype = _check(_NAME, q, k, v, i, f, initial_state, cu_seqlens)
    return describe(q, v.to(dtype), i, cu_seqlens, True)


register(_NAME, ROWS, _describe)


# ---- one step ----


def mlstm_step(
    state: State,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """y = C^T q / (max(|n^T q|, exp(-m)) + eps) and state = (C, n, m): one step of ``mlstm``, in place.

    Args:
        state: (C, n, m), (..., H, K, V), (..., H, K) and (..., H), overwritten with the next; the last state of
            ``mlstm_with_state``, or zeros. float32 where v has a half type.
        q, k: (..., H, K), or of fewer heads, groups.
        v: (..., H, V).
        i, f: (..., H), the gates before their activation.
        scale: factor of q, by default 1 / sqrt(K).
        eps: added to the divisor.

    Returns:
        y, with the shape of v.

    Raises:
        ValueError, TypeError: as ``mlstm``, and for a state of another dtype.
        RuntimeError: where a gradient is needed.

    Cost: the state is read and written once, and some 4 µs a call where gates have the type of arithmetic.

    >>> import torch, convscan
    >>> one = torch.ones(1, 1)
    >>> state = torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1)
    >>> y = convscan.mlstm_step(state, one, one, 3 * one, torch.zeros(1), torch.zeros(1))
    >>> round(y.item(), 4), state[0].item()
    (3.0, 3.0)
    """
    if not is_traced() and isinstance(state, tuple) and len(state) == 3:
        y = run_prepared(_step.prepared, (scale, eps), v, *state, q, k, i, f, None)
        if y is not None:
            return y
    scale, eps = None if scale is None else float(scale), float(eps)
    return _step.run((scale, eps), *_step_arguments(state, q, k, v, i, f, scale=scale, eps=eps))


def _step_arguments(
    state: State,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
) -> tuple[Settings, Sequence[Tensor | None]]:
    """Checks the arguments of a step, and puts them into the order and the dtypes of the native call."""
    name = f"{_NAME}_step"
    timed_q, timed_k, timed_v = with_time(name, "q", q), with_time(name, "k", k), with_time(name, "v", v)
    for argument, tensor in (("i", i), ("f", f)):
        _checks.tensor_like(name, argument, tensor, v)
        _checks.has_shape(name, argument, tensor, v.shape[:-1], "(..., H)")
    dtype = _check(name, timed_q, timed_k, timed_v, i.unsqueeze(-2), f.unsqueeze(-2), None, None)
    if not isinstance(state, tuple) or len(state) != 3:
        remedy = "Pass the state that mlstm_with_state returned"
        raise TypeError(message(name, "state must be a tuple (C, n, m)", type(state).__name__, remedy))
    v = v.to(dtype)
    lead, keys = v.shape[:-1], q.shape[-1]
    state_of(name, "C of state", state[0], v, (*lead, keys, v.shape[-1]), "(..., H, K, V)")
    state_of(name, "n of state", state[1], v, (*lead, keys), "(..., H, K)")
    state_of(name, "m of state", state[2], v, lead, "(..., H)")
    settings = Settings("mlstm", default_scale(q) if scale is None else float(scale), eps)
    return settings, (v, *state, q.to(dtype), k.to(dtype), gate(i, dtype), gate(f, dtype))


def _composed_step(
    settings: Settings, v: Tensor, C: Tensor, n: Tensor, m: Tensor, q: Tensor, k: Tensor, i: Tensor, f: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    i, kept = i.clamp(-_CLOSED, _CLOSED), logsigmoid(f).clamp(min=-_CLOSED) + m
    after_m = torch.maximum(kept, i)
    write, forget = (i - after_m).exp().unsqueeze(-1), (kept - after_m).exp().unsqueeze(-1)
    columns = torch.cat([v.to(C.dtype), torch.ones_like(v[..., :1], dtype=C.dtype)], -1) * write
    y, (both,) = written_and_read(settings.scale, columns, torch.cat([C, n.unsqueeze(-1)], -1), q, k, forget)
    divisor = torch.maximum(y[..., -1:].abs(), _floor(after_m).unsqueeze(-1)) + settings.eps
    return (y[..., :-1] / divisor).to(v.dtype), (both[..., :-1], both[..., -1], after_m)


_step = Step(
    f"{_NAME}_step",
    "mlstm",
    "Tensor v, Tensor(a!) C, Tensor(b!) n, Tensor(c!) m, Tensor q, Tensor k, Tensor i, Tensor f",
    _composed_step,
    _step_arguments,
    states=(1, 2, 3),
    queries=4,
)
