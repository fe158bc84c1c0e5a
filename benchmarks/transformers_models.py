"""Times Hugging Face's models on the CPU, with convscan and without: prefill, decoding, and what convscan serves alone.

    python benchmarks/transformers_models.py [CASE ...] [--length L] [--rounds N]

Shapes are those of released models with fewer layers, and of Qwen3-Next and RecurrentGemma fewer experts and a smaller
vocabulary, so that the weights, which are random, fit. A prefill computes the logits of the last token, as generation
does. Both ways run in turn in one process; the least time of each counts. Memory is the most that a call needs beyond
weights, inputs and result, by a process of its own in which freed memory goes back to the system at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import transformers

from convscan.integrations import transformers as integration
from convscan.profiler.measure import peak_bytes, timed
from convscan.profiler.peer import Prepared

transformers.utils.logging.set_verbosity_error()


class Case(NamedTuple):
    """A model, and how many times faster its prefill and a step of its decoding ought to be."""

    config: Callable[[], Any]
    prefill: float | None = None
    step: float | None = None


CASES = {
    "mamba-130m": Case(
        lambda: transformers.MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=4), 3.5, 2.0
    ),
    "mamba2-130m": Case(
        lambda: transformers.Mamba2Config(
            vocab_size=50288, hidden_size=768, num_hidden_layers=4, num_heads=24, head_dim=64, n_groups=1
        ),
        2.0,
    ),
    "recurrentgemma-2b": Case(
        lambda: transformers.RecurrentGemmaConfig(
            vocab_size=1000, num_hidden_layers=3, block_types=["recurrent", "recurrent", "attention"]
        ),
        2.0,
    ),
    "qwen3-next": Case(lambda: transformers.Qwen3NextConfig(vocab_size=1000, num_hidden_layers=4, num_experts=16), 2.0),
    "lfm2-1.2b": Case(
        lambda: transformers.Lfm2Config(
            vocab_size=1000,
            hidden_size=2048,
            intermediate_size=12288,
            num_hidden_layers=3,
            layer_types=["conv", "conv", "full_attention"],
        )
    ),
    "xlstm-1b": Case(
        lambda: transformers.xLSTMConfig(vocab_size=1000, hidden_size=2048, num_hidden_layers=2, num_heads=4)
    ),
}


class Part(NamedTuple):
    """What convscan serves of a model, alone, and how many times faster it ought to be."""

    title: str
    run: Callable[[], Any]
    wanted: float | None = None


class Given(torch.nn.Module):
    """Whatever comes in, this comes out."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.result


def parts(name: str, model: Any, length: int) -> list[Part]:
    """The parts of a model on inputs like those that they get."""
    hidden = torch.randn(1, length, model.config.hidden_size)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    if name == "mamba-130m":
        mixer = layers[0].mixer
        module = __import__(type(mixer).__module__, fromlist=["mamba_selective_scan"])
        u, dt, z = (torch.randn(1, length, mixer.intermediate_size).mT for _ in range(3))
        b, c = (torch.randn(1, length, mixer.ssm_state_size).mT for _ in range(2))
        settings = {"delta_bias": mixer.dt_proj.bias, "delta_softplus": True}
        scan = lambda: module.mamba_selective_scan(u, dt, -mixer.A_log.exp(), b, c, mixer.D, z, **settings)  # noqa: E731
        return [Part("the scan", scan, 25.0), Part("a mixer", lambda: mixer(hidden))]
    if name == "mamba2-130m":
        return [Part("a mixer", lambda: layers[0].mixer(hidden))]
    if name == "recurrentgemma-2b":
        block, positions = layers[0].temporal_block, torch.arange(length)[None]
        width = torch.randn(1, length, block.lru_width)
        return [
            Part("the recurrence", lambda: block.rg_lru(width, positions)),
            Part("a recurrent block", lambda: block(hidden, positions, None, use_cache=False)),
        ]
    if name == "qwen3-next":
        return [Part("a layer of linear attention", lambda: layers[0].linear_attn(hidden))]
    if name == "lfm2-1.2b":
        conv = layers[0].conv
        conv.in_proj, conv.out_proj = Given(torch.randn(1, length, 3 * model.config.hidden_size)), torch.nn.Identity()
        return [Part("a convolution block without projections", lambda: conv(hidden), 4.0)]
    return [Part("a layer", lambda: layers[0](hidden))]


WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "PyTorch": nullcontext,
    "convscan": integration.enable,
}


def milliseconds(run: Callable[[], Any], rounds: int) -> list[float]:
    """The least time of each way."""
    least = [float("inf")] * len(WAYS)
    for _ in range(rounds):
        for at, context in enumerate(WAYS.values()):
            with context():
                run()
                once = timed(run)
                # Short calls often, for a thousandth of a second says little.
                least[at] = min(least[at], once, *(timed(run) for _ in range(min(50, int(0.05 / once)))))
    return [1e3 * seconds for seconds in least]


def mebibytes(run: Callable[[], Any]) -> list[float]:
    """The most memory that each way needs."""
    found = []
    for context in WAYS.values():
        with context():
            run()
            found.append((peak_bytes(Prepared(run, lambda result: []), 0, repeats=3) or 0) / 2**20)
    return found


def decoding(model: Any, tokens: torch.Tensor) -> Callable[[], Any]:
    """A step behind a prompt; the cache goes on growing, which hardly matters."""
    out = model(tokens, use_cache=True)
    cache = {"cache": out.cache} if getattr(out, "cache", None) is not None else {}
    position = torch.tensor([[tokens.shape[1]]])
    given = cache or {"position_ids": position}
    return lambda: model(tokens[:, :1], use_cache=True, logits_to_keep=1, **given)


def measured(name: str, length: int) -> Iterator[Part]:
    """All that is measured of a case."""
    case = CASES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(case.config()).eval()
    tokens = torch.randint(3, model.config.vocab_size, (1, length))
    yield Part("prefill", lambda: model(tokens, use_cache=False, logits_to_keep=1).logits, case.prefill)
    yield Part("a step of decoding", decoding(model, tokens), case.step)
    yield from parts(name, model, length)


@torch.inference_mode()
def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="only the memory of one case, as JSON")
    arguments = parser.parse_args()
    if arguments.memory:
        # Blocks of a mebibyte and more are mapped, and unmapped when they are freed.
        ctypes.CDLL(None).mallopt(-3, 1 << 20)
        (name,) = arguments.cases
        print(json.dumps([mebibytes(part.run) for part in measured(name, arguments.length)]))
        return
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"| | {', ms | '.join(WAYS)}, ms | times faster | asked | {', MiB | '.join(WAYS)}, MiB |")
    print(f"|{'---|' * 7}")
    for name in arguments.cases:
        command = [sys.executable, __file__, name, "--memory", "--length", str(arguments.length)]
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for part, most in zip(measured(name, arguments.length), memory, strict=True):
            slow, served = milliseconds(part.run, arguments.rounds)
            cells = [f"{name}, {part.title}", f"{slow:.4g}", f"{served:.4g}", f"{slow / served:.2f}"]
            cells.append("" if part.wanted is None else f"{part.wanted:g}")
            print(f"| {' | '.join([*cells, *(f'{size:.1f}' for size in most)])} |", flush=True)


if __name__ == "__main__":
    main()
