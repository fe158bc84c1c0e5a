"""The JSON report; docs/profiler.md documents every key."""

from __future__ import annotations

import json
from pathlib import Path

from ..records import Report


def write(report: Report, path: Path) -> None:
    """Writes the document, UTF-8, one line per record so that two runs can be compared as text."""
    document = report.to_json()
    records = document.pop("records")
    head = json.dumps(document, ensure_ascii=False, indent=2)[:-2]
    lines = ",\n".join("    " + json.dumps(r, ensure_ascii=False) for r in records)
    path.write_text(f'{head},\n  "records": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
