"""The HTML report: one self-contained page, the JSON document inside it, drawn by the script of page.html."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from ..records import Report
from .table import machine_lines

MARKER = "/*REPORT*/null"


def render(report: Report) -> str:
    """The page as text. It loads nothing: styles, script and data are inside."""
    document = report.to_json() | {"machine_text": machine_lines(report.machine)}
    # A closing tag inside a string would end the script element.
    data = json.dumps(document, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return page.replace(MARKER, data, 1)


def write(report: Report, path: Path) -> None:
    """Writes the page."""
    path.write_text(render(report), encoding="utf-8")
