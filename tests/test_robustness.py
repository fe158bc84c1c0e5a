"""The package among processes, threads and limits: fork, many callers, exit, memory, instruction sets."""

from __future__ import annotations

import gc
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import convscan
from convscan import _native

ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def python(source: str, *, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own; a hang fails."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3000, 64, generator=generator)
    return x, torch.randn(5, 64, generator=generator), torch.rand(1, 3000, 64, generator=generator)


def answers() -> tuple[Tensor, Tensor]:
    x, h, a = problem()
    return convscan.causal_conv(x, h), convscan.linear_recurrence(x, None, a)


class Answers(Dataset[tuple[Tensor, Tensor]]):
    """Computes in the worker process."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return answers()


# ---- fork ----


def _wait(child: int, seconds: float) -> int:
    """The child's exit code; a child that hangs is killed and fails the test."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_bare_fork_after_threads_have_run() -> None:
    torch.set_num_threads(2)
    expected = answers()
    x, h, a = problem()
    child = os.fork()
    if child == 0:
        code = 1
        try:  # no parallel operator of torch, which itself hangs here
            got = (convscan.causal_conv(x, h), convscan.linear_recurrence(x, None, a))
            same = all(np.array_equal(mine.numpy(), theirs.numpy()) for mine, theirs in zip(got, expected, strict=True))
            code = 0 if same and _native.thread_count() == 1 else 2
        finally:
            os._exit(code)
    assert _wait(child, 60) == 0
    assert _native.thread_count() == 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(answers(), expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_data_loader_workers() -> None:
    expected = answers()
    loader = DataLoader(Answers(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    count = 0
    for got in loader:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
        count += 1
    assert count == 6


# ---- threads ----


def test_many_threads_at_once() -> None:
    expected = answers()

    def work(_: int) -> bool:
        return all(torch.equal(mine, theirs) for mine, theirs in zip(answers(), expected, strict=True))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(200)))


def test_settings_belong_to_their_thread() -> None:
    x, h, _ = problem()
    seen: list[str] = []

    def look() -> None:
        seen.append(convscan.explain("causal_conv", x, h).chosen)

    free = convscan.explain("causal_conv", x, h).chosen
    with convscan.force("toeplitz"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert convscan.explain("causal_conv", x, h).chosen == "toeplitz"
    assert seen == [free]


def test_thread_count_of_torch_is_followed() -> None:
    expected = answers()
    for threads in (2, 1, 3, 2):
        torch.set_num_threads(threads)
        assert _native.thread_count() == threads
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(answers(), expected, strict=True))
    convscan.set_num_threads(1)
    assert torch.get_num_threads() == 1


def test_exit_while_threads_run_kernels() -> None:
    result = python(
        """
        import threading, time, torch, convscan
        from convscan import _native
        x, h = torch.randn(1, 20000, 256), torch.randn(64, 256)
        strides = (x.numel(), 256, 1)
        call = _native.ConvCall("direct", "float32", 1, 20000, 256, 64, strides, (0, 256, 1), strides)
        def work():  # no operator of torch, which itself aborts here
            y = torch.empty(1, 20000, 256)
            while True:
                call(x.data_ptr(), h.data_ptr(), 0, 0, 0, 0, y.data_ptr())
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
        """
    )
    assert result.returncode == 0, result.stderr


@ONLY_LINUX
def test_one_openmp_runtime() -> None:
    result = python(
        """
        import torch, convscan
        convscan.causal_conv(torch.randn(4, 5000, 64), torch.randn(4, 64))
        print({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rsplit("/", 1)[-1]})
        """
    )
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"lib[gi]?omp[^']*\.so", result.stdout)) == 1, result.stdout


# ---- memory ----


@ONLY_LINUX
def test_no_leak_over_many_calls() -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    x, h, a = torch.randn(33, 3), torch.randn(7, 3), torch.rand(33, 3)

    def call(times: int) -> None:
        for _ in range(times):
            convscan.causal_conv(x, h)
            convscan.linear_recurrence(x, None, a)

    call(2000)
    before = resident()
    call(50_000)  # 10^5 calls of kernels
    assert resident() - before < 8 << 20


@ONLY_LINUX
def test_new_shapes_do_not_pile_up() -> None:
    before = _native.workspace_current()
    for length in range(1, 600):
        convscan.causal_conv(torch.ones(length, 2), torch.ones(length, 2))
    assert _native.workspace_current() - before < 32 << 20


def _conv(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    x, gate = torch.randn(2, length, 5), torch.randn(2, length, 5)
    return (
        lambda x, h, pre: convscan.causal_conv(x, h, pre_gate=pre, activation="silu"),
        [x, torch.randn(7, 5), gate],
    )


def _long_conv(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return convscan.causal_conv, [torch.randn(2, length, 5), torch.randn(length, 5)]


def _recurrence(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return convscan.linear_recurrence, [torch.randn(2, length, 5), torch.randn(2, 5), torch.rand(2, length, 5)]


def _allpole(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return convscan.allpole_filter, [torch.randn(2, length, 5), 0.2 * torch.randn(2, length, 3, 5)]


def _selective(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    u, delta, b, c = (torch.randn(2, length, n) for n in (5, 5, 3, 3))
    return convscan.selective_scan, [u, delta.abs(), -torch.rand(5, 3), b, c]


def _ssd(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    x, dt = torch.randn(2, length, 4, 5), torch.rand(2, length, 4)
    return convscan.ssd_scan, [x, dt, -torch.rand(4), torch.randn(2, length, 2, 3), torch.randn(2, length, 2, 3)]


def _attention(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    q, k, v = (torch.randn(2, length, 4, n) for n in (3, 3, 5))
    return convscan.gated_linear_attention, [q, k, v, -torch.rand(2, length, 4, 3)]


def _mlstm(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    q, k, v = (torch.randn(2, length, 4, n) for n in (3, 3, 5))
    return convscan.mlstm, [q, k, v, torch.randn(2, length, 4), torch.randn(2, length, 4)]


def _delta_rule(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    q, k, v = (torch.randn(2, length, 4, n) for n in (3, 3, 5))
    k = torch.nn.functional.normalize(k, dim=-1)
    return convscan.gated_delta_rule, [q, k, v, -torch.rand(2, length, 4), torch.rand(2, length, 4)]


def _toeplitz(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return convscan.toeplitz_matmul, [torch.randn(length), torch.randn(length), torch.randn(2, length, 5)]


def _vandermonde(length: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    c, a = torch.randn(5, 3, dtype=torch.complex64), 0.5 * torch.randn(5, 3, dtype=torch.complex64)
    return lambda c, a: convscan.vandermonde(c, a, length), [c, a]


@pytest.mark.parametrize(
    "make",
    [
        _conv,
        _long_conv,
        _recurrence,
        _allpole,
        _selective,
        _ssd,
        _attention,
        _mlstm,
        _delta_rule,
        _toeplitz,
        _vandermonde,
    ],
    ids=lambda make: make.__name__[1:],
)
def test_nothing_is_left_of_earlier_calls(make: Callable[[int], tuple[Callable[..., Tensor], list[Tensor]]]) -> None:
    """Not even what is no number, in workspace that a kernel reads in whole vectors and multiplies by zero."""

    def run(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in inputs]
        y = function(*leaves)
        return [y, *torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))]

    for length in (1, 33, 65, 100):
        torch.manual_seed(length)
        function, inputs = make(length)
        for longer in (length, 67, 300):
            other, spoilt = make(longer)
            run(other, [torch.full_like(each, math.nan) for each in spoilt])
            for result in run(function, inputs):
                assert result.isfinite().all(), f"{length} steps after {longer}"


def test_workspace_is_accounted_for() -> None:
    torch.set_num_threads(2)
    convscan.reset_peak_workspace()
    idle = convscan.workspace_memory()
    assert idle.peak == idle.current
    x, h = torch.randn(1, 20_000, 32), torch.randn(20_000, 32)
    with convscan.force("fft"):
        predicted = next(c for c in convscan.explain("causal_conv", x, h).candidates if c.name == "fft")
        convscan.causal_conv(x, h)
    used = convscan.workspace_memory()
    assert used.peak >= used.current
    assert used.peak > idle.current
    assert used.peak % 4096 == 0
    assert used.tables > 0
    assert predicted.cost is not None
    assert used.peak - idle.current <= predicted.cost.workspace_bytes
    convscan.reset_peak_workspace()
    freed = convscan.workspace_memory()
    assert freed.current < used.current
    assert freed.peak == freed.current


def test_no_memory_is_a_memory_error() -> None:
    result = python(
        """
        import resource, torch, convscan
        torch.set_num_threads(1)
        x, h = torch.randn(1, 1 << 20, 1), torch.randn(1 << 20, 1)
        y = torch.empty_like(x)
        small = convscan.causal_conv(x[:, :100], h[:100])
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), resource.RLIM_INFINITY))
        try:
            with convscan.force("fft"), torch.no_grad():
                convscan.causal_conv(x, h, out=y)
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            again = convscan.causal_conv(x[:, :100], h[:100])
            print("refused, and well afterwards" if torch.equal(again, small) else "wrong afterwards")
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "refused, and well afterwards"


def test_huge_page_advice_is_only_advice() -> None:
    x = torch.arange(3 << 20, dtype=torch.float32)
    for offset, count in ((0, x.nbytes), (4, x.nbytes - 4), (4097, 2 << 20), (0, 0)):
        _native.advise_huge_pages(x.data_ptr() + offset, count)
    _native.advise_huge_pages(0, 1 << 30)
    assert torch.equal(x, torch.arange(3 << 20, dtype=torch.float32))


# ---- instruction sets ----


@pytest.mark.parametrize("name", _native.isa_names())
def test_instruction_set_is_forced_by_the_environment(name: str) -> None:
    result = python("import convscan; from convscan import _native; print(_native.isa())", CONVSCAN_ISA=name)
    assert result.stdout.strip() == name, result.stderr


def test_best_instruction_set_by_default() -> None:
    result = python("import convscan; from convscan import _native; print(_native.isa())", CONVSCAN_ISA="")
    assert result.stdout.strip() == _native.isa_names()[-1], result.stderr


def test_unknown_instruction_set_names_the_known_ones() -> None:
    result = python("import convscan", CONVSCAN_ISA="mmx")
    assert result.returncode != 0
    known = ", ".join(_native.isa_names())
    assert f"CONVSCAN_ISA: this build and processor run {known}; got 'mmx'" in result.stderr
