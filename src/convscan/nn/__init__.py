"""Layers for PyTorch built on the operators: public names, nothing else."""

from .hyena import Hyena
from .linear_recurrence import LinearRecurrence
from .long_conv import ImplicitLongConv, LongConv
from .lru import LRU
from .rglru import RGLRU
from .short_conv import ShortConv

__all__ = ["LRU", "RGLRU", "Hyena", "ImplicitLongConv", "LinearRecurrence", "LongConv", "ShortConv"]
