"""HTTP/1.1 as the data plane needs it: one endpoint, short requests, little CPU for each.

`connection` is one socket and the one exchange under way on it; `pool` hands connections out,
bounds them and watches the clock.
"""

from __future__ import annotations

from asyncagg.store.s3.http.connection import BodyStream, Response
from asyncagg.store.s3.http.pool import Endpoint, HttpPool, Limits, tls_context

__all__ = ("BodyStream", "Endpoint", "HttpPool", "Limits", "Response", "tls_context")
