"""Other programs' models on convscan, and convscan's in other runtimes: ``transformers`` serves those of Hugging Face,
``onnx`` and ``executorch`` export.

Importing this imports none of these libraries.
"""

from . import executorch, onnx, transformers

__all__ = ["executorch", "onnx", "transformers"]
