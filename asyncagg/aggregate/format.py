"""The aggregate document: written as a stream, read back as a stream.

Its layout is canonical JSON of one member per line and one row per line, head first:

    {
    "schema_version":1,
    …
    "top_matches":[
    {…},
    {…}
    ],
    "run_summaries":[
    …
    ],
    "source_files":[
    …
    ],
    "quarantined_files":[
    …
    ]
    }

A JSON string never holds a raw line break, so that the parts are found and the rows are read by
lines: in bounded memory and without parsing what is only copied. Row ``i`` of ``run_summaries``
and row ``i`` of ``source_files`` speak of the same file; rows are in the order of key and etag.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from asyncagg.model import Window

__all__ = ("END", "MARKS", "SCHEMA_VERSION", "schema", "window_member")

SCHEMA_VERSION = 1
"""It is raised when the format changes."""

MARKS = (b'"run_summaries":[\n', b'"source_files":[\n', b'"quarantined_files":[\n')
"""The first lines of the three tables, in the order `SUMMARIES`, `SOURCES`, `QUARANTINED`."""

END = b"]\n}\n"
"""What ends the last of them, and the document."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an aggregate document."""
    text = (
        resources.files("asyncagg.aggregate").joinpath("aggregate.schema.json").read_text("utf-8")
    )
    return dict(json.loads(text))


def window_member(window: Window) -> dict[str, Any]:
    """Return what a document says of its window."""
    return {
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "minutes": window.minutes,
    }
