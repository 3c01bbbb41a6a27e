"""Events and contexts for the Lambda handler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from testkit.s3server import ThreadedS3Server

__all__ = (
    "BUCKET",
    "EVENT",
    "IN_WINDOW",
    "Context",
    "put",
    "run_file",
)


BUCKET = "matching-out-runs"


IN_WINDOW = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)


EVENT = {"source": "aws.scheduler", "time": "2025-10-21T14:00:00Z"}


@dataclass
class Context:
    """The part of Lambda's context that the handler reads."""

    aws_request_id: str = "5a1c7b4e"
    milliseconds: int = 300_000

    def get_remaining_time_in_millis(self) -> int:
        """Return the time left."""
        return self.milliseconds


def run_file(number: int) -> bytes:
    """Return a run file whose sums are easy to follow."""
    run = {"total_opportunities": number, "matches_found": 1, "processing_time_seconds": 0.5}
    return json.dumps(run).encode()


def put(server: ThreadedS3Server, key: str, body: bytes) -> None:
    """Put a file of the window into the inbox."""
    server.call(lambda: server.server.put(BUCKET, key, body, last_modified=IN_WINDOW))
