"""Hugging Face's models on the CPU by convscan's operators: ``enable()``, and nothing else of a program changes."""

from ._switch import Enabled, Report, Row, disable, enable, report

__all__ = ["Enabled", "Report", "Row", "disable", "enable", "report"]
