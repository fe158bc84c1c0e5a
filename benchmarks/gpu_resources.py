"""Compiles every Triton kernel for devices that are not there, and shows what each takes of them.

    python benchmarks/gpu_resources.py [--targets sm_90,sm_89,sm_80,gfx942] [--only NAME|NAME] [--json FILE]

The kernels are those that the rows of the operators would launch on tensors of real models, with the specialisation
that they would get there. Registers and spills are read from machine code, shared memory from Triton.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import convscan
from convscan import _dispatch, _gpu
from convscan.ops.causal_conv import arguments as conv
from convscan.ops.causal_conv import backward
from convscan.ops.causal_conv import step as conv_step
from convscan.ops.causal_conv.triton import fft_part
from convscan.ops.gated_delta_rule import api as delta
from convscan.ops.gated_linear_attention import api as gla_api
from convscan.ops.linear_attention import api as attention
from convscan.ops.linear_attention.problem import AttentionGradientProblem
from convscan.ops.linear_attention.step import Settings
from convscan.ops.linear_recurrence import api as scan
from convscan.ops.linear_recurrence import step as scan_step
from convscan.ops.mlstm import api as mlstm_api
from convscan.ops.selective_scan import arguments as selective
from convscan.ops.selective_scan import gradient as selective_gradient
from convscan.ops.ssd_scan import api as ssd_api

# Of each target the device whose tile sizes are used.
DEVICES = {"sm_90": "NVIDIA H200", "sm_89": "NVIDIA L40S", "sm_80": "NVIDIA A100", "gfx942": "AMD Instinct MI300X"}
MEANT = {4: "", 32: "", 128: "triton_toeplitz", 4096: "triton_fft"}
LONG = "triton_fft_passes"
device = DEVICES["sm_90"]


def meta(*shape: int, dtype: torch.dtype = torch.float32, time_contiguous: bool = False) -> Tensor:
    """A tensor without memory."""
    if time_contiguous:
        return torch.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype, device="meta").mT
    return torch.empty(shape, dtype=dtype, device="meta")


def rows(op: str, problem: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The Triton rows that can run a problem, as if it were on the device."""
    problem = on_device(problem)
    for row in _dispatch.implementations(op):
        if row.target == "triton" and not row.why_not(problem):
            yield row.name, row.prepare(problem)


def on_device(problem: Any) -> Any:
    """A problem of meta tensors, moved to the device."""
    fields = problem._asdict()
    moved = {name: on_device(value) for name, value in fields.items() if hasattr(value, "_asdict")}
    if "device" in fields:
        moved |= {"device": "cuda", "isa": device}
    return problem._replace(**moved)


def convolutions() -> Iterator[tuple[str, Callable[[], None]]]:
    """What causal_conv launches: name of the case and of the row, and the call."""
    shapes = {
        "channels": meta(8, 4096, 2048),
        "time": meta(8, 4096, 2048, time_contiguous=True),
        "half": meta(8, 4096, 2048, dtype=torch.bfloat16),
    }
    for kind, x in shapes.items():
        for taps in (4, 32, 128, 4096):
            h, b = x.new_empty(taps, 2048), x.new_empty(2048)
            gates = {"pre_gate": x, "post_gate": x} if taps in (4, 4096) else {}
            state = x.new_empty(8, taps - 1, 2048)
            operands = conv.Operands(x, h, b, state, **gates, activation="silu")
            problem = conv.problem_of(operands, x)
            for name, run in rows("causal_conv", problem):
                if name == LONG or (
                    name != MEANT[taps] and (taps > 32 or name in MEANT.values())
                ):  # each where it is meant for
                    continue
                yield f"{name}, {kind} contiguous, K = {taps}", lambda run=run, o=operands, x=x: run(*o.floats, x)
            dh = torch.empty(taps, 2048, device="meta")
            gradient = conv.filter_gradient_problem(x, x, None, None, None, dh)
            for name, run in rows("causal_conv_filter_gradient", gradient):
                if name != MEANT[taps] and (taps > 32 or name in MEANT.values()):
                    continue
                call = lambda run=run, x=x, dh=dh: run(x, x, None, None, None, dh)  # noqa: E731
                yield f"{name} gradient, {kind} contiguous, K = {taps}", call
            if taps in (4, 4096):
                needs = [one is not None for one in operands.floats]
                given = backward._Given(x, *operands[:7], None, operands.activation, 0, "default", needs)
                for name, run in rows("causal_conv_backward", backward._describe(given, None)):
                    if name == LONG or (taps == 4 and name in MEANT.values()):
                        continue
                    every = lambda run=run, g=given: run(*g[:7], None)  # noqa: E731
                    yield f"{name} backward, {kind} contiguous, K = {taps}", every


def long_convolutions() -> Iterator[tuple[str, Callable[[], None]]]:
    """What it launches where a transform takes several passes, of one factor a column and of two."""
    for channels, length, dtype in (
        (64, 16384, torch.float32),
        (2, 1 << 22, torch.bfloat16),
        (1, 1 << 20, torch.float32),
    ):
        x = meta(2 if length < 1 << 20 else 1, length, channels, dtype=dtype, time_contiguous=True)
        operands = conv.Operands(x, x.new_empty(length, channels), x.new_empty(channels), None, x, x, activation="silu")
        for name, run in rows("causal_conv", conv.problem_of(operands, x)):
            if name == LONG:
                yield f"{name}, {dtype}, K = {length}", lambda run=run, o=operands, x=x: run(*o.floats, x)
        needs = [one is not None for one in operands.floats]
        given = backward._Given(x, *operands[:7], None, operands.activation, 0, "default", needs)
        for name, run in rows("causal_conv_backward", backward._describe(given, None)):
            if name == LONG:
                yield f"{name} backward, {dtype}, K = {length}", lambda run=run, g=given: run(*g[:7], None)
    # With spectra that were kept, rounded.
    for name, length in (("triton_fft", 4096), (LONG, 16384)):
        x, h = meta(8, length, 256, time_contiguous=True), meta(length, 256)
        kept = conv.Kept(length, True, form=name)
        spectrum = meta(256, 2, *((length,) if name != LONG else (16, length // 16)), dtype=torch.bfloat16)
        given = (x, h, None, None, None, None, spectrum, x)
        for row, run in rows("causal_conv", conv.problem_of(conv.Operands(x, h), x, kept=kept)):
            if row == name:
                yield f"{name}, time contiguous, spectrum kept", lambda run=run, given=given: run(*given)


def parts_of_spectra() -> Iterator[tuple[str, Callable[[], None]]]:
    """What it launches where a part of the frequencies is kept: classes of residues, the lowest quarter."""
    quarter, fourth = "lowest quarter", "one class of 4"
    for length, kind in ((4096, "one class of 16"), (4096, fourth), (2048, quarter), (1 << 21, fourth)):
        flags = torch.zeros(length, dtype=torch.bool)
        if kind == quarter:
            flags[: length // 8 + 1] = flags[1 - length // 8 :] = True
        else:
            flags[:: int(kind.split()[-1])] = True
        x, h = meta(1, length, 16, time_contiguous=True), meta(length, 16)
        problem = conv.problem_of(conv.Operands(x, h), x)
        kept, make = fft_part.part_spectra(on_device(problem), flags, False)
        for row, run in rows("causal_conv", problem._replace(kept=kept)):
            if row == kept.form:
                spectrum = meta(16, 2, 1)  # of which only the address is launched
                given = (x, h, None, None, None, None, spectrum, x)
                yield f"{row}, {kind} of {length} kept", lambda run=run, given=given: run(*given)
                yield f"{row}, {kind} of {length} kept, its filters", lambda make=make, h=h: make(h)


def recurrences() -> Iterator[tuple[str, Callable[[], None]]]:
    """What linear_recurrence launches."""
    for kind, dtype in (("channels", torch.float32), ("time", torch.float32), ("half", torch.bfloat16)):
        x = meta(8, 4096, 2048, dtype=dtype, time_contiguous=kind == "time")
        start = x.new_empty(8, 2048)
        for name, run in rows("linear_recurrence", scan._problem(x, start, x, None, False, x)):
            yield f"{name}, {kind} contiguous", lambda run=run, x=x, s=start: run(x, s, x, None, x)
        gradient = scan._describe_gradient(x, start, x, x, None, False, x, x, start)
        for name, run in rows("linear_recurrence_gradient", gradient):
            yield f"{name} gradient, {kind} contiguous", lambda run=run, x=x, s=start: run(x, s, x, None, x, x, x, s)


def selective_scans() -> Iterator[tuple[str, Callable[[], None]]]:
    """What selective_scan launches: of many channels, which go through all chunks by themselves, and of few."""
    sizes = {"many": (64, 4096), "few": (1, 1536), "few complex": (1, 1536)}
    for kind, dtype in (("channels", torch.float32), ("time", torch.float32), ("half", torch.bfloat16)):
        for size in sizes if kind == "channels" else ("few",):
            batch, channels = sizes[size]
            u = meta(batch, 4096, channels, dtype=dtype, time_contiguous=kind == "time")
            number = torch.complex64 if "complex" in size else torch.float32
            a, d = meta(channels, 16, dtype=number), meta(channels)
            b, start = meta(batch, 4096, 1, 16, dtype=number), meta(batch, channels, 16, dtype=number)
            b = a if "complex" in size else b  # constant too
            given = selective.Arguments(u, u, a, b, b, d, u, d, start)
            problem = selective.problem_of(given, True, start, None, u)
            for name, run in rows("selective_scan", problem):
                call = lambda run=run, g=given, s=start, u=u: run(*g, s, None, u)  # noqa: E731
                yield f"{name}, {kind} contiguous, {size}", call
            kept = meta(batch, 64 * 16 * (1 + number.is_complex), channels)
            gradient = selective_gradient._describe_gradient(u, start, kept, given, True)
            of_b = meta(batch, channels, 16, dtype=number) if b is a else b[None]
            sums = [start, of_b, of_b, meta(batch, channels)]
            for name, run in rows("selective_scan_gradient", gradient):
                results = (u, start, u, u, *sums, u, sums[3], start)
                call = lambda run=run, g=given, k=kept, r=results, u=u: run(*g, None, k, None, *r)  # noqa: E731
                yield f"{name} gradient, {kind} contiguous, {size}", call


def steps() -> Iterator[tuple[str, Callable[[], None]]]:
    """What the steps of a convolution and of a recurrence launch, of a server's caches and plainly."""
    x, state, h = meta(64, 1, 2048), meta(128, 8, 2048), meta(4, 2048)
    y, integers = torch.empty_like(x), torch.empty(64, dtype=torch.int32, device="meta")
    for kind, taken, chosen in (("plain", None, None), ("ring of chosen rows", integers, integers)):
        past = state if chosen is not None else state[:64]
        problem = conv_step._problem(x, past, h, h[0], y, "silu", taken, chosen, -1)
        for name, run in rows("causal_conv_step", problem):
            yield f"{name}, convolution, {kind}", lambda run=run, p=past, t=taken, r=chosen: run(x, p, h, h[0], t, r, y)
    sample, last = x[:, 0], y[:, 0]
    for name, run in rows("linear_recurrence_step", scan_step._problem(sample, h[0], last, last)):
        yield f"{name}, recurrence", lambda run=run: run(sample, h[0], last, last)


def linear_attention() -> Iterator[tuple[str, Callable[[], None]]]:
    """What gated_linear_attention, ssd_scan and mlstm launch, with everything that they may have."""
    cases = {
        "Mamba-2": (1, 1, 80, 128, 64, False, torch.float32),
        "Mamba-2 half": (1, 1, 80, 128, 64, False, torch.bfloat16),
        "Mamba-2 half, batch 8": (8, 1, 80, 128, 64, False, torch.bfloat16),
        "mLSTM half": (8, 16, 16, 128, 128, False, torch.bfloat16),
        "decay by key": (1, 16, 16, 128, 128, True, torch.float32),
    }
    for case, (batch, groups, heads, keys, values, per_key, dtype) in cases.items():
        summed = per_key or "mLSTM" in case
        q, v = meta(batch, 4096, groups, keys, dtype=dtype), meta(batch, 4096, heads, values, dtype=dtype)
        w = meta(batch, 4096, heads)
        g = meta(*w.shape, keys) if per_key else w
        state, total = meta(batch, heads, keys, values), meta(batch, heads, keys) if summed else None
        given, sums = (q, q, v, g, w, state, total), w if summed else None
        problem = attention.describe(q, v, g, None, summed)
        for name, run in rows("gated_linear_attention", problem):
            outputs = (v, sums, state, total)
            yield f"{name}, {case}", lambda run=run, i=given, o=outputs: run(i, None, o, None, 1.0)
        for name, run in rows("linear_attention_gradient", AttentionGradientProblem(problem)):
            outputs, behind = (q[None], q[None], v, g, w, state, total), (v, sums, state, total)
            call = lambda run=run, i=given, d=behind, o=outputs: run(i, d, o, None, 1.0)  # noqa: E731
            yield f"{name} gradient, {case}", call


def delta_rules() -> Iterator[tuple[str, Callable[[], None]]]:
    """What gated_delta_rule launches: of Gated DeltaNet and Kimi Delta Attention."""
    cases = {
        "Gated DeltaNet float32": (torch.float32, False),
        "Gated DeltaNet half": (torch.bfloat16, False),
        "Kimi Delta Attention float32": (torch.float32, True),
        "Kimi Delta Attention half": (torch.bfloat16, True),
    }
    for case, (dtype, per_key) in cases.items():
        q, v = meta(1, 4096, 16, 128, dtype=dtype), meta(1, 4096, 32, 128, dtype=dtype)
        beta, state = meta(1, 4096, 32), meta(1, 32, 128, 128)
        of_key = meta(1, 4096, 32, 128)
        g = of_key if per_key else beta
        given = (q, q, v, g, beta, state)
        for name, run in rows("gated_delta_rule", delta._problem(q, v, g, None, is_gradient=False)):
            yield f"{name}, {case}", lambda run=run, i=given, o=(v, state): run(i, None, (), o, 1.0)
        for name, run in rows("gated_delta_rule_gradient", delta._problem(q, v, g, None, is_gradient=True)):
            outputs = (of_key, of_key, v, g, beta, state)
            call = lambda run=run, i=given, d=(v, state), o=outputs: run(i, None, d, o, 1.0)  # noqa: E731
            yield f"{name} gradient, {case}", call


def attention_steps() -> Iterator[tuple[str, Callable[[], None]]]:
    """What steps of generation launch: of Gated DeltaNet, Mamba-2 and mLSTM."""
    q, v, g = meta(64, 16, 128), meta(64, 32, 128), meta(64, 32)
    state, per_head, n = meta(64, 32, 128, 128), meta(32), meta(64, 32, 128)
    k = meta(64, 32, 128)
    calls = {
        "gated_linear_attention_step": (gla_api, "decay", (v, state, q, q, g)),
        "gated_delta_rule_step": (delta, "delta", (v, state, q, q, g, g)),
        "ssd_scan_step": (ssd_api, "ssd", (v, state, g, per_head, q, q, per_head, v, per_head)),
        "mlstm_step": (mlstm_api, "mlstm", (v, state, n, g, k, k, g, g)),
    }
    for op, (module, gates, tensors) in calls.items():
        problem = module._step._problem(Settings(gates, softplus=True), [*tensors, v])
        for name, run in rows(op, problem):
            yield f"{name}, {op}", lambda run=run, t=tensors: run(*t, v)


SPECIMENS = (
    convolutions,
    long_convolutions,
    parts_of_spectra,
    recurrences,
    steps,
    selective_scans,
    linear_attention,
    delta_rules,
    attention_steps,
)


def compiled(only: str = "") -> Iterator[tuple[str, _gpu.Launch]]:
    """Every launch by a name of its own."""
    for specimens in SPECIMENS:
        for name, call in specimens():
            if not any(part in f"{name}:" for part in only.split("|")):
                continue
            with _gpu.recorded() as launches:
                call()
            for launch in launches:
                yield f"{name}: {launch.kernel.__name__}", launch


def measure(name: str, launch: _gpu.Launch, target: str) -> dict[str, Any]:
    """What a kernel takes on a target; of AMD's only that it compiles, and how it spills."""
    from triton.backends.compiler import GPUTarget

    if target.startswith("sm_"):
        used = _gpu.resources(_gpu.compiled(launch, GPUTarget("cuda", int(target[3:]), 32)))
        return {"kernel": name, "target": target, **used._asdict()}
    built = _gpu.compiled(launch, GPUTarget("hip", target, 64))
    text = built.asm["amdgcn"]
    registers, spilled = (
        int(next(line for line in text.splitlines() if f".{key}:" in line).split(":")[1])
        for key in ("vgpr_count", "vgpr_spill_count")
    )
    shared = int(built.metadata.shared)
    return {"kernel": name, "target": target, "registers": registers, "spilled": 4 * spilled, "shared": shared}


def main() -> None:
    global device
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", default=",".join(DEVICES))
    parser.add_argument("--only", default="")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    jobs = []
    for target in options.targets.split(","):
        device = DEVICES[target]
        jobs += [(name, launch, target) for name, launch in compiled(options.only)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: measure(*job), jobs))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"version": convscan.__version__, "kernels": found}, file, indent=1)
    print(f"{'kernel':<72}{'target':>8}{'registers':>11}{'spilled':>9}{'shared':>9}")
    for one in found:
        print(f"{one['kernel']:<72}{one['target']:>8}{one['registers']:>11}{one['spilled']:>9}{one['shared']:>9}")


if __name__ == "__main__":
    sys.exit(main())
