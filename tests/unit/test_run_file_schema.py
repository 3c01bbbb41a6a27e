"""The JSON Schema of a run file agrees with the reader, as far as JSON Schema can say."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from typing import Any

from jsonschema import Draft202012Validator
from testkit.json_reader import generated_file
from testkit.parsers import FILE

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import is_gzip
from asyncagg.ingest.parsing import parse
from asyncagg.ingest.schema import schema
from asyncagg.ingest.shape import ACCEPTED

FILES = 2000
BEYOND_SCHEMA = re.compile(r"timestamp: expected an RFC|double can hold|surrogate|nested")
"""What only the reader refuses: no such day, a score out of range, bad text, deep nesting."""


def decoded(data: bytes) -> Any:
    """Return the value of a file; raise a `ValueError` if it is not JSON."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(data.decode("utf-8-sig"), parse_constant=refuse)


def reason(data: bytes) -> str:
    """Return why the reader refuses a file; empty if it does not."""
    try:
        parse(data, FILE)
    except InvalidRunFileError as error:
        return error.reason
    return ""


def test_it_is_a_schema_of_all_fields() -> None:
    """It has each field that is read, with its meaning."""
    Draft202012Validator.check_schema(schema())
    fields = schema()["properties"]
    assert [*fields] == [*ACCEPTED]
    assert all(each["description"] for each in fields.values())


def test_it_agrees_with_the_reader_on_generated_files() -> None:
    """What it refuses is refused; what is refused beyond it is of a few known kinds."""
    validator = Draft202012Validator(schema())
    source = random.Random(22)
    seen = Counter[tuple[bool, bool]]()
    for _ in range(FILES):
        data = generated_file(source)
        try:
            data = gzip.decompress(data) if is_gzip(data) else data
            value = decoded(data)
        except (ValueError, EOFError, OSError):
            continue
        valid, why = validator.is_valid(value), reason(data)
        assert valid or why, data
        assert not valid or not why or BEYOND_SCHEMA.search(why), (data, why)
        seen[valid, not why] += 1
    assert seen[True, True] > 100
    assert seen[False, False] > 100
