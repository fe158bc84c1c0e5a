"""LRU: the linear recurrent unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import message
from ..ops.linear_recurrence.api import linear_recurrence
from ._layer import SequenceLayer, at_least, last, wide


class LRU(SequenceLayer[Tensor]):
    """y[i] = Re(C s[i]) + D * x[i] with s[i] = lambda * s[i-1] + gamma * (B x[i]): a complex diagonal recurrence.

    lambda = exp(-exp(nu_log) + i exp(theta_log)) lies inside the unit circle whatever its parameters are;
    gamma = exp(gamma_log) makes up for the energy that a slow decay accumulates.

    Args:
        d_model: H, the features of x and y.
        d_state: N, the complex states.
        r_min, r_max: the ring of the complex plane over which lambda starts uniformly, 0 <= r_min < r_max <= 1.
        max_phase: the largest angle of lambda at first.

    Parameters, real, as published: ``nu_log``, ``theta_log`` and ``gamma_log`` (N,), the last sqrt(1 - |lambda|²) at
    first; ``B`` (2, N, H), real and imaginary parts, normal with deviation 1/sqrt(2H); ``C`` (2, H, N), normal with
    deviation 1/sqrt(N); ``D`` (H,), standard normal.

    State: (..., N), complex64 (complex128 for float64): the last s. A step costs O(H N).

    Source: A. Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, 2023, arXiv 2303.06349.

    >>> import torch, convscan
    >>> layer = convscan.nn.LRU(8, d_state=16, r_min=0.9, r_max=0.999)
    >>> y, _ = layer(torch.randn(2, 100, 8))
    >>> y, state = layer.step(torch.randn(2, 8), layer.default_state(2))
    >>> state.shape, state.dtype
    (torch.Size([2, 16]), torch.complex64)
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model)
        self.d_state = at_least("LRU", "d_state", d_state, 1)
        if not 0 <= r_min < r_max <= 1 or max_phase <= 0:
            expectation = "0 <= r_min < r_max <= 1 and max_phase > 0 must hold"
            raise ValueError(message("LRU", expectation, (r_min, r_max, max_phase)))
        kind = dtype or torch.get_default_dtype()
        # Uniform over the area of the ring; open at both ends, where logarithms are infinite.
        u = torch.empty(2, d_state, dtype=torch.float64, device=device).uniform_(1e-6, 1 - 1e-6)
        square = u[0] * (r_max**2 - r_min**2) + r_min**2
        self.nu_log = torch.nn.Parameter(torch.log(-0.5 * torch.log(square)).to(kind))
        self.theta_log = torch.nn.Parameter(torch.log(max_phase * u[1]).to(kind))
        self.gamma_log = torch.nn.Parameter((0.5 * torch.log1p(-square)).to(kind))
        B = torch.randn(2, d_state, d_model, device=device, dtype=dtype)
        C = torch.randn(2, d_model, d_state, device=device, dtype=dtype)
        self.B = torch.nn.Parameter(B / math.sqrt(2 * d_model))
        self.C = torch.nn.Parameter(C / math.sqrt(d_state))
        self.D = torch.nn.Parameter(torch.randn(d_model, device=device, dtype=dtype))

    def eigenvalues(self) -> Tensor:
        """lambda, (N,), complex."""
        return torch.polar(torch.exp(-torch.exp(wide(self.nu_log))), torch.exp(wide(self.theta_log)))

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        dtype = wide(self.nu_log).dtype.to_complex()
        return self.nu_log.new_zeros(*batch_shape, self.d_state, dtype=dtype, device=device)

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if state is not None:
            self._check_state(state, x, self.d_state)
        # Complex matrices as real ones with their parts beside each other: half the products, and no copy of x or s.
        B = wide(self.B) * torch.exp(wide(self.gamma_log))[:, None]
        C_re, C_im = wide(self.C)
        inputs = torch.nn.functional.linear(wide(x), B.transpose(0, 1).flatten(0, 1))
        driven = torch.view_as_complex(inputs.reshape(*x.shape[:-1], self.d_state, 2))
        s = linear_recurrence(driven, state, self.eigenvalues())
        y = torch.nn.functional.linear(torch.view_as_real(s).flatten(-2), torch.stack([C_re, -C_im], -1).flatten(-2))
        return y.to(x.dtype) + self.D * x, None if state is None else last(s, state)
