"""A training step of FFTConvS4 with an S4D kernel: the layer, and the gradients of its input and of all parameters.

Its truth is the same layer by its formulas in float64: powers in a product of two tables, an FFT of twice the length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from convscan.nn import FFTConvS4

from ..problem import Operator, by_formula
from .vandermonde import two_tables

PARAMETERS = ("D", "kernel.C", "kernel.B", "kernel.A_real", "kernel.A_imag", "kernel.inv_dt")


@dataclass(frozen=True)
class Case:
    """One layer with N = 64 states (32 conjugate pairs) for each of its features."""

    name: str
    source: str
    batch: int
    features: int
    length: int
    dtype: str = "float32"
    tags: frozenset[str] = frozenset({"operator"})

    @property
    def bytes(self) -> int:
        """Bytes that the forward pass must move at least: x read and y written once."""
        return 8 * self.batch * self.features * self.length

    @property
    def flops(self) -> int:
        """Of the forward pass: the kernel's 32 terms a step, and real transforms of twice the length."""
        transforms = (2 * self.batch + 1) * 2.5 * 2 * self.length * math.log2(2 * self.length)
        return int(self.features * (4 * 32 * self.length + transforms))


CASES = (
    Case("train-digits", "a small classifier of 784 pixels, 64 features", 32, 64, 784),
    Case("train-h128-l1024", "S4D on Long Range Arena, 128 features", 8, 128, 1024,
         tags=frozenset({"default"})),
    Case("train-h128-l4096", "longer sequences", 2, 128, 4096),
)  # fmt: skip


@lru_cache
def _layer(features: int) -> FFTConvS4:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return FFTConvS4(features, kernel="s4d")


def _inputs(case: Case, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.batch, case.features, case.length, generator=generator)
    parameters = dict(_layer(case.features).named_parameters())
    tensors = {"x": x} | {name: parameters[name].detach() for name in PARAMETERS}
    return {name: t.to(getattr(torch, case.dtype)) for name, t in tensors.items()}


def _forward(x: Tensor, **parameters: Tensor) -> Tensor:
    y: Tensor = functional_call(_layer(x.shape[1]), parameters, (x,))[0]
    return y


def discretised(A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, inv_dt: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and powers of the kernel Re sum_n c[n] a[n]^l: zero-order hold, conjugate pairs."""
    A, dt = torch.complex(-torch.exp(A_real), A_imag), torch.exp(inv_dt)
    a = torch.exp(dt * A)
    return 2 * torch.view_as_complex(C)[0] * torch.view_as_complex(B) * (a - 1) / A, a


def convolved(x: Tensor, kernel: Tensor, D: Tensor) -> Tensor:
    """x (B, H, L) with the kernel (H, L) and the direct term, as (B, 1, H, L)."""
    length = x.shape[-1]
    spectrum = torch.fft.rfft(x, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    y: Tensor = (torch.fft.irfft(spectrum, 2 * length)[..., :length] + D[0, :, None] * x)[:, None]
    return y


def _formula(x: Tensor, **parameters: Tensor) -> Tensor:
    kernel = {name.removeprefix("kernel."): t for name, t in parameters.items() if name != "D"}
    return convolved(x, two_tables(*discretised(**kernel), x.shape[-1]), parameters["D"])


def _outputs(inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return (inputs["x"][:, None].to("meta"),)


OPERATOR = Operator(
    name="FFTConvS4",
    short="layer",
    cases=CASES,
    inputs=_inputs,
    function=_forward,
    differentiable=("x", *PARAMETERS),
    shape=lambda inputs: (*inputs["x"].shape, inputs["kernel.C"].shape[2]),
    axes="BHLN",
    group=lambda shape: "training steps of S4D",
    # A power by way of a logarithm is off by as much as l log a was rounded, and rivals may take it that way.
    answer=by_formula(_formula, lambda problem: math.sqrt(problem.size("L"))),
    bound=64.0,
    bandwidth="copy",
    explain=None,
    outputs=_outputs,
    directions=lambda case: ("backward",),
)
