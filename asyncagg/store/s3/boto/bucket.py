"""A bucket accessed through aioboto3, and the translation of aioboto3's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore import exceptions as boto_errors

from asyncagg.errors import AsyncaggError, ConfigurationError, StoreError, TransientError
from asyncagg.store.protocol import Condition, Matches
from asyncagg.store.s3.plane import make_error, s3_error

CREDENTIALS_ADVICE = (
    "expected those of the AWS environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)"
)
_TRANSIENT = (
    boto_errors.HTTPClientError,  # timeouts, closed connections
    boto_errors.ConnectionError,  # resets, refused connections
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


class BotoBucket:
    """A bucket, or a prefix of one, accessed through the client of a `Control`."""

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self.client = client
        self.name = bucket
        self.prefix = prefix

    def parameters(self, key: str) -> dict[str, str]:
        """Return the parameters that name an object."""
        return {"Bucket": self.name, "Key": self.prefix + key}

    @contextmanager
    def translating(self, operation: str, key: str) -> Iterator[None]:
        """Translate each error of aioboto3 that is raised inside the context."""
        try:
            yield
        except boto_errors.ClientError as error:
            raise self._response_error(operation, key, error) from error
        except _TRANSIENT as error:
            detail = f"{type(error).__name__}: {error}"
            raise self.error(TransientError, operation, key, detail) from error
        except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError) as error:
            raise ConfigurationError(
                f"credentials for bucket {self.name!r}: {error}; {CREDENTIALS_ADVICE}"
            ) from error
        except boto_errors.BotoCoreError as error:
            raise self.error(StoreError, operation, key, str(error)) from error

    def error(
        self, kind: type[AsyncaggError], operation: str, key: str, detail: str
    ) -> AsyncaggError:
        """Return an error of this kind that names the operation, the key and the bucket."""
        return make_error(kind, operation, key, bucket=self.name, detail=detail)

    def _response_error(
        self, operation: str, key: str, error: boto_errors.ClientError
    ) -> AsyncaggError:
        content = error.response.get("Error", {})
        code = str(content.get("Code", ""))
        return s3_error(
            operation,
            key,
            bucket=self.name,
            status=error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
            code="" if code.isdigit() else code,  # botocore's code for a HEAD is the status
            message=content.get("Message", ""),
        )


def condition_parameters(condition: Condition | None) -> dict[str, str]:
    """Return the parameters of a conditional request."""
    if condition is None:
        return {}
    if isinstance(condition, Matches):
        return {"IfMatch": f'"{condition.etag}"'}
    return {"IfNoneMatch": "*"}


def etag_of(response: Mapping[str, Any]) -> str:
    """Return the ETag of a response, without its quotes."""
    return str(response["ETag"]).strip('"')
