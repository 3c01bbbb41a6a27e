"""The rules of CloudWatch's embedded metric format."""

from __future__ import annotations

import json
from itertools import chain

import jsonschema

__all__ = (
    "EMF",
    "MOST_BYTES",
    "NAME",
    "RATES",
    "SIZES",
    "UNITS",
    "check_emf",
)


NAME = {"type": "string", "minLength": 1, "maxLength": 255}


SIZES = [
    f"{scale}{unit}" for unit in ("bytes", "bits") for scale in ("Kilo", "Mega", "Giga", "Tera")
]


RATES = ["Bytes", "Bits", "Count", *SIZES]


UNITS = ["Seconds", "Microseconds", "Milliseconds", "Percent", "None", *RATES]


# Written from the specification: see the link in asyncagg/aws/metrics.py.
EMF = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "additionalProperties": False,
            "properties": {
                "Timestamp": {"type": "integer", "minimum": 0},
                "CloudWatchMetrics": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": NAME,
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "array", "items": NAME, "maxItems": 30},
                            },
                            "Metrics": {
                                "type": "array",
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": NAME,
                                        "Unit": {"enum": UNITS},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}


MOST_BYTES = 256 * 1024


def check_emf(line: str) -> dict[str, float]:
    """Check one line against the format, beyond its schema; return the values."""
    assert len(line.encode()) <= MOST_BYTES
    document = json.loads(line)
    jsonschema.validate(document, EMF)
    values: dict[str, float] = {}
    for directive in document["_aws"]["CloudWatchMetrics"]:
        for dimension in chain.from_iterable(directive["Dimensions"]):
            assert isinstance(document[dimension], str)
            assert 1 <= len(document[dimension]) <= 1024
        for metric in directive["Metrics"]:
            target = document[metric["Name"]]
            (values[metric["Name"]],) = target if isinstance(target, list) else [target]
    assert all(isinstance(each, int | float) for each in values.values())
    return values
