"""Models with convscan's operators in ONNX: ``export`` and ``lower``. ``pip install 'convscan[onnx]'`` is needed."""

from ._export import export, lower

__all__ = ["export", "lower"]
