"""Signatures are those of AWS's published examples and of botocore's signer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncagg.errors import UsageError
from asyncagg.store.s3.http import Endpoint
from asyncagg.store.s3.sigv4 import (
    Credentials,
    S3Request,
    Signer,
    canonical_query,
    encode_path,
)

# The examples of https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
AWS_EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AWS_MOMENT = datetime(2013, 5, 24, tzinfo=UTC).timestamp()
AWS_HOST = "examplebucket.s3.amazonaws.com"
PUT_HEADERS = {
    "date": "Fri, 24 May 2013 00:00:00 GMT",
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
}


def parsed(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the request line, and the values of the headers by name."""
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    headers = {name: value for name, _, value in pairs}
    assert len(headers) == len(lines)
    return first, headers


@pytest.mark.parametrize(
    ("method", "key", "parameters", "headers", "body", "signature"),
    [
        pytest.param(
            "GET",
            "test.txt",
            [],
            {"range": "bytes=0-9"},
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            id="get-object",
        ),
        pytest.param(
            "PUT",
            "test$file.text",
            [],
            PUT_HEADERS,
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            id="put-object",
        ),
        pytest.param(
            "GET",
            "",
            [("lifecycle", "")],
            {},
            b"",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            id="get-bucket-lifecycle",
        ),
        pytest.param(
            "GET",
            "",
            [("prefix", "J"), ("max-keys", "2")],
            {},
            b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            id="list-objects",
        ),
    ],
)
def test_signs_as_the_examples_that_aws_published(
    *,
    method: str,
    key: str,
    parameters: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
    signature: str,
) -> None:
    """Each published request gets the published signature."""
    path, query = f"/{encode_path(key)}", canonical_query(parameters)
    request = S3Request("", key, method, path, headers, query, body)
    signed = Signer(AWS_HOST, "us-east-1").sign(request, AWS_EXAMPLE, AWS_MOMENT)
    names = ";".join(sorted({"host", *headers, "x-amz-content-sha256", "x-amz-date"}))
    _, sent = parsed(signed)
    assert sent["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )


ODD_KEYS = ["", "a b+c%20d", "../..//./x", "//", "é€😀", "~!@#$^&*()_+={}[]|:;\"'<>,.?", "\x01\n\r"]
# Headers that botocore sets itself or leaves out of the signature.
NOT_CHOSEN = frozenset(
    {
        "authorization",
        "date",
        "expect",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token",
        "x-amzn-trace-id",
    }
)
keys = st.sampled_from(ODD_KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
header_names = st.from_regex(r"(x-amz-meta-|x-amz-|if-)?[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\t"))
header_maps = st.dictionaries(
    header_names.filter(lambda name: name not in NOT_CHOSEN), header_values, max_size=8
)
parameter_lists = st.lists(st.tuples(keys, keys), max_size=6)
all_credentials = st.builds(
    Credentials,
    st.from_regex(r"AKIA[A-Z0-9]{16}", fullmatch=True),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60),
    st.just("") | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=900),
)
endpoints = st.builds(
    Endpoint,
    st.sampled_from(["s3.eu-west-3.amazonaws.com", "127.0.0.1", "localhost", "::1"]),
    st.sampled_from([80, 443, 9000]),
    st.booleans(),
)
moments = st.integers(min_value=0, max_value=4_000_000_000)


def signed_by_botocore(
    *,
    credentials: Credentials,
    moment: float,
    endpoint: Endpoint,
    method: str,
    key: str,
    parameters: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
) -> Any:
    """Return the headers of the same request, signed by botocore."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    url = f"{'https' if endpoint.tls else 'http'}://{host}:{endpoint.port}"
    request = AWSRequest(
        method, f"{url}/{quote(key, safe='/~')}", headers, params=parameters, data=body
    )
    request.context["timestamp"] = f"{datetime.fromtimestamp(moment, UTC):%Y%m%dT%H%M%SZ}"
    auth = S3SigV4Auth(
        BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.token),
        "s3",
        "eu-west-3",
    )
    # These are the steps of add_auth, which takes the time from the wall clock.
    auth._modify_request_before_signing(request)
    to_sign = auth.string_to_sign(request, auth.canonical_request(request))
    auth._inject_signature_to_request(request, auth.signature(to_sign, request))
    return request.headers


@settings(max_examples=500, deadline=None)
@given(
    credentials=all_credentials,
    moment=moments,
    endpoint=endpoints,
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    key=keys,
    parameters=parameter_lists,
    headers=header_maps,
    body=st.binary(max_size=100),
)
def test_signs_as_botocore_does(
    *,
    credentials: Credentials,
    moment: float,
    endpoint: Endpoint,
    method: str,
    key: str,
    parameters: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
) -> None:
    """Any request gets the signature, and the signed headers, that botocore gives it."""
    path, query = f"/{encode_path(key)}", canonical_query(parameters)
    request = S3Request("", key, method, path, headers, query, body)
    first, ours = parsed(Signer(endpoint.authority, "eu-west-3").sign(request, credentials, moment))
    theirs = signed_by_botocore(
        credentials=credentials,
        moment=moment,
        endpoint=endpoint,
        method=method,
        key=key,
        parameters=parameters,
        headers=headers,
        body=body,
    )
    assert first == f"{method} {path}{query and '?'}{query} HTTP/1.1"
    announced = str(len(body)) if body or method in {"PUT", "POST"} else None
    assert ours.pop("content-length", None) == announced
    assert ours.pop("authorization") == theirs["Authorization"]
    assert ours.pop("host") == endpoint.authority
    assert ours == {
        name.lower(): value for name, value in theirs.items() if name != "Authorization"
    }


requests = st.builds(
    S3Request,
    operation=st.just("get"),
    key=st.just("k"),
    method=st.sampled_from(["GET", "PUT"]),
    path=st.sampled_from(["/k", "/%20"]),
    headers=st.sampled_from(
        [
            {},
            {"if-match": "e", "range": "bytes=0-1"},
            {"range": "bytes=0-1", "if-match": "e"},
            {"if-match": "two  spaces", "range": "%s"},
        ]
    ),
    query=st.sampled_from(["", "delete="]),
    body=st.sampled_from([b"", b"1", b"2"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(all_credentials, moments), min_size=1, max_size=3), st.lists(requests))
def test_a_signer_used_before_signs_like_a_new_one(
    uses: list[tuple[Credentials, float]], signed: list[S3Request]
) -> None:
    """What a signer caches for some requests, one second, day or user is not used for others."""
    used = Signer("h", "eu-west-3")
    for credentials, moment in uses:
        for later in (0, 0.9, 1, 86400):
            for request in signed:
                fresh = Signer("h", "eu-west-3").sign(request, credentials, moment + later)
                assert used.sign(request, credentials, moment + later) == fresh


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "é", "a\r", "\ud800"])
def test_a_header_that_would_break_out_of_its_line_is_refused(value: str) -> None:
    """A value cannot add a header to the request."""
    request = S3Request("put", "k", "GET", "/", {"x-amz-meta-a": value})
    with pytest.raises(UsageError, match="x-amz-meta-a"):
        Signer("h", "eu-west-3").sign(request, AWS_EXAMPLE, AWS_MOMENT)


def test_credentials_do_not_show_their_secrets() -> None:
    """Neither ``repr`` nor ``str`` of credentials contains the secret key or the token."""
    shown = f"{Credentials('AKIA', 'the-secret', 'the-token')!r}"
    assert shown == "Credentials(access_key='AKIA')"
