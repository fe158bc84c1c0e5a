"""LinearRecurrence: leaky integrators with learned time constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import message
from ..ops.linear_recurrence.api import linear_recurrence
from ._layer import SequenceLayer, last, wide


class LinearRecurrence(SequenceLayer[Tensor]):
    """y[i,n] = a[n] y[i-1,n] + x[i,n] with a[n] = exp(-exp(log_rate[n])), learned and always between 0 and 1.

    The layer of ``convscan.linear_recurrence`` as ``torch.nn.Linear`` is that of ``linear``: nothing but the operator
    and its coefficients, one a channel and constant in time. For coefficients that depend on the input see ``RGLRU``.

    Args:
        d_model: D.
        tau_min: the shortest time constant in samples, 1 / rate.
        tau_max: the longest one.

    Parameters: ``log_rate`` (D,), real; the time constants start evenly spaced in their logarithm.

    State: (..., D), the last y; float32 for half types, in whose precision the decay of long time constants is 1.
    A step costs O(D).

    Source: the stable exponential parametrisation of A. Orvieto et al., Resurrecting Recurrent Neural Networks for Long
    Sequences, 2023, arXiv 2303.06349, section 3.3, without rotation.

    >>> import torch, convscan
    >>> layer = convscan.nn.LinearRecurrence(4, tau_min=2, tau_max=50)
    >>> y, _ = layer(torch.randn(2, 100, 4))
    >>> y, state = layer.step(torch.randn(2, 4), layer.default_state(2))
    >>> y.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        d_model: int,
        tau_min: float = 1.0,
        tau_max: float = 1000.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        if not 0 < tau_min <= tau_max:
            raise ValueError(message("LinearRecurrence", "0 < tau_min <= tau_max must hold", (tau_min, tau_max)))
        steps = torch.linspace(-math.log(tau_min), -math.log(tau_max), d_model, dtype=torch.float64)
        self.log_rate = torch.nn.Parameter(steps.to(device=device, dtype=dtype or torch.get_default_dtype()))

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        return wide(self.log_rate).new_zeros(*batch_shape, self.d_model, device=device)

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if state is not None:
            self._check_state(state, x, self.d_model)
        a = torch.exp(-torch.exp(wide(self.log_rate)))
        y = linear_recurrence(wide(x), state, a)
        return y.to(x.dtype), None if state is None else last(y, state)
