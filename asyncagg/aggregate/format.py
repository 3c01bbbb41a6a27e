"""The aggregate document: its layout and its JSON Schema.

The layout is canonical JSON with one member per line and one row per line, head first:

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

A JSON string never contains a raw line break, so the tables are found and the rows are read by
lines: in bounded memory, and without parsing what is only copied. Row ``i`` of ``run_summaries``
and row ``i`` of ``source_files`` describe the same file. Rows are in the order of key and etag.
"""

from __future__ import annotations

import json
from enum import IntEnum
from importlib import resources
from typing import Any

from asyncagg.model import Window

SCHEMA_VERSION = 1
"""Raised when the format changes."""


class Table(IntEnum):
    """The tables of a document, in its order."""

    SUMMARIES = 0
    SOURCES = 1
    QUARANTINED = 2


MARKS = (b'"run_summaries":[\n', b'"source_files":[\n', b'"quarantined_files":[\n')
"""The line that begins each table."""

END = b"]\n}\n"
"""The end of the last table, and of the document."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an aggregate document."""
    file = resources.files("asyncagg.aggregate").joinpath("aggregate.schema.json")
    return dict(json.loads(file.read_text("utf-8")))


def window_member(window: Window) -> dict[str, Any]:
    """Return the ``window`` member of a document, ready for JSON."""
    return {
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "minutes": window.minutes,
    }
