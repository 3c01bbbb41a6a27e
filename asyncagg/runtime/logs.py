"""Structured logging: one line of JSON, or of text, with the correlation id of the run."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

__all__ = ("configure", "correlation_id")

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
"""Names the run in each line that is logged during it."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "correlation_id"}


class _Correlated(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.correlation_id = correlation_id.get()
        return True


class _TextFormatter(logging.Formatter):
    """``12:00:00 warning quarantined key='runs/a.json' …``: values as Python literals.

    So a hostile key, line breaks and all, stays on its own line.
    """

    def format(self, record: logging.LogRecord) -> str:
        told = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        pairs = " ".join(f"{name}={value!r}" for name, value in told.items())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()}"
        return f"{line} {record.getMessage()} {pairs}".rstrip()


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment: a progress bar stands in for it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # a stream handler's own would keep the stream of today

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # it is read, never set
        return sys.stderr


def configure(
    level: str,
    *,
    json: bool = False,
    formatter: logging.Formatter | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send what the package logs to a stream (default: standard error).

    Args:
        level: The least that is logged.
        json: One JSON object a line, for machines; else text.
        formatter: What writes the lines instead.
        stream: Where to.
    """
    handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(formatter or (_json_formatter() if json else _TextFormatter()))
    handler.addFilter(_Correlated())
    logger = logging.getLogger("asyncagg")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _json_formatter() -> logging.Formatter:
    # Imported where it is asked for: the Lambda has a formatter of its own.
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415

    formatter: logging.Formatter = JsonFormatter(
        "%(levelname)s %(message)s %(correlation_id)s",
        rename_fields={"levelname": "level"},
        timestamp=True,
    )
    return formatter
