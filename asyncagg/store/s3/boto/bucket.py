"""A bucket accessed through aioboto3, and the translation of aioboto3's errors."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore import exceptions as boto_errors
from botocore.parsers import ResponseParserError

from asyncagg.errors import (
    AsyncaggError,
    ConfigurationError,
    ConnectionLostError,
    StoreError,
    TimedOutError,
    TransientError,
)
from asyncagg.store.protocol import Condition, Matches
from asyncagg.store.s3.environment import CREDENTIALS_ADVICE
from asyncagg.store.s3.plane import StorageClass, make_error, s3_error
from asyncagg.store.s3.text import printable

_TRANSIENT = (
    boto_errors.HTTPClientError,  # timeouts, closed connections
    boto_errors.ConnectionError,  # resets, refused connections
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    boto_errors.ChecksumError,
    boto_errors.FlexibleChecksumError,
    boto_errors.CapacityNotAvailableError,
    boto_errors.MetadataRetrievalError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
    RuntimeError,  # credentials that were refreshed and are still expired
)
_TIMED_OUT = (boto_errors.ConnectTimeoutError, boto_errors.ReadTimeoutError, TimeoutError)
_CONNECTION_LOST = (
    boto_errors.ConnectionError,
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    ConnectionError,
)
_CREDENTIALS = (
    boto_errors.NoCredentialsError,
    boto_errors.NoAuthTokenError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,  # a process, a container, a role
    boto_errors.RefreshWithMFAUnsupportedError,
    boto_errors.SSOError,
    boto_errors.TokenRetrievalError,
    boto_errors.UnknownCredentialError,
    OSError,  # a token's file that is missing, a process that does not start
    ValueError,  # what such a file or process wrote
)
_FOR_CREDENTIALS = frozenset(
    {
        "AssumeRole",
        "AssumeRoleWithSAML",
        "AssumeRoleWithWebIdentity",
        "CreateToken",
        "GetRoleCredentials",
        "RegisterClient",
    }
)
_OF_A_SERVICE = ("container-role", "iam-role")
_AWS_BUSY = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException"})


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
        except AsyncaggError:
            raise
        except boto_errors.ClientError as error:
            raise self._response_error(operation, key, error) from error
        except boto_errors.InvalidRegionError as error:  # a ValueError, too
            raise configuration_error(error) from error
        except _TRANSIENT as error:
            raise self._network_error(operation, key, error) from error
        except _CREDENTIALS as error:
            raise self._credentials_error(operation, key, error) from error
        except boto_errors.ParamValidationError as error:
            raise self.error(StoreError, operation, key, str(error)) from error
        except boto_errors.BotoCoreError as error:
            raise configuration_error(error) from error

    def error(
        self, kind: type[AsyncaggError], operation: str, key: str, detail: str
    ) -> AsyncaggError:
        """Return an error of this kind that names the operation, the key and the bucket."""
        return make_error(kind, operation, key, bucket=self.name, detail=detail)

    def _network_error(self, operation: str, key: str, error: Exception) -> AsyncaggError:
        """Return the error for a failed connection: only that of a certificate is not transient."""
        cause = getattr(error, "kwargs", {}).get("error")
        if isinstance(cause, AsyncaggError):
            return cause  # of the CA bundle
        certificate = getattr(cause, "certificate_error", cause)
        if isinstance(certificate, ssl.SSLCertVerificationError):
            endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "the endpoint")
            return ConfigurationError(f"{printable(endpoint)}: {certificate.verify_message}")
        detail = f"{type(error).__name__}: {error}"
        kind = TransientError
        if isinstance(error, _TIMED_OUT) or isinstance(cause, _TIMED_OUT):
            kind = TimedOutError
        elif isinstance(error, _CONNECTION_LOST) or isinstance(cause, _CONNECTION_LOST):
            kind = ConnectionLostError
        return self.error(kind, operation, key, detail)

    def _credentials_error(self, operation: str, key: str, error: Exception) -> AsyncaggError:
        """Return the error for credentials that are missing, or whose service does not respond."""
        if getattr(error, "kwargs", {}).get("provider") in _OF_A_SERVICE:
            return self.error(TransientError, operation, key, f"credentials: {error}")
        return ConfigurationError(f"credentials: {printable(str(error))}; {CREDENTIALS_ADVICE}")

    def _response_error(
        self, operation: str, key: str, error: boto_errors.ClientError
    ) -> AsyncaggError:
        content = error.response.get("Error", {})
        metadata = error.response.get("ResponseMetadata", {})
        status = metadata.get("HTTPStatusCode", 0)
        code = str(content.get("Code", ""))
        if is_for_credentials(error) and status < 500 and code not in _AWS_BUSY:
            return self._credentials_error(operation, key, error)
        region = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        return s3_error(
            operation,
            key,
            bucket=self.name,
            status=status,
            code="" if code.isdigit() else code,  # botocore's code for a HEAD is the status
            message=content.get("Message", ""),
            region=region or content.get("Region", ""),
        )


def is_for_credentials(error: boto_errors.ClientError) -> bool:
    """Whether the request that failed was one for credentials, rather than one of the caller."""
    return error.operation_name in _FOR_CREDENTIALS


def configuration_error(error: Exception) -> ConfigurationError:
    """Return the error for what boto rejects in its environment: a profile, a region, an option."""
    if isinstance(error, (boto_errors.InvalidRegionError, boto_errors.NoRegionError)):
        return ConfigurationError(
            f"AWS_DEFAULT_REGION: {str(error).rstrip('.')}; expected a region such as eu-west-1"
        )
    if isinstance(error, boto_errors.ProfileNotFound):
        return ConfigurationError(f"AWS_PROFILE: {error}; expected one of the AWS configuration")
    return ConfigurationError(
        f"the AWS environment (AWS_... and the files in ~/.aws): {printable(str(error))}"
    )


def class_parameters(storage_class: StorageClass, key: str) -> dict[str, str]:
    """Return the parameters of a write for its storage class."""
    name = storage_class.of(key)
    return {"StorageClass": name} if name else {}


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
