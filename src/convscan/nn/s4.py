"""S4: the kernel of a state-space layer whose matrix is diagonal plus low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import message
from ..ops.cauchy.api import cauchy
from ._hippo import NATURAL_RANK, diagonal_plus_low_rank
from ._state_space import Option, StateSpaceKernel, one_of

MODES = ("linear", "dense", "diagonal")

# Nodes of the contour for each step of the kernel, and how far the kernel has decayed when it wraps around. Less decay
# leaves more of the wrapped part, more of it magnifies rounding by decay^(-1/nodes): 3e5 and 60 times 1e-16.
_CONTOURS = {torch.float32: (2, 1e-11), torch.float64: (8, 5e-15)}
# A state basis that magnifies rounding by more than this would spoil the result of that type.
_MAX_CONDITION = {torch.float32: 1e8, torch.float64: 1e4}
# Inputs that forward_state takes in at a time.
_CHUNK = 128


def _even_length(least: int) -> int:
    """The smallest 2^k, 3 2^k or 5 2^k not below ``least``, of which transforms are fast; ``least``, an even number,
    where export has left it open."""
    if not isinstance(least, int):
        return least
    power = 1 << max(1, (least - 1).bit_length())
    return min(n for n in (power, power * 3 // 4, power * 5 // 8) if n >= least and n % 2 == 0)


class S4(StateSpaceKernel):
    """K[c,h,l] = C[c,h] Abar[h]^l Bbar[h] with A = diag(poles) - P P^*: HiPPO's matrices as convolution kernels.

    x'(t) = A x(t) + B u(t), y = C x over N/2 conjugate pairs of states, discretised by the bilinear rule,
    Abar = (1 - dt A/2)^-1 (1 + dt A/2) and Bbar = (1 - dt A/2)^-1 dt B.

    The kernel is read off its generating function sum_l K[l] z^l = 2/(1+z) C (s - dt A)^-1 dt B, s = 2 (1-z)/(1+z), by
    an inverse FFT; the resolvent is a Cauchy product with the Woodbury correction for P. The article truncates the
    function to L terms on the unit circle, which takes C (1 - Abar^L) in the place of C: its implementation rewrites
    the parameter C for one length. Here the circle is a little smaller than the unit circle, so that the terms beyond
    the end have decayed to rounding where they wrap around, and C stays C, for every length.

    Args:
        d_model: H, the features.
        l_max: length of the kernel where ``forward`` is not told one; longer ones may be asked for. None: no default.
        channels: kernels of each feature.
        d_state: N, the states of each feature; even, for they are conjugate pairs.
        init: ``"legs"``, ``"legt"`` or ``"fourier"``: the HiPPO matrix to start from.
        rank: of P, 1 or 2; at least that of ``init`` (2 for ``"legt"``). None takes that.
        real_transform, imag_transform, dt_min, dt_max, dt_tie, dt_transform, dt_fast, n_ssm, lr, wd: as in ``S4D``;
            ``lr`` and ``wd`` may also name ``"P"``.
        A, B, C, dt, P: initial values: A (the poles) and B (n_ssm, N/2), P (rank, n_ssm, N/2), C (channels, H, N/2),
            complex; dt (H, 1), or (H, N/2) without ``dt_tie``. C is complex standard normal by default.

    Parameters: ``A_real``, ``A_imag``, ``P``, ``B``, ``C``, ``inv_dt``; complex ones as pairs of real numbers.

    State: (..., H, N/2), complex64 (complex128 with float64 parameters). ``setup_step(mode)`` chooses how steps are
    computed: ``"linear"`` (default), O(N) a feature by Woodbury's identity; ``"dense"``, O(N²) with the matrix Abar;
    ``"diagonal"``, O(N) in the eigenbasis of Abar, in which states then are, (..., H, N) complex128. The eigenbasis of
    HiPPO-LegS becomes singular as N grows: one that would spoil the result is refused.

    Kernels are computed in double precision whatever the type of the parameters. Neither ``forward`` nor ``step``
    truncates.

    Source: A. Gu, K. Goel, C. Ré, Efficiently Modeling Long Sequences with Structured State Spaces, 2021,
    arXiv 2111.00396. The contour: C. Lubich, Convolution quadrature and discretized operational calculus, 1988.

    >>> import torch, convscan
    >>> kernel = convscan.nn.S4(8, channels=2, d_state=16, init="fourier")
    >>> kernel(100)[0].shape, kernel.default_state(3).shape
    (torch.Size([2, 8, 100]), torch.Size([3, 8, 8]))
    """

    PARAMETERS = ("A", "B", "C", "dt", "P")
    MODES = MODES
    P: Tensor
    B: Tensor
    C: Tensor

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        *,
        d_state: int = 64,
        init: str = "legs",
        rank: int | None = None,
        real_transform: str = "exp",
        imag_transform: str = "none",
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
        P: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            l_max,
            channels,
            d_state=d_state,
            is_real=False,
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
        least = NATURAL_RANK[one_of("S4", "init", init, tuple(NATURAL_RANK))]
        self.rank = least if rank is None else rank
        if not least <= self.rank <= 2:
            expectation = f"rank must be {'2' if least == 2 else '1 or 2'} for init={init!r}"
            raise ValueError(message("S4", expectation, rank, "None takes the least one"))
        self.mode = "linear"

        systems, features = (self.n_ssm, self.modes), (channels, d_model, self.modes)
        hippo = diagonal_plus_low_rank(init, d_state, self.rank)
        A = self._start("A", A, hippo.poles.expand(systems))
        if real_transform != "none" and not bool((A.real <= 0).all()):
            remedy = "Use real_transform='none' for others"
            raise ValueError(message("S4", "the real part of A must not be positive", float(A.real.max()), remedy))
        self._add_poles(A, real_transform, imag_transform)
        self._add("P", "P", self._start("P", P, hippo.P[:, None].expand(self.rank, *systems)))
        self._add("B", "B", self._start("B", B, hippo.B.expand(systems)))
        self._add("C", "C", self._start("C", C, torch.randn(features, dtype=torch.complex64)))

    def _start(self, name: str, given: Tensor | None, initial: Tensor) -> Tensor:
        return self._ready(name, initial if given is None else given, tuple(initial.shape), torch.complex128)

    def _scaled(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt poles, dt B (H, N/2), dt P and P (rank, H, N/2): dt A = diag(dt poles) - (dt P) P^*."""
        dt = self.time_steps(rate)
        P = self._features(self._complex(self.P))
        return dt * self._features(self.poles()), dt * self._features(self._complex(self.B)), dt * P, P

    # ---- the kernel ----

    def _response(self, b: Tensor, length: int, rate: float) -> Tensor:
        """C Abar^l (1 - dt A/2)^-1 b, whose generating function is 2/(1+z) C (s - dt A)^-1 b.

        b (..., H, N/2); the result (..., channels, H, length), float64.
        """
        poles, _, P, Q = self._scaled(rate)
        factor, decay = _CONTOURS[self.dtype]
        nodes = _even_length(factor * max(1, length))
        step = torch.arange(nodes // 2 + 1, dtype=torch.float64, device=b.device)
        radius = decay ** (1 / nodes)
        z = torch.polar(torch.full_like(step, radius), -2 * math.pi / nodes * step)
        s = 2 * (1 - z) / (1 + z)

        left = torch.cat([self._complex(self.C), Q.conj()])  # rows that meet the resolvent from the left
        driven = left * b.unsqueeze(-3)
        corrected = left[:, None] * P
        sides = torch.cat([driven.flatten(0, -3), corrected.flatten(0, 1)])
        k = cauchy(sides, s, poles, conjugate_pairs=True)
        split = k.shape[0] - corrected.shape[0] * self.rank
        k_b, k_P = k[:split].reshape(*driven.shape[:-1], -1), k[split:].reshape(*corrected.shape[:-1], -1)
        # Woodbury: (R^-1 + P Q^*)^-1 = R - R P (1 + Q^* R P)^-1 Q^* R, with (rank, rank) matrices for each node.
        C_b, Q_b = k_b[..., : self.channels, :, :], k_b[..., self.channels :, :, :]
        C_P, Q_P = k_P[: self.channels], k_P[self.channels :]
        if self.rank == 1:
            response = C_b - C_P[:, 0] * (Q_b / (1 + Q_P[0]))
        else:
            p, q, r, t = 1 + Q_P[0, 0], Q_P[0, 1], Q_P[1, 0], 1 + Q_P[1, 1]
            determinant = p * t - q * r
            first, second = Q_b[..., :1, :, :], Q_b[..., 1:, :, :]
            response = C_b - C_P[:, 0] * ((t * first - q * second) / determinant)
            response = response - C_P[:, 1] * ((p * second - r * first) / determinant)
        sequence: Tensor = torch.fft.irfft(2 / (1 + z) * response, nodes)[..., :length]
        steps = torch.arange(length, dtype=torch.float64, device=b.device)
        undamped: Tensor = sequence * radius**-steps
        return undamped

    def forward(
        self, length: int | None = None, rate: float = 1.0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        length = self._length(length)
        K = self._response(self._scaled(rate)[1], length, rate).to(self.dtype)
        if state is None:
            return K, None
        # What a state adds at step l is C Abar^(l+1) x, and Abar x = (1 - dt A/2)^-1 (1 + dt A/2) x.
        x = self._from_basis(self._check_state(state, self.d_model, self._state_size()))
        return K, self._response(x + self._times_A(x, rate) / 2, length, rate).to(self.dtype)

    def _times_A(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """dt A x. The conjugate half of the states doubles the real part of P^* x."""
        poles, _, P, Q = self._scaled(rate)
        projected = 2 * torch.einsum("rhn,...hn->...rh", Q.conj(), x).real
        return poles * x - torch.einsum("rhn,...rh->...hn", P, projected.to(P.dtype))

    # ---- the recurrence ----

    def _linear(self, rate: float = 1.0) -> tuple[Tensor, ...]:
        """What a step in O(N) takes: (1 - dt A/2)^-1 = D - D P' E Q^* D with D = 1 / (1 - dt poles/2), P' = dt P/2."""
        poles, B, P, Q = self._scaled(rate)
        D = 1 / (1 - poles / 2)
        half = D * P / 2
        small = 2 * torch.einsum("rhn,qhn->hrq", Q.conj(), half).real
        E = torch.linalg.inv(torch.eye(self.rank, dtype=small.dtype, device=small.device) + small)
        return D, half, E, Q.conj(), B, poles, P

    @staticmethod
    def _linear_step(terms: tuple[Tensor, ...], x: Tensor, u: Tensor | None) -> Tensor:
        """Abar x + Bbar u."""
        D, half, E, Q_conj, B, poles, P = terms
        projected = 2 * torch.einsum("rhn,...hn->...rh", Q_conj, x).real
        y = x + (poles * x - torch.einsum("rhn,...rh->...hn", P, projected.to(P.dtype))) / 2
        y = D * (y if u is None else y + B * u.unsqueeze(-1))
        projected = torch.einsum("hqr,...rh->...qh", E, 2 * torch.einsum("rhn,...hn->...rh", Q_conj, y).real)
        return y - torch.einsum("rhn,...rh->...hn", half, projected.to(half.dtype))

    def _dense(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Abar (H, N, N) and Bbar (H, N), real, over real parts and then imaginary ones of the N/2 states."""
        terms = self._linear(rate)
        unit = torch.eye(self.modes, dtype=torch.complex128, device=terms[0].device)
        basis = torch.cat([unit, 1j * unit])[:, None].expand(-1, self.d_model, -1)
        images = self._linear_step(terms, basis, None)
        start = torch.zeros_like(terms[0])
        Bbar = self._linear_step(terms, start, torch.ones_like(start[:, 0].real))
        return _parts(images).permute(1, 2, 0), _parts(Bbar)

    def forward_state(self, u: Tensor, state: Tensor, rate: float = 1.0) -> Tensor:
        Abar, Bbar = self._dense(rate)
        x = _parts(self._from_basis(state).to(torch.complex128))
        length = u.shape[-1]
        if length == 0:
            return state
        # Columns Abar^(chunk-1) Bbar, ..., Bbar take in a chunk of inputs at once; the first chunk is the odd one.
        chunk = min(_CHUNK, length)
        columns, power = Bbar[..., None], Abar
        while columns.shape[-1] < chunk:
            columns, power = torch.cat([power @ columns, columns], -1), power @ power
        u = u.double()
        odd = length % chunk or chunk
        x = torch.einsum("hij,...hj->...hi", torch.linalg.matrix_power(Abar, odd), x)
        x = x + torch.einsum("hil,...hl->...hi", columns[..., columns.shape[-1] - odd :], u[..., :odd])
        if odd < length:
            across, columns = torch.linalg.matrix_power(Abar, chunk), columns[..., columns.shape[-1] - chunk :]
            for start in range(odd, length, chunk):
                taken = torch.einsum("hil,...hl->...hi", columns, u[..., start : start + chunk])
                x = torch.einsum("hij,...hj->...hi", across, x) + taken
        return self._to_basis(torch.complex(*x.tensor_split(2, -1))).to(self.state_dtype)

    def setup_step(self, mode: str | None = None) -> None:
        """Chooses how steps are computed, and keeps what they need without gradients until ``train()``.

        ``mode`` is ``"linear"`` (also None), ``"dense"`` or ``"diagonal"``; call again when parameters change. States
        of ``"diagonal"`` are of no use to the other modes, nor theirs to it.
        """
        mode = one_of("S4", "mode", "linear" if mode is None else mode, self.MODES)
        self._recurrence = None
        with torch.no_grad():
            if mode == "diagonal":
                condition = float(torch.linalg.cond(torch.linalg.eig(self._dense()[0])[1]).max())
                if not condition <= _MAX_CONDITION[self.dtype]:
                    expectation = (
                        f"Abar must have an eigenbasis of condition {_MAX_CONDITION[self.dtype]:.0e} or less for "
                        "mode='diagonal'"
                    )
                    raise ValueError(message("S4", expectation, f"{condition:.2g}", "Use mode='linear'"))
            self.mode = mode
            self._recurrence = self._terms()

    def _terms(self) -> tuple[Tensor, ...]:
        """What a step takes in the mode at hand; C comes last."""
        if self._recurrence is not None and not torch.is_grad_enabled():
            return self._recurrence
        C = 2 * self._complex(self.C)
        if self.mode == "linear":
            return (*self._linear(), C)
        Abar, Bbar = self._dense()
        rows = torch.cat([C.real, -C.imag], -1)
        if self.mode == "dense":
            return Abar, Bbar, rows
        eigenvalues, V = torch.linalg.eig(Abar)
        inverse = torch.linalg.inv(V)
        B = torch.einsum("hij,hj->hi", inverse, Bbar.to(V.dtype))
        return eigenvalues, B, V, inverse, torch.einsum("chj,hji->chi", rows.to(V.dtype), V)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self._check_state(state, self.d_model, self._state_size())
        terms = self._terms()
        x = state.to(torch.complex128)
        if self.mode == "linear":
            x = self._linear_step(terms[:-1], x, u)
        elif self.mode == "dense":
            parts = torch.einsum("hij,...hj->...hi", terms[0], _parts(x)) + terms[1] * u.unsqueeze(-1)
            x = torch.complex(*parts.tensor_split(2, -1))
            return (terms[-1] * parts.unsqueeze(-3)).sum(-1).to(u.dtype), x.to(self.state_dtype)
        else:
            x = terms[0] * x + terms[1] * u.unsqueeze(-1)
        y = (terms[-1] * x.unsqueeze(-3)).sum(-1).real
        return y.to(u.dtype), x.to(self.state_dtype)

    # ---- states: in the basis of the parameters, or in that of the eigenvectors ----

    @property
    def state_dtype(self) -> torch.dtype:
        """Complex; complex128 in the eigenbasis, which magnifies rounding."""
        return torch.complex128 if self.mode == "diagonal" else super().state_dtype

    def _state_size(self) -> int:
        return self.d_state if self.mode == "diagonal" else self.modes

    def _from_basis(self, state: Tensor) -> Tensor:
        state = state.to(torch.complex128)
        if self.mode != "diagonal":
            return state
        parts = torch.einsum("hij,...hj->...hi", self._terms()[2], state).real
        return torch.complex(*parts.tensor_split(2, -1))

    def _to_basis(self, x: Tensor) -> Tensor:
        if self.mode != "diagonal":
            return x
        inverse = self._terms()[3]
        return torch.einsum("hij,...hj->...hi", inverse, _parts(x).to(inverse.dtype))


def _parts(x: Tensor) -> Tensor:
    """(..., N/2) complex as (..., N) real: real parts, then imaginary ones."""
    return torch.cat([x.real, x.imag], -1)
