"""Other programs' models on convscan: ``transformers`` serves those of Hugging Face, ``onnx`` exports.

Importing this imports neither of these libraries.
"""

from . import transformers

__all__ = ["transformers"]
