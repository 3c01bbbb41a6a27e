"""A small HTTP/1.1 client for the data plane: one server, short requests, little CPU.

`connection` is one socket with at most one exchange; `pool` bounds the connections, reuses them and
enforces timeouts.
"""

from __future__ import annotations

from asyncagg.store.s3.http.connection import BodyStream, Response
from asyncagg.store.s3.http.pool import Endpoint, HttpPool, Limits, tls_context

__all__ = ("BodyStream", "Endpoint", "HttpPool", "Limits", "Response", "tls_context")
