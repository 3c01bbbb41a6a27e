"""The JSON Schema of a run file, made from what its reader accepts."""

from __future__ import annotations

from typing import Any

import msgspec

from asyncagg.ingest.shape import ACCEPTED, RunShape
from asyncagg.ingest.timestamps import PATTERN


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a run file.

    It does not have the limits of bytes and of nesting, and no calendar: a file that is valid
    against it may have a day that does not exist. `asyncagg check` has all of them.
    """
    made = msgspec.json.schema(RunShape)
    run, match = made["$defs"]["RunShape"], made["$defs"]["MatchShape"]
    fields = {name: _field(given) for name, given in run["properties"].items()}
    fields["timestamp"]["anyOf"][0]["pattern"] = f"^(?:{PATTERN})?$"
    fields["top_matches"]["anyOf"][0]["items"] = {
        "type": "object",
        "properties": {name: _field(given) for name, given in match["properties"].items()},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "asyncagg run file",
        "description": run["description"],
        "type": "object",
        "properties": fields,
        "anyOf": [{"required": [name]} for name in ACCEPTED],
    }


def _field(given: dict[str, Any]) -> dict[str, Any]:
    # The default of a missing field is not a value that a file may contain.
    return {name: value for name, value in given.items() if name != "default"}
