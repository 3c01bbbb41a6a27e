"""The places where objects live: the `Store` protocol, S3, a directory, and memory."""

from asyncagg.store.protocol import (
    DELETE_BATCH,
    Absent,
    Body,
    Condition,
    Matches,
    ObjectInfo,
    Store,
    StreamedBody,
)

__all__ = (
    "DELETE_BATCH",
    "Absent",
    "Body",
    "Condition",
    "Matches",
    "ObjectInfo",
    "Store",
    "StreamedBody",
)
