"""What the parts of an aggregate document begin with, and its JSON Schema."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from asyncagg.model import Window

__all__ = ("END", "MARKS", "SCHEMA_VERSION", "schema", "window_member")

SCHEMA_VERSION = 1
"""It is raised when the format changes."""

MARKS = (b'"run_summaries":[\n', b'"source_files":[\n', b'"quarantined_files":[\n')
"""What the three tables begin with, in the order of `asyncagg.joining.SUMMARIES` and its like."""

END = b"]\n}\n"
"""What ends the last of them, and the document."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an aggregate document."""
    text = resources.files("asyncagg").joinpath("aggregate.schema.json").read_text("utf-8")
    return dict(json.loads(text))


def window_member(window: Window) -> dict[str, Any]:
    """Return what a document says of its window."""
    return {
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "minutes": window.minutes,
    }
