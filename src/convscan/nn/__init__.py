"""Layers for PyTorch built on the operators: public names, nothing else."""

__all__: list[str] = []
