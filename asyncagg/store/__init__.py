"""The places where objects live: the `Store` protocol, S3, a directory, and memory."""

from asyncagg.store.protocol import DELETE_BATCH, Body, ObjectInfo, Store, StreamedBody

__all__ = ("DELETE_BATCH", "Body", "ObjectInfo", "Store", "StreamedBody")
