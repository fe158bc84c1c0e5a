"""Deployment: exported programs keep every operator as one node, and compiled packages compute what eager calls do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan import _dispatch

B, L, D, G, H, K, V, N = 2, 9, 6, 2, 4, 5, 7, 3


def signals() -> dict[str, Tensor]:
    """Arguments by the names that operators have for them."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    return {
        "x": normal(B, L, D),
        "h": normal(4, D),
        "a": torch.sigmoid(normal(B, L, D)),
        "poles": 0.3 * normal(2, D),
        "one": normal(B, D),
        "last": normal(B, D),
        "past": normal(B, 3, D),
        "A": -normal(D, N).abs(),
        "B": normal(B, L, N),
        "b": normal(B, N),
        "q": normal(B, L, H, K) / K,
        "v": normal(B, L, H, V),
        "g": -normal(B, L, H).abs(),
        "P": normal(B, L, G, N),
        "rates": -normal(H).abs(),
        "state": normal(B, H, K, V),
        "dual": normal(B, H, V, N),
        "selective": normal(B, D, N),
        "sums": normal(B, H, K),
        "top": normal(B, H),
        "kernel": normal(L, N),
        "inputs": normal(N, D),
        "outputs": normal(5, N),
        "complex": 0.5 * normal(D, N, dtype=torch.complex64),
        "nodes": normal(12, dtype=torch.complex64),
        "far": normal(D, N, dtype=torch.complex64) - 4,
        "column": normal(L),
    }


Call = Callable[[dict[str, Tensor]], Any]


def at(t: dict[str, Tensor], *names: str) -> list[Tensor]:
    """The tensors of one step."""
    return [t[name][:, 0] for name in names]


# Every operator that is registered, and what makes one call of it. Steps return their states too, which they overwrite.
CASES: dict[str, Call] = {
    "allpole_filter": lambda t: convscan.allpole_filter(t["x"], t["poles"]),
    "causal_conv": lambda t: convscan.causal_conv(t["x"], t["h"], activation="silu", pre_gate=t["a"]),
    "causal_conv_step": lambda t: convscan.causal_conv_step(
        t["past"], t["one"], t["h"], bias=t["h"][0], activation="gelu"
    ),
    "cauchy": lambda t: convscan.cauchy(t["complex"], t["nodes"], t["far"]),
    "convolve": lambda t: convscan.convolve(t["x"], t["h"], origin=2),
    "fft_conv": lambda t: convscan.fft_conv("bln,lno->blo", t["B"], t["kernel"].unsqueeze(-1).expand(-1, -1, 5)),
    "gated_delta_rule": lambda t: convscan.gated_delta_rule_with_state(t["q"], t["q"], t["v"], t["g"], t["g"].exp()),
    "gated_delta_rule_step": lambda t: convscan.gated_delta_rule_step(
        t["state"], *at(t, "q", "q", "v", "g"), torch.sigmoid(t["top"])
    ),
    "gated_linear_attention": lambda t: convscan.gated_linear_attention(t["q"], t["q"], t["v"], t["g"]),
    "gated_linear_attention_step": lambda t: convscan.gated_linear_attention_step(
        t["state"], *at(t, "q", "q", "v", "g")
    ),
    "linear_recurrence": lambda t: convscan.linear_recurrence(t["x"], t["one"], t["a"]),
    "linear_recurrence_step": lambda t: convscan.linear_recurrence_step(t["last"], *at(t, "x", "a")),
    "mlstm": lambda t: convscan.mlstm(t["q"], t["q"], t["v"], t["g"], t["g"] + 1),
    "mlstm_step": lambda t: convscan.mlstm_step(
        (t["state"], t["sums"], t["top"]), *at(t, "q", "q", "v", "g"), t["top"] + 1
    ),
    "opt_ssm_forward": lambda t: convscan.opt_ssm_forward(t["x"], t["kernel"], t["inputs"], t["outputs"]),
    "selective_scan": lambda t: convscan.selective_scan_with_state(t["x"], t["a"], t["A"], t["B"], t["B"], z=t["x"]),
    "selective_scan_step": lambda t: convscan.selective_scan_step(
        t["selective"], t["one"], t["one"].abs(), t["A"], t["b"], t["b"]
    ),
    "ssd_scan": lambda t: convscan.ssd_scan(t["v"], t["g"], t["rates"], t["P"], t["P"], dt_softplus=True, z=t["v"]),
    "ssd_scan_step": lambda t: convscan.ssd_scan_step(
        t["dual"], *at(t, "v", "g"), t["rates"], *at(t, "P", "P"), dt_softplus=True
    ),
    "toeplitz_matmul": lambda t: convscan.toeplitz_matmul(t["column"], t["column"], t["x"]),
    "vandermonde": lambda t: convscan.vandermonde(t["complex"], t["complex"], 10),
}
# Operators that are composed of others, as which decompositions leave them.
COMPOSED = {"fft_conv": [], "mlstm": ["linear_attention", "linear_recurrence"], "opt_ssm_forward": ["causal_conv"]}
STATES = {
    "causal_conv_step": ["past"],
    "gated_delta_rule_step": ["state"],
    "gated_linear_attention_step": ["state"],
    "linear_recurrence_step": ["last"],
    "mlstm_step": ["state", "sums", "top"],
    "selective_scan_step": ["selective"],
    "ssd_scan_step": ["dual"],
}


class Model(torch.nn.Module):
    """A layer with one operator between operations of PyTorch; states are buffers."""

    def __init__(self, name: str, call: Call) -> None:
        super().__init__()
        self.call, self.states = call, STATES.get(name, [])
        tensors = signals()
        for state in self.states:
            self.register_buffer(state, tensors[state])

    def forward(self, given: dict[str, Tensor]) -> list[Tensor]:
        y = self.call({**given, **{state: getattr(self, state) for state in self.states}})
        return [2 * part for part in (y if isinstance(y, tuple) else (y,))]


def nodes(program: torch.export.ExportedProgram) -> list[str]:
    """The names of convscan's operators in a program."""
    names = []
    for node in program.graph.nodes:
        # A step whose effect on its state has been made explicit names its operator as an argument.
        for target in (node.target, *node.args):
            if isinstance(target, torch._ops.OpOverload) and target.namespace == "convscan":
                names.append(target._opname)
    return sorted(names)


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    public = {name for name in _dispatch.operators() if hasattr(convscan, name)}
    # A selective scan's step has the rows of the scan.
    assert set(CASES) == public | {"selective_scan_step"}


@pytest.mark.parametrize("name", CASES)
def test_exported_programs_keep_operators(name: str) -> None:
    call, arguments = CASES[name], signals()
    program = torch.export.export(Model(name, call), (arguments,))
    model = Model(name, call)
    for _ in range(2):  # the second time on the states that the first has left
        expected = model(arguments)
    exported = program.module()
    for _ in range(2):
        found = exported(arguments)
    same(found, expected)
    for state in STATES.get(name, []):
        torch.testing.assert_close(dict(exported.named_buffers())[state], dict(model.named_buffers())[state])
        assert not torch.equal(dict(model.named_buffers())[state], arguments[state])
    assert len(nodes(program)) == 1
    assert nodes(program.run_decompositions()) == COMPOSED.get(name, nodes(program))


STEPS = [name for name in STATES if name != "selective_scan_step"]


@pytest.mark.parametrize("name", STEPS)
def test_steps_compile_and_map(name: str) -> None:
    """One operator for compilation, by a kernel or, mapped over, composed; never with a gradient."""
    states, call, others = STATES[name], CASES[name], signals()

    def step(*tensors: Tensor) -> Tensor:
        return call({**others, **dict(zip(states, tensors, strict=True))})

    given = [signals()[state] for state in states]
    plain, compiled = ([tensor.clone() for tensor in given] for _ in range(2))
    expected = step(*plain)
    same([torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled), *compiled], [expected, *plain])
    operator = getattr(torch.ops.convscan, name).default
    recorded: list[tuple[Any, ...]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is operator:
                recorded.append(tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
            return func(*args, **(kwargs or {}))

    exported = torch.export.export(Model(name, call), (signals(),)).module()
    with Recorder():
        exported(signals())
    (arguments,) = recorded
    axes = tuple(0 if isinstance(arg, Tensor) and arg.shape[0] == B else None for arg in arguments)
    rows, whole = ([arg.clone() if isinstance(arg, Tensor) else arg for arg in arguments] for _ in range(2))
    y = torch.vmap(operator, axes)(*rows)
    torch.testing.assert_close(y, operator(*whole), rtol=1e-4, atol=1e-5)
    for one, other in zip(rows, whole, strict=True):  # the states, and what was only read
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match=f"{name}: a step overwrites its state, which cannot be differentiated"):
        operator(arguments[0].clone().requires_grad_(), *arguments[1:])


class Every(torch.nn.Module):
    """Every operator, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Model(name, call) for name, call in CASES.items())

    def forward(self, given: dict[str, Tensor]) -> list[Tensor]:
        return [part for layer in self.layers for part in layer(given)]


ELSEWHERE = """
import sys
import torch
import convscan
package, inputs, outputs = sys.argv[1:]
run = torch._inductor.aoti_load_package(package)
given = torch.load(inputs)
torch.save([run(given) for _ in range(2)], outputs)
"""


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_compiled_package_of_every_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled ahead of time, here and in a process that has seen nothing of the model."""
    # Compiled by this test, whatever an earlier run has left.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    arguments, model = signals(), Every()
    package = str(tmp_path / "model.pt2")
    with torch.no_grad():
        expected = [model(arguments) for _ in range(2)]
        program = torch.export.export(Every(), (arguments,))
        torch._inductor.aoti_compile_and_package(
            program, package_path=package, inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"}
        )
        run = torch._inductor.aoti_load_package(package)
        for results in expected:
            same(run(arguments), results)
    inputs, outputs = str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")
    torch.save(arguments, inputs)
    subprocess.run([sys.executable, "-c", ELSEWHERE, package, inputs, outputs], check=True)
    for found, results in zip(torch.load(outputs), expected, strict=True):
        same(found, results)
