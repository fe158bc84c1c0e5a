"""What the kernels of state-space layers share: parameters, time steps, states, and their place in an optimiser."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._checks import shape_text
from .._errors import message
from ._layer import at_least

Option = float | Mapping[str, float] | None

_FLOOR = 1e-4  # least value that a positive transform starts from: its inverse at zero would be minus infinity


def _softplus_inverse(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


# name: (transform, inverse for positive values). "none" and "relu" keep the number itself as parameter.
TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "none": (lambda value: value, lambda value: value),
    "exp": (torch.exp, torch.log),
    "relu": (torch.relu, lambda value: value),
    "sigmoid": (torch.sigmoid, torch.logit),
    "softplus": (torch.nn.functional.softplus, _softplus_inverse),
}


def one_of(owner: str, name: str, value: str, known: tuple[str, ...]) -> str:
    """A name out of a list."""
    if value not in known:
        raise ValueError(message(owner, f"{name} must be one of {', '.join(map(repr, known))}", repr(value)))
    return value


def transformed(owner: str, name: str, transform: str, value: Tensor) -> Tensor:
    """The parameter of which ``transform`` makes ``value``; values below 1e-4 are raised to it, but for "none"."""
    one_of(owner, f"{name}_transform", transform, tuple(TRANSFORMS))
    if transform == "none":
        return value
    if transform == "sigmoid" and bool((value >= 1).any()):
        expectation = f"{name}_transform='sigmoid' makes values below 1"
        raise ValueError(message(owner, expectation, f"{float(value.max()):.4g} to start from", "Use 'exp'"))
    return TRANSFORMS[transform][1](value.clamp(min=_FLOOR))


def parameter_groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    """The parameters of a model as groups for an optimiser, with the ``lr`` and ``wd`` given to its state-space layers.

    The first group has the parameters without options of their own, which take the optimiser's.

    >>> import torch, convscan
    >>> layer = convscan.nn.FFTConvS4(4, kernel="s4d", lr={"A": 0.001, "dt": 0.001})
    >>> groups = convscan.nn.parameter_groups(layer)
    >>> optimiser = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05)
    >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimiser.param_groups]
    [(1, 0.01, 0.05), (3, 0.001, 0.0), (2, 0.01, 0.0)]
    """
    options: dict[Tensor, dict[str, float]] = {}
    for kernel in module.modules():
        if isinstance(kernel, StateSpaceKernel):
            for name, parameter in kernel.named_parameters(recurse=False):
                options[parameter] = kernel.optimizer_options[name]
    groups: dict[tuple[tuple[str, float], ...], list[Tensor]] = {(): []}
    for parameter in module.parameters():
        groups.setdefault(tuple(options.get(parameter, {}).items()), []).append(parameter)
    return [{"params": members, **dict(key)} for key, members in groups.items() if members]


class StateSpaceKernel(torch.nn.Module):
    """x' = A x + B u, y = C x for H features, as a convolution kernel (``forward``) and as a recurrence (``step``)."""

    # The parameters that may be given ready, and that ``lr`` and ``wd`` may name.
    PARAMETERS: tuple[str, ...]
    MODES: tuple[str, ...]
    A_real: Tensor
    A_imag: Tensor
    inv_dt: Tensor

    def __init__(
        self,
        d_model: int,
        l_max: int | None,
        channels: int,
        *,
        d_state: int,
        is_real: bool,
        n_ssm: int | None,
        given: Mapping[str, Tensor | None],
        dt_min: float,
        dt_max: float,
        dt_tie: bool,
        dt_transform: str,
        dt_fast: bool,
        lr: Option,
        wd: Option,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__
        self.d_model = at_least(self.name, "d_model", d_model, 1)
        self.l_max = None if l_max is None else at_least(self.name, "l_max", l_max, 1)
        self.channels = at_least(self.name, "channels", channels, 1)
        self.d_state = at_least(self.name, "d_state", d_state, 1 if is_real else 2)
        if not is_real and d_state % 2:
            raise ValueError(message(self.name, "d_state must be even, for its states are conjugate pairs", d_state))
        # States that are stored: one of each pair.
        self.modes = d_state if is_real else d_state // 2
        if n_ssm is None:
            A = given["A"]
            n_ssm = d_model if A is None else A.shape[0]
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(message(self.name, f"n_ssm must divide d_model, {d_model}", n_ssm))
        self.n_ssm = n_ssm
        self.is_real = is_real
        self.dt_fast = dt_fast
        self.dt_transform = dt_transform
        self._device, self._dtype = device, dtype or torch.get_default_dtype()
        self._options = {"lr": self._option("lr", lr), "weight_decay": self._option("wd", wd)}
        self.optimizer_options: dict[str, dict[str, float]] = {}
        self._recurrence: tuple[Tensor, ...] | None = None

        if not 0 < dt_min <= dt_max:
            raise ValueError(message(self.name, "0 < dt_min <= dt_max must hold", (dt_min, dt_max)))
        dt = given["dt"]
        if dt is None:
            spread = torch.rand(d_model, 1 if dt_tie else self.modes, dtype=torch.float64)
            dt = torch.exp(math.log(dt_min) + spread * math.log(dt_max / dt_min))
        dt = self._ready("dt", dt, (d_model, 1 if dt_tie else self.modes), torch.float64)
        if not bool((dt > 0).all()):
            raise ValueError(message(self.name, "dt must be positive", float(dt.min())))
        # The floor of transformed() is for poles; a time step may be shorter.
        one_of(self.name, "dt_transform", dt_transform, tuple(TRANSFORMS))
        inv_dt = TRANSFORMS[dt_transform][1](dt)
        self._add("inv_dt", "dt", torch.asinh(inv_dt) if dt_fast else inv_dt)

    def _option(self, name: str, value: Option) -> dict[str, float]:
        """A learning rate or weight decay for each parameter that has one."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            return dict.fromkeys(self.PARAMETERS, value)
        for key in value:
            one_of(self.name, f"a key of {name}", key, self.PARAMETERS)
        return dict(value)

    def _ready(self, name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A parameter given ready, or as it starts, checked, in double precision."""
        if tuple(value.shape) != shape:
            expectation = f"{name} must have the shape {shape_text(shape)}"
            raise ValueError(message(self.name, expectation, shape_text(value.shape)))
        return value.detach().to(device="cpu", dtype=dtype)

    def _add(self, attribute: str, key: str, value: Tensor) -> None:
        """Registers a parameter; complex ones as pairs of real numbers, which every optimiser and ``to`` understand."""
        stored = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        setattr(self, attribute, torch.nn.Parameter(stored.to(device=self._device, dtype=self._dtype, copy=True)))
        options = {option: by_key[key] for option, by_key in self._options.items() if key in by_key}
        self.optimizer_options[attribute] = options

    def _add_poles(self, A: Tensor, real_transform: str, imag_transform: str) -> None:
        self.real_transform, self.imag_transform = real_transform, imag_transform
        self._add("A_real", "A", transformed(self.name, "real", real_transform, -A.real))
        if not self.is_real:
            self._add("A_imag", "A", transformed(self.name, "imag", imag_transform, A.imag))

    # ---- parameters in double precision: rounding a pole by 2^-24 turns its power l by l times that ----

    def _complex(self, parameter: Tensor) -> Tensor:
        return parameter.double() if self.is_real else torch.view_as_complex(parameter.double())

    def _features(self, parameter: Tensor) -> Tensor:
        """(..., n_ssm, modes) as (..., H, modes): feature h uses system h mod n_ssm."""
        copies = self.d_model // self.n_ssm
        return parameter.repeat(*(1,) * (parameter.ndim - 2), copies, 1) if copies > 1 else parameter

    def poles(self) -> Tensor:
        """A, or its diagonal part, (n_ssm, modes) complex128; float64 when ``is_real``."""
        real = -TRANSFORMS[self.real_transform][0](self.A_real.double())
        if self.is_real:
            return real
        return torch.complex(real, TRANSFORMS[self.imag_transform][0](self.A_imag.double()))

    def time_steps(self, rate: float = 1.0) -> Tensor:
        """dt, (H, 1) or (H, modes), float64."""
        inv_dt = self.inv_dt.double()
        return TRANSFORMS[self.dt_transform][0](torch.sinh(inv_dt) if self.dt_fast else inv_dt) * rate

    @property
    def dtype(self) -> torch.dtype:
        """Of the kernel: that of the parameters, float32 for half types."""
        return torch.float64 if self.inv_dt.dtype == torch.float64 else torch.float32

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states: complex, or real where they are real."""
        return self.dtype if self.is_real else torch.promote_types(self.dtype, torch.complex64)

    def _length(self, length: int | None) -> int:
        if length is None and self.l_max is None:
            raise ValueError(message(self.name, "length must be given, for l_max is None", None))
        return length if length is not None else self.l_max  # type: ignore[return-value]

    def _check_state(self, state: Tensor, *shape: int) -> Tensor:
        if tuple(state.shape[-len(shape) :]) != shape:
            expectation = f"state must have the shape {'(..., ' + shape_text(shape)[1:]}"
            raise ValueError(message(self.name, expectation, shape_text(state.shape), "default_state() makes one"))
        return state

    # ---- the kernel and the recurrence ----

    @abstractmethod
    def forward(
        self, length: int | None = None, rate: float = 1.0, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """K (channels, H, length), and with a state what it adds to the output, (..., channels, H, length)."""

    @abstractmethod
    def forward_state(self, u: Tensor, state: Tensor, rate: float = 1.0) -> Tensor:
        """The state after the input u (..., H, L)."""

    @abstractmethod
    def setup_step(self, mode: str | None = None) -> None:
        """Computes once what ``step`` would compute anew for each sample."""

    @abstractmethod
    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One sample u (..., H) and the state before it to (y (..., channels, H), state after it)."""

    def _state_size(self) -> int:
        return self.modes

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """The state before the first sample: zeros."""
        shape = (*batch_shape, self.d_model, self._state_size())
        return self.inv_dt.new_zeros(shape, dtype=self.state_dtype, device=device)

    def train(self, mode: bool = True) -> StateSpaceKernel:
        if mode:
            self._recurrence = None
        super().train(mode)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> StateSpaceKernel:
        # What step uses was computed on another device or in another type.
        self._recurrence = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
