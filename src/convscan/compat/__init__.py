"""Other libraries' functions by their own names and conventions, computed by convscan.

Each module stands for one library: argument names, defaults, shapes, effects on arguments and returns are those that
its documentation promises, so that a program changes its import and nothing else. ``install`` registers them under the
original names for programs that cannot be changed.
"""

from . import accelerated_scan, causal_conv1d, fla, flashfftconv, mamba_ssm, torchlpc
from ._install import Installation, install

__all__ = [
    "Installation",
    "accelerated_scan",
    "causal_conv1d",
    "fla",
    "flashfftconv",
    "install",
    "mamba_ssm",
    "torchlpc",
]
