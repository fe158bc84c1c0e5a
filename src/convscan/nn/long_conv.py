"""Filters as long as the sequence: learned tap by tap (LongConv), or as a function of time (ImplicitLongConv)."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod

import torch
from torch import Tensor

from .._errors import message
from ..ops.causal_conv.api import causal_conv
from ._kept import KeptFilters
from ._layer import SequenceLayer, at_least, carry

INITIALISATIONS = ("double_exp", "random")


class LongFilterLayer(SequenceLayer[Tensor]):
    """y = conv(x, filter()): what layers with long filters share. The state is the last K-1 samples of x."""

    skip: Tensor | None
    step_filter: Tensor | None

    def __init__(self, d_model: int, kernel_size: int, skip: Tensor | None) -> None:
        super().__init__(d_model)
        self.kernel_size = at_least(type(self).__name__, "kernel_size", kernel_size, 1)
        self.register_parameter("skip", None if skip is None else torch.nn.Parameter(skip))
        self.register_buffer("step_filter", None, persistent=False)
        self._kept = KeptFilters()

    @abstractmethod
    def filter(self, taps: int | None = None) -> Tensor:
        """The first ``taps`` of the K taps of the filter, (taps, D), or all."""

    def response(self, taps: int) -> Tensor:
        """The first ``taps`` of what an impulse gives, (taps, D): the filter with ``skip`` added to its first tap."""
        if self.step_filter is not None and not torch.is_grad_enabled():
            return self.step_filter[:taps]
        h = self.filter(taps)
        # skip[n] x[i,n] is a convolution too: in the filter it costs no pass over x.
        return h if self.skip is None else torch.cat([h[:1] + self.skip, h[1:]])

    def setup_step(self) -> None:
        """Keeps the filter for calls without gradients until ``train()``; call it again when parameters change."""
        self.step_filter = None
        with torch.no_grad():
            self.step_filter = self.response(self.kernel_size)

    def train(self, mode: bool = True) -> LongFilterLayer:
        if mode:
            self.step_filter = None
        self._kept.drop()
        super().train(mode)
        return self

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        parameter = next(self.parameters())
        return parameter.new_zeros(*batch_shape, self.kernel_size - 1, self.d_model, device=device)

    def _run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if state is None:
            (h,) = self._kept.filters(self, x.shape[-2], x.dtype, lambda: (self.response(self.taps_met(x)),))
            return causal_conv(x, h), None
        self._check_state(state, x, self.kernel_size - 1, self.d_model)
        return causal_conv(x, self.response(self.kernel_size), initial_state=state), carry(state, x)

    def taps_met(self, x: Tensor) -> int:
        """The taps that meet a sample of x when it starts from rest."""
        return max(1, min(self.kernel_size, x.shape[-2]))


class LongConv(LongFilterLayer):
    """y = conv(x, h) + skip * x with a filter h of K free taps a channel, regularised so that it trains.

    h is computed from ``weight`` in the order of the source: smoothed, squashed and, while training, dropped out.
    Smoothing averages 2w+1 neighbours, either taps (in time) or bins of the spectrum of the filter padded to 2K (in
    frequency, where averaging multiplies tap k by the mean of cos(pi j k / K) over |j| <= w). Squashing moves each tap
    towards zero by a constant and stops there: sign(h) max(|h| - squash, 0).

    Args:
        d_model: D.
        kernel_size: K; as long as the sequences for a global convolution.
        squash: the constant of the soft threshold; 0 switches it off.
        smooth_time: w in time; 0 switches it off.
        smooth_frequency: w in frequency; 0 switches it off.
        drop_kernel: probability with which a tap is dropped while training.
        init: ``"double_exp"``, normal with deviation 0.02 times exp(-(k/K) (D/2)^(n/D)): decays from slow in the first
            channel to fast in the last; or ``"random"``, normal with deviation 0.002.
        skip: whether to add skip * x.

    Parameters: ``weight`` (K, D), ``skip`` (D,), standard normal at first.

    State: (..., K-1, D), the last inputs. A step costs O(K D) after ``setup_step()``, and the making of the filter
    besides without it.

    Source: D. Y. Fu et al., Simple Hardware-Efficient Long Convolutions for Sequence Modeling, 2023, arXiv 2302.06646.

    >>> import torch, convscan
    >>> layer = convscan.nn.LongConv(8, kernel_size=64, squash=0.001, smooth_time=1)
    >>> y, _ = layer(torch.randn(2, 64, 8))
    >>> layer.filter().shape, layer.default_state(2).shape
    (torch.Size([64, 8]), torch.Size([2, 63, 8]))
    """

    def __init__(
        self,
        d_model: int,
        kernel_size: int,
        *,
        squash: float = 0.001,
        smooth_time: int = 0,
        smooth_frequency: int = 0,
        drop_kernel: float = 0.0,
        init: str = "double_exp",
        skip: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, kernel_size, torch.randn(d_model, device=device, dtype=dtype) if skip else None)
        if squash < 0:
            raise ValueError(message("LongConv", "squash must not be negative", squash, "0 switches it off"))
        if init not in INITIALISATIONS:
            raise ValueError(message("LongConv", f"init must be one of {INITIALISATIONS}", repr(init)))
        self.squash = squash
        self.smooth_time = at_least("LongConv", "smooth_time", smooth_time, 0)
        self.smooth_frequency = at_least("LongConv", "smooth_frequency", smooth_frequency, 0)
        self.drop_kernel = torch.nn.Dropout(drop_kernel)
        weight = torch.randn(kernel_size, d_model, device=device, dtype=dtype)
        if init == "random":
            weight *= 0.002
        else:
            k = torch.arange(kernel_size, device=device)[:, None] / kernel_size
            n = torch.arange(d_model, device=device) / d_model
            weight *= 0.02 * torch.exp(-k * max(1, d_model // 2) ** n)
        self.weight = torch.nn.Parameter(weight)

    def filter(self, taps: int | None = None) -> Tensor:
        h: Tensor = self.weight
        if self.smooth_time:
            width = 2 * self.smooth_time + 1
            h = torch.nn.functional.avg_pool1d(h.T, width, stride=1, padding=self.smooth_time).T
        if self.smooth_frequency:
            j = torch.arange(-self.smooth_frequency, self.smooth_frequency + 1, dtype=torch.float64, device=h.device)
            k = torch.arange(self.kernel_size, dtype=torch.float64, device=h.device)
            h = h * torch.cos(math.pi / self.kernel_size * k[:, None] * j).mean(1, keepdim=True).to(h.dtype)
        h = h[:taps]
        if self.squash:
            h = torch.nn.functional.softshrink(h, self.squash)
        dropped: Tensor = self.drop_kernel(h)
        return dropped


class ImplicitLongConv(LongFilterLayer):
    """y = conv(x, h) + skip * x, where the filter h is a small network's function of time: Hyena's filter.

    h[k,n] = window[k,n] network(encoding(k))[n]. The encoding is (t, cos(2 pi f k / K), -sin(2 pi f k / K)) with
    t = k / (K-1) and (encoding_size-1)/2 bands f from 1e-4 to their number less one. The network is a perceptron with
    sine activations sin(frequency * z), whose frequencies are learned and shared by its layers. The window
    exp(-t delta[n]) + shift decays to ``target`` at t = ``slow_decay`` in the first channel, at ``fast_decay`` in the
    last. The parameters do not grow with K.

    Args:
        d_model: D.
        kernel_size: K; as long as the sequences for a global convolution.
        width: hidden features of the network.
        depth: hidden layers after the first.
        encoding_size: odd, at least 3.
        frequency: of the sines at first.
        fast_decay, slow_decay, target, shift: of the window.

    Parameters: ``network``, ``frequency`` (width,), ``skip`` (D,), standard normal at first. The released code lets the
    encoding learn too, at a rate of 1e-5; here it is fixed, as in the article.

    State: (..., K-1, D), the last inputs. A step costs O(K D) after ``setup_step()``, and O(K (width² + width D)) for
    the filter besides without it.

    Source: M. Poli et al., Hyena Hierarchy, 2023, arXiv 2302.10866, section 3.3 and appendix.

    >>> import torch, convscan
    >>> layer = convscan.nn.ImplicitLongConv(8, kernel_size=64)
    >>> y, _ = layer(torch.randn(2, 64, 8))
    >>> layer.filter().shape
    torch.Size([64, 8])
    """

    encoding: Tensor
    rates: Tensor

    def __init__(
        self,
        d_model: int,
        kernel_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        encoding_size: int = 3,
        frequency: float = 1.0,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.0,
        skip: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, kernel_size, torch.randn(d_model, device=device, dtype=dtype) if skip else None)
        if encoding_size < 3 or encoding_size % 2 == 0:
            expectation = "encoding_size must be odd and at least 3 (time, cosines, sines)"
            raise ValueError(message("ImplicitLongConv", expectation, encoding_size))
        if not 0 < target < 1 or not 0 < fast_decay <= slow_decay:
            expectation = "0 < target < 1 and 0 < fast_decay <= slow_decay must hold"
            got = (target, fast_decay, slow_decay)
            raise ValueError(message("ImplicitLongConv", expectation, got))
        at_least("ImplicitLongConv", "width", width, 1)
        at_least("ImplicitLongConv", "depth", depth, 0)
        self.shift = shift
        self.frequency = torch.nn.Parameter(torch.full((width,), frequency, device=device, dtype=dtype))
        sizes = [encoding_size] + (1 + depth) * [width]
        layers = [torch.nn.Linear(i, o, True, device, dtype) for i, o in itertools.pairwise(sizes)]
        self.network = torch.nn.ModuleList([*layers, torch.nn.Linear(width, d_model, False, device, dtype)])

        bands = (encoding_size - 1) // 2
        k = torch.arange(kernel_size, dtype=torch.float64)[:, None]
        f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
        angle = 2 * math.pi / kernel_size * k * f
        encoding = torch.cat([k / max(1, kernel_size - 1), torch.cos(angle), -torch.sin(angle)], 1)
        rates = -math.log(target) * torch.linspace(1 / slow_decay, 1 / fast_decay, d_model, dtype=torch.float64)
        kind = dtype or torch.get_default_dtype()
        self.register_buffer("encoding", encoding.to(device=device, dtype=kind), persistent=False)
        self.register_buffer("rates", rates.to(device=device, dtype=kind), persistent=False)

    def filter(self, taps: int | None = None) -> Tensor:
        z = encoding = self.encoding[:taps]
        *hidden, output = self.network
        for layer in hidden:
            z = torch.sin(self.frequency * layer(z))
        window = torch.exp(-encoding[:, :1] * self.rates) + self.shift
        h: Tensor = output(z) * window
        return h
