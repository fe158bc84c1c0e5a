"""What tests/gpu asks of interpreted kernels, of the GPU that is there: named on the command line, never collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import convscan
import oracle
from convscan.profiler import gpu as profiler

CONVOLUTIONS = [row.name for row in convscan.implementations("causal_conv") if row.target == "triton"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is interpreted here."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, dtype: torch.dtype) -> None:
    for p in oracle.convolutions(dtype, count=60, seed=1, limit=500_000):
        given = {key: None if t is None else t.cuda() if hasattr(t, "cuda") else t for key, t in p.options().items()}
        x, h = p.x.cuda(), p.h.cuda()
        row = next(c for c in convscan.explain("causal_conv", x, h, **given).candidates if c.name == name)
        if row.cost is None:
            continue
        with convscan.force(name):
            y, again = (convscan.causal_conv(x, h, **given) for _ in range(2))
        assert torch.equal(y, again)
        p.check(y.cpu(), is_transform="fft" in name)


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
def test_recurrence(dtype: torch.dtype) -> None:
    for p in oracle.recurrences(dtype, count=40, seed=2):
        start = None if p.y_init is None else p.y_init.cuda()
        y = convscan.linear_recurrence(p.x.cuda(), start, p.a.cuda(), reverse=p.reverse)
        p.check(y.cpu())


def test_recurrence_many_times_over_many_tiles() -> None:
    """Programs that look back must not depend on when the others run."""
    x, a = torch.randn(4, 60_000, 300, device="cuda"), torch.rand(4, 60_000, 300, device="cuda")
    first = convscan.linear_recurrence(x, None, a)
    for _ in range(50):
        assert torch.equal(convscan.linear_recurrence(x, None, a), first)


def test_gradients_of_long_filters() -> None:
    x, gate = (torch.randn(2, 3000, 40, device="cuda", requires_grad=True) for _ in range(2))
    h = (torch.randn(700, 40, device="cuda") / 26).requires_grad_()
    found = []
    for name in ("triton_fft", "triton_fft", "reference"):
        with convscan.force(name):
            y = convscan.causal_conv(x, h, post_gate=gate, activation="gelu")
            found.append(torch.autograd.grad(y, (x, h, gate), x.detach()))
    for one, again, exact in zip(*found, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("length", [3000, 20_000, 300_001])
def test_kept_spectra(length: int) -> None:
    """In the form that is chosen, read on another stream and in a graph, made anew when the filters change."""
    x, h = torch.randn(2, length, 3, device="cuda"), torch.randn(length, 3, device="cuda") / length**0.5
    filters = convscan.FilterSpectrum(h, length)
    convscan.causal_conv(x, filters)
    kept = filters._kept
    assert kept is not None
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = convscan.causal_conv(x, filters)
    stream.synchronize()
    torch.testing.assert_close(y, convscan.causal_conv(x, h), rtol=1e-4, atol=1e-4)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = convscan.causal_conv(x, filters)
    assert filters._kept is kept
    before = convscan.causal_conv(x, h)
    h.mul_(2)
    torch.testing.assert_close(convscan.causal_conv(x, filters), 2 * before, rtol=1e-4, atol=1e-4)
    assert filters._kept is not kept
    graph.replay()  # of the filters of that time
    torch.testing.assert_close(captured, before, rtol=1e-4, atol=1e-4)


def test_gradients_and_capture() -> None:
    x = torch.randn(2, 500, 64, device="cuda", requires_grad=True)
    h = torch.randn(4, 64, device="cuda", requires_grad=True)
    y = convscan.causal_conv(x, h, activation="silu")
    found = torch.autograd.grad(y, (x, h), y.detach())
    with convscan.force("reference"):
        exact = torch.autograd.grad(convscan.causal_conv(x, h, activation="silu"), (x, h), y.detach())
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    still = x.detach()
    convscan.causal_conv(still, h.detach())
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = convscan.causal_conv(still, h.detach())
    still.copy_(torch.randn_like(still))
    graph.replay()
    torch.testing.assert_close(captured, convscan.causal_conv(still, h.detach()))


def test_steps_in_a_graph() -> None:
    """Replayed, they go on from the state that the replay before has left."""
    x, h = torch.randn(4, 1, 256, device="cuda"), torch.randn(4, 256, device="cuda")
    state, twin = (torch.zeros(4, 3, 256, device="cuda") for _ in range(2))
    sums, scanned = (torch.zeros(4, 256, device="cuda") for _ in range(2))
    convscan.causal_conv_step(state.clone(), x[:, 0], h)  # compiles outside the capture
    convscan.linear_recurrence_step(sums.clone(), x[:, 0], h[0])
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = convscan.causal_conv_step(state, x[:, 0], h, activation="silu")
        convscan.linear_recurrence_step(sums, y, h[0])
    for _ in range(5):
        x.copy_(torch.randn_like(x))
        graph.replay()
        exact = convscan.causal_conv(x, h, initial_state=twin, activation="silu")[:, 0]
        torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)
        twin = torch.cat([twin, x], 1)[:, 1:]
        scanned = h[0] * scanned + exact
    assert torch.equal(state, twin)
    torch.testing.assert_close(sums, scanned, rtol=1e-4, atol=1e-4)


def _steps() -> dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...], dict[str, Any]]]:
    """Every step with states: the function, its states and the rest of its arguments."""
    generator = torch.Generator().manual_seed(6)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).cuda()

    q, v, g = normal(8, 4, 64), normal(8, 4, 32), -normal(8, 4).abs()
    k, beta = torch.nn.functional.normalize(q, dim=-1), torch.sigmoid(g)
    state, u, rows = normal(8, 4, 64, 32), normal(8, 128), normal(8, 1, 16)
    attended = {"q": q, "k": k, "v": v, "g": g}
    scanned = {"u": u, "delta": u.abs(), "A": -normal(128, 16).exp(), "B": rows, "C": rows, "D": u[0]}
    dual = {"x": v, "dt": -g, "A": -normal(4).exp(), "B": normal(8, 1, 64), "C": normal(8, 1, 64), "D": normal(4)}
    sums = (state, normal(8, 4, 64), normal(8, 4))
    return {
        "causal_conv": (convscan.causal_conv_step, (normal(8, 3, 128),), {"x": u, "h": normal(4, 128)}),
        "linear_recurrence": (convscan.linear_recurrence_step, (normal(8, 128),), {"x": u, "a": torch.sigmoid(u[0])}),
        "selective_scan": (convscan.selective_scan_step, (normal(8, 128, 16),), scanned),
        "gated_linear_attention": (convscan.gated_linear_attention_step, (state,), attended),
        "gated_delta_rule": (convscan.gated_delta_rule_step, (state,), {**attended, "beta": beta}),
        "ssd_scan": (convscan.ssd_scan_step, (normal(8, 4, 32, 64),), dual),
        "mlstm": (convscan.mlstm_step, sums, {"q": q, "k": k, "v": v, "i": g, "f": -g}),
    }


@pytest.mark.parametrize("name", ["causal_conv", "linear_recurrence", "selective_scan", "gated_linear_attention",
                                  "gated_delta_rule", "ssd_scan", "mlstm"])  # fmt: skip
def test_every_step_in_a_graph(name: str) -> None:
    """Replays leave the states, and return the results, of as many calls."""
    function, states, rest = _steps()[name]

    def step(own: list[torch.Tensor]) -> torch.Tensor:
        return function(tuple(own) if len(own) > 1 else own[0], **rest)

    called, replayed = ([one.clone() for one in states] for _ in range(2))
    with torch.no_grad():
        step([one.clone() for one in states])  # compiles outside the capture
        expected = [step(called).clone() for _ in range(3)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = step(replayed)
    for exact in expected:
        graph.replay()
        assert torch.equal(y, exact)
    for one, other in zip(replayed, called, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(replayed[0], states[0])


def test_the_profiler_replays_what_it_times() -> None:
    """Graphs of short calls give their answers; what waits for the device is not captured."""
    device = profiler.Cuda()
    x = torch.ones(1 << 20, device="cuda")
    captured = device.capture([lambda: x * 2, lambda: x + 1] * 4)
    assert captured is not None
    replay, answer = captured
    x.fill_(3)
    replay()
    torch.cuda.synchronize()
    assert float(answer[0]) == 6
    assert device.capture([lambda: x.sum().item()]) is None
    assert float((x + 1).sum()) == 4 * (1 << 20)  # the device goes on
    short = [profiler.Prepared(lambda: x * 2, lambda y: (y,))]
    replays = profiler.GpuMeter(device).replays(short, 1e-5)
    assert replays is not None
    assert all(0 < seconds < 1e-4 for seconds in replays.burst(5))


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
def test_selective_scan(dtype: torch.dtype) -> None:
    for p in oracle.selective_scans(dtype, count=40, seed=3):
        given = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in p.arguments().items()}
        (y, state), (again, _) = (convscan.selective_scan_with_state(**given) for _ in range(2))
        assert torch.equal(y, again)
        p.check(y.cpu(), state.cpu())


def test_gradients_of_scans_with_states() -> None:
    """In chunks and by programs that go through them, many times over, against those of the CPU."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for batch, channels in ((1, 64), (64, 512)):
        u, delta, B, A = (
            normal(batch, 300, channels),
            normal(batch, 300, channels),
            normal(batch, 300, 8),
            -normal(8).exp(),
        )
        scanned = (u, delta, A.repeat(channels, 1), B, B)
        q, v, g = normal(batch, 300, 2, 40), normal(batch, 300, 4, 24), -normal(batch, 300, 4).abs()
        attended, by_key = (q, q, v, g), (q, q, v, -normal(batch, 300, 4, 40).abs())
        calls = (
            (lambda *t: convscan.selective_scan(*t, delta_softplus=True), scanned),
            (convscan.gated_linear_attention, attended),
            (convscan.gated_linear_attention, by_key),
        )
        for call, tensors in calls:
            results = []
            for device in ("cpu", "cuda", "cuda"):
                leaves = [t.to(device).requires_grad_() for t in tensors]
                y = call(*leaves)
                results.append([t.cpu() for t in (y, *torch.autograd.grad(y.square().sum(), leaves))])
            for exact, one, again in zip(*results, strict=True):
                assert torch.equal(one, again)
                assert (one - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("by_key", [False, True], ids=["by step", "by key"])
def test_delta_rule(by_key: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    q, v = torch.randn(2, 300, 2, 40, generator=generator), torch.randn(2, 300, 4, 24, generator=generator)
    k = torch.nn.functional.normalize(q, dim=-1)
    g = -torch.rand(2, 300, 4, *((40,) if by_key else ()), generator=generator)
    given = (q, k, v, g, torch.rand(2, 300, 4, generator=generator))
    results = []
    for device in ("cpu", "cuda", "cuda"):
        leaves = [t.to(device).requires_grad_() for t in given]
        y = convscan.gated_delta_rule(*leaves)
        results.append([t.cpu() for t in (y, *torch.autograd.grad(y.square().sum(), leaves))])
    for exact, one, again in zip(*results, strict=True):
        assert torch.equal(one, again)
        assert (one - exact).abs().max() <= 1e-5 * exact.abs().max()
