"""Devices that are not there: faked tensors on them, predictions for them, kernels compiled for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import convscan
from convscan import _dispatch, _targets
from convscan.ops.causal_conv.triton.fft import FftPlan
from convscan.ops.causal_conv.triton.toeplitz import ToeplitzPlan
from convscan.tuning import gpu, measure_gpu

ROOT = Path(__file__).parents[2]


def test_faked_tensors_keep_device_and_memory_order() -> None:
    with FakeTensorMode():
        x, h = torch.empty(2, 64, 100, device="cuda").mT, torch.empty(4, 64, device="cuda")
        y = convscan.causal_conv(x, h, activation="silu", pre_gate=x)
        assert (y.device.type, y.shape, y.stride()) == ("cuda", x.shape, x.stride())
        y = convscan.linear_recurrence(x, None, x)
        assert (y.device.type, y.shape, y.stride()) == ("cuda", x.shape, x.stride())


def test_export_with_faked_tensors() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return convscan.causal_conv(x, h, activation="silu")

    with FakeTensorMode():
        arguments = (torch.empty(2, 100, 64, device="cuda"), torch.empty(4, 64, device="cuda"))
        exported = torch.export.export(Layer(), arguments, strict=False)
    node = next(n for n in exported.graph.nodes if "convscan.causal_conv" in str(n.target))
    assert node.meta["val"].device.type == "cuda"


def test_predictions_need_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        x, h = torch.empty(8, 4096, 2048, device="cuda"), torch.empty(4, 2048, device="cuda")
        explanation = convscan.explain(convscan.causal_conv, x, h)
    chosen = next(c for c in explanation.candidates if c.name == explanation.chosen)
    assert chosen.target == "triton"
    assert chosen.cost is not None
    assert chosen.cost.moved_bytes is not None
    # Not faster than memory can be on any such device, and within its copy rate.
    least = 2 * x.nbytes / gpu.peaks("NVIDIA H200")["memory.bytes"]
    assert least < chosen.cost.seconds < 2 * least
    assert "triton_rolling" in str(explanation)


@pytest.mark.parametrize("plan", [FftPlan, ToeplitzPlan])
def test_few_channels_side_by_side_are_spread_over_the_device(plan: type[FftPlan | ToeplitzPlan]) -> None:
    """Of a small batch a program takes fewer channels than lie in a sector, of a large one all."""

    def planned(batch: int) -> FftPlan | ToeplitzPlan:
        with FakeTensorMode():
            x, h = (torch.empty(*n, device="cuda", dtype=torch.bfloat16) for n in ((batch, 2048, 768), (128, 768)))
            return plan(convscan.explain(convscan.causal_conv, x, h).problem)

    few, many = planned(1), planned(256)
    assert few.channels < many.channels == 16
    assert few.programs >= gpu.peaks("NVIDIA H200")["processors"]
    assert many.programs * many.channels == 256 * few.programs * few.channels


def test_interpreted_kernels_are_never_chosen_by_themselves() -> None:
    assert convscan.explain("causal_conv", torch.ones(100, 8), torch.ones(4, 8)).chosen == "direct"


def test_target_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    target = next(target for target in _targets.TARGETS if target.name == "triton")
    assert target.why_not() is None  # interpreted
    monkeypatch.delenv("TRITON_INTERPRET")
    if not torch.cuda.is_available():
        assert target.why_not() == "PyTorch finds no GPU"
    refused = [c for c in convscan.explain("causal_conv", torch.ones(8, 2), torch.ones(3, 2)).candidates if c.reasons]
    assert any("runs on cuda, not on cpu" in c.reasons for c in refused)


def test_unknown_devices_and_names_have_peaks() -> None:
    assert gpu.peaks("NVIDIA H200 NVL")["processors"] == 132
    assert gpu.peaks("something new") == gpu.peaks("NVIDIA A100")


def test_tuning_finds_the_fastest_configuration() -> None:
    """Of kernels whose time is made up: one size at a time, none that cannot run, no change that is none."""

    def seconds(tried: Mapping[str, int]) -> float:
        if tried["warps"] == 2:
            return float("inf")
        return abs(tried["channels"] - 128) + abs(tried["numbers"] - 2048) / 1000 + tried["warps"] / 1e4 + 1

    found = measure_gpu.search("scan.channel", seconds)
    assert found == {**gpu.configuration_in_use("scan.channel"), "channels": 128, "numbers": 2048}
    with gpu.trying("scan.channel", found):
        assert gpu.configuration_in_use("scan.channel") == found
    assert gpu.configuration_in_use("scan.channel") != found


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What every kernel takes on Hopper, and a part of them elsewhere; compiled, so without the interpreter."""
    folder = tmp_path_factory.mktemp("resources")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = []
    elsewhere = ("sm_80,gfx942", "channels contiguous, K = 4:|triton_fft, channels|torch.float32, K = 1048576")
    for index, (targets, only) in enumerate((("sm_90", ""), elsewhere)):
        file = folder / f"{index}.json"
        command = [sys.executable, ROOT / "benchmarks/gpu_resources.py", "--targets", targets, "--only", only]
        subprocess.run([*command, "--json", file], check=True, env=environment, stdout=subprocess.DEVNULL)
        found += json.loads(file.read_text())["kernels"]
    return found


def test_kernels_compile_within_the_limits_of_devices(resources: list[dict[str, object]]) -> None:
    assert {one["target"] for one in resources} == {"sm_90", "sm_80", "gfx942"}
    shared = {"sm_90": 232448, "sm_80": 166912, "gfx942": 65536}
    for one in resources:
        # What is left of it is addresses, in kernels that take every memory order with every option at once. A
        # transform of 4096 points fills the registers of a multiprocessor; gradients have one or two more of them, and
        # eight columns of 1024 are twice as many.
        allowed = {"filter_gradient": 200, "backward": 500, "rows_backward": 250, "columns": 100}
        assert int(str(one["spilled"])) <= allowed.get(str(one["kernel"]).split(": ")[1], 64), one
        assert int(str(one["shared"])) <= shared[str(one["target"])], one


def test_every_kernel_is_compiled(resources: list[dict[str, object]]) -> None:
    """A row without a specimen would go untested on devices."""
    others = {"torch_fft"}  # has none: PyTorch's own
    rows = {row.name for op in _dispatch.operators() for row in convscan.implementations(op) if row.target == "triton"}
    assert {
        str(one["kernel"]).split(",")[0].removesuffix(" gradient").removesuffix(" backward") for one in resources
    } >= rows - others
