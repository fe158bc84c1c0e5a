"""mamba_ssm's functions: the selective scan of Mamba (``_selective``) and the state-space dual of Mamba-2 (``_dual``).

Source: A. Gu, T. Dao, Mamba, 2023, arXiv 2312.00752; T. Dao, A. Gu, Transformers are SSMs, 2024, arXiv 2405.21060;
github.com/state-spaces/mamba, 2.3.
"""

from ._dual import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined
from ._selective import mamba_inner_fn, selective_scan_fn, selective_state_update

__all__ = [
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
]
