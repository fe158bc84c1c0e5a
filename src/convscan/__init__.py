"""Sequence operators for PyTorch: causal convolutions of any length and linear recurrences."""

from ._version import __version__

__all__ = ["__version__"]
