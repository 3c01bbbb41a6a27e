"""Settle a long interval: survey the inbox, share it out, and let an engine do the pieces."""

from asyncagg.backfill.engine import Engine, LocalEngine
from asyncagg.backfill.interval import interval_of
from asyncagg.backfill.job import BackfillProgress, BackfillReport, backfill, recompute_all

__all__ = (
    "BackfillProgress",
    "BackfillReport",
    "Engine",
    "LocalEngine",
    "backfill",
    "interval_of",
    "recompute_all",
)
