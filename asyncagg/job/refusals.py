"""Distinguish a refusal of one object from a refusal of every object."""

from __future__ import annotations

from asyncagg.errors import StoreError

_MAX_REFUSED = 100
"""If so many requests of one operation are refused and none has succeeded, the run fails."""


class Refusals:
    """The requests of a run that the store refuses for good, such as those without a permission.

    A refusal of one object (another KMS key or owner, a legal hold, an archived storage class)
    concerns that object: it is deferred, and the others continue. If no request of the same
    operation succeeds, the set-up is wrong and the run fails.

    Args:
        most: So many refusals of an operation end the run at once, unless one was accepted before.
    """

    def __init__(self, most: float = _MAX_REFUSED) -> None:
        self._most = most
        self._first: dict[str, StoreError] = {}
        self._counts: dict[str, int] = {}
        self._accepted: set[str] = set()

    def add(self, error: StoreError) -> None:
        """Note a refused request.

        Raises:
            StoreError: So many were refused, and none accepted, that the set-up is at fault.
        """
        # Both read an object, and a directory names them apart.
        operation = "get" if error.operation == "stream" else error.operation
        self._add(operation, error, 1)

    def _add(self, operation: str, first: StoreError, count: int) -> None:
        self._first.setdefault(operation, first)
        self._counts[operation] = self._counts.get(operation, 0) + count
        if self._counts[operation] >= self._most and operation not in self._accepted:
            raise self._first[operation]

    def accept(self, operation: str) -> None:
        """Note that a request of this operation succeeded."""
        self._accepted.add(operation)

    def merge(self, other: Refusals) -> None:
        """Add what another part of the run has noted; see `add`."""
        self._accepted |= other._accepted
        for operation, first in other._first.items():
            self._add(operation, first, other._counts[operation])

    def check(self) -> None:
        """Check at the end of a run.

        Raises:
            StoreError: An operation was refused for every object; this is its first error.
        """
        for operation, error in self._first.items():
            if operation not in self._accepted:
                raise error
