"""Times the kernels on the GPU that is there, against what the device can move and multiply and against other packages.

    python benchmarks/gpu.py [--seconds 400] [--json FILE]

First what memory copies and tensor cores reach, then each case: correct against double precision on a part of it, then
timed with inputs that no cache holds (as many copies as fill it twice, in turn), by events around each call, medians of
what the time allows. Packages that are not installed are listed with that reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan.tuning import gpu

Call = Callable[..., Any]


def seconds(run: Call, copies: list[tuple[Any, ...]], budget: float) -> tuple[float, int]:
    """The median time of a call, inputs in turn."""
    for arguments in copies[:2]:
        run(*arguments)
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - begin < budget and len(times) < 200):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in copies]
        for arguments, (start, end) in zip(copies, events, strict=True):
            start.record()
            run(*arguments)
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1e3 for start, end in events]
    return statistics.median(times), len(times)


def cold(make: Callable[[], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Copies of the inputs, which together fill the second-level cache twice."""
    first = make()
    size = sum(t.nbytes for t in first if isinstance(t, Tensor))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [first, *(make() for _ in range(min(8, 1 + 2 * cache // max(1, size))))]


def peaks() -> dict[str, float]:
    """Bytes a second of a copy, operations a second of products."""
    x = torch.empty(1 << 28, device="cuda")
    y = torch.empty_like(x)
    copied, _ = seconds(lambda: y.copy_(x), [()], 0.5)
    found = {"memory.bytes": 2 * x.nbytes / copied}
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in (("tf32", torch.float32), ("half", torch.bfloat16)):
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        taken, _ = seconds(lambda: a @ a, [()], 0.5)
        found[name] = 2 * 8192**3 / taken
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def installed(package: str) -> str | None:
    """The version of a rival, or None."""
    if find_spec(package) is None:
        return None
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "unknown"


def conv1d(x: Tensor, h: Tensor) -> Tensor:
    w = h.flip(0).T[:, None]
    return torch.nn.functional.conv1d(x.mT, w, padding=h.shape[0] - 1, groups=h.shape[1])[..., : x.shape[-2]].mT


def fft_form(x: Tensor, h: Tensor) -> Tensor:
    n = 2 * max(x.shape[-2], h.shape[0])
    spectrum = torch.fft.rfft(x.float(), n, dim=-2) * torch.fft.rfft(h.float(), n, dim=-2)
    return torch.fft.irfft(spectrum, n, dim=-2)[..., : x.shape[-2], :].to(x.dtype)


def rivals(kind: str) -> dict[str, Call]:
    """Other people's implementations that are there, taking what ``cases`` make."""
    found: dict[str, Call] = {}
    if kind == "conv":
        found = {"torch conv1d": conv1d, "torch fft": fft_form}
        if find_spec("causal_conv1d") is not None:
            from causal_conv1d import causal_conv1d_fn  # type: ignore[import-not-found, unused-ignore]

            found["causal_conv1d"] = lambda x, h: causal_conv1d_fn(x.mT, h.flip(0).T.contiguous()).mT
        if find_spec("flashfftconv") is not None:
            from flashfftconv import FlashFFTConv  # type: ignore[import-not-found, unused-ignore]

            plans: dict[Any, Any] = {}

            def flash(x: Tensor, h: Tensor) -> Tensor:
                key = (2 * x.shape[-2], x.dtype)
                if key not in plans:
                    plans[key] = FlashFFTConv(*key).cuda()
                return plans[key](x.mT.contiguous(), h.float().T.contiguous()).mT

            found["flashfftconv"] = flash
    elif find_spec("accelerated_scan") is not None:
        from accelerated_scan.warp import scan  # type: ignore[import-not-found, unused-ignore]

        found["accelerated_scan"] = lambda x, a: scan(a.mT.contiguous(), x.mT.contiguous()).mT
    return found


def cases() -> list[dict[str, Any]]:
    """Shapes of models, in both memory orders."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for time_contiguous in (False, True):
            common = {"dtype": dtype, "time_contiguous": time_contiguous}
            for b, n, d, k in ((8, 4096, 2048, 4), (8, 4096, 1024, 128), (8, 1024, 1024, 1024), (8, 4096, 1024, 4096)):
                found.append({"kind": "conv", "B": b, "L": n, "D": d, "K": k, **common})
            found.append({"kind": "scan", "B": 8, "L": 4096, "D": 2048, "K": 0, **common})
    found.append({"kind": "conv", "B": 1, "L": 1 << 20, "D": 64, "K": 1 << 20, "dtype": torch.float32,
                  "time_contiguous": True})  # fmt: skip
    return found


def signal(case: dict[str, Any], length: int, *leading: int) -> Tensor:
    shape = (*leading, case["D"], length) if case["time_contiguous"] else (*leading, length, case["D"])
    x = torch.randn(shape, device="cuda", dtype=case["dtype"])
    return x.mT if case["time_contiguous"] else x


def judged(case: dict[str, Any], run: Call, arguments: tuple[Any, ...]) -> float:
    """The error against double precision on two channels, relative to the largest value."""
    few = [t[..., :2].double() for t in arguments]
    if case["kind"] == "scan":
        exact = convscan.linear_recurrence(few[0].cpu(), None, few[1].cpu())
    else:
        exact = fft_form_double(*few).cpu()
    y = run(*arguments)[..., :2].double().cpu()
    return float((y - exact).abs().max() / exact.abs().max())


def fft_form_double(x: Tensor, h: Tensor) -> Tensor:
    n = 2 * max(x.shape[-2], h.shape[0])
    return torch.fft.irfft(torch.fft.rfft(x, n, dim=-2) * torch.fft.rfft(h, n, dim=-2), n, dim=-2)[
        ..., : x.shape[-2], :
    ]


def measure(case: dict[str, Any], copy_rate: float, budget: float) -> list[dict[str, Any]]:
    is_scan = case["kind"] == "scan"

    def make() -> tuple[Tensor, Tensor]:
        x = signal(case, case["L"], case["B"])
        return x, torch.sigmoid(signal(case, case["L"], case["B"])) if is_scan else signal(case, case["K"])

    copies = cold(make)
    own: Call = (lambda x, a: convscan.linear_recurrence(x, None, a)) if is_scan else convscan.causal_conv
    runs = {"convscan": own, **rivals(case["kind"])}
    x, other = copies[0]
    moved = (3 if is_scan else 2) * x.nbytes
    name = "linear_recurrence" if is_scan else "causal_conv"
    explanation = convscan.explain(name, x, *((None, other) if is_scan else (other,)))
    rows = []
    described = {**case, "dtype": str(case["dtype"])}
    for who, run in runs.items():
        if who == "torch conv1d" and case["K"] > 512:
            continue
        try:
            error = judged(case, run, copies[0])
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(*copies[0])
            peak = torch.cuda.max_memory_allocated() - before - x.nbytes
            taken, count = seconds(run, copies, budget)
        except Exception as reason:  # a rival's refusal is a result; ours is too, and is seen
            rows.append({**described, "who": who, "why_not": f"{type(reason).__name__}: {str(reason)[:200]}"})
            continue
        rows.append(
            {**described, "who": who, "seconds": taken, "repeats": count, "error": error, "peak_bytes": peak,
             "of_copy": moved / taken / copy_rate, "runs": explanation.chosen if who == "convscan" else None}
        )  # fmt: skip
    if not is_scan:

        def backward(x: Tensor, h: Tensor) -> Any:
            x, h = x.detach().requires_grad_(), h.detach().requires_grad_()
            y = convscan.causal_conv(x, h)
            return torch.autograd.grad(y, (x, h), y.detach())

        taken, count = seconds(backward, copies, budget)
        rows.append({**described, "who": "convscan, forward and backward", "seconds": taken, "repeats": count,
                     "of_copy": 5 * x.nbytes / taken / copy_rate})  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: benchmarks/gpu_resources.py and convscan.explain say what is known without one")
        return 1
    name = torch.cuda.get_device_name()
    reached = peaks()
    print(name, {key: f"{value:.3g}" for key, value in reached.items()}, "data sheet:", gpu.peaks(name)["memory.bytes"])
    every = cases()
    packages = ("causal_conv1d", "flashfftconv", "mamba_ssm", "accelerated_scan", "fla", "triton", "torch")
    report: dict[str, Any] = {"device": name, "peaks": reached, "versions": {p: installed(p) for p in packages}}
    report["rows"] = rows = []
    begin = time.perf_counter()
    for index, case in enumerate(every):
        left = options.seconds - (time.perf_counter() - begin)
        if left <= 0:
            print(f"out of time: {len(every) - index} cases left out")
            break
        for row in measure(case, reached["memory.bytes"], min(1.0, left / (4 * (len(every) - index)))):
            rows.append(row)
            told = row.get("why_not") or f"{1e6 * row['seconds']:9.1f} us  {100 * row['of_copy']:5.1f} % of copy"
            order = "time" if case["time_contiguous"] else "channels"
            sizes = " ".join(f"{key}={case[key]}" for key in "BLDK")
            print(f"{case['kind']} {sizes} {row['dtype']} {order}: {row['who']:32} {told} {row.get('runs') or ''}")
        torch.cuda.empty_cache()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
