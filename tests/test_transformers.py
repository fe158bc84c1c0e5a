"""Hugging Face's models with convscan and without: logits, cached generation and gradients are the same to rounding.

Every family has a small configuration and random weights, large enough for every operator to matter: impostors, a
little wrong in one function, must be found. The suite runs with whatever release of transformers is installed;
families and functions that it does not have are left out.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from convscan.integrations import transformers as integration
from convscan.integrations.transformers import _places, _switch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.utils.logging.set_verbosity_error()

RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
OLDER = RELEASE < (5, 15)  # whose model files have a slow way and one for CUDA in each class
TOKENS = 64
# Older releases refuse to run on a CPU what they have kernels for, unless told so.
SLOW = {"use_mamba_kernels": False} if OLDER else {}
COMMON = {"vocab_size": TOKENS, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DUAL = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
TWO = {"num_hidden_layers": 2}
ONE_OF_EACH = {**TWO, "attn_layer_period": 2, "attn_layer_offset": 1}


class Family(NamedTuple):
    """A family of models: its configuration, that of a small model, and the functions that it runs."""

    config: str
    options: dict[str, Any]
    functions: tuple[str, ...]


CONV = ("causal_conv1d_fn", "causal_conv1d_update")
SELECTIVE = (*CONV, "mamba_selective_scan", "mamba_selective_state_update")
SSD = (*CONV, "mamba2_chunk_scan", "mamba2_selective_state_update")
RULE = (*CONV, "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
KIMI = (*CONV, "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention")

FAMILIES = {
    "lfm2": Family(
        "Lfm2Config",
        {**COMMON, **ATTENTION, **TWO, "layer_types": ["conv", "full_attention"]},
        ("Lfm2ShortConv.forward", "causal_conv1d_update"),
    ),
    "lfm2_moe": Family(
        "Lfm2MoeConfig",
        {**COMMON, **ATTENTION, **TWO, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        ("Lfm2MoeShortConv.forward", "causal_conv1d_update"),
    ),
    "lfm3": Family(
        "Lfm3Config",
        {**COMMON, **ATTENTION, **TWO, "layer_types": ["conv", "full_attention"], "conv_L_cache": 7, "conv_bias": True},
        ("Lfm3ShortConv.forward", "causal_conv1d_update"),
    ),
    "mamba": Family("MambaConfig", {**COMMON, **TWO, "state_size": 4}, SELECTIVE),
    "falcon_mamba": Family("FalconMambaConfig", {**COMMON, **TWO, "state_size": 4}, SELECTIVE),
    "jamba": Family(
        "JambaConfig",
        {
            **COMMON,
            **ATTENTION,
            **ONE_OF_EACH,
            **SLOW,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        SELECTIVE,
    ),
    "zamba": Family(
        "ZambaConfig",
        {
            **COMMON,
            **ATTENTION,
            **SLOW,
            "num_key_value_heads": 4,
            "num_hidden_layers": 5,
            "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
        },
        SELECTIVE,
    ),
    "mamba2": Family(
        "Mamba2Config",
        {**COMMON, **TWO, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
        SSD,
    ),
    "bamba": Family(
        "BambaConfig", {**COMMON, **ATTENTION, **TWO, **DUAL, "attn_layer_indices": [1], "mamba_n_groups": 1}, SSD
    ),
    "zamba2": Family(
        "Zamba2Config",
        {
            **COMMON,
            **ATTENTION,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "chunk_size": 8,
        },
        SSD,
    ),
    "falcon_h1": Family("FalconH1Config", {**COMMON, **ATTENTION, **TWO, **DUAL, "mamba_d_ssm": 64}, SSD),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **COMMON,
            **ATTENTION,
            **TWO,
            **DUAL,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
        },
        SSD,
    ),
    "nemotron_h": Family(
        "NemotronHConfig",
        {
            **COMMON,
            **ATTENTION,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "chunk_size": 8,
            "n_groups": 1,
            "head_dim": 8,
        },
        SSD,
    ),
    "recurrent_gemma": Family(
        "RecurrentGemmaConfig",
        {
            **COMMON,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "lru_width": 32,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 8,
        },
        ("RecurrentGemmaRglru.forward", "RecurrentGemmaRglru._rnn_scan"),
    ),
    "qwen3_next": Family(
        "Qwen3NextConfig",
        {**COMMON, **ATTENTION, **TWO, **DELTA, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16},
        RULE,
    ),
    "qwen3_5": Family("Qwen3_5TextConfig", {**COMMON, **ATTENTION, **TWO, **DELTA, "head_dim": 8}, RULE),
    "olmo_hybrid": Family("OlmoHybridConfig", {**COMMON, **ATTENTION, **TWO, **DELTA, "linear_num_key_heads": 4}, RULE),
    "kimi_linear": Family(
        "KimiLinearConfig",
        {
            **COMMON,
            **ATTENTION,
            **TWO,
            "num_key_value_heads": 4,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        KIMI,
    ),
    "xlstm": Family(
        "xLSTMConfig",
        # Chunks longer than the rows, of which there is none then, where older releases cannot have two of them.
        {**COMMON, **TWO, "hidden_size": 128, "num_heads": 4, "chunk_size": 32 if OLDER else 8},
        ("xLSTMBackend.forward",),
    ),
}

HERE = [name for name, family in FAMILIES.items() if hasattr(transformers, family.config)]


@functools.cache
def model_of(name: str) -> Any:
    """A small model with weights of which no branch drowns in another."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for title, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif title.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokens() -> tuple[Tensor, Tensor]:
    """Two rows, and which of their tokens are real: the first row is padded on the left."""
    rows = torch.randint(3, TOKENS, (2, 19), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(rows)
    mask[0, :5] = 0
    return rows, mask


@torch.no_grad()
def logits(model: Any, padded: bool = True) -> dict[str, Tensor]:
    """Of whole rows and of what is generated with a cache, greedily; both of padded rows too."""
    rows, mask = tokens()
    found = {}
    for title, real in (("rows", None), ("padded rows", mask))[: 1 + padded]:
        found[title] = model(rows, attention_mask=real).logits
        out = model.generate(
            rows[:, :9],
            attention_mask=torch.ones_like(mask[:, :9]) if real is None else real[:, :9],
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found[f"generated from {title}"] = torch.stack(out.logits, 1)
        found[f"tokens from {title}"] = out.sequences
    return found


def gradients(model: Any) -> dict[str, Tensor]:
    """Those of all parameters, from padded rows."""
    rows, mask = tokens()
    for module in model.modules():  # RecurrentGemma has its cache in its layers
        for name in ("recurrent_states", "conv1d_state"):
            if hasattr(module, name):
                setattr(module, name, None)
    model.train()
    model.zero_grad()
    model(rows, attention_mask=mask, labels=rows, use_cache=False).loss.backward()
    model.eval()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(ours: dict[str, Tensor], expected: dict[str, Tensor], scale: float | None = None) -> float:
    """The largest difference, relative to the largest value of each tensor, or to ``scale`` where that is larger."""
    worst = 0.0
    for name, mine in ours.items():
        theirs = expected[name]
        if theirs.dtype == torch.int64:
            worst = max(worst, 0.0 if torch.equal(mine, theirs) else 1.0)
        else:
            size = max(float(theirs.abs().max()), scale or 0.0)
            worst = max(worst, float((mine - theirs).abs().max()) / size)
    return worst


@functools.cache
def expected_logits(name: str) -> dict[str, Tensor]:
    return logits(model_of(name))


@pytest.fixture(autouse=True)
def _off_before_and_after() -> Iterator[None]:
    """Nothing of what a test does stays; one thread, for models as small as these."""
    finders, threads = list(sys.meta_path), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert not integration.report().enabled
    assert sys.meta_path == finders


# Measured: 1.1e-6 and 2.5e-5 at most.
LOGITS_BOUND = 1e-5
GRADIENTS_BOUND = 1e-4


# Of these the slow way that older releases have is not what their fast way computes.
NOT_SERVED = {"zamba2", "nemotron_h"} if OLDER else set()


def served(name: str) -> set[str]:
    """What convscan serves of the model file of a family, now that it is loaded and convscan is on."""
    rows = [row for row in integration.report().rows if row.model == name]
    assert OLDER or not [row for row in rows if row.refusal]
    return {row.function for row in rows if row.refusal is None}


@pytest.mark.parametrize("name", HERE)
def test_logits_and_generation(name: str) -> None:
    expected = expected_logits(name)
    with integration.enable():
        ours = logits(model_of(name))
        assert served(name) >= (set() if OLDER else set(FAMILIES[name].functions))
        assert served(name) or name in NOT_SERVED
    assert furthest(ours, expected) < LOGITS_BOUND
    assert all(torch.equal(tensor, expected[title]) for title, tensor in logits(model_of(name)).items())


@pytest.mark.parametrize("name", HERE)
def test_gradients(name: str) -> None:
    model = model_of(name)
    expected = gradients(model)
    with integration.enable():
        ours = gradients(model)
    assert ours.keys() == expected.keys()
    # Of parameters with hardly any gradient, such as those of decays, it is a small difference of large terms.
    scale = 0.1 * max(float(gradient.abs().max()) for gradient in expected.values())
    assert furthest(ours, expected, scale) < GRADIENTS_BOUND


@pytest.mark.parametrize("name", HERE)
def test_impostors_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function a few hundredths off: were it not called, or did it not matter, nothing would change."""
    expected = expected_logits(name)

    def off(result: Any) -> Any:
        if isinstance(result, tuple):
            return (off(result[0]), *result[1:])
        # Not all by the same factor, which a norm would divide by again.
        factors = 1 + 0.03 * torch.arange(result[0].numel()).cos()
        return factors.view(result.shape[1:]) * result

    def impostors(module: types.ModuleType) -> Iterator[_places.Found]:
        for found in _places.places(module):
            if str(found) == function:

                def make(original: Callable[..., Any], found: _places.Found = found) -> Callable[..., Any]:
                    honest = found.place.make(original)
                    return functools.wraps(original)(lambda *args, **kwargs: off(honest(*args, **kwargs)))

                yield found._replace(place=found.place._replace(make=make))
            else:
                yield found

    model = model_of(name)
    with integration.enable():
        # Convolutions with gates inside leave this one to sequences that are packed.
        functions = served(name) - {"causal_conv1d_fn"} if "lfm" in name else served(name)
    for function in sorted(functions):
        only_with_gradients = function == "RecurrentGemmaRglru._rnn_scan"
        truth = gradients(model) if only_with_gradients else expected
        with monkeypatch.context() as patch:
            patch.setattr(_switch, "places", impostors)
            with integration.enable():
                found = gradients(model) if only_with_gradients else logits(model, padded=False)
                assert furthest(found, truth) > 5 * LOGITS_BOUND, function


# ---- what the PyTorch path cannot do, and what is not served ----


@pytest.mark.parametrize("name", [name for name in ("lfm2", "bamba", "recurrent_gemma", "qwen3_next") if name in HERE])
def test_half_types(name: str) -> None:
    """bfloat16 is as near to float32 as PyTorch's own is."""
    half = copy.deepcopy(model_of(name)).bfloat16()
    theirs = logits(half, padded=False)["rows"]
    with integration.enable():
        ours = logits(half, padded=False)["rows"]
    assert ours.dtype == theirs.dtype
    exact = expected_logits(name)["rows"]
    assert (ours.float() - exact).abs().mean() < 1.2 * (theirs.float() - exact).abs().mean()


def test_steps_that_need_a_gradient_take_the_way_of_the_original() -> None:
    # Of convolutions alone: through a state that is overwritten the original has no gradient either.
    model, (rows, _) = model_of("lfm2"), tokens()

    def gradient() -> Tensor:
        model.zero_grad()
        with torch.no_grad():
            first = model(rows[:, :9], use_cache=True)
        cache = {key: value for key, value in first.items() if key in ("cache", "past_key_values")}
        model(rows[:, 9:10], **cache).logits.square().sum().backward()
        return next(p for title, p in model.named_parameters() if title.endswith("out_proj.weight")).grad.clone()

    with integration.enable():
        ours = gradient()
    assert torch.allclose(ours, gradient(), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(OLDER, reason="this release of transformers does not pass seq_idx on")
@pytest.mark.parametrize("name", ["bamba", "granitemoehybrid"])
def test_packed_sequences(name: str) -> None:
    """What transformers refuses where neither package is installed: rows of several sequences."""
    model, (rows, _) = model_of(name), tokens()
    seq_idx = torch.tensor([[0] * 8 + [1] * 11], dtype=torch.int32)
    positions = torch.cat([torch.arange(8), torch.arange(11)])[None]
    with torch.no_grad(), integration.enable():
        # Attention would have to be told as well, so only what comes before it is compared.
        packed = model(rows[:1], seq_idx=seq_idx, position_ids=positions, output_hidden_states=True).hidden_states[1]
        for begin, end in ((0, 8), (8, 19)):
            alone = model(rows[:1, begin:end], output_hidden_states=True).hidden_states[1]
            assert torch.allclose(packed[:, begin:end], alone, atol=1e-5)


@pytest.mark.skipif(OLDER, reason="this release of transformers does not pass cu_seqlens on")
@pytest.mark.parametrize(
    ("name", "function"),
    [("qwen3_next", "torch_chunk_gated_delta_rule"), ("kimi_linear", "chunk_kimi_delta_attention")],
)
def test_packed_sequences_of_delta_rules(name: str, function: str) -> None:
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(1, 19, 4, 8) for _ in range(4))
    given = [q, k, v, -g.abs() if name == "kimi_linear" else -g[..., 0].abs(), torch.rand(1, 19, 4)]
    module = model_file(name)
    with integration.enable():
        packed, _ = getattr(module, function)(*given, cu_seqlens=torch.tensor([0, 8, 19]), use_qk_l2norm_in_kernel=True)
    for span in (slice(0, 8), slice(8, 19)):
        alone, _ = getattr(module, function)(*(tensor[:, span] for tensor in given), use_qk_l2norm_in_kernel=True)
        assert torch.allclose(packed[:, span], alone, atol=1e-5)


def test_other_activations_take_the_way_of_the_original() -> None:
    config = transformers.MambaConfig(**{**FAMILIES["mamba"].options, "hidden_act": "gelu"})
    model, (rows, _) = transformers.AutoModelForCausalLM.from_config(config).eval(), tokens()
    with torch.no_grad():
        expected = model(rows).logits
        with integration.enable():
            assert torch.allclose(model(rows).logits, expected, atol=1e-5)


# ---- turning it on and off ----


def model_file(name: str) -> types.ModuleType:
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def place_of(name: str) -> tuple[Any, str]:
    """Something that convscan replaces in a model file: what holds it, and its name there."""
    found = next(found for found in _places.places(model_file(name)) if found.refusal is None)
    return found.holder, found.name


def test_model_files_loaded_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    before, name = place_of("mamba")
    original = vars(before)[name]
    with integration.enable():
        assert vars(before)[name].__wrapped__ is original
        monkeypatch.delitem(sys.modules, "transformers.models.bamba.modeling_bamba", raising=False)
        after = model_file("bamba")
        assert after.__spec__ is not None
        assert type(after.__spec__.loader) is type(sys.modules["transformers"].__spec__.loader)  # type: ignore[union-attr]
        rows = integration.report().rows
        replaced = next(row for row in rows if row.model == "bamba")
        assert replaced.refusal is None
        assert "BambaMixer" in replaced.classes
        ours = vars(after.BambaMixer)["torch_forward"] if OLDER else after.mamba2_chunk_scan
        assert ours.__code__.co_filename.startswith(str(Path(_places.__file__).parent))
        assert next(str(row.function) for row in rows if row.model == "mamba") in str(integration.report())
        assert " of MambaMixer, by " in str(integration.report())
    assert vars(before)[name] is original
    restored = vars(after.BambaMixer)["torch_forward"] if OLDER else after.mamba2_chunk_scan
    assert restored is ours.__wrapped__


def test_enabling_twice() -> None:
    holder, name = place_of("mamba")
    original = vars(holder)[name]
    with integration.enable() as outer:
        ours = vars(holder)[name]
        with integration.enable():
            assert vars(holder)[name] is ours
        assert vars(holder)[name] is ours
        assert str(outer) == str(integration.report())
    assert vars(holder)[name] is original
    integration.enable()
    integration.disable()
    integration.disable()
    assert vars(holder)[name] is original
    assert str(integration.report()).endswith("convscan is off; enable() turns it on")


def test_what_others_put_there_meanwhile_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    holder, name = place_of("mamba")
    with monkeypatch.context() as patch, integration.enable():
        patch.setattr(holder, name, len)
        integration.disable()
        assert vars(holder)[name] is len


def test_functions_that_are_not_known_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_conv1d_fn(x: Tensor, taps: Tensor) -> Tensor:
        return x

    fake = types.ModuleType("transformers.models.fake.modeling_fake")
    fake.causal_conv1d_fn = causal_conv1d_fn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    with integration.enable():
        assert fake.causal_conv1d_fn is causal_conv1d_fn
        row = next(row for row in integration.report().rows if row.model == "fake")
        assert row.refusal == "its parameters (x, taps) are not those that convscan knows"
        assert "fake: causal_conv1d_fn of no class, not served" in str(integration.report())


class TwoWays(torch.nn.Module):
    """A layer as model files before 5.15 have them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4))
        self.activation, self.layer_idx, self.ways = "silu", 0, []

    def cuda_kernels_forward(
        self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, seq_idx: Any = None
    ) -> Tensor:
        self.ways.append("fast in training" if self.training else "fast")
        with torch.cuda.device(hidden_states.device):
            convolve = causal_conv1d_fn  # type: ignore[name-defined]  # noqa: F821
            return convolve(hidden_states.mT, self.weight, activation=self.activation).mT

    def slow_forward(
        self, input_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        self.ways.append("slow")
        x = torch.nn.functional.pad(input_states.mT, (3, 0))
        return torch.nn.functional.silu(torch.nn.functional.conv1d(x, self.weight.unsqueeze(1), groups=6)).mT

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        return self.slow_forward(hidden_states, **given)


class OtherWays(TwoWays):
    """One whose ways differ."""

    def cuda_kernels_forward(self, hidden_states: Tensor, position: Any = None) -> Tensor:  # type: ignore[override]
        return hidden_states

    def slow_forward(
        self, input_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        return input_states


def test_layers_of_older_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("transformers.models.fake.modeling_fake")
    for cls in (TwoWays, OtherWays):
        monkeypatch.setattr(cls, "__module__", fake.__name__)
        setattr(fake, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    layer, x = TwoWays(), torch.randn(2, 9, 6)
    expected = layer(x)
    cache = types.SimpleNamespace(has_previous_state=True)
    with integration.enable():
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert layer.training
        with torch.no_grad():
            layer(x[:, :1], cache_params=cache)
            layer(x, cache_params=cache)  # more tokens after those in the cache
            cache.has_previous_state = lambda layer: False  # as later releases have it
            layer(x, cache_params=cache)
        layer(x, cache_params=cache)  # with gradients through what is overwritten
        layer.activation = "gelu"
        layer(x)
        rows = {row.function: row for row in integration.report().rows if row.model == "fake"}
    assert layer.ways == ["slow", "fast", "fast", "slow", "fast", "slow", "slow"]
    assert rows["TwoWays.slow_forward"].operator == "causal_conv"
    assert rows["OtherWays.slow_forward"].refusal == "the parameters of cuda_kernels_forward and slow_forward differ"


@pytest.mark.parametrize("found", ["4.40.1", "5.99.0", "6.0.0", "unknown"])
def test_versions_that_are_not_known(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with (
        pytest.warns(UserWarning, match=rf"tested with transformers .*; got {found}. Only functions"),
        integration.enable(),
    ):
        assert integration.report().version == found
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with integration.enable():
            pass


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", missing)
        with pytest.raises(ImportError, match=r"transformers must be installed; got none\. Install it with"):
            integration.enable()


@pytest.mark.skipif(OLDER, reason="older releases have these functions in two or three model files, and others in them")
def test_every_model_file_of_this_release_is_known() -> None:
    """Read, not loaded: those that have a function of a known name have it with the known parameters."""
    found = set()
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(f"def {name}(" in text for name in _places.FUNCTIONS):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name in _places.FUNCTIONS:
                arguments = [argument.arg for argument in node.args.args]
                arguments += [node.args.kwarg.arg] if node.args.kwarg else []
                assert tuple(arguments) == _places.FUNCTIONS[node.name].parameters, (path.name, node.name)
                found.add(path.parent.name)
    assert found >= {"qwen3_next"}
