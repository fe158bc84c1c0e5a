"""ONNX: operators as Conv and Scan, run by ONNX Runtime against ours, at sizes that the export did not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan.integrations import onnx as integration

D, H, G, K, V, N = 6, 4, 2, 5, 7, 3


class Everything(torch.nn.Module):
    """Every operator on signals (B, L, D), heads made of them, and parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        draw = lambda *shape: torch.nn.Buffer(torch.randn(*shape))  # noqa: E731
        self.h, self.shared, self.grouped, self.bias = draw(4, D), draw(9, 1), draw(3, 2), draw(D)
        self.state, self.full = draw(1, 3, D), draw(5, D, D)
        self.A, self.diagonal = torch.nn.Buffer(-torch.rand(D, N)), torch.nn.Buffer(-torch.rand(H))
        self.constant, self.skip = draw(D, N), draw(D)
        self.poles = torch.nn.Buffer(0.3 * torch.randn(2, D))
        self.keys, self.values, self.states = draw(D, H * K), draw(D, H * V), draw(D, G * N)
        self.gates = draw(D, H)
        self.kernel, self.inputs, self.outputs = draw(8, N), draw(N, D), draw(2, N)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        batch = x.shape[0]
        q, k = (torch.unflatten(t @ self.keys, -1, (H, K)) / K for t in (x, z))
        v, b = torch.unflatten(x @ self.values, -1, (H, V)), torch.unflatten(z @ self.states, -1, (G, N))
        i, f = x @ self.gates, z @ self.gates
        g, a = -i.square() / 4, torch.sigmoid(z)
        n = b[..., 0, :]
        states = torch.zeros(batch, H, K, V)
        found: dict[str, Any] = {
            "gated convolution": convscan.causal_conv(
                x,
                self.h,
                bias=self.bias,
                activation="silu",
                pre_gate=z,
                post_gate=a,
                initial_state=self.state.expand(batch, -1, -1),
            ),
            "one filter for all": convscan.causal_conv(x, self.shared, activation="gelu"),
            "filters of groups": convscan.causal_conv(x, self.grouped),
            "filters of sequences": convscan.causal_conv(x, x.sum(-2, keepdim=True) * self.h),
            "two-sided": convscan.convolve(x, self.h, origin=2),
            "anti-causal": convscan.convolve(x, self.h, origin=3),
            "mixing channels": convscan.fft_conv("bli,lio->blo", x, self.full),
            "with states": convscan.opt_ssm_forward(x, self.kernel, self.inputs, self.outputs),
            "recurrence": convscan.linear_recurrence(x, z[:, 0], a),
            "recurrence from the end": convscan.linear_recurrence(x, None, torch.tensor(0.5), reverse=True),
            "constant recurrence": convscan.linear_recurrence(x, None, torch.sigmoid(self.skip)),
            "all-pole filter": convscan.allpole_filter(x, self.poles, initial_state=z[:, :2]),
            "selective": convscan.selective_scan_with_state(
                x, z, self.A, b, b.flip(-1), D=self.skip, z=z, delta_bias=self.bias, delta_softplus=True
            ),
            "selective with a constant": convscan.selective_scan(x, a, self.A, n, self.constant),
            "by key": convscan.gated_linear_attention_with_state(q, k, v, -k.square(), initial_state=states + 0.5),
            "by step": convscan.gated_linear_attention(q, k, v, g),
            "dual": convscan.ssd_scan_with_state(v, i, self.diagonal, b, b, D=self.gates[0], z=v, dt_softplus=True),
            "matrix memory": convscan.mlstm(q, k, v, i, f),
            "matrix memory with state": convscan.mlstm(
                q, k, v, i, f, initial_state=(states + 0.1, states[..., 0] + 0.1, states[..., 0, 0])
            ),
            "delta rule": convscan.gated_delta_rule_with_state(q, k, v, g, torch.sigmoid(f)),
            "delta rule by key": convscan.gated_delta_rule(q, k, v, -k.square(), torch.sigmoid(f)),
        }
        return {
            f"{name} {at}": part
            for name, result in found.items()
            for at, part in enumerate(result if isinstance(result, tuple) else (result,))
        }


def test_every_operator_in_onnx_runtime(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, path = Everything(), tmp_path / "model.onnx"
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=3)
    integration.export(
        model,
        (torch.randn(2, 11, D), torch.randn(2, 11, D)),
        path,
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
    )
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Conv") == 7
    assert kinds.count("Scan") >= 13
    assert not {"Loop", "DFT"} & set(kinds)
    session = onnxruntime.InferenceSession(path)
    for shape in ((2, 11, D), (3, 20, D), (1, 3, D)):
        x, z = torch.randn(shape), torch.randn(shape)
        expected = model(x, z)
        found = session.run(
            None, dict(zip((i.name for i in session.get_inputs()), (x.numpy(), z.numpy()), strict=True))
        )
        for (name, theirs), ours in zip(expected.items(), found, strict=True):
            size = max(1.0, float(theirs.abs().max()))
            assert float((torch.from_numpy(ours) - theirs).abs().max()) < 2e-5 * size, name


class Calls(torch.nn.Module):
    """A model that is one call."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


class Steps(torch.nn.Module):
    """The steps of generation, whose states are buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory, self.ruled, self.dual = (torch.nn.Buffer(torch.randn(2, H, K, K)) for _ in range(3))
        self.C, self.n, self.m = (torch.nn.Buffer(torch.randn(2, H, *shape)) for shape in ((K, K), (K,), ()))
        self.selective = torch.nn.Buffer(torch.randn(2, K, N))
        self.A = torch.nn.Buffer(-torch.rand(K, N))

    def forward(self, x: Tensor) -> list[Tensor]:
        q, i = x / K, x[..., 0]
        return [
            convscan.gated_linear_attention_step(self.memory, q, q, x, -x.square()),
            convscan.gated_delta_rule_step(self.ruled, q, q, x, -i.square(), torch.sigmoid(i)),
            convscan.mlstm_step((self.C, self.n, self.m), q, q, x, i, -i),
            convscan.ssd_scan_step(
                self.dual, x, i, -torch.ones(H), q[:, :2], q[:, 2:], D=torch.ones(H), dt_softplus=True
            ),
            convscan.selective_scan_step(
                self.selective, x[:, 0], x[:, 1], self.A, x[:, 0, :N], x[:, 1, :N], delta_softplus=True
            ),
        ]


def test_steps_of_generation(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    x, model = torch.randn(2, H, K), Steps()
    program = torch.export.export(Steps(), (x,))
    lowered = integration.lower(program)
    assert [node for node in program.graph.nodes if "convscan" in str(node.target)]
    assert not [node for node in lowered.graph.nodes if "convscan" in str(node.target)]
    run = lowered.module()
    for _ in range(3):
        for ours, theirs in zip(run(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    integration.export(Steps(), (x,), tmp_path / "steps.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "steps.onnx").run(None, {"x": x.numpy()})
    for ours, theirs in zip(found, Steps()(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs)


def test_lowered_programs_compute_the_same() -> None:
    x, h = torch.randn(2, 9, D).bfloat16(), torch.randn(4, D).bfloat16()
    model = Calls(lambda x, h: convscan.linear_recurrence(convscan.causal_conv(x, h), None, torch.sigmoid(x)))
    lowered = integration.lower(torch.export.export(model, (x, h)))
    assert not [node for node in lowered.graph.nodes if "convscan" in str(node.target)]
    y = lowered.module()(x, h)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, model(x, h))


@pytest.mark.parametrize(
    ("call", "inputs", "text"),
    [
        (
            lambda x, h: convscan.causal_conv(x, h, cu_seqlens=torch.tensor([0, 3, 9])),
            (torch.randn(9, D), torch.randn(4, D)),
            "causal_conv has no form in ONNX with packed sequences; got packed sequences. Export one sequence a row",
        ),
        (
            lambda x, a: convscan.linear_recurrence(x, None, a),
            (torch.randn(9, D, dtype=torch.complex64), torch.randn(D, dtype=torch.complex64)),
            "linear_recurrence has no form in ONNX with complex numbers",
        ),
        (
            lambda c, a: convscan.vandermonde(c, a, 10),
            (torch.randn(D, N, dtype=torch.complex64), torch.randn(D, N, dtype=torch.complex64)),
            "vandermonde has no form in ONNX with complex numbers.*a model that has it as a buffer",
        ),
    ],
)
def test_what_has_no_form_in_onnx(call: Callable[..., Any], inputs: tuple[Tensor, ...], text: str) -> None:
    program = torch.export.export(Calls(call), inputs)
    with pytest.raises(ValueError, match=text):
        integration.lower(program)


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript must be installed; got none\. Install them with"):
        integration.export(torch.nn.Identity(), (torch.zeros(1),))
