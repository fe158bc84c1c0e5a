"""The Triton kernels of linear attention with decay: what they can run, what they would cost, how they are launched."""

from .forward import ROWS
from .gradient import GRADIENT_ROWS

__all__ = ["GRADIENT_ROWS", "ROWS"]
