"""All errors of the package. Each docstring says what is at fault and what to do about it."""

from __future__ import annotations

import errno

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The numbers of an `OSError` that says that a disk is full."""

__all__ = (
    "AccessDeniedError",
    "AggregateError",
    "AsyncaggError",
    "ConfigurationError",
    "InvalidRunFileError",
    "NotFoundError",
    "OverlapError",
    "PreconditionFailedError",
    "StoreError",
    "ThrottledError",
    "TransientError",
    "UnsupportedConditionError",
    "UsageError",
)


class AsyncaggError(Exception):
    """The base class of every error that this package raises on purpose."""


class UsageError(AsyncaggError):
    """A value given by the caller (a setting, an option, an event) is not accepted: correct it.

    Attributes:
        setting: The name of the setting or parameter; empty if it is not a single one.
    """

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class ConfigurationError(AsyncaggError):
    """The environment is set up wrongly (no bucket, no permission, a missing guard): correct it.

    The run stops and nothing is lost. A retry without a change fails again.
    """


class AggregateError(AsyncaggError):
    """The object at an aggregate's key is damaged, or is not an aggregate.

    It is never overwritten. Move it away (``asyncagg verify --repair`` rebuilds a damaged one),
    and the next run settles the window.

    Attributes:
        what: What is wrong with it, in a few words.
    """

    def __init__(self, message: str, *, what: str = "") -> None:
        super().__init__(message)
        self.what = what or message


class OverlapError(AsyncaggError):
    """Two aggregates to be merged name the same file, because another runner has counted it.

    Nothing is lost. Read the aggregate again and count the remaining files.
    """


class InvalidRunFileError(AsyncaggError):
    """A run file can never be counted: what wrote it is at fault. The file is quarantined.

    Attributes:
        reason: What is wrong: the field, what is expected there, and what was found.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreError(AsyncaggError):
    """A request to the store failed.

    Attributes:
        operation: The operation (``get``, ``put``, ``copy`` …).
        key: The object's key, or a prefix.
        bucket: The bucket; empty if there is none.
    """

    def __init__(
        self, message: str, *, operation: str = "", key: str = "", bucket: str = ""
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.key = key
        self.bucket = bucket


class NotFoundError(StoreError):
    """There is no object with that key; another runner may have moved it."""


class PreconditionFailedError(StoreError):
    """A condition of the request did not hold: another writer came first. Read the object again.

    Attributes:
        ignored: Whether the store ignored the condition, and only its response showed that it does
            not hold.
    """

    ignored: bool = False


class UnsupportedConditionError(StoreError):
    """The store does not implement a condition (501), or not in this place (MalformedXML)."""


class AccessDeniedError(StoreError, ConfigurationError):
    """The store denies the operation: grant the permission that the message names."""


class TransientError(StoreError):
    """A temporary failure: 5xx, a timeout, a reset, a short body. Try again.

    Attributes:
        attempts: How many attempts were made.
    """

    attempts: int = 1


class ThrottledError(TransientError):
    """The store asks for fewer requests (503 SlowDown, 429): all workers back off together."""


class TimedOutError(TransientError):
    """The server did not respond in time."""


class ConnectionLostError(TransientError):
    """The connection was refused or reset, or closed before the response was complete."""
