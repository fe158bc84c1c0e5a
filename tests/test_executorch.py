"""Models on ExecuTorch: exported, run on this machine, equal to PyTorch, their events read back; and on Arm."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import convscan
from convscan.device import build, counts, judge, target
from convscan.integrations import executorch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="executorch is not installed: pip install 'convscan[executorch]'",
)


class Conv(torch.nn.Module):
    """The challenge's convolution: time contiguous."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return convscan.causal_conv(x.mT, h.mT, **self.options).mT


class Rows(torch.nn.Module):
    """Channels contiguous, with all that a convolution takes."""

    def forward(self, x: Tensor, h: Tensor, bias: Tensor, state: Tensor, gate: Tensor) -> Tensor:
        return convscan.causal_conv(
            x, h, bias=bias, initial_state=state, pre_gate=gate, post_gate=gate[:, :1], activation="silu"
        )


class TwoSided(torch.nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return convscan.convolve(x.mT, h, origin=2).mT


class Packed(torch.nn.Module):
    def forward(self, x: Tensor, h: Tensor, a: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        y = convscan.causal_conv(x, h, cu_seqlens=bounds)
        return y, convscan.linear_recurrence(x, None, a, cu_seqlens=bounds)


class Recurrence(torch.nn.Module):
    """The challenge's recurrence."""

    def forward(self, y_init: Tensor, a: Tensor, x: Tensor) -> Tensor:
        return convscan.linear_recurrence(x.mT, y_init, a.mT).mT


class Backwards(torch.nn.Module):
    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        return convscan.linear_recurrence(x, None, a, reverse=True)


class Output(torch.nn.Module):
    """A layer's output without its state."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class LFM2Block(torch.nn.Module):
    """A convolution block of LFM2-350M: norm, gated short convolution, norm, SwiGLU, in two residual branches."""

    def __init__(self, d_model: int = 1024, hidden: int = 4608) -> None:
        super().__init__()
        self.operator_norm = torch.nn.RMSNorm(d_model, 1e-5)
        self.conv = convscan.nn.ShortConv(d_model, kernel_size=3)
        self.ffn_norm = torch.nn.RMSNorm(d_model, 1e-5)
        self.w1 = torch.nn.Linear(d_model, hidden, bias=False)
        self.w3 = torch.nn.Linear(d_model, hidden, bias=False)
        self.w2 = torch.nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.operator_norm(x))[0]
        z = self.ffn_norm(x)
        return x + self.w2(torch.nn.functional.silu(self.w1(z)) * self.w3(z))


class Decoder(torch.nn.Module):
    """One step at a time: the states of a convolution and of a recurrence are buffers of the program."""

    conv_state: Tensor
    recurrence_state: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.conv = convscan.nn.ShortConv(d_model, kernel_size=4)
        self.recurrence = convscan.nn.LinearRecurrence(d_model)
        self.register_buffer("conv_state", self.conv.default_state(1))
        self.register_buffer("recurrence_state", self.recurrence.default_state(1))

    def forward(self, x: Tensor) -> Tensor:
        y, conv_state = self.conv.step(x, self.conv_state)
        y, recurrence_state = self.recurrence.step(y, self.recurrence_state)
        self.conv_state.copy_(conv_state)
        self.recurrence_state.copy_(recurrence_state)
        return y

    def whole(self, x: Tensor) -> Tensor:
        y, _ = self.conv(x, self.conv.default_state(1))
        return self.recurrence(y, self.recurrence.default_state(1))[0]


def randoms(*shapes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator) / math.sqrt(len(shape)) for shape in shapes)


def gates(*shape: int) -> Tensor:
    return 1 - torch.rand(*shape, generator=torch.Generator().manual_seed(1)) ** 2


def same(outputs: Sequence[Any], expected: Any) -> None:
    """To float32 rounding of what is added up."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted, strict=True):
        assert got.shape == want.shape
        assert torch.isfinite(got).all()
        assert (got - want).abs().max() <= 2e-6 * max(1.0, float(want.abs().max()))


# Name, model, inputs, and the calls that the program is to have; nothing else may be in it.
BARE = [
    *(
        (f"conv-k{taps}", Conv(), randoms((1, 16, 300), (16, taps)), ("causal_conv",))
        for taps in (1, 4, 32, 128, 300, 411)
    ),
    ("conv-batch", Conv(), randoms((2, 3, 5, 33), (5, 4)), ("causal_conv",)),
    ("conv-one-filter", Conv(), randoms((2, 6, 40), (1, 4)), ("causal_conv",)),
    ("conv-groups", Conv(), randoms((2, 6, 40), (3, 4)), ("causal_conv",)),
    ("conv-high", Conv(precision="high"), randoms((1, 4, 500), (4, 500)), ("causal_conv",)),
    ("conv-gelu", Conv(activation="gelu"), randoms((1, 4, 50), (4, 7)), ("causal_conv",)),
    ("convolve", TwoSided(), randoms((2, 7, 40), (5, 7)), ("causal_conv",)),
    (
        "recurrence",
        Recurrence(),
        (*randoms((1, 16)), gates(1, 16, 300), *randoms((1, 16, 300))),
        ("linear_recurrence",),
    ),
    ("recurrence-constant", Backwards(), (gates(16), *randoms((2, 30, 16))), ("linear_recurrence",)),
    ("recurrence-shared", Backwards(), (gates(30, 1), *randoms((2, 3, 30, 16))), ("linear_recurrence",)),
    (
        "packed",
        Packed(),
        (*randoms((1, 40, 6), (3, 6)), gates(1, 40, 6), torch.tensor([0, 7, 7, 40])),
        ("causal_conv", "linear_recurrence"),
    ),
]


@pytest.mark.parametrize(("model", "inputs", "calls"), [pytest.param(*one[1:], id=one[0]) for one in BARE])
def test_bare_operators_are_one_call_each(
    model: torch.nn.Module, inputs: tuple[Tensor, ...], calls: tuple[str, ...], tmp_path: Path
) -> None:
    written = executorch.export(model, inputs, tmp_path / "model.pte")
    assert written.operators == calls
    assert (written.delegates, written.others) == (0, ())
    memory = sum(t.numel() * t.element_size() for t in (*inputs, *executorch.load(written.path)(*inputs)))
    assert written.planned_bytes <= memory + 64 * (len(inputs) + 1)  # each array starts at a multiple of 16
    same(executorch.load(written.path)(*inputs), model(*inputs))


def test_all_that_a_convolution_takes(tmp_path: Path) -> None:
    inputs = randoms((2, 50, 8), (5, 8), (8,), (2, 4, 8), (2, 50, 8))
    written = executorch.export(Rows(), inputs, tmp_path / "model.pte")
    assert written.operators == ("causal_conv",)
    same(executorch.load(written.path)(*inputs), Rows()(*inputs))


def test_dynamic_lengths_and_batches(tmp_path: Path) -> None:
    length, batch = Dim("length", min=1, max=700), Dim("batch", min=1, max=3)
    axes = {0: batch, 2: length}
    written = executorch.export(Conv(), randoms((2, 8, 64), (8, 64)), tmp_path / "a.pte", (axes, {1: length}))
    program = executorch.load(written.path)
    for sizes in ((1, 8, 1), (3, 8, 700), (2, 8, 33)):
        inputs = randoms(sizes, (8, sizes[-1]))
        same(program(*inputs), Conv()(*inputs))
    with pytest.raises(RuntimeError):
        program(*randoms((1, 8, 701), (8, 701)))
    shapes = ({0: batch}, axes, axes)
    written = executorch.export(
        Recurrence(), (*randoms((2, 8)), gates(2, 8, 64), *randoms((2, 8, 64))), tmp_path / "b.pte", shapes
    )
    program = executorch.load(written.path)
    for b, t in ((1, 1), (3, 700), (2, 33)):
        inputs = (*randoms((b, 8)), gates(b, 8, t), *randoms((b, 8, t)))
        same(program(*inputs), Recurrence()(*inputs))


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[LFM2Block, executorch.Exported]:
    """Exported once: it has eighteen million weights."""
    torch.manual_seed(0)
    block = LFM2Block()
    path = tmp_path_factory.mktemp("lfm2") / "block.pte"
    shapes = ({1: Dim("length", min=1, max=64)},)
    return block, executorch.export(block, (torch.randn(1, 40, 1024),), path, shapes)


def test_block_of_lfm2(lfm2: tuple[LFM2Block, executorch.Exported]) -> None:
    block, written = lfm2
    x = torch.randn(1, 40, 1024, generator=torch.Generator().manual_seed(0))
    assert written.operators == ("causal_conv",)
    # XNNPACK takes the rest but two of a norm's operators on three axes, and no slice is copied.
    assert written.others == ("aten::add.Scalar_out", "aten::mean.out")
    program = executorch.load(written.path)
    with torch.no_grad():
        for steps in (40, 1, 64):
            same(program(x[:, :1].expand(1, steps, 1024).contiguous()), block(x[:, :1].expand(1, steps, 1024)))
        same(program(x), block(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_state_space_layer(dynamic: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = convscan.nn.FFTConvS4(d_model=24, l_max=300, channels=2, kernel="s4d", dropout=0.1)
    x = torch.randn(2, 24, 300)
    shapes = ({2: Dim("length", min=2, max=900)},) if dynamic else None
    written = executorch.export(Output(layer), (x,), tmp_path / "s4d.pte", shapes)
    assert written.operators == ("causal_conv", "causal_conv"), "one for each channel, and no kernel is computed"
    assert layer.training
    program = executorch.load(written.path)
    layer.eval()
    with torch.no_grad():
        for length in (300, 900, 17) if dynamic else (300,):
            x = torch.randn(2, 24, length)
            same(program(x), layer(x)[0])


def test_decoding_keeps_its_states_in_the_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(32)
    x = torch.randn(1, 20, 32)
    decoder.conv_state.fill_(0.0)
    written = executorch.export(decoder, (x[:, 0],), tmp_path / "decoder.pte")
    assert written.operators == ("causal_conv", "linear_recurrence")
    assert not decoder.conv_state.any(), "exporting runs the model, which must not move its states"
    with torch.no_grad():
        expected = decoder.whole(x)
    for _ in range(2):  # a program that is loaded again starts anew
        program = executorch.load(written.path)
        steps = [program(x[:, t])[0] for t in range(20)]
        same((torch.stack(steps, 1),), expected)


def execution_times(trace: Path, record: Path) -> tuple[list[float], list[float]]:
    """Of each call, the whole program's and those of a convolution in it, as ExecuTorch's Inspector reads them."""
    from executorch.devtools import Inspector

    inspector = Inspector(etdump_path=str(trace), etrecord=str(record))
    events = {event.name: event.perf_data.raw for block in inspector.event_blocks for event in block.events}
    own = next(times for name, times in events.items() if "convscan_executorch" in name and "causal_conv" in name)
    return events["Method::execute"], own


def test_events_are_read_back(tmp_path: Path) -> None:
    block = Output(convscan.nn.ShortConv(64))
    inputs = (torch.randn(1, 50, 64),)
    written = executorch.export(block, inputs, tmp_path / "model.pte")
    program = executorch.load(written.path, trace=True)
    for _ in range(3):
        program(*inputs)
    trace = tmp_path / "trace.etdump"
    program.write_trace(trace)
    whole, own = execution_times(trace, written.record)
    assert len(own) == len(whole)
    assert all(0 < part <= total for part, total in zip(own, whole, strict=True))


# ---- the same programs on an emulated Arm processor, by the judge: convscan device build --executorch ----


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> target.Emulator:
    """The judge under qemu-aarch64."""
    if counts.emulator() is None:
        pytest.skip("qemu-aarch64 is not installed")
    built = judge.existing(build.SOURCE / "build/device/judge")
    if built is None:
        pytest.skip("the program that runs models on 64-bit Arm is not built: convscan device build --executorch")
    emulator = target.Emulator(tmp_path_factory.mktemp("arm"))
    emulator.push(built.files)
    return emulator


def run_on_arm(emulator: target.Emulator, program: Path, calls: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    """The outputs of a program in as many calls as there are inputs; the last trace is ``trace`` in its folder."""
    words = ["run", str(program), "--calls", str(len(calls)), "--output", "out.", "--trace", "trace", "--threads", "2"]
    for call, inputs in enumerate(calls):
        for index, tensor in enumerate(inputs):
            path = emulator.folder / f"in.{call}.{index}"
            path.write_bytes(tensor.contiguous().numpy().tobytes())
            words += ["--input", f"{path.name}:{'x'.join(map(str, tensor.shape))}"]
    done = emulator.run(words, judge.COMMAND)
    assert done.code == 0, done.output
    outputs: list[list[Tensor]] = [[] for _ in calls]
    for line in target.lines(done.output):
        if "output" in line:
            data = (emulator.folder / f"out.{line['call']}.{line['output']}").read_bytes()
            outputs[line["call"]].append(torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(line["shape"]))
    return [tuple(one) for one in outputs]


ON_ARM = [one for one in BARE if one[0] in ("conv-k4", "conv-k32", "conv-k300", "conv-groups", "recurrence")]


@pytest.mark.parametrize(("model", "inputs"), [pytest.param(one[1], one[2], id=one[0]) for one in ON_ARM])
def test_bare_operators_on_arm(
    arm: target.Emulator, model: torch.nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    written = executorch.export(model, inputs, tmp_path / "model.pte")
    for outputs in run_on_arm(arm, written.path, [inputs, inputs]):
        same(outputs, model(*inputs))


def test_models_on_arm(arm: target.Emulator, lfm2: tuple[LFM2Block, executorch.Exported], tmp_path: Path) -> None:
    torch.manual_seed(0)
    s4d = Output(convscan.nn.FFTConvS4(d_model=8, l_max=200, kernel="s4d"))
    exported = executorch.export(s4d, (torch.randn(1, 8, 200),), tmp_path / "model.pte")
    for model, written, shape in ((*lfm2, (1, 8, 1024)), (s4d, exported, (1, 8, 200))):
        x = torch.randn(shape)
        ((y,),) = run_on_arm(arm, written.path, [(x,)])
        with torch.no_grad():
            same((y,), model(x))
        whole, own = execution_times(arm.folder / "trace", written.record)
        assert 0 < sum(own) <= sum(whole)


def test_decoding_on_arm(arm: target.Emulator, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(16)
    x = torch.randn(1, 6, 16)
    written = executorch.export(decoder, (x[:, 0],), tmp_path / "decoder.pte")
    steps = run_on_arm(arm, written.path, [(x[:, t],) for t in range(6)])
    with torch.no_grad():
        same((torch.stack([y for (y,) in steps], 1),), decoder.whole(x))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from convscan.integrations.executorch import _errors, _library

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(executorch.ExecuTorchError, match=r"no-such-compiler \(of CXX\) is not installed.*CXX"):
        executorch.operators_library()
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\n[ $1 = --version ] || { echo the reason; exit 1; }\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(
        executorch.ExecuTorchError, match=r"compiling the operators for ExecuTorch failed .*\nthe reason"
    ):
        executorch.operators_library()
    assert not list(tmp_path.rglob("*.so"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        executorch.load(tmp_path / "absent.pte")
    monkeypatch.setattr(_errors.importlib.util, "find_spec", lambda name: None)
    for call in (lambda: executorch.export(Conv(), (), tmp_path / "a.pte"), _library.operators_library):
        with pytest.raises(executorch.ExecuTorchError, match=r"pip install 'convscan\[executorch\]'"):
            call()


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    channels = Dim("channels", min=2, max=8)
    with pytest.raises(executorch.ExecuTorchError, match="the number of channels must be fixed"):
        executorch.export(Conv(), randoms((1, 4, 30), (4, 3)), tmp_path / "a.pte", ({1: channels}, {0: channels}))
    with pytest.raises(ValueError, match="load the program with trace=True"):
        executorch.load(executorch.export(Conv(), randoms((1, 4, 30), (4, 3)), tmp_path / "a.pte").path).write_trace(
            "x"
        )
