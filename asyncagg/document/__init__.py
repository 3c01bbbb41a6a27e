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

from asyncagg.document.head import accumulator_of, top_matches, totals
from asyncagg.document.parts import SCHEMA_VERSION, schema, window_member
from asyncagg.document.reading import Existing, read, read_head, read_quarantined
from asyncagg.document.writing import Document

__all__ = (
    "SCHEMA_VERSION",
    "Document",
    "Existing",
    "accumulator_of",
    "read",
    "read_head",
    "read_quarantined",
    "schema",
    "top_matches",
    "totals",
    "window_member",
)
