"""JAX on the CPU, jitted: real FFT of a fast length, ``lax.associative_scan`` and ``lax.scan``.

Inputs are JAX arrays made once; every call waits for its result. ``lax.scan`` gets time as the leading axis, which is
how it iterates. XLA sizes its own thread pool to the cores of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..peer import Peer, Prepared, missing, time_last, unsupported
from ..problem import Problem

REAL = (torch.float32, torch.float64)
DTYPES = (*REAL, torch.complex64, torch.complex128)


def _import() -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def _prepare(
    problem: Problem,
    function: Callable[..., Any],
    arguments: Sequence[Tensor],
    cotangent: Callable[[Tensor], Tensor],
    result: Callable[[Tensor], Tensor],
    gradients: Callable[[Sequence[Tensor]], Sequence[Tensor]],
) -> Prepared:
    jax = _import()
    arrays = [jax.device_put(t.detach().contiguous().numpy()) for t in arguments]
    if problem.direction == "forward":
        compiled = jax.jit(function).lower(*arrays).compile()
        return Prepared(lambda: jax.block_until_ready(compiled(*arrays)), lambda y: (result(_tensor(y)),))
    # JAX's complex cotangents are the conjugates of PyTorch's.
    start = jax.device_put(cotangent(problem.cotangent).contiguous().resolve_conj().numpy().conj())

    def backward(start: Any, *arrays: Any) -> Any:
        return jax.vjp(function, *arrays)[1](start)

    compiled = jax.jit(backward).lower(start, *arrays).compile()
    return Prepared(
        lambda: jax.block_until_ready(compiled(start, *arrays)),
        lambda g: gradients([_tensor(t).conj().resolve_conj() for t in g]),
    )


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


def _fft(problem: Problem) -> Prepared:
    jax = _import()
    jnp = jax.numpy
    from scipy.fft import next_fast_len

    n, length = next_fast_len(problem.size("L") + problem.size("K") - 1, real=True), problem.size("L")
    activation = {None: lambda y: y, "silu": jax.nn.silu, "gelu": lambda y: jax.nn.gelu(y, approximate=False)}

    def conv(x: Any, h: Any) -> Any:
        y = jnp.fft.irfft(jnp.fft.rfft(x, n) * jnp.fft.rfft(h, n), n)[..., :length]
        return activation[problem.inputs["activation"]](y)

    return _prepare(
        problem,
        conv,
        (time_last(problem["x"]), problem["h"].t()),
        time_last,
        lambda y: y.transpose(1, 2),
        lambda g: (g[0].transpose(1, 2), g[1].t()),
    )


def _associative_scan(problem: Problem) -> Prepared:
    jax = _import()
    jnp = jax.numpy

    def combine(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def scan(x: Any, y_init: Any, a: Any) -> Any:
        a = jnp.broadcast_to(a, x.shape)
        x = x.at[:, 0].add(a[:, 0] * y_init)
        return jax.lax.associative_scan(combine, (a, x), axis=1)[1]

    return _prepare(problem, scan, problem.arguments, lambda g: g, lambda y: y, lambda g: g)


def _scan(problem: Problem) -> Prepared:
    jax = _import()

    def scan(x: Any, y_init: Any, a: Any) -> Any:
        def step(y: Any, inputs: Any) -> Any:
            y = inputs[0] * y + inputs[1]
            return y, y

        return jax.lax.scan(step, y_init, (a, x))[1]

    def time_first(t: Tensor) -> Tensor:
        return t.expand(problem["x"].shape).transpose(0, 1)

    return _prepare(
        problem,
        scan,
        (time_first(problem["x"]), problem["y_init"], time_first(problem["a"])),
        time_first,
        lambda y: y.transpose(0, 1),
        lambda g: (g[0].transpose(0, 1), g[1], g[2].transpose(0, 1)),
    )


def _why_not_scan(problem: Problem) -> list[str]:
    reasons = missing("jax") + unsupported(problem, dtypes=DTYPES, backward=True)
    if problem.direction == "backward" and problem["a"].shape != problem["x"].shape:
        reasons.append("takes full-size coefficients only")
    return reasons


PEERS = (
    Peer(
        "jax fft",
        "causal_conv",
        "jax",
        lambda problem: missing("jax", "scipy") + unsupported(problem, dtypes=REAL, backward=True),
        _fft,
    ),
    Peer(
        "jax associative_scan",
        "linear_recurrence",
        "jax",
        lambda problem: missing("jax") + unsupported(problem, dtypes=DTYPES, backward=True),
        _associative_scan,
    ),
    Peer("jax lax.scan", "linear_recurrence", "jax", _why_not_scan, _scan),
)
