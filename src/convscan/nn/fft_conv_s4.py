"""FFTConvS4: a state-space layer that trains as a long convolution and generates as a recurrence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import shape_text, tensor_like
from .._errors import message
from ..ops.causal_conv.api import causal_conv
from ..ops.causal_conv.spectrum import FilterSpectrum
from ._kept import KeptFilters
from ._layer import at_least
from ._state_space import StateSpaceKernel, one_of
from .s4 import S4
from .s4d import S4D

KERNELS: dict[str, type[StateSpaceKernel]] = {"s4d": S4D, "s4": S4}
DEFAULT_KERNEL = "s4d"


def _kernel_class(kernel: str | None, kernel_type: str | None) -> type[StateSpaceKernel]:
    if kernel is not None and kernel_type is not None and kernel != kernel_type:
        expectation = "kernel and kernel_type name the same thing; give one of them"
        raise ValueError(message("FFTConvS4", expectation, f"{kernel!r} and {kernel_type!r}"))
    argument = "kernel_type" if kernel is None and kernel_type is not None else "kernel"
    return KERNELS[one_of("FFTConvS4", argument, kernel or kernel_type or DEFAULT_KERNEL, tuple(KERNELS))]


def _arguments(kind: type[StateSpaceKernel], config: Mapping[str, Any] | None, kernel_args: dict[str, Any]) -> Any:
    """The keyword arguments of the kernel; each known to it, and given once."""
    known = [name for name in inspect.signature(kind).parameters if name not in ("d_model", "l_max", "channels")]
    for given in (config or {}, kernel_args):
        for name in given:
            if name not in known:
                expectation = f"arguments for kernel {kind.__name__} must be among {', '.join(known)}"
                raise TypeError(message("FFTConvS4", expectation, repr(name)))
    twice = sorted(set(config or {}) & set(kernel_args))
    if twice:
        expectation = "param_config and keyword arguments must not name the same thing"
        raise TypeError(message("FFTConvS4", expectation, ", ".join(twice)))
    return {**(config or {}), **kernel_args}


class FFTConvS4(torch.nn.Module):
    """y[b,c,h] = conv(x[b,h], K[c,h]) + D[c,h] x[b,h], with the kernel K of a state-space model.

    ``forward`` runs whole sequences as long convolutions, ``step`` single samples as a recurrence; both give the same.

    Args:
        d_model: H, the features.
        l_max: handed to the kernel, whose length it is where none is given. It truncates nothing: an input of any
            length is convolved with a kernel of that length, and ``step`` goes on for ever.
        channels: C, kernels of each feature.
        swap_channels: the axes of channels and features change places in what ``forward`` and ``step`` return:
            (B, H, C, L) and (B, H, C).
        transposed: inputs of ``forward`` are (B, H, L); otherwise (B, L, H). Neither is copied.
        dropout: of the output, while training.
        tie_dropout: drop the same features at all times.
        drop_kernel: dropout of the taps of the kernel, while training.
        kernel, kernel_type: ``"s4d"`` (default) or ``"s4"``: two names of one argument.
        param_config: arguments of the kernel as a mapping, which may hold ready parameters A, B, C, dt and, of S4, P.
        kernel_args: arguments of the kernel, see ``S4D`` and ``S4``.

    Parameters: ``kernel``'s, and ``D`` (C, H), standard normal at first.

    Half types: parameters may be stored half, kernels are computed in double precision and convolved in the type of x.

    Source: A. Gu, K. Goel, C. Ré, Efficiently Modeling Long Sequences with Structured State Spaces, 2021,
    arXiv 2111.00396.

    >>> import torch
    >>> from convscan.nn import FFTConvS4
    >>> layer = FFTConvS4(d_model=64, l_max=1024, channels=4, kernel="s4d", dropout=0.1)
    >>> y, _ = layer(torch.randn(2, 64, 1024))
    >>> y.shape
    torch.Size([2, 4, 64, 1024])
    """

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        swap_channels: bool = False,
        transposed: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        drop_kernel: float = 0.0,
        kernel_type: str | None = None,
        param_config: Mapping[str, Any] | None = None,
        kernel: str | None = None,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        self.d_model = at_least("FFTConvS4", "d_model", d_model, 1)
        self.channels = at_least("FFTConvS4", "channels", channels, 1)
        self.swap_channels = swap_channels
        self.transposed = transposed
        self.tie_dropout = tie_dropout
        kind = _kernel_class(kernel, kernel_type)
        arguments = _arguments(kind, param_config, kernel_args)
        self.kernel = kind(d_model, l_max, channels, **arguments)
        self.D = torch.nn.Parameter(
            torch.randn(channels, d_model, device=arguments.get("device"), dtype=arguments.get("dtype"))
        )
        self.dropout = torch.nn.Dropout(dropout)
        self.drop_kernel = torch.nn.Dropout(drop_kernel)
        self._kept = KeptFilters()

    def train(self, mode: bool = True) -> FFTConvS4:
        self._kept.drop()
        super().train(mode)
        return self

    @property
    def d_output(self) -> int:
        """Numbers of one time step of the output: d_model times channels."""
        return self.d_model * self.channels

    def forward(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """x (B, H, L), or (B, L, H) without ``transposed``, to (y (B, C, H, L), next_state).

        Without a state the sequence starts from rest and ``next_state`` is None. With one, the output continues the
        sequence that the state stands for. ``rate`` multiplies the time step: 2.0 reads a signal sampled half as often.
        Any number of leading axes may stand for B.
        """
        x = self._time_last(x)
        length = x.shape[-1]
        filters: Sequence[Tensor | FilterSpectrum]
        K_state: Tensor | None = None
        if state is None:
            variant = (rate, x.dtype)
            filters = self._kept.filters(self, length, variant, lambda: self._filters(length, rate, None, x.dtype)[0])
        else:
            filters, K_state = self._filters(length, rate, state, x.dtype)
        if length > 0:
            # (B, L, H) seen through transposes, with one filter for each feature; one call for each channel.
            outputs = [causal_conv(x.mT, h).mT for h in filters]
            y = outputs[0].unsqueeze(-3) if self.channels == 1 else torch.stack(outputs, -3)
        else:
            y = x.unsqueeze(-3).expand(*x.shape[:-2], self.channels, *x.shape[-2:]).clone()
        next_state = None
        if state is not None:
            assert K_state is not None
            y = y + K_state.to(x.dtype)
            next_state = self.kernel.forward_state(x, state, rate)
        y = self._drop(y)
        return (y.transpose(-3, -2) if self.swap_channels else y), next_state

    def _filters(
        self, length: int, rate: float, state: Tensor | None, dtype: torch.dtype
    ) -> tuple[list[Tensor], Tensor | None]:
        """(L, H) for each channel, and with a state what it adds to the output."""
        K, K_state = self.kernel(length, rate, state)
        K = self.drop_kernel(K)
        # D x is a convolution too: in the kernel it costs no pass over x.
        if length > 0:
            K = K + torch.nn.functional.pad(self.D.to(K.dtype)[..., None], (0, length - 1))
        return [h.mT for h in K.to(dtype)], K_state

    def _drop(self, y: Tensor) -> Tensor:
        dropped: Tensor
        if self.tie_dropout and self.training and self.dropout.p > 0:
            dropped = y * self.dropout(torch.ones_like(y[..., :1]))
        else:
            dropped = self.dropout(y)
        return dropped

    def _time_last(self, x: Tensor) -> Tensor:
        """x checked, as (..., H, L)."""
        tensor_like("FFTConvS4", "x", x, x)
        axis, meaning = (-2, "(B, H, L)") if self.transposed else (-1, "(B, L, H)")
        if x.ndim < 2 or x.shape[axis] != self.d_model:
            expectation = f"x must have the shape {meaning} with H = {self.d_model}, for transposed={self.transposed}"
            raise ValueError(message("FFTConvS4", expectation, shape_text(x.shape)))
        return x if self.transposed else x.mT

    def setup_step(self, mode: str | None = None) -> None:
        """Computes once what ``step`` would compute anew for each sample; to be called again when parameters change.

        Modes: ``"diagonal"`` for S4D; ``"linear"``, ``"dense"`` and ``"diagonal"`` for S4. None takes the kernel's
        default, the first of these.
        """
        self.kernel.setup_step(mode)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """The state before the first sample: zeros, on the device of the parameters unless ``device`` is given."""
        return self.kernel.default_state(*batch_shape, device=device)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One sample x (B, H) and the state before it to (y (B, C, H), state after it). Without dropout."""
        tensor_like("FFTConvS4", "x", x, x)
        if x.ndim < 1 or x.shape[-1] != self.d_model:
            expectation = f"x must have the shape (B, H) with H = {self.d_model}"
            raise ValueError(message("FFTConvS4", expectation, shape_text(x.shape)))
        y, next_state = self.kernel.step(x, state)
        y = y + self.D.to(x.dtype) * x.unsqueeze(-2)
        return (y.transpose(-2, -1) if self.swap_channels else y), next_state
