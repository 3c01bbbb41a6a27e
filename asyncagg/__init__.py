"""Asynchronous, high-throughput aggregator of many small JSON result files on S3."""

import importlib
import logging
import typing

if typing.TYPE_CHECKING:
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

_MODULES = {
    "errors": ("AsyncaggError",),
    "job.deadline": ("Deadline",),
    "job.outcome": ("RunReport", "Tally", "WindowReport"),
    "job.pipeline": ("run",),
    "model": ("Match", "RunFile", "RunResult", "Window"),
    "settings": ("Settings", "from_environment", "settings_from"),
    "store.opening": ("open_store",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# A program that uses the library decides where its log goes.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> typing.Any:
    """Import a public name when it is used, so that the command line handles Ctrl-C at once."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
