"""The oracle is itself tested: answers that are wrong in a known way must not pass."""

from __future__ import annotations

import pytest
import torch

import oracle


@pytest.mark.parametrize("dtype", oracle.REAL, ids=str)
@pytest.mark.parametrize("impostor", oracle.CONVOLUTION_IMPOSTORS)
def test_convolution_impostor_fails(impostor: str, dtype: torch.dtype) -> None:
    """Every impostor fails wherever its answer differs from the truth by more than rounding, and that is often."""
    caught = 0
    for p in oracle.convolutions(dtype, count=32, seed=7, limit=100_000):
        wrong, truth = oracle.CONVOLUTION_IMPOSTORS[impostor](p), p.truth()
        for is_transform in (False, True):
            p.check(truth.to(dtype), is_transform=is_transform)
        if (wrong - truth).norm() < 0.02 * truth.norm():
            continue
        with pytest.raises(oracle.Mismatch):
            p.check(wrong.to(dtype), is_transform=True)
        caught += 1
    if impostor != "computed in bfloat16":
        assert caught >= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_half_precision_in_disguise_fails(dtype: torch.dtype) -> None:
    """Inputs rounded to bfloat16 are caught by the bounds of float32 and float64, transforms included."""
    for p in oracle.convolutions(dtype, count=30, seed=8, limit=200_000):
        if p.h.shape[0] * p.x.shape[1] == 1:
            continue
        with pytest.raises(oracle.Mismatch):
            p.check(oracle.CONVOLUTION_IMPOSTORS["computed in bfloat16"](p).to(dtype), is_transform=True)


@pytest.mark.parametrize("dtype", oracle.REAL + oracle.COMPLEX, ids=str)
@pytest.mark.parametrize("impostor", oracle.RECURRENCE_IMPOSTORS)
def test_recurrence_impostor_fails(impostor: str, dtype: torch.dtype) -> None:
    caught = 0
    for p in oracle.recurrences(dtype, count=20, seed=9, limit=4_000):
        wrong, truth = oracle.RECURRENCE_IMPOSTORS[impostor](p), p.truth()
        p.check(truth.to(dtype))
        if (wrong - truth).norm() < 0.02 * truth.norm():
            continue
        with pytest.raises(oracle.Mismatch):
            p.check(wrong.to(dtype))
        caught += 1
    assert caught >= 4


def test_one_wrong_element_fails() -> None:
    for p in oracle.convolutions(torch.float32, count=30, seed=10, limit=200_000):
        y = p.truth().float()
        y[-1, -1, -1] += 0.02 * (1 + p.scale()[-1, -1])
        with pytest.raises(oracle.Mismatch):
            p.check(y, is_transform=True)
    for q in oracle.recurrences(torch.float32, count=30, seed=11, limit=6_000):
        y = q.truth().float()
        y[-1, -1, -1] += 0.02 * (1 + q.loop(torch.float64, magnitudes=True)[-1, :, -1].max())
        with pytest.raises(oracle.Mismatch):
            q.check(y)


def test_nan_fails() -> None:
    p = next(oracle.convolutions(torch.float32, count=1, seed=12))
    with pytest.raises(oracle.Mismatch):
        p.check(p.truth().float() * torch.nan, is_transform=True)
