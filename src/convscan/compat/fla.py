"""fla's linear attention (``_linear``) and delta rules (``_delta``).

Functions called chunk and fused_recurrent are one and the same here, for operators choose their tiles themselves.
Arguments are listed in full where the original takes any keyword: a misspelt one is an error.

Source: S. Yang, Y. Zhang, FLA: A Triton-Based Library for Hardware-Efficient Implementations of Linear Attention
Mechanism, 2024; github.com/fla-org/flash-linear-attention, 0.5.
"""

from ._delta import (
    chunk_delta_rule,
    chunk_gated_delta_rule,
    chunk_kda,
    fused_recurrent_delta_rule,
    fused_recurrent_gated_delta_rule,
    fused_recurrent_kda,
)
from ._linear import (
    chunk_gla,
    chunk_hgrn,
    chunk_lightning_attn,
    chunk_linear_attn,
    chunk_retention,
    chunk_simple_gla,
    fused_recurrent_gla,
    fused_recurrent_hgrn,
    fused_recurrent_lightning_attn,
    fused_recurrent_linear_attn,
    fused_recurrent_retention,
    fused_recurrent_simple_gla,
)

__all__ = [
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "chunk_gla",
    "chunk_hgrn",
    "chunk_kda",
    "chunk_lightning_attn",
    "chunk_linear_attn",
    "chunk_retention",
    "chunk_simple_gla",
    "fused_chunk_linear_attn",
    "fused_chunk_retention",
    "fused_chunk_simple_gla",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "fused_recurrent_gla",
    "fused_recurrent_hgrn",
    "fused_recurrent_kda",
    "fused_recurrent_lightning_attn",
    "fused_recurrent_linear_attn",
    "fused_recurrent_retention",
    "fused_recurrent_simple_gla",
]

# The original's second names.
chunk_gdn, fused_recurrent_gdn = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
fused_chunk_linear_attn, fused_chunk_retention = chunk_linear_attn, chunk_retention
fused_chunk_simple_gla = chunk_simple_gla
