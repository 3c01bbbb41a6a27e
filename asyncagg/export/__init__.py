"""Export aggregates as tables of rows, for tools that query Parquet, CSV or NDJSON."""

from asyncagg.export.job import ExportReport, Written, export
from asyncagg.export.rows import ExportTable
from asyncagg.export.writing import ExportFormat

__all__ = ("ExportFormat", "ExportReport", "ExportTable", "Written", "export")
