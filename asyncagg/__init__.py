"""Asynchronous, high-throughput aggregator of many small JSON result files on S3."""

import logging

from asyncagg.errors import AsyncaggError
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport, Tally, WindowReport
from asyncagg.job.pipeline import run
from asyncagg.model import Match, RunFile, RunResult, Window
from asyncagg.settings import Settings, from_environment, settings_from
from asyncagg.store.opening import open_store

__all__ = (
    "AsyncaggError",
    "Deadline",
    "Match",
    "RunFile",
    "RunReport",
    "RunResult",
    "Settings",
    "Tally",
    "Window",
    "WindowReport",
    "from_environment",
    "open_store",
    "run",
    "settings_from",
)

# A program that uses the library decides where its log goes.
logging.getLogger(__name__).addHandler(logging.NullHandler())
