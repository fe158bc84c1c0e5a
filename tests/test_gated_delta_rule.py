"""gated_delta_rule: against the loop over steps, derivatives, packed sequences, steps, transforms, compilation."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convscan
from convscan import _native, gated_delta_rule, gated_delta_rule_step, gated_delta_rule_with_state
from convscan.ops.gated_delta_rule import api, reference

WIDE = torch.float64
Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = WIDE) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=WIDE).to(dtype)


def sample(
    length: int, *, leading: tuple[int, ...] = (2,), heads: int = 2, groups: int | None = None, keys: int = 5,
    values: int = 9, per_key: bool = False, dtype: torch.dtype = WIDE
) -> Arguments:  # fmt: skip
    """Keys of length 1, gates of which some are shut, beta from 0 to 2 with both ends."""
    rows, of_groups = (*leading, length, heads), (*leading, length, heads if groups is None else groups)
    q, v = normal(*of_groups, keys, seed=1), normal(*rows, values, seed=3)
    k = torch.nn.functional.normalize(normal(*of_groups, keys, seed=2), dim=-1)
    g = -normal(*rows, *((keys,) if per_key else ()), seed=4).abs()
    g[normal(*g.shape, seed=5) > 1.3] = -torch.inf
    beta = (2 * normal(*rows, seed=6).sigmoid() * 1.2 - 0.2).clamp(0, 2)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    return q.to(dtype), k.to(dtype), v.to(dtype), g.to(wide), beta.to(wide)


def state_of(arguments: Arguments, *sequences: int) -> Tensor:
    q, _, v, g, _ = arguments
    return normal(*v.shape[:-3], *sequences, v.shape[-2], q.shape[-1], v.shape[-1], seed=7, dtype=g.dtype)


def truth(arguments: Arguments, state: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    scale = options.pop("scale", max(1, arguments[0].shape[-1]) ** -0.5)
    return reference.gated_delta_rule(*arguments, scale, state, **options)


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype = WIDE) -> None:
    """Errors relative to the largest value of each result."""
    roundings = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        bound = roundings * float(1 + wanted.abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=bound)


# ---- values ----


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_the_loop_over_steps(dtype: torch.dtype, per_key: bool, isa: str) -> None:
    for length in (*range(19), 31, 32, 33, 40, 70):
        arguments = sample(length, per_key=per_key, dtype=dtype)
        for state in (None, state_of(arguments)):
            found = gated_delta_rule_with_state(*arguments, initial_state=state)
            assert [tensor.dtype for tensor in found] == [dtype, arguments[3].dtype]
            check(found, truth(arguments, state), dtype)


@pytest.mark.parametrize("per_key", [False, True])
def test_sizes_and_threads(per_key: bool, isa: str) -> None:
    for keys, values, heads in ((1, 1, 1), (3, 2, 3), (16, 17, 1), (8, 33, 2), (33, 70, 2), (64, 128, 1)):
        arguments = sample(90, heads=heads, keys=keys, values=values, per_key=per_key, dtype=torch.float32)
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(gated_delta_rule_with_state(*arguments))
        assert all(torch.equal(a, b) for answer in answers for a, b in zip(answers[0], answer, strict=True))
        check(answers[0], truth(arguments), torch.float32)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize(("groups", "heads"), [(1, 3), (2, 4), (2, 6)])
def test_groups_serve_heads_in_a_row(groups: int, heads: int, per_key: bool) -> None:
    """Values and every derivative are those of queries and keys written out for each head."""
    arguments = sample(37, groups=groups, heads=heads, per_key=per_key)
    q, k, *others = leaves = [tensor.requires_grad_() for tensor in arguments]

    def written_out(q: Tensor, k: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (tensor.repeat_interleave(heads // groups, -2) for tensor in (q, k))
        return gated_delta_rule_with_state(q, k, *others)

    found, expected = gated_delta_rule_with_state(*leaves), written_out(q, k, *others)
    check(tuple(t.detach() for t in found), tuple(t.detach() for t in expected))
    weights = tuple(normal(*tensor.shape, seed=8) for tensor in expected)
    wanted = torch.autograd.grad(expected, leaves, weights)
    check(torch.autograd.grad(found, leaves, weights, retain_graph=True), wanted)
    check(torch.autograd.grad(found, leaves, weights, create_graph=True), wanted)
    tangents = tuple(torch.ones_like(tensor) for tensor in leaves)
    _, moved = torch.func.jvp(gated_delta_rule_with_state, tuple(leaves), tangents)
    _, wanted_moves = torch.func.jvp(written_out, tuple(leaves), tangents)
    check(moved, wanted_moves)
    state = torch.zeros(found[1].shape, dtype=WIDE)
    for t in range(3):
        y = gated_delta_rule_step(state, *(tensor[:, t].detach() for tensor in leaves))
        check((y,), (expected[0][:, t].detach(),))
    with convscan.force("reference"):
        slow = gated_delta_rule_with_state(*leaves)
        check(tuple(t.detach() for t in slow), tuple(t.detach() for t in expected))
        check(torch.autograd.grad(slow, leaves, weights), wanted)


@pytest.mark.parametrize("leading", [(), (2, 3), (0,), (2, 0)])
def test_leading_axes(leading: tuple[int, ...]) -> None:
    arguments = sample(20, leading=leading)
    check(gated_delta_rule_with_state(*arguments), truth(arguments))


def test_any_strides() -> None:
    q, k, v, g, beta = sample(20, leading=(3, 2), per_key=True)
    arguments = (
        q.transpose(-1, -3).contiguous().transpose(-1, -3),
        k.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([v, v], -1)[..., 0],
        g.flip(2).contiguous().flip(2),
        beta[..., :1].expand(beta.shape),
    )
    check(gated_delta_rule_with_state(*arguments), truth(arguments))
    gradients = torch.ops.convscan.gated_delta_rule_gradient
    dy = normal(*v.shape)
    found = gradients(dy.mT.contiguous().mT, None, *arguments, None, None, 0.5)
    check(found, reference.gradient(dy, None, *arguments, 0.5))


@pytest.mark.parametrize("sizes", [{"heads": 0}, {"keys": 0}, {"values": 0}, {"length": 0}])
def test_empty_axes(sizes: dict[str, int]) -> None:
    arguments = sample(**({"length": 4} | sizes))
    leaves = [tensor.requires_grad_() for tensor in arguments]
    y, last = gated_delta_rule_with_state(*arguments)
    check((y.detach(), last.detach()), truth(arguments, scale=1.0))
    (y.sum() + last.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)


def test_hostile_gates_and_writes() -> None:
    """All gates shut, all open, products that underflow; beta of 0, 1 and 2."""
    arguments = sample(70, keys=8, per_key=True, dtype=torch.float32)
    for gate, strength in itertools.product((-torch.inf, 0.0, -60.0, -1e-6, -1e30), (0.0, 1.0, 2.0)):
        g, beta = torch.full_like(arguments[3], gate), torch.full_like(arguments[4], strength)
        for decays in (g, g[..., 0]):
            case = (*arguments[:3], decays, beta)
            found = gated_delta_rule_with_state(*case)
            check(found, truth(case), torch.float32)
            dy = normal(*found[0].shape, dtype=torch.float32)
            gradients = torch.ops.convscan.gated_delta_rule_gradient(dy, found[1], *case, None, None, 0.4)
            check(gradients, reference.gradient(dy, found[1], *case, 0.4), torch.float32)


def test_accuracy_over_long_sequences() -> None:
    arguments = sample(3000, leading=(), keys=16, values=16)
    g = -1e-3 * torch.ones_like(arguments[3])
    arguments = (*arguments[:3], g, arguments[4].clamp(max=1))
    found = gated_delta_rule_with_state(*(tensor.float() for tensor in arguments))
    check(found, truth(arguments), torch.float32)


def test_impostors_differ() -> None:
    """What is nearly the delta rule is not: the bounds of these tests tell them apart."""
    q, k, v, g, beta = arguments = sample(40)
    y, last = truth(arguments)
    late = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
    impostors = {
        "all zeros": torch.zeros_like(y),
        "one step late": late,
        "no correction": linear_attention(q, k, v, g, beta),
        "decay after the correction": truth((q, k, v, torch.cat([g[:, 1:], g[:, :1]], 1), beta))[0],
        "beta ignored": truth((q, k, v, g, torch.ones_like(beta)))[0],
        "scale dropped": truth(arguments, scale=1.0)[0],
        "wrong head": y.roll(1, 2),
        "state lost between tiles": torch.cat(
            [truth(tuple(t[:, part] for t in arguments))[0] for part in (slice(16), slice(16, None))], 1
        ),
    }
    check((y, last), (y, last))
    for name, wrong in impostors.items():
        assert not is_right((wrong, last), (y, last)), name


def is_right(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    try:
        check(found, expected)
    except AssertionError:
        return False
    return True


def linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated linear attention: the same without the memory's answer."""
    state, y = torch.zeros(*v.shape[:1], *v.shape[2:3], k.shape[-1], v.shape[-1], dtype=WIDE), torch.empty_like(v)
    for t in range(v.shape[1]):
        write = k[:, t, :, :, None] * (beta[:, t, :, None] * v[:, t])[..., None, :]
        state = g[:, t].exp()[..., None, None] * state + write
        y[:, t] = q.shape[-1] ** -0.5 * (state * q[:, t, :, :, None]).sum(-2)
    return y


# ---- carrying the state, packed sequences ----


@pytest.mark.parametrize("per_key", [False, True])
def test_split_and_carry_equals_whole(per_key: bool) -> None:
    arguments = sample(37, per_key=per_key)
    y, last = gated_delta_rule_with_state(*arguments)
    for at in range(38):
        first, state = gated_delta_rule_with_state(*(t[:, :at] for t in arguments))
        second, final = gated_delta_rule_with_state(*(t[:, at:] for t in arguments), initial_state=state)
        check((torch.cat([first, second], 1), final), (y, last))


BOUNDS = [0, 0, 1, 18, 18, 40, 40]


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_sequences_know_nothing_of_each_other(per_key: bool, dtype: torch.dtype) -> None:
    arguments = sample(40, per_key=per_key)
    cu_seqlens, state = torch.tensor(BOUNDS, dtype=dtype), state_of(arguments, len(BOUNDS) - 1)
    leaves = [tensor.requires_grad_() for tensor in (*arguments, state)]
    y, last = gated_delta_rule_with_state(*arguments, initial_state=state, cu_seqlens=cu_seqlens)
    pieces, lasts = [], []
    for s, (begin, end) in enumerate(itertools.pairwise(BOUNDS)):
        part = [tensor[:, begin:end] for tensor in arguments]
        piece, after = gated_delta_rule_with_state(*part, initial_state=state[:, s])
        pieces.append(piece)
        lasts.append(after)
    expected = torch.cat(pieces, 1), torch.stack(lasts, 1)
    check((y.detach(), last.detach()), tuple(tensor.detach() for tensor in expected))
    weights = normal(*y.shape, seed=8), normal(*last.shape, seed=9)
    wanted = torch.autograd.grad(expected, leaves, weights)
    check(torch.autograd.grad((y, last), leaves, weights, retain_graph=True), wanted)
    check(torch.autograd.grad((y, last), leaves, weights, create_graph=True), wanted)


def test_boundaries_are_checked_at_every_call() -> None:
    arguments = sample(9, leading=())
    gated_delta_rule(*arguments, cu_seqlens=torch.tensor([0, 4, 9]))
    with pytest.raises(ValueError, match="gated_delta_rule: cu_seqlens must not decrease; got 4 after 5 at 2"):
        gated_delta_rule(*arguments, cu_seqlens=torch.tensor([0, 5, 4, 9]))
    with pytest.raises(ValueError, match="gated_delta_rule: cu_seqlens must begin with 0 and end with L = 9"):
        gated_delta_rule(*arguments, cu_seqlens=torch.tensor([0, 4, 8]))


# ---- one step ----


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_steps_equal_the_sequence(dtype: torch.dtype, leading: tuple[int, ...], per_key: bool) -> None:
    arguments = sample(5, leading=leading, per_key=per_key, dtype=dtype)
    y, last = truth(arguments)
    state = torch.zeros(last.shape, dtype=arguments[3].dtype)
    memory = state.data_ptr()
    time = len(leading)
    for t in range(5):  # prepared, then remembered
        out = gated_delta_rule_step(state, *(tensor.select(time, t) for tensor in arguments))
        check((out,), (y.select(time, t),), dtype)
    assert state.data_ptr() == memory
    check((state,), (last,), dtype)


def test_steps_are_watched_where_they_must_be() -> None:
    arguments = tuple(tensor[:, 0] for tensor in sample(1))
    state = state_of(sample(1))
    expected = state.clone()
    y = gated_delta_rule_step(expected, *arguments)
    mapped = state.clone()
    torch.testing.assert_close(torch.vmap(gated_delta_rule_step)(mapped, *arguments), y)
    torch.testing.assert_close(mapped, expected)
    compiled = state.clone()
    step = torch.compile(gated_delta_rule_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled, *arguments), y)
    torch.testing.assert_close(compiled, expected)
    with pytest.raises(RuntimeError, match="gated_delta_rule_step: a step overwrites its state, which cannot be"):
        gated_delta_rule_step(state, *(tensor.requires_grad_() for tensor in arguments))
    with pytest.raises(TypeError, match="gated_delta_rule_step: state must have the dtype float64"):
        gated_delta_rule_step(state.float(), *(tensor.detach() for tensor in arguments))


# ---- derivatives ----


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("length", [3, 18])
def test_first_and_second_derivatives(length: int, per_key: bool) -> None:
    arguments = sample(length, leading=(), heads=1, keys=2, values=3, per_key=per_key)
    g = arguments[3].clamp(min=-2)
    inputs = tuple(t.requires_grad_() for t in (*arguments[:3], g, arguments[4], state_of(arguments)))

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return gated_delta_rule_with_state(*tensors[:5], initial_state=tensors[5], scale=0.7)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_native_gradients(dtype: torch.dtype, per_key: bool, isa: str) -> None:
    for length in (1, 16, 17, 50, 300):
        arguments = sample(length, keys=7, values=18, per_key=per_key, dtype=dtype)
        state = state_of(arguments)
        dy, dlast = normal(*arguments[2].shape, seed=8, dtype=dtype), normal(*state.shape, seed=9, dtype=state.dtype)
        answers = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            call = (dy, dlast, *arguments, state, None, 0.4)
            answers.append(torch.ops.convscan.gated_delta_rule_gradient(*call))
        assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
        check(answers[0], reference.gradient(dy, dlast, *arguments, 0.4, state), dtype)


def test_only_what_is_needed() -> None:
    arguments = sample(20)
    v = arguments[2].requires_grad_()
    y, last = gated_delta_rule_with_state(*arguments)
    assert y.grad_fn is not None
    (only,) = torch.autograd.grad(last.sum(), v)
    expected = reference.gradient(torch.zeros_like(y), torch.ones_like(last), *arguments, 0.5)[2]
    torch.testing.assert_close(only, expected.detach())


def test_no_state_is_kept_for_each_tile() -> None:
    """Forward, workspace does not depend on the length; backward it grows with its root."""
    torch.set_num_threads(1)

    def peak(length: int, *, backward: bool) -> int:
        arguments = [t.requires_grad_(backward) for t in sample(length, leading=(), heads=1, keys=16, values=16)]
        convscan.reset_peak_workspace()
        y = gated_delta_rule(*arguments)
        if backward:
            y.sum().backward()
        return convscan.workspace_memory().peak

    assert peak(16 * 1024, backward=False) == peak(16, backward=False)
    assert peak(16 * 1024, backward=True) < 5 * peak(16 * 64, backward=True)


# ---- transforms, compilation, export ----


def test_transforms() -> None:
    arguments = sample(18, leading=(3,))

    def loss(*tensors: Tensor) -> Tensor:
        return gated_delta_rule(*tensors).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))
    mapped = torch.vmap(gradient)(*arguments)
    shared = torch.vmap(gradient, in_dims=(0, 0, None, 0, 0))(*arguments[:2], arguments[2][0], *arguments[3:])
    for i in range(3):
        single = tuple(tensor[i] for tensor in arguments)
        check(tuple(tensor[i] for tensor in mapped), gradient(*single))
        check(tuple(t[i] for t in shared), gradient(*single[:2], arguments[2][0], *single[3:]))
    bounds = torch.tensor([[0, 4, 18], [0, 0, 18], [0, 18, 18]])
    packed = torch.vmap(lambda *t: gated_delta_rule(*t[:5], cu_seqlens=t[5]))(*arguments, bounds)
    for i in range(3):
        torch.testing.assert_close(packed[i], gated_delta_rule(*(t[i] for t in arguments), cu_seqlens=bounds[i]))


def test_compile_and_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return gated_delta_rule_with_state(*tensors)

    arguments = sample(18)
    leaves = [tensor.requires_grad_() for tensor in arguments]
    expected = Module()(*arguments)
    found = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=True)(*arguments)
    check(tuple(t.detach() for t in found), tuple(t.detach() for t in expected))
    wanted = torch.autograd.grad(expected[0].sum(), leaves)
    check(torch.autograd.grad(found[0].sum(), leaves), wanted)
    plain = tuple(tensor.detach() for tensor in arguments)
    exported = torch.export.export(Module(), plain)
    check(exported.module()(*plain), tuple(t.detach() for t in expected))


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool) -> None:
    arguments = sample(6, leading=(1,), heads=1, keys=2, values=2)
    cu_seqlens = torch.tensor([0, 2, 6]) if packed else None
    state = state_of(arguments, *((2,) if packed else ()))
    leaves = [tensor.requires_grad_() for tensor in (*arguments, state)]
    torch.library.opcheck(torch.ops.convscan.gated_delta_rule.default, (*leaves, cu_seqlens, 0.5))
    plain = [tensor.detach() for tensor in leaves]
    gradient = torch.ops.convscan.gated_delta_rule_gradient.default
    torch.library.opcheck(gradient, (plain[2], plain[5], *plain, cu_seqlens, 0.5))


# ---- errors, choice ----

Q, V, GATE = torch.ones(2, 7, 3, 4), torch.ones(2, 7, 3, 5), torch.zeros(2, 7, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"v": 1.0}, TypeError, "v must be a torch.Tensor; got float. Convert it with torch.as_tensor(v)"),
        (
            {"v": torch.ones(3, 5)},
            ValueError,
            "v must have the shape (..., L, H, channels); got (3, 5). Add",
        ),
        ({"q": Q[:, :6]}, ValueError, "q must have the shape (..., L, G, K) = (2, 7, 3, 4); got (2, 6, 3, 4)"),
        ({"k": Q[..., :2]}, ValueError, "k must have the shape (..., L, G, K) = (2, 7, 3, 4); got (2, 7, 3, 2)"),
        ({"q": Q[:, :, :2]}, ValueError, "the groups of q must divide the 3 heads of v; got 2"),
        ({"k": Q.to("meta")}, ValueError, "k must be on the device of v, cpu; got meta"),
        ({"g": V}, ValueError, "g must have the shape (..., L, H, K) = (2, 7, 3, 4) or (..., L, H) = (2, 7, 3); got"),
        ({"beta": Q}, ValueError, "beta must have the shape (..., L, H) = (2, 7, 3); got (2, 7, 3, 4)"),
        ({"beta": GATE.long()}, TypeError, "beta must have one of the dtypes float32, float64, bfloat16, float16; got"),
        ({"v": V.cfloat()}, TypeError, "v must have one of the dtypes float32, float64, bfloat16, float16; got"),
        ({"initial_state": Q}, ValueError, "initial_state must have the shape (..., H, K, V) = (2, 3, 4, 5); got"),
        ({"cu_seqlens": GATE}, TypeError, "cu_seqlens must have one of the dtypes int32, int64; got float32"),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape("gated_delta_rule: " + text)):
        gated_delta_rule(**({"q": Q, "k": Q, "v": V, "g": GATE, "beta": GATE} | arguments))


def test_choice_is_explained_and_can_be_forced() -> None:
    arguments = sample(20)
    assert convscan.explain("gated_delta_rule", *arguments).chosen == "chunked"
    leaves = [tensor.requires_grad_() for tensor in arguments]
    y = gated_delta_rule(*arguments)
    wanted = torch.autograd.grad(y.sum(), leaves)
    with convscan.force("reference"):
        slow = gated_delta_rule(*arguments)
        check((slow.detach(),), (y.detach(),))
        check(torch.autograd.grad(slow.sum(), leaves), wanted)


def test_steps_cost_microseconds() -> None:
    arguments = [tensor[0, 0] for tensor in sample(1, heads=1, keys=8, values=8, dtype=torch.float32)]
    state = torch.zeros(1, 8, 8)
    gated_delta_rule_step(state, *arguments)
    key = _native.call_key(None, arguments[2], state, *arguments[:2], *arguments[3:], None)
    assert key in convscan.ops.gated_delta_rule.api._step.prepared, "the step was not remembered"


def test_gradients_of_operators_where_there_is_no_kernel() -> None:
    """What runs in float64 on GPUs, tile by tile: never the loop over time where there are tiles to spare."""
    generator = torch.Generator().manual_seed(31)
    q, v = torch.randn(2, 40, 1, 5, generator=generator), torch.randn(2, 40, 2, 3, generator=generator)
    g, beta = -torch.rand(2, 40, 2, generator=generator), torch.rand(2, 40, 2, generator=generator)
    state, bounds = torch.randn(2, 3, 2, 5, 3, generator=generator), torch.tensor([0, 0, 17, 40])
    leaves = [t.requires_grad_() for t in (q, v, g, beta, state)]
    results = []
    for name in ("chunked", "composed"):
        y = convscan.gated_delta_rule(q, q, v, g, beta, initial_state=state, cu_seqlens=bounds)
        with convscan.force(name):
            results.append(torch.autograd.grad(y.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    on_gpu = api._problem(q, v, g, None, is_gradient=True)._replace(device="cuda", isa="NVIDIA H200")
    for dtype, row in (("float64", "composed"), ("float32", "triton_wy")):
        problem = on_gpu._replace(dtype=dtype)
        assert convscan._dispatch.select("gated_delta_rule_gradient", problem).name == row
