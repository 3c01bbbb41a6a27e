"""Where objects live: the `Store` protocol, and stores on S3, in a directory and in memory."""

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
