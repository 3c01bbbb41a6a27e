"""Rollups: the aggregates of an hour, a day or a month, merged into one document."""

from asyncagg.rollup.document import SCHEMA_VERSION, schema
from asyncagg.rollup.job import RolledUp, RollupReport, rollup
from asyncagg.rollup.periods import Period, Span

__all__ = ("SCHEMA_VERSION", "Period", "RolledUp", "RollupReport", "Span", "rollup", "schema")
