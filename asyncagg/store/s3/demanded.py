"""The headers that a bucket may demand: encryption of writes, its owner, and who pays.

Which operations take which of them is in the API reference, and in botocore's model:
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from asyncagg.settings import Settings

_ENCRYPTION = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "BucketKeyEnabled": "x-amz-server-side-encryption-bucket-key-enabled",
}
_SOURCE = {"ExpectedSourceBucketOwner": "x-amz-source-expected-bucket-owner"}
_EVERY = {
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
    "RequestPayer": "x-amz-request-payer",
}


class Demanded(NamedTuple):
    """The headers by the requests that they belong to.

    Attributes:
        every: Those of every request.
        puts: Those of a PutObject.
        copies: Those of a CopyObject.
    """

    every: Mapping[str, str] = {}
    puts: Mapping[str, str] = {}
    copies: Mapping[str, str] = {}


NOTHING = Demanded()
"""A bucket that demands no headers."""


def demanded_parameters(settings: Settings) -> dict[str, str]:
    """Return what the settings demand, by the names of botocore's parameters."""
    values = {
        "ServerSideEncryption": settings.sse,
        "SSEKMSKeyId": settings.sse_kms_key_id,
        "BucketKeyEnabled": {"on": "true", "off": "false"}.get(settings.sse_bucket_key, ""),
        "ExpectedBucketOwner": settings.expected_bucket_owner,
        "ExpectedSourceBucketOwner": settings.expected_bucket_owner,
        "RequestPayer": settings.request_payer,
    }
    return {name: value for name, value in values.items() if value}


def demanded_headers(settings: Settings) -> Demanded:
    """Return what the settings demand, as headers."""
    values = demanded_parameters(settings)

    def headers(names: Mapping[str, str]) -> dict[str, str]:
        return {header: values[name] for name, header in names.items() if name in values}

    return Demanded(headers(_EVERY), headers(_ENCRYPTION), headers(_ENCRYPTION | _SOURCE))
