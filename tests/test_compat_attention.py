"""Stand-ins for Mamba-2's functions of mamba_ssm and for fla, against plain loops over what their documents say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

import oracle
from convscan.compat import fla
from convscan.compat.causal_conv1d import causal_conv1d_fn
from convscan.compat.mamba_ssm import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

B, T, H, K, V = 2, 11, 3, 4, 5


def close(ours: Tensor, expected: Tensor) -> bool:
    return torch.allclose(ours, expected.to(ours.dtype), rtol=1e-9, atol=1e-9)


# ---- mamba_ssm: Mamba-2 ----


def dual_loop(
    x: Tensor, step: Tensor, A: Tensor, b: Tensor, c: Tensor, state: Tensor, resets: Sequence[Sequence[int]] = ()
) -> tuple[Tensor, Tensor]:
    """One step after the other; b and c (batch, seqlen, heads, states), steps ready to use."""
    outputs = []
    for t in range(x.shape[1]):
        for row, cuts in enumerate(resets):
            if t in cuts:
                state = torch.where((torch.arange(len(state)) == row)[:, None, None, None], 0.0, state)
        written = step[:, t, :, None, None] * x[:, t].unsqueeze(-1) * b[:, t].unsqueeze(-2)
        state = torch.exp(step[:, t] * A)[..., None, None] * state + written
        outputs.append((state * c[:, t].unsqueeze(-2)).sum(-1))
    return torch.stack(outputs, 1), state


def dual_inputs(groups: int, states: int = 3) -> dict[str, Tensor]:
    draw = oracle.Draw(0)
    heads, width = 4, 5
    return {
        "x": draw.normal(B, T, heads, width),
        "dt": draw.normal(B, T, heads),
        "A": -torch.rand(heads, dtype=torch.float64),
        "B": draw.normal(B, T, groups, states),
        "C": draw.normal(B, T, groups, states),
        "D": draw.normal(heads),
        "z": draw.normal(B, T, heads, width),
        "dt_bias": draw.normal(heads),
        "initial_states": draw.normal(B, heads, width, states),
    }


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.3, 0.9)])
@pytest.mark.parametrize("packed", [False, True])
def test_mamba_chunk_scan_combined(groups: int, limit: tuple[float, float], packed: bool) -> None:
    given = dual_inputs(groups)
    x, initial = given["x"], given["initial_states"]
    seq_idx = torch.tensor([[0] * 4 + [1] * 7, [3] * 2 + [0] * 2 + [1] * 7]) if packed else None
    resets = [[4], [2, 4]] if packed else [[], []]
    step = softplus(given["dt"] + given["dt_bias"]).clamp(*limit)
    b, c = (given[name].repeat_interleave(4 // groups, 2) for name in "BC")
    y, last = dual_loop(x, step, given["A"], b, c, initial, resets)
    expected = (y + given["D"][:, None] * x) * silu(given["z"])
    run: dict[str, Any] = {**given, "chunk_size": 64, "seq_idx": seq_idx, "dt_softplus": True, "dt_limit": limit}
    out = mamba_chunk_scan_combined(**run)
    assert isinstance(out, Tensor)
    assert close(out, expected)
    both = mamba_chunk_scan_combined(**run, return_final_states=True)
    assert close(both[0], expected)
    assert close(both[1], last)
    wide = given["D"][:, None] + torch.zeros_like(x[0, 0])
    again = mamba_chunk_scan_combined(**{**run, "D": wide})
    assert isinstance(again, Tensor)
    assert torch.equal(again, out)


def test_states_of_sequences() -> None:
    given = {name: tensor[:1] if tensor.ndim > 1 else tensor for name, tensor in dual_inputs(1).items()}
    given.pop("initial_states")
    bounds = torch.tensor([0, 4, 11])
    run: dict[str, Any] = {**given, "chunk_size": 8, "dt_softplus": True, "cu_seqlens": bounds}
    out, final, states = mamba_chunk_scan_combined(**run, return_final_states=True, return_varlen_states=True)
    assert torch.equal(out, mamba_chunk_scan_combined(**{**run, "cu_seqlens": None}))
    step, (b, c) = softplus(given["dt"] + given["dt_bias"]), (given[name].expand(1, T, 4, 3) for name in "BC")
    zero = torch.zeros(1, 4, 5, 3, dtype=torch.float64)
    for s, (begin, end) in enumerate(((0, 4), (4, 11))):
        part = [tensor[:, begin:end] for tensor in (given["x"], step, b, c)]
        assert close(states[s], dual_loop(part[0], part[1], given["A"], part[2], part[3], zero)[1][0])
    assert close(final, dual_loop(given["x"], step, given["A"], b, c, zero)[1])
    assert len(mamba_chunk_scan_combined(**run, return_varlen_states=True)) == 2


@pytest.mark.parametrize("norm", [None, True, False])
@pytest.mark.parametrize("extra", [0, 3])
def test_mamba_split_conv1d_scan_combined(norm: bool | None, extra: int) -> None:
    draw, heads, width, groups, states = oracle.Draw(1), 4, 5, 2, 3
    dim, mixed = heads * width, heads * width + 2 * groups * states
    zxbcdt = draw.normal(B, T, 2 * extra + dim + mixed + heads)
    weight, bias, dt_bias, D = draw.normal(mixed, 4), draw.normal(mixed), draw.normal(heads), draw.normal(heads)
    A, norm_weight = -torch.rand(heads, dtype=torch.float64), draw.normal(dim)
    projection, projection_bias = draw.normal(7, dim + extra), draw.normal(7)
    initial, seq_idx = draw.normal(B, heads, width, states), torch.tensor([[0] * 4 + [1] * 7] * B)
    unit, z, xbc, dt = torch.split(zxbcdt, [2 * extra, dim, mixed, heads], -1)
    signal = causal_conv1d_fn(xbc.mT, weight, bias, seq_idx, activation="silu")
    assert isinstance(signal, Tensor)
    x, b, c = torch.split(signal.mT, [dim, groups * states, groups * states], -1)
    x = x.reshape(B, T, heads, width)
    b, c = (part.reshape(B, T, groups, states).repeat_interleave(heads // groups, 2) for part in (b, c))
    y, last = dual_loop(x, softplus(dt + dt_bias), A, b, c, initial, [[4], [4]])
    y = (y + D[:, None] * x).reshape(B, T, dim)
    gate = silu(z)
    if norm is None:
        y = y * gate
    else:
        y = y if norm else y * gate
        grouped = y.reshape(B, T, groups, dim // groups)
        y = (grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(B, T, dim) * norm_weight
        y = y * gate if norm else y
    if extra:
        first, second = unit.chunk(2, -1)
        y = torch.cat([silu(first) * second, y], -1)
    expected = y @ projection.T + projection_bias
    out, state = mamba_split_conv1d_scan_combined(
        zxbcdt,
        weight,
        bias,
        dt_bias,
        A,
        D,
        64,
        initial,
        seq_idx,
        return_final_states=True,
        rmsnorm_weight=None if norm is None else norm_weight,
        rmsnorm_eps=1e-5,
        outproj_weight=projection,
        outproj_bias=projection_bias,
        headdim=width,
        ngroups=groups,
        norm_before_gate=bool(norm),
    )
    assert close(out, expected)
    assert close(state, last)


def test_gradients_of_mamba2() -> None:
    given = dual_inputs(1)
    leaves = [given[name][:, :3].requires_grad_() for name in ("x", "dt", "B", "C")]
    seq_idx = torch.tensor([[0, 0, 1], [0, 0, 0]])

    def run(x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Any:
        return mamba_chunk_scan_combined(
            x, dt, given["A"], b, c, 8, seq_idx=seq_idx, dt_limit=(0.1, 2.0), return_final_states=True
        )

    assert torch.autograd.gradcheck(run, leaves)


# ---- fla ----


def attention_inputs(heads: int = H) -> dict[str, Tensor]:
    draw = oracle.Draw(2)
    return {
        "q": draw.normal(B, T, H, K),
        "k": draw.normal(B, T, H, K),
        "v": draw.normal(B, T, heads, V),
        "g": -torch.rand(B, T, heads, dtype=torch.float64),
        "gk": -torch.rand(B, T, heads, K, dtype=torch.float64),
        "gv": -torch.rand(B, T, heads, V, dtype=torch.float64),
        "beta": torch.rand(B, T, heads, dtype=torch.float64),
        "state": draw.normal(B, heads, K, V),
    }


def memory_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    state: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step after the other; decays (B, T, HV, K or 1, V or 1) as logarithms; with beta the delta rule."""
    repeats = v.shape[2] // q.shape[2]
    q, k = (tensor.repeat_interleave(repeats, 2) for tensor in (q, k))
    state = torch.zeros(len(v), v.shape[2], K, V, dtype=torch.float64) if state is None else state
    outputs: dict[int, Tensor] = {}
    for t in reversed(range(v.shape[1])) if reverse else range(v.shape[1]):
        state = decay[:, t].exp() * state
        value = v[:, t]
        if beta is not None:
            value = beta[:, t].unsqueeze(-1) * (value - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + k[:, t].unsqueeze(-1) * value.unsqueeze(-2)
        outputs[t] = torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * (K**-0.5 if scale is None else scale)
    return torch.stack([outputs[t] for t in range(v.shape[1])], 1), state


def spread(decay: Tensor) -> Tensor:
    """A decay (B, T, HV) for all keys and values."""
    return decay[..., None, None]


def packed(run: Callable[..., Any], inputs: dict[str, Tensor], state: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The two rows behind one another, the first shortened to 4 steps."""
    rows = {name: torch.cat([tensor[0, :4], tensor[1]]).unsqueeze(0) for name, tensor in inputs.items()}
    bounds = torch.tensor([0, 4, 4 + T])
    y, last = run(**rows, initial_state=state, output_final_state=True, cu_seqlens=bounds, **options)
    return y, last


def check(
    run: Callable[..., Any], inputs: dict[str, Tensor], state: Tensor, expected: Callable[..., Any], **options: Any
) -> None:
    """Outputs and last states: from rest, from a state, by rows behind one another; without flags a None."""
    assert run(**inputs, **options)[1] is None
    for initial in (None, state):
        y, last = run(**inputs, initial_state=initial, output_final_state=True, **options)
        expected_y, expected_last = expected(inputs, initial)
        assert close(y, expected_y)
        assert close(last, expected_last)
    if "cu_seqlens" in inspect.signature(run).parameters:
        y, last = packed(run, inputs, state, **options)
        for s, cut in enumerate((4, T)):
            part = {name: tensor[s : s + 1, :cut] for name, tensor in inputs.items()}
            expected_y, expected_last = expected(part, state[s : s + 1])
            assert close(y[:, 0:4] if s == 0 else y[:, 4:], expected_y)
            assert close(last[s : s + 1], expected_last)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kinds", [(), ("gk",), ("gv",), ("gk", "gv")])
def test_gla(kinds: tuple[str, ...], reverse: bool) -> None:
    given = attention_inputs()
    inputs = {name: given[name] for name in ("q", "k", "v", *kinds)}

    def expected(inputs: dict[str, Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        decay = torch.zeros(*inputs["v"].shape[:3], 1, 1, dtype=torch.float64)
        decay = decay + inputs["gk"].unsqueeze(-1) if "gk" in kinds else decay
        decay = decay + inputs["gv"].unsqueeze(-2) if "gv" in kinds else decay
        return memory_loop(inputs["q"], inputs["k"], inputs["v"], decay, state, scale=0.7, reverse=reverse)

    check(fla.fused_recurrent_gla, inputs, given["state"], expected, scale=0.7, reverse=reverse)
    if kinds == ("gk",) and not reverse:
        inputs["g"] = inputs.pop("gk")
        y, last = fla.chunk_gla(**inputs, initial_state=given["state"].mT, output_final_state=True, state_v_first=True)
        decay = inputs["g"].unsqueeze(-1)
        expected_y, expected_last = memory_loop(inputs["q"], inputs["k"], inputs["v"], decay, given["state"])
        assert close(y, expected_y)
        assert last is not None
        assert close(last, expected_last.mT)


GAMMAS = {
    "simple_gla": torch.tensor([-0.1, -0.5, -1.0], dtype=torch.float64),
    "retention": torch.log(1 - 2.0 ** -torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)),
    "lightning_attn": -8 / 3 * (1 - 1 / 4) * torch.arange(3, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", GAMMAS)
@pytest.mark.parametrize("form", ["chunk", "fused_recurrent"])
def test_constant_decays(kind: str, form: str) -> None:
    given, gamma = attention_inputs(), GAMMAS[kind]
    options = {"simple_gla": {"g_gamma": gamma}, "lightning_attn": {"layer_idx": 1, "num_layers": 4}}.get(kind, {})

    def expected(inputs: dict[str, Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        return memory_loop(**inputs, decay=gamma[:, None, None].expand(1, T, -1, 1, 1), state=state)

    check(getattr(fla, f"{form}_{kind}"), {name: given[name] for name in "qkv"}, given["state"], expected, **options)


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent"])
def test_simple_gla(form: str) -> None:
    given = attention_inputs()

    def expected(inputs: dict[str, Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        return memory_loop(inputs["q"], inputs["k"], inputs["v"], spread(inputs["g"]), state)

    check(getattr(fla, f"{form}_simple_gla"), {name: given[name] for name in "qkvg"}, given["state"], expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_linear_attn(reverse: bool) -> None:
    given = attention_inputs()
    q, k, v = (given[name].abs() for name in "qkv")
    zero = torch.zeros(1, T, 1, 1, 1, dtype=torch.float64)
    y, last = memory_loop(q, k, v, zero, given["state"], reverse=reverse)
    ours, state = fla.fused_recurrent_linear_attn(
        q, k, v, initial_state=given["state"], output_final_state=True, reverse=reverse
    )
    assert close(ours, y)
    assert isinstance(state, Tensor)
    assert close(state, last)
    sums = torch.rand(B, 1, H, K, dtype=torch.float64)
    ours, pair = fla.fused_recurrent_linear_attn(
        q, k, v, None, (given["state"], sums), True, reverse=reverse, normalize=True
    )
    total = sums + (k.flip(1).cumsum(1).flip(1) if reverse else k.cumsum(1))
    assert close(ours, y / ((q * K**-0.5 * total).sum(-1, keepdim=True) + 1e-10))
    assert isinstance(pair, tuple)
    assert pair[0] is not None
    assert close(pair[0], last)
    assert close(pair[1], total[:, :1] if reverse else total[:, -1:])
    if not reverse:
        default, _ = fla.chunk_linear_attn(q, k, v, initial_state=(given["state"], sums))
        assert close(default, ours)


@pytest.mark.parametrize("heads", [H, 2 * H])
@pytest.mark.parametrize("kinds", [(), ("g",), ("gk",), ("gv",), ("g", "gk", "gv")])
def test_gated_delta_rule(kinds: tuple[str, ...], heads: int) -> None:
    given = attention_inputs(heads)
    inputs = {name: given[name] for name in ("q", "k", "v", "beta", *kinds)}

    def expected(inputs: dict[str, Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (inputs["q"], inputs["k"]))
        decay = torch.zeros(*inputs["v"].shape[:3], 1, 1, dtype=torch.float64)
        decay = decay + spread(inputs["g"]) if "g" in kinds else decay
        decay = decay + inputs["gk"].unsqueeze(-1) if "gk" in kinds else decay
        decay = decay + inputs["gv"].unsqueeze(-2) if "gv" in kinds else decay
        return memory_loop(q, k, inputs["v"], decay, state, inputs["beta"])

    run = fla.fused_recurrent_gated_delta_rule
    check(run, inputs, given["state"], expected, use_qk_l2norm_in_kernel=True)
    if kinds == ("g",):
        check(fla.chunk_gated_delta_rule, inputs, given["state"], expected, use_qk_l2norm_in_kernel=True)
    if kinds == () and heads == H:
        check(fla.chunk_delta_rule, inputs, given["state"], expected, use_qk_l2norm_in_kernel=True)
    if kinds == ("gk",):
        inputs["g"] = inputs.pop("gk")
        by_key = lambda inputs, state: expected({**inputs, "gk": inputs["g"]}, state)  # noqa: E731
        for kda in (fla.chunk_kda, fla.fused_recurrent_kda):
            check(kda, inputs, given["state"], by_key, use_qk_l2norm_in_kernel=True)
    if kinds == ("gv",):
        y, last = run(**inputs, initial_state=given["state"].mT, output_final_state=True, state_v_first=True)
        plain_y, plain_last = run(**inputs, initial_state=given["state"], output_final_state=True)
        assert close(y, plain_y)
        assert last is not None
        assert plain_last is not None
        assert close(last, plain_last.mT)


def test_gates_inside() -> None:
    given = attention_inputs()
    q, k, v = (given[name] for name in "qkv")
    raw, logits = given["g"] * 3 + 1, given["beta"] * 3 - 1
    A_log, bias = torch.randn(H, dtype=torch.float64), torch.randn(H, dtype=torch.float64)
    inside = {"use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True}
    expected = memory_loop(q, k, v, spread(-A_log.exp() * softplus(raw + bias)), beta=2 * logits.sigmoid())[0]
    ours = fla.chunk_gated_delta_rule(q, k, v, raw, logits, A_log=A_log, dt_bias=bias, **inside)[0]
    assert close(ours, expected)
    ours = fla.fused_recurrent_gdn(q, k, v, raw, beta=logits, A_log=A_log, dt_bias=bias, **inside)[0]
    assert close(ours, expected)
    raw, bias = given["gk"] * 3 + 1, torch.randn(H * K, dtype=torch.float64)
    shifted, strength = raw + bias.view(H, K), A_log.exp()[:, None]
    expected = memory_loop(q, k, v, (-strength * softplus(shifted)).unsqueeze(-1), beta=2 * logits.sigmoid())[0]
    assert close(fla.chunk_kda(q, k, v, raw, logits, A_log=A_log, dt_bias=bias, **inside)[0], expected)
    for log, factor in ((A_log, strength), (None, 1.0)):
        decay = (-5 * torch.sigmoid(factor * shifted)).float().double().unsqueeze(-1)
        expected = memory_loop(q, k, v, decay, beta=2 * logits.sigmoid())[0]
        ours = fla.fused_recurrent_kda(q, k, v, raw, logits, log, bias, lower_bound=-5.0, **inside)[0]
        assert torch.allclose(ours, expected, atol=1e-6)


def test_hgrn() -> None:
    draw = oracle.Draw(3)
    x, state = draw.normal(B, T, V), draw.normal(B, V)
    g = -torch.rand(B, T, V, dtype=torch.float64)
    for initial in (None, state):
        y, last = fla.chunk_hgrn(x, g, initial, True)
        h = torch.zeros_like(state) if initial is None else initial
        for t in range(T):
            h = g[:, t].exp() * h + x[:, t]
            assert close(y[:, t], h)
        assert last is not None
        assert close(last, h)
    packed_x, packed_g = (torch.cat([tensor[0, :4], tensor[1]]).unsqueeze(0) for tensor in (x, g))
    bounds = torch.tensor([0, 4, 4, 4 + T])
    states = draw.normal(3, V)
    y, last = fla.fused_recurrent_hgrn(packed_x, packed_g, states, True, bounds)
    assert last is not None
    assert close(y[:, :4], fla.chunk_hgrn(x[:1, :4], g[:1, :4], states[:1])[0])
    assert close(y[:, 4:], fla.chunk_hgrn(x[1:], g[1:], states[2:])[0])
    assert close(last, torch.stack([y[0, 3], states[1], y[0, -1]]))
    assert fla.chunk_hgrn(x.bfloat16(), g)[0].dtype == torch.bfloat16


def test_half_types_and_gradients() -> None:
    given = attention_inputs()
    half = {name: tensor.bfloat16() for name, tensor in given.items() if name in ("q", "k", "v", "g", "beta")}
    y, last = fla.chunk_gated_delta_rule(**half, output_final_state=True, use_qk_l2norm_in_kernel=True)
    assert y.dtype == torch.bfloat16
    assert last is not None
    assert last.dtype == torch.float32
    leaves = tuple(given[name][:1, :3].requires_grad_() for name in ("q", "k", "v", "g", "beta"))
    run = lambda *tensors: fla.chunk_gated_delta_rule(  # noqa: E731
        *tensors, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    assert torch.autograd.gradcheck(run, leaves)


def test_errors_name_what_to_do() -> None:
    given = attention_inputs()
    q, k, v, g, beta = (given[name] for name in ("q", "k", "v", "g", "beta"))
    bounds, dual = torch.tensor([0, 4, T]), dual_inputs(1)
    D, weight = dual["D"], torch.zeros(4 * 5 + 6, 4, dtype=torch.float64)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"q must have the shape \(B, T, H, channels\)", lambda: fla.chunk_gla(q[0], k, v, g)),
        (ValueError, "B must be 1 with cu_seqlens", lambda: fla.chunk_gla(q, k, v, given["gk"], cu_seqlens=bounds)),
        (ValueError, "one of g and g_gamma", lambda: fla.chunk_simple_gla(q, k, v, g, g[0, 0])),
        (ValueError, "multiple of those of q and k", lambda: fla.chunk_delta_rule(q[:, :, :2], k[:, :, :2], v, beta)),
        (ValueError, "A_log must be given", lambda: fla.chunk_gdn(q, k, v, g, beta, use_gate_in_kernel=True)),
        (ValueError, "g must be given", lambda: fla.fused_recurrent_gdn(q, k, v, use_gate_in_kernel=True)),
        (ValueError, "needs use_beta_sigmoid", lambda: fla.chunk_kda(q, k, v, g, beta, allow_neg_eigval=True)),
        (TypeError, "unexpected keyword", lambda: fla.chunk_gdn(q, k, v, g, beta, head_first=True)),  # type: ignore[call-arg]
        (ValueError, r"x and g must have the shape \(B, T, D\)", lambda: fla.chunk_hgrn(q[0], k[0, :1])),
        (
            ValueError,
            r"x must have the shape \(batch, seqlen, nheads, headdim\)",
            lambda: mamba_chunk_scan_combined(D, D, D, D, D, 8),
        ),
        (
            ValueError,
            "return_varlen_states needs cu_seqlens",
            lambda: mamba_chunk_scan_combined(**dual, chunk_size=8, return_varlen_states=True),  # type: ignore[arg-type]
        ),
        (
            ValueError,
            "headdim must be given",
            lambda: mamba_split_conv1d_scan_combined(q[0], weight, None, D, D, D, 8),
        ),
        (
            ValueError,
            "zxbcdt must have the shape",
            lambda: mamba_split_conv1d_scan_combined(q[0], weight, None, D, D, D, 8, headdim=5),
        ),
    ]
    for error, text, action in cases:
        with pytest.raises(error, match=text):
            action()
