"""Sequence operators for PyTorch: causal convolutions of any length and linear recurrences."""

from . import compat, integrations, nn, stream, tuning
from ._dispatch import explain, force, implementations, workspace_limit
from ._targets import reset_peak_workspace, set_num_threads, workspace_memory
from ._version import __version__
from .ops.allpole_filter.api import allpole_filter
from .ops.allpole_filter.companion import fir_to_recurrence
from .ops.cauchy.api import cauchy
from .ops.causal_conv.api import causal_conv
from .ops.causal_conv.spectrum import FilterSpectrum
from .ops.causal_conv.step import causal_conv_step
from .ops.convolve.api import convolve
from .ops.fft_conv.api import fft_conv
from .ops.gated_delta_rule.api import gated_delta_rule, gated_delta_rule_step, gated_delta_rule_with_state
from .ops.gated_linear_attention.api import (
    gated_linear_attention,
    gated_linear_attention_step,
    gated_linear_attention_with_state,
)
from .ops.linear_recurrence.api import linear_recurrence
from .ops.linear_recurrence.step import linear_recurrence_step
from .ops.mlstm.api import mlstm, mlstm_step, mlstm_with_state
from .ops.opt_ssm_forward.api import opt_ssm_forward
from .ops.selective_scan.api import selective_scan, selective_scan_step, selective_scan_with_state
from .ops.ssd_scan.api import ssd_scan, ssd_scan_step, ssd_scan_with_state
from .ops.toeplitz_matmul.api import toeplitz_matmul
from .ops.vandermonde.api import vandermonde

__all__ = [
    "FilterSpectrum",
    "__version__",
    "allpole_filter",
    "cauchy",
    "causal_conv",
    "causal_conv_step",
    "compat",
    "convolve",
    "explain",
    "fft_conv",
    "fir_to_recurrence",
    "force",
    "gated_delta_rule",
    "gated_delta_rule_step",
    "gated_delta_rule_with_state",
    "gated_linear_attention",
    "gated_linear_attention_step",
    "gated_linear_attention_with_state",
    "implementations",
    "integrations",
    "linear_recurrence",
    "linear_recurrence_step",
    "mlstm",
    "mlstm_step",
    "mlstm_with_state",
    "nn",
    "opt_ssm_forward",
    "reset_peak_workspace",
    "selective_scan",
    "selective_scan_step",
    "selective_scan_with_state",
    "set_num_threads",
    "ssd_scan",
    "ssd_scan_step",
    "ssd_scan_with_state",
    "stream",
    "toeplitz_matmul",
    "tuning",
    "vandermonde",
    "workspace_limit",
    "workspace_memory",
]
