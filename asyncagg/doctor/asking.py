"""Whether a permission is there, found out without a change.

The requests name keys that do not exist, and carry conditions that could not hold: who has the
permission is told so, and who has not is told 403.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

import anyio

from asyncagg.doctor.checks import CheckResult
from asyncagg.doctor.permissions import Grant
from asyncagg.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    UnsupportedConditionError,
)
from asyncagg.model import RunFile
from asyncagg.store import Matches, Store
from asyncagg.store.guards import PROBE, remove

__all__ = ("Questions", "Reply", "ask", "needs")

_WRONG = "0" * 32
_CLEANUP_SECONDS = 5.0
_NEEDED_FOR = {
    "s3:AbortMultipartUpload": "parts of a large aggregate that was not committed stay and cost",
    "s3:GetObjectTagging": "needed where run files have tags",
    "s3:PutObjectTagging": "needed where run files have tags",
}


class Reply(Protocol):
    """What a server answers; see `asyncagg.store.s3.boto.Answer`."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def code(self) -> str:
        """The server's error code."""
        ...

    @property
    def message(self) -> str:
        """The server's own sentence."""
        ...


Questions: TypeAlias = Callable[[str, str], Callable[[], Awaitable[Reply]] | None]
"""From an action and a key that does not exist to a request, or to None."""


def needs(grant: Grant) -> list[str]:
    """Return what else must be granted for the answers to tell anything.

    Without ListBucket, S3 answers 403 for what is not there; without GetObject, for a condition.
    """
    prefix = grant.prefix.removesuffix(PROBE)
    needed = {"s3:ListBucket": (), "s3:GetObject": ("s3:ListBucket",)}
    return [
        str(Grant(action, prefix))
        for action in needed.get(grant.action, ("s3:ListBucket", "s3:GetObject"))
    ]


async def ask(store: Store, grant: Grant, question_of: Questions) -> CheckResult:
    """Find out whether a permission is there.

    Args:
        store: Where; without guards of its own.
        grant: The permission.
        question_of: Gives the request to ask with, where a `Store` has none.
    """
    key = f"{grant.prefix.removesuffix(PROBE)}{PROBE}{uuid.uuid4().hex}"
    question = question_of(grant.action, key)
    if question is not None:
        answer = await question()
        if answer.status == 403:
            return _denied(grant, f"{answer.code}: {answer.message}")
        if answer.status < 300 or answer.status == 404:
            return CheckResult("ok", "granted")
        return CheckResult("skipped", f"the server cannot be asked: {answer.status} {answer.code}")
    try:
        await _ASK[grant.action](store, key)
    except AccessDeniedError as error:
        return _denied(grant, str(error))
    except UnsupportedConditionError:
        return CheckResult("warn", "the server refuses conditions, so that it cannot be asked")
    return CheckResult("ok", "granted")


def _denied(grant: Grant, told: str) -> CheckResult:
    mild = _NEEDED_FOR.get(grant.action, "")
    return CheckResult(
        "warn" if mild else "fail",
        f"denied ({told})",
        "grant it, by the policy below" + (f": {mild}" if mild else ""),
        grant,
    )


async def _list(store: Store, key: str) -> None:
    async for _ in store.list_pages(key.rpartition(PROBE)[0]):
        return


async def _get(store: Store, key: str) -> None:
    with suppress(NotFoundError):
        await store.get(key)


async def _delete(store: Store, key: str) -> None:
    """Delete what is not there, on a condition that it could not meet."""
    nothing = RunFile(key, 0, _WRONG, datetime.fromtimestamp(0, UTC))
    failure = (await store.delete([nothing])).get(key)
    if failure is not None and not isinstance(failure, PreconditionFailedError):
        raise failure


async def _put(store: Store, key: str) -> None:
    """Write over what is not there; a store that overlooks the condition has it removed again.

    Raises:
        StoreError: It cannot be removed again.
    """
    try:
        await store.put(key, b"", condition=Matches(_WRONG))
    except PreconditionFailedError:
        return
    finally:
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
            await remove(store, key)
    with suppress(NotFoundError):
        await store.head(key)
        raise StoreError(
            f"the store overlooked a condition and wrote {key!r}, which may not be deleted: "
            "remove it by hand"
        )


_ASK: Mapping[str, Callable[[Store, str], Awaitable[None]]] = {
    "s3:ListBucket": _list,
    "s3:GetObject": _get,
    "s3:DeleteObject": _delete,
    "s3:PutObject": _put,
}
