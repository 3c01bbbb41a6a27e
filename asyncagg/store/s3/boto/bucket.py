"""A bucket as aioboto3 is asked about it, and what its errors mean here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore import exceptions as boto_errors

from asyncagg.errors import AsyncaggError, ConfigurationError, StoreError, TransientError
from asyncagg.store.protocol import Condition, Matches
from asyncagg.store.s3.plane import failure

__all__ = ("BotoBucket", "condition_parameters", "etag_of")

_PASSING = (
    boto_errors.HTTPClientError,  # timeouts, closed connections
    boto_errors.ConnectionError,  # resets, refused connections
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


class BotoBucket:
    """A bucket, what its keys start with, and how its answers are translated.

    Args:
        client: Of a `asyncagg.store.s3.boto.Control`.
        bucket: The bucket's name.
        prefix: What all keys start with, or empty.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client = client
        self.name = bucket
        self.prefix = prefix

    def at(self, key: str) -> dict[str, str]:
        """Return the parameters that name an object."""
        return {"Bucket": self.name, "Key": self.prefix + key}

    @contextmanager
    def translated(self, operation: str, key: str) -> Iterator[None]:
        """Turn what aioboto3 raises into the error of this package that it stands for."""
        try:
            yield
        except boto_errors.ClientError as error:
            raise self._failure(operation, key, error) from error
        except _PASSING as error:
            told = f"{operation} {key!r} in bucket {self.name!r}: {type(error).__name__}: {error}"
            raise TransientError(told, operation=operation, key=key) from error
        except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError) as error:
            raise ConfigurationError(
                f"credentials for bucket {self.name!r}: {error}; expected those of the AWS "
                "environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)"
            ) from error
        except boto_errors.BotoCoreError as error:
            raise StoreError(
                f"{operation} {key!r} in bucket {self.name!r}: {error}",
                operation=operation,
                key=key,
            ) from error

    def _failure(self, operation: str, key: str, error: boto_errors.ClientError) -> AsyncaggError:
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(told.get("Code", ""))
        return failure(
            operation,
            key,
            bucket=self.name,
            status=status,
            code="" if code.isdigit() else code,  # a HEAD's answer has no body to name one
            message=told.get("Message", ""),
        )


def condition_parameters(condition: Condition | None) -> dict[str, str]:
    """Return the parameters of a conditional request."""
    if condition is None:
        return {}
    if isinstance(condition, Matches):
        return {"IfMatch": f'"{condition.etag}"'}
    return {"IfNoneMatch": "*"}


def etag_of(answer: Mapping[str, Any]) -> str:
    """Return the ETag that an answer tells, without its quotes."""
    return str(answer["ETag"]).strip('"')
