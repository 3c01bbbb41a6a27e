"""Structured logging: one line of JSON or text per record, with the correlation id of the run."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")
"""Names the run in each line that is logged during it."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "correlation_id"}


class _CorrelationFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.correlation_id = correlation_id.get()
        vars(record).pop("taskName", None)  # of asyncio: it says nothing, and formatters print it
        return True


class _TextFormatter(logging.Formatter):
    """``12:00:00 warning quarantined key='runs/a.json' …``: values as Python literals.

    A literal escapes line breaks, so a hostile key cannot start a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        pairs = " ".join(f"{name}={value!r}" for name, value in extra.items())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()}"
        return f"{line} {record.getMessage()} {pairs}".rstrip()


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`: a progress bar replaces it for a time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own keeps the stream of now

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
    """Send the package's log to a stream.

    Args:
        level: The lowest level that is logged.
        json: Write one JSON object per line instead of text.
        formatter: Formats the lines instead.
        stream: The stream; default: standard error.
    """
    handler = _StderrHandler() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(formatter or (_json_formatter() if json else _TextFormatter()))
    handler.addFilter(_CorrelationFilter())
    logger = logging.getLogger("asyncagg")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def writes_json() -> bool:
    """Return whether `configure` was called, with ``json`` or another formatter than text."""
    formatters = [each.formatter for each in logging.getLogger("asyncagg").handlers]
    return any(each is not None and not isinstance(each, _TextFormatter) for each in formatters)


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - the Lambda has another one

    formatter: logging.Formatter = JsonFormatter(
        "%(levelname)s %(message)s %(correlation_id)s",
        rename_fields={"levelname": "level"},
        timestamp=True,
    )
    return formatter
