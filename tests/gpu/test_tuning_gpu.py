"""What ``convscan tune`` does on a GPU: every tile size of every kernel is data, tried, measured, stored and used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convscan import _dispatch, _gpu, tuning
from convscan.tuning import gpu, measure_gpu, table
from convscan.tuning.workloads_gpu import WORKLOADS, Workload

GPU = "NVIDIA H200"
SHIPPED = json.loads((Path(gpu.__file__).parent / "gpu.json").read_text())


def absent(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def on_gpu(problem: Any) -> Any:
    """A problem of tensors that are nowhere, moved to the device."""
    moved = {key: on_gpu(value) for key, value in problem._asdict().items() if hasattr(value, "_asdict")}
    if hasattr(problem, "device"):
        moved |= {"device": "cuda", "isa": GPU}
    return problem._replace(**moved)


def launches(kernel: str, chosen: Mapping[str, int] | None = None) -> list[tuple[Any, ...]]:
    """What the workload of a kernel launches with a configuration."""
    workload = WORKLOADS[kernel](absent)
    workload = workload._replace(problem=on_gpu(workload.problem))
    with _gpu.recorded() as recorded, gpu.trying(kernel, chosen or gpu.configuration(GPU, kernel)):
        measure_gpu.prepared(workload)()
    numbers = [tuple(arg for arg in launch.args if isinstance(arg, int)) for launch in recorded]
    return [
        (launch.kernel.__name__, launch.programs, own, launch.constants)
        for launch, own in zip(recorded, numbers, strict=True)
    ]


def test_every_configuration_has_candidates_and_a_workload() -> None:
    assert SHIPPED["default"].keys() == WORKLOADS.keys() == SHIPPED["candidates"].keys()
    for kernel, sizes in SHIPPED["default"].items():
        tried = gpu.candidates(kernel)
        assert tried.keys() <= sizes.keys(), kernel
        for name in tried:
            assert len(set(tried[name])) == len(tried[name]) > 1
    names = {name for name in SHIPPED if name not in ("default", "candidates")}
    for name in names:
        for kernel in SHIPPED[name].keys() & WORKLOADS.keys():
            assert SHIPPED[name][kernel].keys() <= SHIPPED["default"][kernel].keys()


@pytest.mark.parametrize("kernel", WORKLOADS)
def test_what_is_tried_is_what_is_launched(kernel: str) -> None:
    """Each size by itself changes what the workload of its kernel launches, beside the chosen or the largest others."""
    chosen, sizes = dict(gpu.configuration(GPU, kernel)), gpu.candidates(kernel)
    assert launches(kernel) == launches(kernel, chosen)
    largest = chosen | {name: max(values) for name, values in sizes.items()}
    for name, values in sizes.items():
        changes = [
            launches(kernel, {**others, name: value}) != launches(kernel, others)
            for others in (chosen, largest)
            for value in values
        ]
        assert any(changes), f"{name} of {kernel} changes nothing"


def test_measurements_are_stored_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device whose time is made up: the more warps, the longer, and one configuration does not fit."""

    class OutOfResources(Exception):
        pass

    tried: list[Workload] = []

    def made_up(workload: Workload) -> Any:
        tried.append(workload)
        return lambda: None

    def seconds(run: Any) -> float:
        now = gpu._tried
        kernel = list(now)[-1]
        sizes = now[kernel]
        if kernel == "scan.time" and sizes["warps"] == 2:
            raise OutOfResources
        return 1 + sizes.get("warps", 0) + sizes.get("channels", 0) / 1000

    monkeypatch.setattr(measure_gpu, "prepared", made_up)
    said: list[float] = []
    found = measure_gpu.measure(
        lambda what, fraction: said.append(fraction), make=absent, seconds=seconds, peaks=lambda: {"half": 1.23456e15}
    )
    assert said == sorted(said)
    assert {id(one.row) for one in tried}
    chosen = found["configurations"]
    assert chosen.keys() == WORKLOADS.keys()
    assert chosen["scan.time"]["warps"] == 4
    assert chosen["scan.channel"] == {**gpu.configuration(GPU, "scan.channel"), "warps": 2}
    assert found["peaks"] == {"half": 1.235e15}
    assert not gpu._tried
    file = tmp_path / "tuning.json"
    file.write_text(json.dumps({GPU: found}))
    monkeypatch.setenv("CONVSCAN_TUNING", str(file))
    try:
        for module in (table, gpu, _dispatch):
            module.forget()
        for kernel in WORKLOADS:
            assert gpu.configuration(GPU, kernel) == chosen[kernel]
        assert gpu.peaks(GPU)["half"] == 1.235e15
    finally:
        monkeypatch.undo()
        for module in (table, gpu, _dispatch):
            module.forget()


def test_an_error_that_is_none_of_resources_is_raised() -> None:
    def seconds(run: Any) -> float:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_gpu.measure(make=absent, seconds=seconds, peaks=dict)
    assert not gpu._tried
    assert callable(tuning.tune)
