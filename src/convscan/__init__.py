"""Sequence operators for PyTorch: causal convolutions of any length and linear recurrences."""

from . import nn, stream, tuning
from ._dispatch import explain, force, implementations, workspace_limit
from ._targets import reset_peak_workspace, set_num_threads, workspace_memory
from ._version import __version__
from .ops.cauchy.api import cauchy
from .ops.causal_conv.api import causal_conv
from .ops.causal_conv.spectrum import FilterSpectrum
from .ops.fft_conv.api import fft_conv
from .ops.linear_recurrence.api import linear_recurrence
from .ops.opt_ssm_forward.api import opt_ssm_forward
from .ops.vandermonde.api import vandermonde

__all__ = [
    "FilterSpectrum",
    "__version__",
    "cauchy",
    "causal_conv",
    "explain",
    "fft_conv",
    "force",
    "implementations",
    "linear_recurrence",
    "nn",
    "opt_ssm_forward",
    "reset_peak_workspace",
    "set_num_threads",
    "stream",
    "tuning",
    "vandermonde",
    "workspace_limit",
    "workspace_memory",
]
