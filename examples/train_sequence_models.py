"""Trains two small models on real data that ships inside packages, compares them with plain PyTorch, and generates.

    python examples/train_sequence_models.py {digits,text,both} [--steps N] [--compare] [--plot curves.png]

* digits: scikit-learn's 1797 handwritten digits, read pixel by pixel, are classified by a stack of S4D blocks; the
  trained model then reads a digit one ``step`` a pixel and must come to the same answer.
* text: the Python standard library's own source is predicted character by character by a stack of LFM2's doubly gated
  convolutions (with more taps than LFM2's 3, for a character is less than a token), which then writes some Python of
  its own, one ``step`` a character.

``--compare`` trains a twin beside each model, from the same parameters and on the same batches, whose convolutions are
what PyTorch itself offers: depthwise ``conv1d``, ``torch.fft`` zero-padded to twice the length, and an einsum for the
state-space kernel. The two take turns step by step, so that a busy machine slows both.

    pip install 'convscan[examples]'    # scikit-learn, whose data is read, and matplotlib for --plot
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convscan import nn

# ---- the same layers, under the same parameters, of PyTorch's operators ----


class PlainShortConv(nn.ShortConv):
    """LFM2's layer of a depthwise ``conv1d`` in (B, D, L), as its released model has it."""

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, None]:
        B, C, v = self.in_proj(x).transpose(1, 2).chunk(3, 1)
        weight = self.weight.flip(0).T[:, None]
        z = F.conv1d(B * v, weight, self.bias, padding=self.kernel_size - 1, groups=self.d_model)
        return self.out_proj((C * z[..., : x.shape[1]]).transpose(1, 2)), None


class PlainFFTConvS4(nn.FFTConvS4):
    """S4D as its authors have it: the kernel an einsum over all powers, the convolution by ``torch.fft``."""

    def forward(self, x: Tensor, state: object = None, rate: float = 1.0) -> tuple[Tensor, None]:
        x, length = x.transpose(1, 2), x.shape[1]
        A, dt = self.kernel.poles(), self.kernel.time_steps()
        B, C = (torch.view_as_complex(parameter) for parameter in (self.kernel.B, self.kernel.C))
        z = (dt * A).to(B.dtype)
        powers = torch.exp(z[..., None] * torch.arange(length))
        K = 2 * torch.einsum("chn,hnl->chl", C * B * (torch.exp(z) - 1) / A.to(B.dtype), powers).real
        spectrum = torch.fft.rfft(x[:, None], n=2 * length) * torch.fft.rfft(K, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.D[..., None] * x[:, None], None


class PlainS4Block(nn.S4Block):
    """The block around it."""

    def __init__(self, d_model: int, **arguments: Any) -> None:
        super().__init__(d_model, **arguments)
        arguments.pop("dropout", None)
        self.s4 = PlainFFTConvS4(d_model, transposed=False, **arguments)


# ---- models ----


class Classifier(torch.nn.Module):
    """Pixels (B, L) to logits (B, 10): S4D blocks, the mean over time, and a linear map."""

    def __init__(self, block: type[nn.S4Block] = nn.S4Block, d_model: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(1, d_model)
        self.blocks = torch.nn.ModuleList(block(d_model, kernel="s4d", d_state=64, init="lin") for _ in range(depth))
        self.head = torch.nn.Linear(d_model, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """The whole image at once."""
        x = self.encoder(pixels[..., None])
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x.mean(1))

    def read(self, pixels: Tensor) -> Tensor:
        """The same, one step a pixel, with nothing kept but states and a running sum."""
        states = [block.default_state(len(pixels)) for block in self.blocks]
        total = torch.zeros(())
        for pixel in pixels.unbind(1):
            x = self.encoder(pixel[:, None])
            for i, block in enumerate(self.blocks):
                x, states[i] = block.step(x, states[i])
            total = total + x
        return self.head(total / pixels.shape[1])


class CharacterModel(torch.nn.Module):
    """Characters (B, L) to logits of the next ones (B, L, vocabulary): residual gated convolutions."""

    def __init__(
        self,
        vocabulary: int,
        conv: type[nn.ShortConv] = nn.ShortConv,
        d_model: int = 96,
        kernel_size: int = 64,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, d_model)
        self.mixers = torch.nn.ModuleList(conv(d_model, kernel_size, bias=True) for _ in range(depth))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(d_model) for _ in range(depth + 1))
        self.head = torch.nn.Linear(d_model, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        """The whole text at once."""
        x = self.embedding(codes)
        for mixer, norm in zip(self.mixers, self.norms, strict=False):
            x = x + mixer(norm(x))[0]
        return self.head(self.norms[-1](x))

    def write(self, prompt: Tensor, length: int, temperature: float, generator: torch.Generator) -> Tensor:
        """``prompt`` (L,) followed by ``length`` sampled characters, one step each."""
        states = [mixer.default_state(1) for mixer in self.mixers]
        codes = prompt.tolist()
        for i in range(len(prompt) + length - 1):
            x = self.embedding(torch.tensor(codes[i : i + 1]))
            for layer, (mixer, norm) in enumerate(zip(self.mixers, self.norms, strict=False)):
                y, states[layer] = mixer.step(norm(x), states[layer])
                x = x + y
            if i >= len(prompt) - 1:
                odds = torch.softmax(self.head(self.norms[-1](x))[0] / temperature, -1)
                codes.append(int(torch.multinomial(odds, 1, generator=generator)))
        return torch.tensor(codes)


# ---- data ----


class Digits(NamedTuple):
    """Images as rows of 64 pixels between 0 and 1, the digits they show, split by a fixed seed."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Digits:
    """scikit-learn's digits; only the package's data file is read."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("this example reads the digits of scikit-learn: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    pixels, labels = table[:, :-1] / 16, table[:, -1].long()
    return Digits((pixels[360:], labels[360:]), (pixels[:360], labels[:360]))


class Text(NamedTuple):
    """Characters as numbers, and the characters that the numbers stand for."""

    codes: Tensor
    characters: str


def standard_library(size: int) -> Text:
    """The standard library's modules in alphabetical order, their first ``size`` characters that are plain ASCII."""
    characters = "\n" + "".join(map(chr, range(32, 127)))
    source = ""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source += path.read_text(encoding="utf-8")
        if len(source) >= size:
            break
    table = np.full(128, -1)
    table[[ord(character) for character in characters]] = np.arange(len(characters))
    codes = table[np.frombuffer(source.encode("ascii", "ignore"), np.uint8)]
    return Text(torch.from_numpy(codes[codes >= 0][:size]), characters)


# ---- training ----


class Run(NamedTuple):
    """What training a model gave: the loss of every step, and the seconds of all."""

    name: str
    losses: list[float]
    seconds: list[float]


def train(
    models: dict[str, torch.nn.Module],
    batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
) -> list[Run]:
    """Trains models side by side on the same batches: AdamW, its rate rising for a tenth and then falling to zero."""

    def share(step: int) -> float:
        return min(10 * (step + 1) / steps, (1 - step / steps) / 0.9, 1.0)

    runs = [Run(name, [], []) for name in models]
    optimisers = [
        torch.optim.AdamW(nn.parameter_groups(model), lr=rate, weight_decay=0.01, fused=True)
        for model in models.values()
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, share) for optimiser in optimisers]
    for step in range(steps):
        inputs, targets = batch()
        for run, model, optimiser, schedule in zip(runs, models.values(), optimisers, schedules, strict=True):
            begin = time.perf_counter()
            loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            run.seconds.append(time.perf_counter() - begin)
            schedule.step()
            run.losses.append(float(loss.detach()))
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"  step {step + 1:4d}  loss {runs[0].losses[-1]:.4f}  {sum(runs[0].seconds):6.1f} s", flush=True)
    return runs


def twins(make: Callable[..., torch.nn.Module], plain: type, compare: bool) -> dict[str, torch.nn.Module]:
    """A model, and where wanted its twin of PyTorch's operators with the same parameters."""
    torch.manual_seed(0)
    models = {"convscan": make()}
    if compare:
        models["PyTorch"] = make(plain)
        models["PyTorch"].load_state_dict(models["convscan"].state_dict())
    return models


def report(runs: list[Run]) -> None:
    """Of a comparison: how far apart the curves are, and how many times as long the twin took."""
    if len(runs) == 2:
        ours, theirs = runs
        apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        ratio = np.median(theirs.seconds) / np.median(ours.seconds)
        print(f"  loss curves at most {apart:.1e} apart; plain PyTorch takes {ratio:.2f} times as long a step")


def train_digits(steps: int, compare: bool) -> list[Run]:
    """Trains the classifier, says which part of the test set it knows, and reads 50 digits of it step by step."""
    data = digits()
    generator = torch.Generator().manual_seed(1)

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data.train[1]), (64,), generator=generator)
        return data.train[0][rows], data.train[1][rows]

    models = twins(Classifier, PlainS4Block, compare)
    print(f"digits: {len(data.train[1])} to train on, {len(data.test[1])} to test on, sequences of 64 pixels")
    runs = train(models, batch, steps, rate=0.005)
    report(runs)
    model = models["convscan"].eval()
    with torch.no_grad():
        whole = model(data.test[0])
        for block in model.blocks:
            block.setup_step()
        read = model.read(data.test[0][:50])
    accuracy = float((whole.argmax(1) == data.test[1]).float().mean())
    apart = float((read - whole[: len(read)]).abs().max())
    print(f"  test accuracy {accuracy:.4f}; pixel by pixel the logits differ by {apart:.1e}")
    return runs


def train_text(steps: int, compare: bool) -> list[Run]:
    """Trains the character model on all but the last part of the text, tests it there, and lets it write."""
    text = standard_library(2_000_000)
    train_part, test_part = text.codes[:-65536], text.codes[-65536:]
    generator = torch.Generator().manual_seed(1)
    length = 256

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train_part) - length, (16, 1), generator=generator)
        piece = train_part[starts + torch.arange(length + 1)]
        return piece[:, :-1], piece[:, 1:]

    models = twins(lambda *conv: CharacterModel(len(text.characters), *conv), PlainShortConv, compare)
    print(f"text: {len(train_part)} characters to train on, {len(test_part)} to test on")
    runs = train(models, batch, steps, rate=0.004)
    report(runs)
    model = models["convscan"].eval()
    code = {character: index for index, character in enumerate(text.characters)}
    with torch.no_grad():
        logits = model(test_part[:-1].unflatten(0, (1, -1)))
        print(f"  test loss {float(F.cross_entropy(logits[0], test_part[1:])):.3f} nats a character")
        prompt = torch.tensor([code[character] for character in "\n    def "])
        codes = model.write(prompt, 400, 0.7, generator)
    print("".join(text.characters[index] for index in codes.tolist()))
    return runs


def plot(path: Path, curves: dict[str, list[Run]]) -> None:
    """Loss over steps, where twins lie upon each other, and over seconds, where they do not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(curves), 2, figsize=(10, 4 * len(curves)), squeeze=False, layout="constrained")
    for row, (task, runs) in zip(axes, curves.items(), strict=True):
        for run, style in zip(runs, ("-", "--"), strict=False):
            width = max(1, len(run.losses) // 50)
            losses = np.convolve(run.losses, np.full(width, 1 / width), "valid")
            row[0].plot(np.arange(len(losses)) + width, losses, style, label=run.name)
            row[1].plot(np.cumsum(run.seconds)[width - 1 :], losses, style, label=run.name)
        row[0].set(title=f"{task}: loss, mean of {width} steps", xlabel="step", ylabel="cross entropy (nats)")
        row[1].set(title=f"{task}: the same over time", xlabel="seconds")
        row[0].legend()
    figure.savefig(path)
    print(f"curves in {path}")


def main() -> None:
    """Trains what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("digits", "text", "both"))
    parser.add_argument("--steps", type=int, help="instead of 500 for digits and 1000 for text")
    parser.add_argument("--compare", action="store_true", help="train a twin of PyTorch's operators beside each model")
    parser.add_argument("--plot", type=Path, help="where to write a picture of the loss curves")
    arguments = parser.parse_args()

    curves: dict[str, list[Run]] = {}
    if arguments.task in ("digits", "both"):
        curves["digits"] = train_digits(arguments.steps or 500, arguments.compare)
    if arguments.task in ("text", "both"):
        curves["text"] = train_text(arguments.steps or 1000, arguments.compare)
    if arguments.plot is not None:
        plot(arguments.plot, curves)


if __name__ == "__main__":
    main()
