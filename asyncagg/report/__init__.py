"""The report: a self-contained HTML page that shows the aggregates of an interval."""

from asyncagg.report.gathering import gather
from asyncagg.report.page import build_page
from asyncagg.report.summary import Report

__all__ = ("Report", "build_page", "gather")
