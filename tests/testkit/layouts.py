"""Ways to lay out the prefixes of a store."""

from __future__ import annotations

from typing import Any

from asyncagg.settings import Settings
from testkit.promises import Places
from testkit.scenario import moment, run_data

__all__ = ("FILES", "LAYOUTS", "settings_of")

LAYOUTS = {
    "the defaults": Places(),
    "runs/raw, runs/archive, runs": Places(
        "runs/raw/", "runs/", "runs/archive/", "runs/quarantine/"
    ),
    "aggregates beside run files": Places(aggregates="runs/"),
    "all in the inbox": Places("runs/", "runs/aggregates/", "runs/archive/", "runs/bad/"),
    "one in the other": Places("a/", "a/b/", "a/b/c/", "a/b/d/"),
    "the whole store": Places(""),
    "the whole store, aggregates too": Places("", ""),
    "archive among aggregates": Places("in/", "out/", "out/archive/", "out/bad/"),
    "names that begin alike": Places("runs/", "runs-out/", "runs-old/", "runs-bad/"),
    "archive beside aggregates in the inbox": Places("runs/", "runs/", "runs/x/", "runs/y/"),
}

FILES = {
    "a.json": (run_data(1), moment(14, 1)),
    "b.json": (run_data(2), moment(14, 8)),
    "bad.json": (b"[]", moment(14, 1)),
    "f/a.json": (run_data(3), moment(14, 1)),
    "f/bad.json": (b"{", moment(14, 8)),
    "f/g/20251021t1405Z.json": (run_data(4), moment(14, 2)),  # named like an aggregate
    "20251021t1402Z_like-a-window.json": (run_data(5), moment(14, 3)),
    "waits.json": (run_data(6), moment(14, 11)),
}


def settings_of(places: Places, **more: Any) -> Settings:
    """Return the settings of a layout; the times of its files decide their windows."""
    return Settings(
        window_by="last_modified",
        runs_prefix=places.runs,
        aggregate_prefix=places.aggregates,
        archive_prefix=places.archive,
        quarantine_prefix=places.quarantine,
        **more,
    )
