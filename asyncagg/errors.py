"""The one tree of errors. Each docstring says who is at fault and what to do about it."""

from __future__ import annotations

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
    """The root: every error that this package raises on purpose is one of these."""


class UsageError(AsyncaggError):
    """The caller's words are off (an option, an event, a setting): say it again as told."""


class ConfigurationError(AsyncaggError):
    """The set-up is at fault (no bucket, no permission, a missing guard): the operator mends it.

    A run that meets one fails loudly; trying again without a change does not help.
    """


class AggregateError(AsyncaggError):
    """An object stands at an aggregate's key that is not ours, or is damaged.

    It is never overwritten. Move it away (``asyncagg verify --repair`` rebuilds a damaged one)
    and the next run settles the window.

    Attributes:
        what: What is wrong with it, in a few words.
    """

    def __init__(self, message: str, *, what: str = "") -> None:
        super().__init__(message)
        self.what = what or message


class OverlapError(AsyncaggError):
    """Two aggregates that were to be merged name the same file: nobody's fault, nothing is lost.

    Another runner has counted it meanwhile. Count the rest again.
    """


class InvalidRunFileError(AsyncaggError):
    """A run file can never be counted: its writer is at fault. It goes to quarantine.

    Attributes:
        reason: What is wrong, naming the field and the kind of value seen.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreError(AsyncaggError):
    """The store answered a request with a failure.

    Attributes:
        operation: What was asked (``get``, ``put``, ``copy`` …).
        key: The object's key, or a prefix.
    """

    def __init__(self, message: str, *, operation: str = "", key: str = "") -> None:
        super().__init__(message)
        self.operation = operation
        self.key = key


class NotFoundError(StoreError):
    """No object has that key (any more): another runner may have moved it."""


class PreconditionFailedError(StoreError):
    """A condition of the request did not hold: somebody else was faster. Look again."""


class UnsupportedConditionError(StoreError):
    """The store refuses a condition as such (501): it has no such guard."""


class AccessDeniedError(StoreError, ConfigurationError):
    """The store denies the operation: the operator grants the permission that is named."""


class TransientError(StoreError):
    """Trouble that passes: 5xx, a timeout, a reset, a short body. Nobody's fault; try again.

    Attributes:
        attempts: How often it was tried.
    """

    attempts: int = 1


class ThrottledError(TransientError):
    """The store asks for a slower pace (503 SlowDown, 429): everybody backs off together."""
