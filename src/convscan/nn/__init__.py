"""Layers for PyTorch built on the operators: public names, nothing else."""

from ._state_space import parameter_groups
from .fft_conv_s4 import FFTConvS4
from .hyena import Hyena
from .linear_recurrence import LinearRecurrence
from .long_conv import ImplicitLongConv, LongConv
from .lru import LRU
from .rglru import RGLRU
from .s4 import S4
from .s4_block import S4Block
from .s4d import S4D
from .short_conv import ShortConv

__all__ = [
    "LRU",
    "RGLRU",
    "S4",
    "S4D",
    "FFTConvS4",
    "Hyena",
    "ImplicitLongConv",
    "LinearRecurrence",
    "LongConv",
    "S4Block",
    "ShortConv",
    "parameter_groups",
]
