"""The report: one HTML page, with all in it, that shows what the aggregates of an interval say."""

from __future__ import annotations

from asyncagg.report.gathering import gather
from asyncagg.report.numbers import Report
from asyncagg.report.page import build_page

__all__ = ("Report", "build_page", "gather")
