"""toeplitz_matmul: products with Toeplitz matrices, which are two-sided convolutions as long as twice the signal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _checks
from ..._dispatch import register
from ..._errors import message
from ..._layout import broadcast
from ..causal_conv import api as engine
from ..causal_conv.api import Operands
from ..causal_conv.operator import ROWS
from ..causal_conv.problem import ConvProblem

NAME = "toeplitz_matmul"


def toeplitz_matmul(column: Tensor, row: Tensor, X: Tensor) -> Tensor:
    """y = T X, T[i,j] = column[i-j] for i >= j and row[j-i] for j > i: a product with a Toeplitz matrix.

    The matrix is never stored: T X convolves the columns of X with the 2L-1 different entries of T. Attention with
    relative positions is such a product: a kernelised attention whose weights are multiplied by exp(b[i-j]) is two of
    them for each head, with column[d] = exp(b[d]) and row[d] = exp(b[-d]): of the products of keys and values, and of
    the keys.

    Args:
        column: (..., L), the first column of T; or (L,), one matrix for all.
        row: (..., L), its first row, of which row[0] is not read: the first entry is column[0].
        X: (..., L, F) in any memory order; leading axes broadcast, as (B, heads, L, F) with a column of (heads, L).

    Returns:
        y, (..., L, F), in the memory order of X where X has all leading axes.

    dtypes: float32, float64, bfloat16, float16, promoted where they differ. Half types are computed in float32.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: an argument that is not a tensor, or has a dtype that is not supported.
        MemoryError: no workspace, or none within ``workspace_limit``.

    Cost: O(L log L) per column of X where transforms are cheaper than O(L²). Differentiable any number of times in both
    modes.

    Reference: G. Golub, C. Van Loan, Matrix Computations, 4.7.7; scipy.linalg.matmul_toeplitz has the same convention.
    S. Luo et al., Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, 2021,
    arXiv 2106.12566.

    >>> import torch, convscan
    >>> column, row = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 10.0, 20.0])
    >>> convscan.toeplitz_matmul(column, row, torch.eye(3)).tolist()
    [[1.0, 10.0, 20.0], [2.0, 1.0, 10.0], [3.0, 2.0, 1.0]]
    """
    operands = _as_convolution(column, row, X)
    return engine.checked(NAME, operands, None)


def _as_convolution(column: Tensor, row: Tensor, X: Tensor) -> Operands:
    _checks.signal(NAME, "X", X)
    length = X.shape[-2]
    for name, side in (("column", column), ("row", row)):
        _checks.tensor_like(NAME, name, side, X)
        if side.ndim < 1 or side.shape[-1] != length:
            expectation = f"{name} must have the shape (..., L) = (..., {length})"
            raise ValueError(message(NAME, expectation, _checks.shape_text(side.shape)))
    shapes = (column.shape[:-1], row.shape[:-1], X.shape[:-2])
    try:
        leading, of_sides = broadcast(*shapes), broadcast(*shapes[:2])
    except RuntimeError as error:
        got = " and ".join(map(_checks.shape_text, shapes))
        raise ValueError(message(NAME, "the leading axes of column, row and X must broadcast", got)) from error
    if length == 0:
        return Operands(X.expand(*leading, *X.shape[-2:]), X.new_zeros(1, 1))
    column, row = (side.expand(*of_sides, length) for side in (column, row))
    h = torch.cat([row[..., 1:].flip(-1), column], -1).unsqueeze(-1)
    X = X.expand(*leading, *X.shape[-2:])
    if of_sides:
        h = h[(None,) * (len(leading) - len(of_sides))]
    return Operands(X, h, origin=length - 1)


def _describe(column: Tensor, row: Tensor, X: Tensor) -> ConvProblem:
    return engine.describe_call(_as_convolution(column, row, X), None, NAME)


register(NAME, ROWS, _describe)
