"""opt_ssm_forward: signature, checks, the choice of a strategy, and what compilation sees of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ... import _checks, _native
from ..._dispatch import choose, prepared_cache, register, settings
from ..._errors import message
from ..._layout import dtype_name, kind
from ..._library import define_composite, is_plain, likely_size
from ..fft_conv.api import DTYPES, fft_conv
from .problem import SSMProblem
from .strategies import ROWS, STRATEGIES, Run, asks

_NAME = "opt_ssm_forward"
_CHOICES = ("cost", "auto", *STRATEGIES)

_configuration = _native.configuration
_prepared: dict[Any, Run] = prepared_cache()


def opt_ssm_forward(
    x: Tensor,
    K: Tensor,
    B_: Tensor | None = None,
    C: Tensor | None = None,
    *,
    strategy: str | int = "cost",
    kernel_layout: str | None = None,
) -> Tensor:
    """y[b,i,:] = sum_k C (K[k,:] * (B_ x[b,i-k,:])): a state-space layer with N states as a convolution.

    The three factors can be contracted in different orders, of which the cheapest depends on the sizes:

    1. ``full_kernel``: sum_n C[o,n] K[l,n] B_[n,h] first, then convolve every input with every output;
    2. ``projected``: project x to the states, convolve each with its kernel, project to the outputs;
    3. ``fused``: all contractions in the frequency domain.

    Args:
        x: (..., L, H_in) with any number of leading axes, B entries together.
        K: the kernel of every state, (L, N) or (N, L); or a full kernel (L, H_out, H_in). It may have more or fewer
            taps than x has samples.
        B_: (N, H_in); None with a full kernel.
        C: (H_out, N); None with a full kernel.
        strategy: 1, 2, 3; ``"auto"``, the published rule: 1 when 1/H_in + 1/H_out > 1/B + 1/N and H_in H_out <= N,
            2 when the first does not hold and N <= H_in, else 3; or ``"cost"``, the one with the least predicted time
            on this machine. That is the default: over 16 layers on an AMD Zen 3 it took 1.0 times as long as the best
            of the three (geometric mean), the published rule 1.6 times.
        kernel_layout: ``"ln"`` for a kernel (L, N), ``"nl"`` for (N, L); by default the one that fits, which is (L, N)
            when both do.

    Returns:
        y, (..., L, H_out), of the dtype of x.

    dtypes: real: float32, float64, bfloat16, float16; half types are computed in float32.

    Raises:
        ValueError: shapes that do not fit together, an unknown strategy or layout.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.

    Cost: ``explain("opt_ssm_forward", ...)`` shows flops and bytes of every strategy, and the choice. Where no gradient
    is recorded, the work goes through the batch, and if need be through the states, in pieces: with ``"cost"`` and
    with strategy 2 the tensors in between never take more than the larger of x and K (or 12 MiB, or what the transforms
    of one channel per thread need); strategies 1 and 3 need the spectra of at least one sequence.
    Differentiable any number of times with respect to every tensor.

    Reference: Y. R. Pei, O. Coenen, aTENNuate, arXiv 2409.03377, section 3.

    >>> import torch, convscan
    >>> x, ones = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.ones(1, 1)
    >>> convscan.opt_ssm_forward(x, torch.tensor([[1.0], [10.0], [0.0]]), ones, ones).flatten().tolist()
    [1.0, 12.0, 23.0]
    """
    if torch.compiler.is_compiling():
        # One operator, so that nothing of the choice of a strategy is traced.
        return cast(Tensor, _operator(x, K, B_, C, str(strategy), kernel_layout))
    return _compute(x, K, B_, C, strategy, kernel_layout)


def _compute(
    x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None, strategy: str | int, kernel_layout: str | None
) -> Tensor:
    key: Any = None
    run: Run | None = None
    try:
        chunked = is_plain(x, K, B_, C)
        key = (*map(kind, (x, K, B_, C)), strategy, kernel_layout, chunked, _configuration(), settings())
        run = _prepared.get(key)
    except (AttributeError, TypeError):
        key = None  # no tensor, of which the checks below speak, or a size that may change
    if run is None:
        problem = _describe(x, K, B_, C, strategy=strategy, kernel_layout=kernel_layout)
        if 0 in (*x.shape, *K.shape, problem.outputs):
            run = _nothing(problem)
        else:
            run = choose(_NAME, problem).prepare(problem)
        if key is not None:
            _prepared[key] = run
    if x.ndim == 3:
        return run(x, K, B_, C)
    leading = x.shape[:-2]
    y = run(x.reshape(-1, *x.shape[-2:]) if leading else x[None], K, B_, C)
    return y.reshape(*leading, *y.shape[1:])


def _nothing(problem: SSMProblem) -> Run:
    """The sum over nothing."""

    def run(x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None) -> Tensor:
        return fft_conv(problem.equation, x, *(tensor for tensor in (K, B_, C) if tensor is not None))

    return run


def _describe(
    x: Tensor,
    K: Tensor,
    B_: Tensor | None = None,
    C: Tensor | None = None,
    *,
    strategy: str | int = "cost",
    kernel_layout: str | None = None,
) -> SSMProblem:
    """The problem of a call of ``opt_ssm_forward``; checks everything."""
    _checks.signal(_NAME, "x", x)
    named = {"K": K, "B_": B_, "C": C}
    for name, tensor in named.items():
        if tensor is not None or name == "K":
            _checks.tensor_like(_NAME, name, cast(Tensor, tensor), x)
    if str(strategy) not in _CHOICES:
        raise ValueError(message(_NAME, "strategy must be 'cost', 'auto', 1, 2 or 3", repr(strategy)))
    if kernel_layout not in (None, "ln", "nl"):
        expectation = "kernel_layout must be 'ln' for K (L, N), 'nl' for K (N, L), or None"
        raise ValueError(message(_NAME, expectation, repr(kernel_layout)))
    compute = _checks.common_dtype(_NAME, DTYPES, x=x, **named)
    axes, states, outputs = _axes(x, K, B_, C, str(strategy), kernel_layout)
    batch = 1
    for size in x.shape[:-2]:
        batch *= likely_size(size)
    return SSMProblem(
        batch=batch,
        length=likely_size(x.shape[-2]),
        taps=likely_size(K.shape[axes.index("l")]),
        inputs=int(x.shape[-1]),
        outputs=outputs,
        states=states,
        layout=axes,
        strategy=str(strategy),
        dtype=dtype_name(x.dtype),
        compute=dtype_name(torch.float64 if compute == torch.float64 else torch.float32),
        device=x.device.type,
        chunked=is_plain(x, K, B_, C),
        threads=_native.thread_count(),
        isa=_native.isa(),
    )


def _axes(
    x: Tensor, K: Tensor, B_: Tensor | None, C: Tensor | None, strategy: str, kernel_layout: str | None
) -> tuple[str, int, int]:
    """The letters of K's axes, N (0 with a full kernel) and H_out."""
    inputs = x.shape[-1]
    if B_ is None and C is None:
        if K.ndim != 3 or K.shape[2] != inputs:
            expectation = f"without B_ and C, K must be a full kernel (L, H_out, H_in) = (L, H_out, {inputs})"
            remedy = "Give B_ (N, H_in) and C (H_out, N) with a kernel of the states"
            raise ValueError(message(_NAME, expectation, _checks.shape_text(K.shape), remedy))
        if strategy in ("2", "3"):
            expectation = f"strategy {strategy} needs the states' kernel K (L, N) with B_ and C"
            raise ValueError(message(_NAME, expectation, f"a full kernel {_checks.shape_text(K.shape)}", "Take 1"))
        return "loh", 0, K.shape[1]
    if B_ is None or C is None:
        missing, given = ("B_", "C") if B_ is None else ("C", "B_")
        remedy = "Give both with a kernel of the states, neither with a full kernel"
        raise ValueError(message(_NAME, f"{missing} must be given where {given} is", "None", remedy))
    if B_.ndim != 2 or B_.shape[1] != inputs:
        raise ValueError(
            message(_NAME, f"B_ must have the shape (N, H_in) = (N, {inputs})", _checks.shape_text(B_.shape))
        )
    states = B_.shape[0]
    if C.ndim != 2 or C.shape[1] != states:
        raise ValueError(
            message(_NAME, f"C must have the shape (H_out, N) = (H_out, {states})", _checks.shape_text(C.shape))
        )
    if K.ndim == 3:
        remedy = "Leave B_ and C out: the full kernel contains them"
        raise ValueError(
            message(
                _NAME, "K must have the shape (L, N) or (N, L) beside B_ and C", _checks.shape_text(K.shape), remedy
            )
        )
    fitting = [name for name in ("ln", "nl") if K.ndim == 2 and K.shape[name.index("n")] == states]
    if not fitting or kernel_layout not in (None, *fitting):
        wanted = {"ln": f"(L, N) = (L, {states})", "nl": f"(N, L) = ({states}, L)"}
        expectation = " or ".join(wanted[name] for name in ("ln", "nl") if kernel_layout in (None, name))
        remedy = f"It is laid out as {fitting[0]!r}" if fitting else ""
        raise ValueError(message(_NAME, f"K must have the shape {expectation}", _checks.shape_text(K.shape), remedy))
    return kernel_layout or fitting[0], states, C.shape[0]


_operator = define_composite(
    "opt_ssm_forward(Tensor x, Tensor K, Tensor? B_, Tensor? C, str strategy, str? kernel_layout) -> Tensor", _compute
)
register(_NAME, ROWS, _describe, asks)
