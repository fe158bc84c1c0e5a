"""The definition of the matrix memory of xLSTM in its stabilised form, one step after the other in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    scale: float,
    eps: float = 1e-6,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """y[t] = C[t]^T q[t] / (max(|n[t]^T q[t]|, exp(-m[t])) + eps), and the last (C, n, m)."""
    v, i, heads = v.double(), i.double(), v.shape[-2]
    q, k = (tensor.double().repeat_interleave(heads // max(1, tensor.shape[-2]), -2) for tensor in (q, k))
    log_f = torch.nn.functional.logsigmoid(f.double())
    lead = (*v.shape[:-3], heads)
    C, n, m = v.new_zeros(*lead, k.shape[-1], v.shape[-1]), v.new_zeros(*lead, k.shape[-1]), v.new_zeros(lead)
    if initial_state is not None:
        C, n, m = (state.double() for state in initial_state)
    y = torch.empty_like(v)
    for t in range(v.shape[-3]):
        kept, added = log_f[..., t, :] + m, i[..., t, :]
        m = torch.maximum(kept, added)
        forget, write = (kept - m).exp(), (added - m).exp()
        C = forget[..., None, None] * C + write[..., None, None] * k[..., t, :, :, None] * v[..., t, :, None, :]
        n = forget[..., None] * n + write[..., None] * k[..., t, :, :]
        read = scale * q[..., t, :, :]
        divisor = torch.maximum((n * read).sum(-1).abs(), (-m).exp()) + eps
        y[..., t, :, :] = (C * read[..., None]).sum(-2) / divisor[..., None]
    return y, (C, n, m)
