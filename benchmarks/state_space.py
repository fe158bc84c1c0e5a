"""Measures the kernels of state-space layers, and a training step of FFTConvS4, against plain PyTorch.

    python benchmarks/state_space.py [--features 256] [--seconds 20]

Plain PyTorch materialises the matrix (H, N, L), a block of features at a time, which is faster for it than all at once.
No time without a right answer: float32 results are held against float64 on some features. Times are medians of an
interleaved run. The exit code is 1 when a requirement is missed: 8 times the speed of plain PyTorch for the products
forward, output and 1 MiB a thread of memory, an error of 5e-6 of the largest value.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from convscan import cauchy, vandermonde
from convscan.nn import S4D, FFTConvS4
from convscan.ops.cauchy import cases as cauchy_cases
from convscan.ops.vandermonde import cases as vandermonde_cases
from convscan.profiler.measure import Contestant, bursts, interleave, peak_bytes
from convscan.profiler.peer import Prepared

BLOCK = 16  # features that plain PyTorch materialises at a time
CHECKED = 97  # every so many features are held against float64


@dataclass(frozen=True)
class Comparison:
    """Ours and plain PyTorch on one workload; ``required`` is the least ratio of times, None where none is asked."""

    name: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    error: float
    required: float | None
    is_memory_bound: bool = False


def plain_vandermonde(c: Tensor, a: Tensor, length: int) -> Tensor:
    powers = torch.arange(length, device=a.device)
    blocks = zip(c.split(BLOCK), a.split(BLOCK), strict=True)
    return torch.cat(
        [torch.einsum("hn,hnl->hl", x, torch.exp(torch.log(y)[..., None] * powers)).real for x, y in blocks]
    )


def plain_cauchy(v: Tensor, z: Tensor, poles: Tensor) -> Tensor:
    blocks = zip(v.split(BLOCK, -2), poles.split(BLOCK), strict=True)
    return torch.cat([torch.einsum("shn,hnw->shw", x, 1 / (z - y[..., None])) for x, y in blocks], -2)


def plain_layer(layer: FFTConvS4, x: Tensor) -> Tensor:
    """What the layer computes, with the same parameters: kernel by einsum, convolution by FFTs of twice the length."""
    kernel, length = layer.kernel, x.shape[-1]
    assert isinstance(kernel, S4D)
    dt, C, B = torch.exp(kernel.inv_dt), torch.view_as_complex(kernel.C), torch.view_as_complex(kernel.B)
    A = torch.complex(-torch.exp(kernel.A_real), kernel.A_imag)
    K = torch.stack([2 * plain_vandermonde(c * B * (torch.exp(dt * A) - 1) / A, torch.exp(dt * A), length) for c in C])
    spectrum = torch.fft.rfft(x, 2 * length)[:, None] * torch.fft.rfft(K, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length] + layer.D[..., None] * x[:, None]


def relative(got: Tensor, expected: Tensor) -> float:
    return float(((got.to(expected.dtype) - expected).abs().max() / expected.abs().max()).detach())


def with_gradients(function: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        gradients = torch.autograd.grad(function().abs().square().sum(), inputs)
        return gradients[0]

    return run


def products(features: int) -> list[Comparison]:
    """The two products on the case of the requirement, forward and with gradients."""
    found = []
    case = next(case for case in vandermonde_cases.CASES if case.name == "h256-n64-l16384")
    arguments = vandermonde_cases.inputs(case)
    c, a, length = arguments["c"][:features], arguments["a"][:features], arguments["length"]
    truth = vandermonde(c[::CHECKED].to(torch.complex128), a[::CHECKED].to(torch.complex128), length)
    error = relative(vandermonde(c, a, length)[::CHECKED], truth)
    shape = f"H {len(c)}, N {c.shape[-1]}, L {length}"
    found.append(
        Comparison(
            f"vandermonde, {shape}",
            lambda: vandermonde(c, a, length),
            lambda: plain_vandermonde(c, a, length),
            error,
            8,
            True,
        )
    )
    leaves = [c.clone().requires_grad_(), a.clone().requires_grad_()]
    found.append(
        Comparison(
            "  and its gradients",
            with_gradients(lambda: vandermonde(*leaves, length), leaves),
            with_gradients(lambda: plain_vandermonde(*leaves, length), leaves),
            error,
            None,
        )
    )
    cauchy_case = next(case for case in cauchy_cases.CASES if case.name == "h256-n64-l16384")
    v, z, poles = cauchy_cases.inputs(cauchy_case).values()
    v, poles = v[:, :features], poles[:features]
    few = [t.to(torch.complex128) for t in (v[:, ::CHECKED], z, poles[::CHECKED])]
    error = relative(cauchy(v, z, poles)[:, ::CHECKED], cauchy(*few))
    found.append(
        Comparison(f"cauchy, {shape}", lambda: cauchy(v, z, poles), lambda: plain_cauchy(v, z, poles), error, 8, True)
    )
    sides = [v.clone().requires_grad_(), poles.clone().requires_grad_()]
    found.append(
        Comparison(
            "  and its gradients",
            with_gradients(lambda: cauchy(sides[0], z, sides[1]), sides),
            with_gradients(lambda: plain_cauchy(sides[0], z, sides[1]), sides),
            error,
            None,
        )
    )
    return found


def training_step(batch: int, features: int, length: int) -> Comparison:
    """Loss and gradients of one S4D layer."""
    torch.manual_seed(0)
    layer, x = FFTConvS4(features, kernel="s4d"), torch.randn(batch, features, length)
    parameters = list(layer.parameters())
    return Comparison(
        f"training step of S4D, B {batch}, H {features}, L {length}",
        with_gradients(lambda: layer(x)[0], parameters),
        with_gradients(lambda: plain_layer(layer, x), parameters),
        relative(plain_layer(layer, x), layer(x)[0]),
        None,
    )


def main() -> int:
    """Prints the table; 1 when a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=int, default=256, help="fewer for a quick look")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring for each line")
    options = parser.parse_args()
    comparisons = products(options.features) + [
        training_step(*s) for s in ((32, 64, 1024), (8, 128, 1024), (2, 128, 4096))
    ]
    table = Table(box=None, header_style="dim")
    for name in ("workload", "convscan ms", "plain ms", "ratio", "extra MiB", "plain MiB", "error", ""):
        table.add_column(name, justify="left" if name in ("workload", "") else "right", no_wrap=True)
    missed = 0
    for one in comparisons:
        prepared = [Prepared(run, lambda answer: (answer,)) for run in (one.ours, one.plain)]
        output = one.ours().nbytes
        peaks = [(peak_bytes(p, output) or 0) / (1 << 20) for p in prepared]
        contestants = [Contestant(bursts(p), 0.1) for p in prepared]
        interleave(contestants, options.seconds)
        ours, plain = (1e3 * statistics.median(c.samples) for c in contestants)
        met = one.required is None or (plain / ours >= one.required and one.error <= 5e-6)
        # Page tables and the allocator's own pages come on top of the MiB a thread.
        met = met and (not one.is_memory_bound or peaks[0] <= torch.get_num_threads() + 1)
        missed += not met
        verdict = "" if one.required is None else "[green]reached[/]" if met else "[red]missed[/]"
        numbers = (f"{ours:.1f}", f"{plain:.0f}", f"{plain / ours:.1f}×", *(f"{p:.1f}" for p in peaks))
        table.add_row(one.name, *numbers, f"{one.error:.1e}", verdict)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
