"""Rollups: the aggregates of an hour, a day or a month, merged into one document."""

from asyncagg.rollup.rollup import (
    SCHEMA_VERSION,
    Period,
    RolledUp,
    RollupReport,
    Span,
    rollup,
    schema,
)

__all__ = ("SCHEMA_VERSION", "Period", "RolledUp", "RollupReport", "Span", "rollup", "schema")
