"""Every gradient of a convolution from one pass over each channel, against convolutions one after the other."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

import convscan
import oracle
from convscan import _native, causal_conv
from convscan.ops.causal_conv import backward
from convscan.ops.causal_conv.arguments import Operands

ALL = (True,) * 6
KERNELS = ("direct", "fft")


def problem(seed: int, dtype: torch.dtype) -> tuple[Operands, Tensor]:
    """Sizes at the edges of tiles, blocks and vectors, in any memory order, with any of what a convolution can have."""
    draw = oracle.Draw(seed)
    batch, length = 1 + draw.below(3), draw.pick((1, 15, 16, 17, 33, 130, 300, 515))
    channels, taps = draw.pick((1, 2, 15, 16, 17, 33, 48, 70)), draw.pick((1, 2, 3, 4, 7, 16, 33, 129, 300))
    taps = min(taps, length)

    def signal() -> Tensor:
        values = draw.normal(batch, length, channels, dtype=dtype)
        return oracle.in_order(values, oracle.ORDERS[draw.below(2)])

    x, dy = signal(), signal()
    filters = draw.pick((1, channels, channels))
    h = draw.normal(taps, filters, dtype=dtype)
    h = h if draw.chance(2) else h.T.contiguous().T
    shapes = ((batch, length, channels), (length, channels), (channels,), (batch, length, 1))
    pre, post = (
        None if draw.chance(3) else draw.normal(*shapes[draw.below(4 if dtype.itemsize > 2 else 1)], dtype=dtype)
        for _ in range(2)
    )
    bias = draw.normal(channels, dtype=dtype) if draw.chance(2) else None
    cu_seqlens = torch.tensor([0, length // 3, length // 3, length]) if length > taps + 2 and draw.chance(4) else None
    has_state = draw.chance(3)
    origin = 0 if has_state else draw.below(taps) if draw.chance(2) else 0
    if cu_seqlens is not None and not has_state:
        taps = min(taps, length // 3)
        h, origin = h[:taps], min(origin, max(0, taps - 1))
        cu_seqlens = cu_seqlens if taps > 0 else None
        h = h if taps > 0 else draw.normal(1, filters, dtype=dtype)
    sequences = () if cu_seqlens is None else (3,)
    state = draw.normal(batch, *sequences, h.shape[0] - 1, channels, dtype=dtype) if has_state else None
    activation = (None, "silu", "gelu")[draw.below(3)]
    return Operands(x, h, bias, state, pre, post, cu_seqlens, activation, origin), dy


def together(p: Operands, dy: Tensor, kernel: str, needs: tuple[bool, ...] = ALL) -> tuple[Tensor | None, ...] | None:
    with convscan.force(kernel):
        return backward.fused(p, dy, needs)


def apart(p: Operands, dy: Tensor) -> tuple[Tensor | None, ...]:
    wide = [None if tensor is None else tensor.double() for tensor in p.floats]
    exact = Operands(*wide, *p[6:])  # type: ignore[arg-type, call-arg]
    with torch.no_grad(), convscan.force("direct"):
        return backward.composed_gradients(exact, dy.double(), [one is not None for one in p.floats])


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_agrees_with_one_gradient_at_a_time(kernel: str, dtype: torch.dtype, isa: str) -> None:
    ran = 0
    for seed in range(60 if dtype == torch.float32 else 25):
        p, dy = problem(seed, dtype)
        expected = apart(p, dy)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(together(p, dy, kernel))
        if answers[0] is None:
            continue
        ran += 1
        for name, found, again, exact in zip(Operands._fields, *answers, expected, strict=False):
            assert (found is None) == (exact is None), f"{name}: {p}"
            if exact is None or found is None:
                continue
            assert found.shape == exact.shape
            if exact.numel() == 0:
                continue
            assert torch.equal(found, again), f"{name} depends on the number of threads: {p}"
            # Transforms err by the norm of a channel, sums over channels and batch by that of all.
            scale = exact.norm() / exact.numel() ** 0.5 + 1
            width = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
            error = (found.double() - exact).abs().max()
            assert error <= width * (scale + exact.abs().max()), f"{name}: {error} at {scale}: {p}"
    assert ran >= 15


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_what_is_needed_is_made(kernel: str) -> None:
    for seed in range(12):
        p, dy = problem(seed, torch.float64)
        everything = together(p, dy, kernel)
        if everything is None:
            continue
        for extra in range(2, 6):
            needs = tuple(i < 2 or i == extra for i in range(6))
            found = together(p, dy, kernel, needs)
            assert found is not None
            for is_needed, one, of_all in zip(needs, found, everything, strict=True):
                assert (one is None) == (not is_needed or of_all is None)
                assert one is None or of_all is None or torch.equal(one, of_all)


@pytest.mark.parametrize("time_contiguous", [False, True])
@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck_of_every_argument(kernel: str, activation: str | None, time_contiguous: bool) -> None:
    draw = oracle.Draw(5)
    x = draw.normal(2, 9, 3)
    if time_contiguous:
        x = x.mT.contiguous().mT
    tensors = (x, draw.normal(4, 3), draw.normal(3), draw.normal(2, 3, 3), draw.normal(9, 3), draw.normal(2, 9, 3))
    arguments = tuple(tensor.requires_grad_() for tensor in tensors)

    def function(*tensors: Tensor) -> Tensor:
        x, h, bias, state, pre, post = tensors
        options: dict[str, Any] = {"bias": bias, "initial_state": state, "pre_gate": pre, "post_gate": post}
        with convscan.force(kernel):
            return causal_conv(x, h, activation=activation, **options)

    with convscan.force(kernel):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)


def chunked(seed: int, time_contiguous: bool) -> tuple[Operands, Tensor]:
    """A problem of few channels and much time, which the sums cut into chunks."""
    draw = oracle.Draw(seed)
    channels = draw.pick((1, 3, 40))

    def signal() -> Tensor:
        values = draw.normal(2, 3001 + draw.below(100), channels)[:, :3001]
        return values.mT.contiguous().mT if time_contiguous else values.contiguous()

    x, pre, post, dy = (signal() for _ in range(4))
    taps = draw.pick((4, 7, 20))
    state = draw.normal(2, taps - 1, channels) if draw.chance(2) else None
    origin = 0 if state is not None else draw.below(taps)
    return Operands(x, draw.normal(taps, channels), draw.normal(channels), state, pre, post, None, "gelu", origin), dy


@pytest.mark.parametrize("time_contiguous", [False, True])
def test_chunks_of_time_join(time_contiguous: bool, isa: str) -> None:
    for seed in range(4):
        p, dy = chunked(seed, time_contiguous)
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = together(p, dy, "direct")
            assert found is not None
            answers.append(found)
        for i, exact in enumerate(apart(p, dy)):
            if exact is None:
                continue
            one, *others = (cast(Tensor, answer[i]) for answer in answers)
            assert all(torch.equal(one, other) for other in others)
            torch.testing.assert_close(one, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("origin", [0, 2])
def test_outputs_beyond_the_caches(origin: int, isa: str) -> None:
    """Stored past them, with filters short enough for registers."""
    draw = oracle.Draw(8)
    x, pre, post, dy = (draw.normal(1, 4200, 1024, dtype=torch.float32) for _ in range(4))
    p = Operands(x, draw.normal(4, 1024, dtype=torch.float32), None, None, pre, post, None, "silu", origin)
    for found, exact in zip(together(p, dy, "direct") or (), apart(p, dy), strict=True):
        if exact is not None and found is not None:
            error = (found.double() - exact).abs().max()
            assert error <= 1e-5 * (exact.norm() / exact.numel() ** 0.5 + exact.abs().max())


def test_training_takes_one_pass() -> None:
    draw = oracle.Draw(6)
    x, bias, needs = draw.normal(1, 4096, 64), draw.normal(64), (True, True, True, False, False, False)
    for taps, name in ((4096, "fft"), (3, "direct")):
        given = (x, x, draw.normal(taps, 64), bias, None, None, None, None, None, None, 0, "default", needs)
        assert convscan.explain("causal_conv_backward", *given).chosen == name


@pytest.mark.parametrize(
    ("kernel", "taps", "time_contiguous"),
    [("direct", 4, False), ("direct", 4, True), ("direct", 32, False), ("direct", 32, True), ("fft", 16384, True)],
)
def test_no_temporary_of_the_size_of_the_input(kernel: str, taps: int, time_contiguous: bool) -> None:
    """Between two gates, with an activation: what is allocated beyond the gradients is the kernel's workspace."""
    x = torch.randn(1, 64, 16384).mT if time_contiguous else torch.randn(1, 16384, 64)
    tensors = [x, torch.randn(taps, 64) / taps**0.5, torch.randn(64), torch.randn_like(x), torch.randn_like(x)]
    x, h, bias, pre, post = (tensor.requires_grad_() for tensor in tensors)
    torch.set_num_threads(1)
    y = causal_conv(x, h, bias=bias, pre_gate=pre, post_gate=post, activation="silu")
    dy = torch.randn_like(y)
    p = Operands(x.detach(), h.detach(), bias.detach(), None, pre.detach(), post.detach(), None, "silu")
    with torch.no_grad():
        gradients = together(p, dy, kernel)
    assert gradients is not None
    convscan.reset_peak_workspace()
    with torch.no_grad():
        together(p, dy, kernel)
    memory = convscan.workspace_memory()
    assert memory.peak - memory.tables <= 2 << 20  # tables stay from call to call, those of other lengths too
    found_ones = torch.autograd.grad(y, (x, h, bias, pre, post), dy)
    for found, expected in zip(found_ones, (*gradients[:3], *gradients[4:]), strict=True):
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert _native.workspace_current() > 0
