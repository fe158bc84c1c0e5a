"""Operators that run on while their input comes: public names, nothing else."""

from ._stream import Stream
from .conv import BlockConvStream, ConvStream
from .layer import LayerStream
from .operator import OperatorStream
from .recurrence import RecurrenceStream

__all__ = ["BlockConvStream", "ConvStream", "LayerStream", "OperatorStream", "RecurrenceStream", "Stream"]
