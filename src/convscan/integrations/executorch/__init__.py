"""Models with convscan's operators on ExecuTorch: exported, run on this machine, and run on Arm devices.

>>> from convscan.integrations import executorch                                        # doctest: +SKIP
>>> executorch.export(model, (x,), "model.pte")                                         # doctest: +SKIP
>>> (y,) = executorch.load("model.pte")(x)                                              # doctest: +SKIP

``pip install 'convscan[executorch]'`` and a C++ compiler are needed: the operators' library for this machine is
compiled when it is first used, which takes some seconds, and kept in the user's cache folder.
"""

from ._errors import ExecuTorchError
from ._export import Exported, export
from ._library import load_operators, operators_library
from ._run import Program, load

__all__ = ["ExecuTorchError", "Exported", "Program", "export", "load", "load_operators", "operators_library"]
