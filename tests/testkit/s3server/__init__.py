"""An in-memory S3 server: faithful conditions, faults on request, and an audit of every loss.

In a test: ``async with S3Server(buckets=["b"]) as server: ... server.url``; from synchronous code
or for child processes: ``with ThreadedS3Server(S3Server(["b"])) as threaded: ... threaded.url``.
As a process: ``python -m testkit.s3server --port 0 --bucket b`` prints ``listening on URL`` and
serves until SIGTERM; ``/_control/audit|faults|fill|reset`` steer it over HTTP.

A request's way: `connection` parses it, `server` applies the faults, `operations` executes it on
the `objects`, and `wire` renders the response.
"""

from testkit.s3server.audit import Audit
from testkit.s3server.faults import DropError, Faults, Guard, Guards, Pause
from testkit.s3server.objects import StoredObject
from testkit.s3server.server import S3Server, ThreadedS3Server
from testkit.s3server.wire import Request, S3Error

__all__ = (
    "Audit",
    "DropError",
    "Faults",
    "Guard",
    "Guards",
    "Pause",
    "Request",
    "S3Error",
    "S3Server",
    "StoredObject",
    "ThreadedS3Server",
)
