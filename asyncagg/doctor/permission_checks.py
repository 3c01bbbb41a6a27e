"""Checks whether a permission is granted, without changing anything.

The requests name keys that do not exist and carry conditions that must fail. Without the
permission, S3 responds 403; with it, 404 or 412.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import anyio

from asyncagg.doctor.checks import CheckResult
from asyncagg.doctor.permissions import Grant
from asyncagg.errors import (
    AccessDeniedError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.job.layout import PACKS
from asyncagg.model import RunFile
from asyncagg.store import Matches, Store
from asyncagg.store.guards import PROBE, WRONG_ETAG, remove_probe

if TYPE_CHECKING:
    from asyncagg.store.s3.boto import S3Response

_CLEANUP_SECONDS = 5.0
_OPTIONAL = {
    "s3:AbortMultipartUpload": "without it, the parts of a failed large upload stay and cost money",
    "s3:GetObjectTagging": "needed if run files have tags",
    "s3:PutObjectTagging": "needed if run files have tags",
}

_DEMANDED = {
    "kms:": "grant kms:Decrypt and kms:GenerateDataKey on the KMS key",
    "requester pays": "set request_payer=requester",
    "explicit deny in a resource-based policy": "the bucket's policy denies it: if it demands "
    "encryption, set sse, and sse_kms_key_id for a certain key",
}
"""What a denial asks for, by the words of S3's message."""

RequestFactory: TypeAlias = Callable[[str, str], "Callable[[], Awaitable[S3Response]] | None"]
"""From an action and a key that does not exist to a request, or to None."""


def prerequisites(grant: Grant) -> list[str]:
    """Return the names of the grants without which a check of this grant proves nothing.

    Without ListBucket, S3 responds 403 for a missing key; without GetObject, for a condition.
    """
    prefix = grant.prefix.removesuffix(PROBE).removesuffix(PACKS)
    actions = {"s3:ListBucket": (), "s3:GetObject": ("s3:ListBucket",)}
    return [
        str(Grant(action, prefix))
        for action in actions.get(grant.action, ("s3:ListBucket", "s3:GetObject"))
    ]


async def check_permission(store: Store, grant: Grant, request_for: RequestFactory) -> CheckResult:
    """Find out whether a permission is granted, with a store without guards.

    ``request_for`` returns the request to send if a `Store` has no method that needs the action.
    """
    key = f"{grant.prefix.removesuffix(PROBE)}{PROBE}{uuid.uuid4().hex}"
    request = request_for(grant.action, key)
    if request is not None:
        response = await request()
        if response.status == 403:
            return _denied(grant, f"{response.code}: {response.message}")
        if response.status < 300 or response.status == 404:
            return CheckResult("ok", "granted")
        return CheckResult("skipped", f"unexpected response: {response.status} {response.code}")
    try:
        await _TRY[grant.action](store, key)
    except AccessDeniedError as error:
        return _denied(grant, str(error))
    except StoreError as error:
        if isinstance(error, TransientError):
            raise
        return CheckResult("warn", f"cannot be checked: the server rejects conditions ({error})")
    return CheckResult("ok", "granted")


def _denied(grant: Grant, detail: str) -> CheckResult:
    optional = _OPTIONAL.get(grant.action, "")
    advice = "grant it, by the policy below" + (f": {optional}" if optional else "")
    for words, demanded in _DEMANDED.items():
        if words in detail:
            advice = f"{demanded}; or {advice}"
    return CheckResult("warn" if optional else "fail", f"denied ({detail})", advice, grant)


async def _list(store: Store, key: str) -> None:
    async for _ in store.list_pages(key.rpartition(PROBE)[0]):
        return


async def _get(store: Store, key: str) -> None:
    with suppress(NotFoundError):
        await store.get(key)


async def _delete(store: Store, key: str) -> None:
    """Delete an object that does not exist, on a condition that must fail."""
    missing = RunFile(key, 0, WRONG_ETAG, datetime.fromtimestamp(0, UTC))
    failure = (await store.delete([missing])).get(key)
    if failure is not None and not isinstance(failure, PreconditionFailedError):
        raise failure


async def _put(store: Store, key: str) -> None:
    """Overwrite an object that does not exist; if the store ignores the condition, remove it."""
    try:
        await store.put(key, b"", condition=Matches(WRONG_ETAG))
    except PreconditionFailedError:
        return
    finally:
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
            await remove_probe(store, key)
    with suppress(NotFoundError):
        await store.head(key)
        raise ConfigurationError(
            f"the store ignored a condition and wrote {key!r}, and this user may not delete it: "
            "delete it by hand"
        )


_TRY: Mapping[str, Callable[[Store, str], Awaitable[None]]] = {
    "s3:ListBucket": _list,
    "s3:GetObject": _get,
    "s3:DeleteObject": _delete,
    "s3:PutObject": _put,
}
