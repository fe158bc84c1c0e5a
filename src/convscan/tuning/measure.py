"""Measures the constants of the cost models on this machine.

Every kernel is timed on a small and on a large amount of work in each memory order; two unknowns, seconds per unit of
the inner loop and seconds per element, follow from two times. Memory constants come from copies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import _dispatch, _native
from .._targets import processor, tuning_file
from ..ops.cauchy import api as cauchy_api
from ..ops.cauchy import cpu as cauchy_cpu
from ..ops.causal_conv import arguments as conv
from ..ops.causal_conv import cpu as conv_cpu
from ..ops.causal_conv import cpu_gradient, transforms
from ..ops.gated_delta_rule import cpu as delta_cpu
from ..ops.gated_delta_rule.api import gated_delta_rule
from ..ops.gated_linear_attention.api import gated_linear_attention
from ..ops.linear_attention import cpu as attention_cpu
from ..ops.linear_recurrence import api as scan
from ..ops.linear_recurrence import cpu as scan_cpu
from ..ops.selective_scan import cpu as selective_cpu
from ..ops.selective_scan.api import selective_scan
from ..ops.vandermonde import api as powers_api
from ..ops.vandermonde import cpu as powers_cpu
from . import gpu, measure_gpu
from .table import RELATIVE_COST, forget

Progress = Callable[[str, float], None]
_ORDERS = ("channel", "time", "strided")
_SMALL_BATCH_SECONDS = 2e-3  # one timing lasts at least this long, well above the clock's resolution


def _seconds(run: Callable[[], object], repeats: int = 30) -> float:
    """The least time of a call among a few: what the kernel needs when nothing disturbs it."""
    run()
    begin = perf_counter()
    run()
    count = max(1, int(_SMALL_BATCH_SECONDS / max(perf_counter() - begin, 1e-9)))
    best = float("inf")
    for _ in range(repeats):
        begin = perf_counter()
        for _ in range(count):
            run()
        best = min(best, (perf_counter() - begin) / count)
    return best


def _signal(order: str, length: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length * channels)
    if order == "channel":
        return torch.randn(1, length, channels, generator=generator)
    if order == "time":
        return torch.randn(1, channels, length, generator=generator).mT
    return torch.randn(1, length, 2 * channels, generator=generator)[..., ::2]


def _fit(few: tuple[float, float, float], many: tuple[float, float, float]) -> tuple[float, float]:
    """Seconds per unit and per element from two (units, elements, seconds); neither is negative."""
    (u1, e1, s1), (u2, e2, s2) = few, many
    unit = max(0.0, (s2 / e2 - s1 / e1) / (u2 / e2 - u1 / e1))
    return unit, max(0.0, (s1 - unit * u1) / e1)


def _conv_seconds(name: str, order: str, length: int, channels: int, taps: int, gradient: bool) -> tuple[float, Any]:
    x, h = _signal(order, length, channels), _signal(order, taps, channels)[0]
    if gradient:
        rows = cpu_gradient.GRADIENT_ROWS
        dh = torch.empty(taps, channels)
        problem: Any = conv.filter_gradient_problem(x, x, None, None, None, dh)
        run = next(row for row in rows if row.name == name).prepare(problem)
        return _seconds(lambda: run(x, x, None, None, None, dh)), problem
    y = torch.empty_like(x)
    problem = conv.problem_of(conv.Operands(x, h), y)
    run = next(row for row in conv_cpu.ROWS if row.name == name).prepare(problem)
    return _seconds(lambda: run(x, h, None, None, None, None, y)), problem


def _conv_constants(kernel: str, order: str) -> dict[str, float]:
    """One thread, arrays that stay in the second-level cache, two lengths of filter."""
    family, name = kernel.split(".")
    if name == "fft":
        return _transform_constants(kernel, order)
    few, many = {
        "direct": ((2048, 32, 4), (2048, 32, 96)),
        "toeplitz": ((2048, 32, 16), (2048, 32, 128)),
        "recurrence": ((2048, 32, 4), (2048, 32, 24)),
    }[name]
    points = []
    for length, channels, taps in (few, many):
        seconds, problem = _conv_seconds(name, order, length, channels, taps, family == "gradient")
        units = float(length * channels * taps) if name == "recurrence" else conv_cpu.products(problem)
        points.append((units, float(length * channels), seconds))
    unit, element = _fit(points[0], points[1])
    return {f"{kernel}.{order}.unit": unit, f"{kernel}.{order}.element": element}


def _transform_constants(kernel: str, order: str) -> dict[str, float]:
    """In cache, elements are a small part of long transforms. Where transforms are short and walk many channels past
    the caches, they are not: half of what they take then."""
    each = []
    for length, channels, taps in ((4096, 32, 4096), (2048, 1024, 128)):
        seconds, problem = _conv_seconds("fft", order, length, channels, taps, kernel.startswith("gradient"))
        units = transforms.units(problem, transforms.transform_length(problem))
        each.append((seconds / (length * channels), units / (length * channels)))
    (inside, many), (outside, few) = each
    unit = inside / many
    return {f"{kernel}.{order}.unit": unit, f"{kernel}.{order}.element": max(0.0, outside - unit * few) / 2}


def _scan_constants(kernel: str, order: str) -> dict[str, float]:
    """One thread: seconds per element in cache, and what an element costs more where the arrays do not fit."""
    each: list[float] = []
    sizes = ((4096, 16), (2048, 2048))
    if (kernel, order) == ("scan.parallel", "channel"):  # channels that are neighbours have to be few
        few = min(4, scan_cpu.most_interleaved(_native.isa(), "float32"))
        sizes = ((65536 // few, few), ((1 << 22) // few, few))
    for length, channels in sizes:
        x = _signal(order, length, channels)
        a, y = torch.sigmoid(_signal(order, length, channels)), torch.empty_like(x)
        problem = scan._problem(x, None, a, None, False, y)
        row = next(row for row in _dispatch.implementations("linear_recurrence") if f"scan.{row.name}" == kernel)
        run = row.prepare(problem)
        seconds = _seconds(partial(run, x, None, a, None, y), 5 if each else 30)
        each.append(seconds / (length * channels))
    return {f"{kernel}.{order}.unit": max(0.0, each[1] - each[0]), f"{kernel}.{order}.element": each[0]}


def _einsum_constants() -> dict[str, float]:
    """One thread, in cache: PyTorch's own operators, which run between and instead of our kernels."""
    n, tiny = 4096, torch.ones(2, 2)
    constants = {"einsum.call": 4 * _seconds(lambda: tiny @ tiny)}  # with the views around it
    operators: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "matmul": lambda x, w: w @ x,
        "direct": lambda x, w: torch.nn.functional.conv1d(x[None], w[..., None].expand(-1, -1, 8)),
    }
    for name, operator in operators.items():
        points = []
        for rows in (16, 64):
            x, w = torch.ones(rows, n), torch.ones(rows, rows)
            products = rows * rows * n * (8 if name == "direct" else 1)
            points.append((float(products), float(2 * rows * n), _seconds(partial(operator, x, w))))
        unit, element = _fit(points[0], points[1])
        constants |= {f"einsum.{name}.unit": unit, f"einsum.{name}.element": element}
    x, spectrum = torch.ones(16, n), torch.ones(16, n // 2 + 1, dtype=torch.complex64)
    copy = _seconds(lambda: x.clone()) / (2 * x.numel())
    transform = _seconds(lambda: torch.fft.rfft(x)) / x.numel()
    product = _seconds(lambda: torch.addcmul(spectrum, spectrum, spectrum)) / spectrum.numel()
    constants |= {"einsum.fft.unit": max(0.0, transform - 2 * copy) / math.log2(n), "einsum.fft.element": copy}
    return constants | {"einsum.product.unit": max(0.0, product - 6 * copy), "einsum.product.element": copy}


def _state_space_constants() -> dict[str, float]:
    """One thread, in complex64, whose cost is a multiple: powers of short and long products, quotients of few and many
    terms."""
    scale = RELATIVE_COST["complex64"]
    powers, quotients = [], []
    for terms, length in ((4, 256), (64, 8192)):
        c = torch.polar(torch.full((16, 64), 0.99), torch.linspace(0, 3, 64).expand(16, 64))
        y = torch.empty(16, length)
        problem = powers_api._problem(c, c, y, 0, False)
        run = powers_cpu.ROWS[0].prepare(problem)
        powers.append((*powers_cpu._work(problem), _seconds(partial(run, c, c, y)) / scale))
        c = c[:, :terms]
        z = torch.linspace(2, 3, 1024).to(c.dtype)
        k = torch.empty(16, 1024, dtype=c.dtype)
        quotient = cauchy_api._problem(c, z, c, k, 1)
        divide = cauchy_cpu.ROWS[0].prepare(quotient)
        quotients.append((*cauchy_cpu._work(quotient), _seconds(partial(divide, c, c, z, k)) / scale))
    constants = {}
    for kernel, (few, many) in {"vandermonde.factored": powers, "cauchy.direct": quotients}.items():
        constants[f"{kernel}.unit"], constants[f"{kernel}.element"] = _fit(few, many)
    return constants


def _memory_constants() -> dict[str, float]:
    """One thread, in cache: recurrences of many numbers a channel or head, with few and with many of them."""

    def selective(length: int, channels: int, states: int) -> tuple[torch.Tensor, ...]:
        u, b = torch.randn(1, length, channels), torch.randn(1, length, states)
        return u, u.sigmoid(), -torch.rand(channels, states), b, b

    def memory(keys: int, values: int) -> tuple[torch.Tensor, ...]:
        k = torch.nn.functional.normalize(torch.randn(1, 256, 4, keys), dim=-1)
        return k, k, torch.randn(1, 256, 4, values), -torch.rand(1, 256, 4), torch.rand(1, 256, 4)

    # Sizes of models: of states of 16 x 16 what is not products takes longer, of 256 x 256 they leave the first cache.
    few, many = memory(64, 64), memory(128, 256)
    kernels: dict[str, tuple[Callable[..., Any], Callable[..., tuple[float, float]], Any, Any]] = {
        "selective.over_channels": (selective_scan, selective_cpu.work, selective(512, 64, 1), selective(512, 64, 32)),
        "selective.over_states": (selective_scan, selective_cpu.work, selective(32, 128, 16), selective(32, 128, 128)),
        "attention.chunked": (gated_linear_attention, attention_cpu.work, few[:4], many[:4]),
        "delta.chunked": (gated_delta_rule, delta_cpu.work, few, many),
    }
    constants = {}
    for kernel, (operator, work, *cases) in kernels.items():
        points = []
        with _dispatch.force(kernel.split(".")[1]):
            for arguments in cases:
                problem = _dispatch.explain(operator, *arguments).problem
                points.append((*work(problem), _seconds(partial(operator, *arguments))))
        constants[f"{kernel}.unit"], constants[f"{kernel}.element"] = _fit(*points)
    return constants


def _machine_constants(threads: int) -> dict[str, float]:
    """A call of a kernel with nothing to do, handing work to the other threads, and copies in and out of the caches."""
    cached, large = torch.ones(1 << 17), torch.ones(1 << 25)
    to_cached, to_large = torch.empty_like(cached), torch.empty_like(large)
    x, h, y = torch.ones(1, 8, 4), torch.ones(3, 4), torch.empty(1, 8, 4)
    run = conv_cpu.ROWS[0].prepare(conv.problem_of(conv.Operands(x, h), y))
    torch.set_num_threads(threads)
    return {
        "call": _seconds(lambda: run(x, h, None, None, None, None, y)),
        "handoff": 4e-6,
        "byte.cached": _seconds(lambda: to_cached.copy_(cached)) / (2 * cached.nbytes),
        "byte.memory": _seconds(lambda: to_large.copy_(large), 8) / (2 * large.nbytes),
        "cache.bytes": 16e6,
    }


def measure(progress: Progress | None = None, path: Path | None = None) -> Path:
    """Times the kernels of the instruction set in use, stores the constants in ``path`` and uses them from now on."""
    threads = torch.get_num_threads()
    kernels = [f"conv.{row.name}" for row in conv_cpu.ROWS] + [
        f"gradient.{row.name}" for row in cpu_gradient.GRADIENT_ROWS
    ]
    scans = ["scan.sequential", "scan.parallel"]
    steps = [(kernel, order) for kernel in kernels + scans for order in _ORDERS]
    steps.remove(("scan.parallel", "strided"))  # it does not run that
    constants: dict[str, float] = {}
    try:
        torch.set_num_threads(1)
        for at, (kernel, order) in enumerate(steps):
            if progress is not None:
                progress(f"{kernel}, {order} order", at / (len(steps) + 1))
            one = _scan_constants if kernel in scans else _conv_constants
            constants |= one(kernel, order)
        constants |= _einsum_constants() | _state_space_constants() | _memory_constants()
        if progress is not None:
            progress("memory", len(steps) / (len(steps) + 1))
        constants |= _machine_constants(threads)
    finally:
        torch.set_num_threads(threads)
    path = tuning_file() if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored[_native.isa()] = {name: float(f"{value:.4g}") for name, value in constants.items()}
    if torch.cuda.is_available() and find_spec("triton") is not None:
        stored[processor(torch.device("cuda"))] = measure_gpu.measure(progress)
    path.write_text(json.dumps(stored, indent=1) + "\n")
    forget()
    gpu.forget()
    _dispatch.forget()
    return path
