"""The definition of the selective scan, one time step after the other in double precision: truth and fallback."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def _wide(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _at(projection: Tensor, t: int, channels: int) -> Tensor:
    """B or C of one step for every channel: (..., D, N)."""
    if projection.ndim == 2:
        return projection
    step = projection[..., t, :, :]
    return step.repeat_interleave(channels // step.shape[-2], -2)


def _states(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, initial_state: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The gates of every step, and the states before the first one and after each."""
    h = A.new_zeros(*u.shape[:-2], *A.shape) if initial_state is None else initial_state
    gates, states = [], [h]
    for t in range(u.shape[-2]):
        gates.append(torch.exp(dt[..., t, :, None] * A))
        h = gates[t] * h + (dt[..., t, :] * u[..., t, :])[..., None] * _at(B, t, u.shape[-1])
        states.append(h)
    return gates, states


def _real_output(product: Tensor) -> Tensor:
    return 2 * product.real if product.is_complex() else product


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """y, and the states before the first step and after each. B and C are (D, N) or (..., L, G, N)."""
    u, delta, A, B, C, D, z, delta_bias, initial_state = map(  # type: ignore[assignment]
        _wide, (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )
    dt = delta if delta_bias is None else delta + delta_bias
    dt = softplus(dt) if delta_softplus else dt
    _, states = _states(u, dt, A, B, initial_state)
    y = torch.zeros_like(u) if D is None else D * u
    for t, h in enumerate(states[1:]):
        y[..., t, :] += _real_output((_at(C, t, u.shape[-1]) * h).sum(-1))
    return (y if z is None else y * silu(z)), states
