"""S4D: the kernel of a diagonal state-space layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .._errors import message
from ..ops.vandermonde.api import vandermonde, vandermonde_adjoint
from ._hippo import DIAGONAL_INITS, NATURAL_RANK, diagonal
from ._state_space import Option, StateSpaceKernel, one_of

DISCRETISATIONS = ("zoh", "bilinear")


def expm1_over(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, exact near zero and 1 at it."""
    if not z.is_complex():
        safe = torch.where(z == 0, 1.0, z)
        return torch.where(z == 0, 1.0, torch.expm1(safe) / safe)
    half = torch.sin(z.imag / 2)
    growth = torch.exp(z.real)
    difference = torch.complex(torch.expm1(z.real) - 2 * growth * half * half, growth * torch.sin(z.imag))
    zero = z == 0
    return torch.where(zero, 1.0, difference / torch.where(zero, 1.0, z))


class S4D(StateSpaceKernel):
    """K[c,h,l] = 2 Re sum_n C[c,h,n] Abar[h,n]^l Bbar[h,n]: a diagonal state-space model as a convolution kernel.

    x'(t) = A x(t) + B u(t), y = C x, with a diagonal A in N/2 conjugate pairs (without the factor 2 and the conjugates
    when ``is_real``), discretised with a time step for each feature: by zero-order hold, Abar = exp(dt A) and
    Bbar = (Abar - 1) B / A, or by the bilinear rule, Abar = (1 + dt A/2) / (1 - dt A/2) and Bbar = dt B / (1 - dt A/2).

    Args:
        d_model: H, the features.
        l_max: length of the kernel where ``forward`` is not told one; longer ones may be asked for. None: no default.
        channels: kernels of each feature.
        d_state: N, the states of each feature; even, for they are conjugate pairs, unless ``is_real``.
        disc: ``"zoh"`` or ``"bilinear"``.
        init: imaginary parts of A, beside the real part -1/2: ``"legs"``, ``"legt"``, ``"fourier"`` (of the normal part
            of these HiPPO matrices), ``"lin"`` (pi n), ``"inv"`` (N/pi (N/(2n+1) - 1)) or ``"random"`` (log-normal).
            With ``is_real``, ``"legs"`` (A = -(n+1)) or ``"random"`` (A = minus a log-normal number).
        rank: of the low-rank part of the HiPPO matrix that a diagonal A leaves out; None takes that of ``init``, and a
            smaller one is an error, for then the rest is not normal.
        real_transform, imag_transform: A = -f(A_real) + i g(A_imag) with f and g out of ``"none"``, ``"exp"``,
            ``"relu"``, ``"sigmoid"``, ``"softplus"``; initial values below 1e-4 are raised to it, but for ``"none"``.
        is_real: real A, B, C.
        dt_min, dt_max: initial time steps are log-uniform between these.
        dt_tie: one time step for all states of a feature.
        dt_transform: dt = f(inv_dt), as above.
        dt_fast: dt = f(sinh(inv_dt)), which lets gradients move it faster.
        n_ssm: different pairs (A, B), a divisor of H (H by default); feature h uses number h mod n_ssm.
        lr, wd: learning rate and weight decay of the parameters, a number or a mapping from ``"A"``, ``"B"``, ``"C"``,
            ``"dt"``; ``parameter_groups`` hands them to an optimiser. None takes the optimiser's.
        A, B, C, dt: initial values: A and B (n_ssm, N/2), C (channels, H, N/2), complex; dt (H, 1), or (H, N/2) without
            ``dt_tie``. B is 1 by default, C complex standard normal.

    Parameters: ``A_real``, ``A_imag``, ``B``, ``C``, ``inv_dt``; complex ones as pairs of real numbers.

    State: (..., H, N/2), complex64 (complex128 with float64 parameters); (..., H, N), real, when ``is_real``.

    Powers are computed in double precision whatever the type of the parameters. The kernel has no length of its own:
    neither ``forward`` nor ``step`` truncates.

    Source: A. Gu, A. Gupta, K. Goel, C. Ré, On the Parameterization and Initialization of Diagonal State Space
    Models, 2022, arXiv 2206.11893.

    >>> import torch, convscan
    >>> kernel = convscan.nn.S4D(8, channels=2, d_state=16, init="lin")
    >>> kernel(100)[0].shape, kernel.default_state(3).shape
    (torch.Size([2, 8, 100]), torch.Size([3, 8, 8]))
    """

    PARAMETERS = ("A", "B", "C", "dt")
    MODES = ("diagonal",)
    B: Tensor
    C: Tensor

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        *,
        d_state: int = 64,
        disc: str = "zoh",
        init: str = "legs",
        rank: int | None = None,
        real_transform: str = "exp",
        imag_transform: str = "none",
        is_real: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        dt_fast: bool = False,
        n_ssm: int | None = None,
        lr: Option = None,
        wd: Option = 0.0,
        A: Tensor | None = None,
        B: Tensor | None = None,
        C: Tensor | None = None,
        dt: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            l_max,
            channels,
            d_state=d_state,
            is_real=is_real,
            n_ssm=n_ssm,
            given={"A": A, "dt": dt},
            dt_min=dt_min,
            dt_max=dt_max,
            dt_tie=dt_tie,
            dt_transform=dt_transform,
            dt_fast=dt_fast,
            lr=lr,
            wd=wd,
            device=device,
            dtype=dtype,
        )
        self.disc = one_of("S4D", "disc", disc, DISCRETISATIONS)
        one_of("S4D", "init", init, ("legs", "random") if is_real else DIAGONAL_INITS)
        if rank is not None and rank < NATURAL_RANK.get(init, 1):
            expectation = f"rank must be at least {NATURAL_RANK.get(init, 1)} for init={init!r}"
            raise ValueError(message("S4D", expectation, rank, "None takes the least one"))

        kind = torch.float64 if is_real else torch.complex128
        systems, features = (self.n_ssm, self.modes), (channels, d_model, self.modes)
        if A is None and is_real:
            n = torch.arange(d_state, dtype=torch.float64).expand(systems)
            A = -(n + 1) if init == "legs" else -torch.randn(systems).double().exp()
        elif A is None:
            A = diagonal(init, d_state, self.n_ssm)
        A = self._ready("A", A, systems, kind)
        if real_transform != "none" and not bool((A.real < 0).all()):
            remedy = "Use real_transform='none' for others"
            raise ValueError(message("S4D", "the real part of A must be negative", float(A.real.max()), remedy))
        self._add_poles(A, real_transform, imag_transform)
        self._add("B", "B", self._ready("B", torch.ones(systems) if B is None else B, systems, kind))
        C = torch.randn(features, dtype=torch.float32 if is_real else torch.complex64) if C is None else C
        self._add("C", "C", self._ready("C", C, features, kind))

    def discretised(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Abar and Bbar, (H, N/2) complex128."""
        dt = self.time_steps(rate)
        z, B = dt * self._features(self.poles()), self._features(self._complex(self.B))
        if self.disc == "zoh":
            return torch.exp(z), dt * B * expm1_over(z)
        return (1 + z / 2) / (1 - z / 2), dt * B / (1 - z / 2)

    def _output(self) -> Tensor:
        """C, with the conjugates' half where there are conjugates."""
        C = self._complex(self.C)
        return C if self.is_real else 2 * C

    def forward(
        self, length: int | None = None, rate: float = 1.0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        length = self._length(length)
        Abar, Bbar = self.discretised(rate)
        C = self._output()
        K = vandermonde((C * Bbar).to(self.state_dtype), Abar, length)
        if state is None:
            return K, None
        self._check_state(state, self.d_model, self.modes)
        return K, vandermonde((C * (Abar * state).unsqueeze(-3)).to(self.state_dtype), Abar, length)

    def forward_state(self, u: Tensor, state: Tensor, rate: float = 1.0) -> Tensor:
        Abar, Bbar = self.discretised(rate)
        # What the last sample adds has met no power of Abar, the first one most.
        driven = vandermonde_adjoint(u.to(self.dtype).flip(-1), Abar)
        if self.is_real:
            driven = driven.real
        return (Abar ** u.shape[-1] * state + Bbar * driven).to(self.state_dtype)

    def setup_step(self, mode: str | None = None) -> None:
        """Keeps Abar, Bbar and C for ``step`` without gradients, until ``train()``; call again when parameters change.

        ``mode`` is ``"diagonal"``, the only one there is.
        """
        one_of("S4D", "mode", "diagonal" if mode is None else mode, self.MODES)
        self._recurrence = None
        with torch.no_grad():
            self._recurrence = self._terms()

    def _terms(self) -> tuple[Tensor, ...]:
        if self._recurrence is not None and not torch.is_grad_enabled():
            return self._recurrence
        return (*self.discretised(), self._output())

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self._check_state(state, self.d_model, self.modes)
        Abar, Bbar, C = self._terms()
        x = Abar * state + Bbar * u.unsqueeze(-1)
        y = (C * x.unsqueeze(-3)).sum(-1)
        return y.real.to(u.dtype), x.to(self.state_dtype)
