"""What a server says, made fit for messages and logs."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_MOST_READ = 4000
_MOST_SHOWN = 300
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Some servers and gateways echo the request's headers.
_SECRETS = re.compile(
    r"(?P<signed>AWS4-HMAC-SHA256\b.*?\bSignature=)[\w%+/=]+"
    r"|(?P<name>\b(?:authorization|x-amz-security-token|x-amz-signature)['\"]?\s*[:=,]\s*['\"]?)"
    r"(?:(?:aws|basic|bearer)\s+)?(?!AWS4)[^\s'\"<>,;&]+"
    r"|[\w+/=%~-]{120,}",  # no word is so long, but session tokens are
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """Return a server's text on one line, cut if it is long, and without the tokens it echoes."""
    line = _NOT_PRINTABLE.sub(" ", text[:_MOST_READ])
    return _SECRETS.sub(_without_value, line)[:_MOST_SHOWN].strip()


def _without_value(found: re.Match[str]) -> str:
    return f"{'AWS4-HMAC-SHA256 ' if found['signed'] else found['name'] or ''}[removed]"


def in_utc(moment: datetime) -> datetime:
    """Return a time of a server, which is UTC if it names no zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def content_encoding(value: str) -> str:
    """Return the codings of a body; ``aws-chunked`` was one of the upload's transfer only."""
    codings = [each.strip().lower() for each in value.split(",")]
    return ",".join([each for each in codings if each not in {"", "aws-chunked"}])
