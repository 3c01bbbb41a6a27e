"""Checks of a bucket and the way to it: credentials, endpoint, clock, region, configuration."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import ByteStream

from asyncagg.doctor.checks import CheckResult, Examination
from asyncagg.settings import Settings
from asyncagg.store.s3.boto import Control, S3Response
from asyncagg.store.s3.http import Endpoint, tls_context
from asyncagg.store.s3.text import in_utc, printable

_ACCEPTED_SKEW = timedelta(minutes=15)
"""S3 rejects signatures of clocks that are further off."""

_NOTICED_SKEW = timedelta(minutes=1)
_CONNECT_SECONDS = 10.0
_BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_ELSEWHERE = frozenset({"301", "307", "AuthorizationHeaderMalformed", "PermanentRedirect"})


@dataclass(frozen=True, slots=True)
class S3Checks:
    """Checks of one bucket. ``root`` is the prefix of the store."""

    control: Control
    bucket: str
    root: str
    settings: Settings
    now: Callable[[], datetime]

    async def check_access(self, exam: Examination) -> None:
        """Run the checks that all others need; the last is ``bucket``."""
        await exam.check("credentials", self._credentials)
        await exam.check("endpoint", self._endpoint, needs=["credentials"])
        if not exam.passed("endpoint"):
            reason = "needs endpoint, which did not pass"
            exam.skip(reason, "accepted", "clock", "region", "bucket")
            return
        responses: list[tuple[S3Response, datetime]] = []

        async def accepted() -> CheckResult:
            prefix = self.root + self.settings.runs_prefix
            response = await self._ask("list_objects_v2", Prefix=prefix, MaxKeys=1)
            responses.append((response, self.now()))
            return _accepted(response)

        await exam.check("accepted", accepted)
        if not responses:
            exam.skip("the server did not respond", "clock", "region", "bucket")
            return
        [(response, received_at)] = responses
        exam.results |= {
            "clock": _clock(response, received_at),
            "region": _region(response, self.control.region),
            "bucket": self._exists(response),
        }

    async def check_configuration(self, exam: Examination) -> None:
        """Check the configuration of the bucket, as far as it may be read."""
        await exam.check("versioning", self._versioning)
        await exam.check("lifecycle", self._lifecycle)

    def request_for(self, action: str, key: str) -> Callable[[], Awaitable[S3Response]] | None:
        """Return a request for a key that does not exist, which needs this action's permission.

        None for an action that a method of `Store` needs.
        """
        match action:
            case "s3:AbortMultipartUpload":
                return lambda: self._ask("abort_multipart_upload", Key=key, UploadId="none")
            case "s3:GetObjectTagging":
                return lambda: self._ask("get_object_tagging", Key=key)
            case "s3:PutObjectTagging":
                return lambda: self._ask("put_object_tagging", Key=key, Tagging={"TagSet": []})
        return None

    async def _ask(self, operation: str, **parameters: Any) -> S3Response:
        if "Key" in parameters:
            parameters["Key"] = self.root + parameters["Key"]
        return await self.control.ask(operation, bucket=self.bucket, **parameters)

    async def _credentials(self) -> CheckResult:
        found = await self.control.identity()
        if found is None:
            return CheckResult(
                "fail",
                "none found",
                "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the "
                "machine a role",
            )
        access_key, source = found
        return CheckResult("ok", f"access key ...{access_key[-4:]}, from {source}")

    async def _endpoint(self) -> CheckResult:
        server = (await self.control.locate(self.bucket)).server
        if proxy := self.control.proxy:
            return CheckResult("ok", f"{server}, through the proxy {proxy}")
        where = f"{server.host}:{server.port}"
        try:
            addresses = {each[4] for each in await anyio.getaddrinfo(server.host, server.port)}
        except OSError as error:
            return CheckResult(
                "fail",
                f"{server.host}: the host name cannot be resolved ({error})",
                "check the endpoint, the region and this machine's DNS",
            )
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                await self._connect(server)
        except ssl.SSLError as error:
            return CheckResult(
                "fail",
                f"{where}: the certificate is not trusted ({error})",
                "set AWS_CA_BUNDLE to the file of its authority, or correct the endpoint's name",
            )
        except (OSError, anyio.BrokenResourceError) as error:  # includes a timeout
            detail = str(error) or f"no answer within {_CONNECT_SECONDS:g} seconds"
            return CheckResult(
                "fail",
                f"{where}: cannot connect ({detail})",
                "check the firewalls, security groups, routes and VPC endpoints on the way",
            )
        kind = "TLS with a trusted certificate" if server.tls else "no TLS"
        count = f"{len(addresses)} address{'' if len(addresses) == 1 else 'es'}"
        return CheckResult("ok", f"{where}, {count}, {kind}")

    async def _connect(self, server: Endpoint) -> None:
        if server.tls:
            tls = await to_thread.run_sync(tls_context, self.control.ca_bundle)
            stream: ByteStream = await anyio.connect_tcp(
                server.host, server.port, ssl_context=tls, tls_standard_compatible=False
            )
        else:
            stream = await anyio.connect_tcp(server.host, server.port)
        await stream.aclose()

    def _exists(self, response: S3Response) -> CheckResult:
        owner = self.settings.expected_bucket_owner
        if owner and response.code == "AccessDenied":
            detail = f"denied: {response.message}"
            advice = f"check that the account {owner} (expected_bucket_owner) owns the bucket"
            return CheckResult("warn", detail, advice)
        if response.status < 300 or response.code == "AccessDenied":
            return CheckResult("ok", f"{self.bucket} exists")
        if response.code == "NoSuchBucket":
            advice = "create it, or correct the store's URL"
            return CheckResult("fail", f"there is no bucket {self.bucket!r}", advice)
        return CheckResult("fail", f"{response.status} {response.code}: {response.message}")

    async def _versioning(self) -> CheckResult:
        response = await self._ask("get_bucket_versioning")
        if response.status >= 300:
            return _not_readable(response)
        if response.content.get("Status") == "Enabled":
            detail = (
                "on: deleted run files remain as old versions until a lifecycle rule expires them"
            )
            return CheckResult("ok", detail)
        return CheckResult("ok", "off: a run file that its producer overwrites is lost")

    async def _lifecycle(self) -> CheckResult:
        response = await self._ask("get_bucket_lifecycle_configuration")
        if response.code == "NoSuchLifecycleConfiguration":
            return CheckResult("ok", "no rules")
        if response.status >= 300:
            return _not_readable(response)
        rules = response.content.get("Rules", ())
        expired = tuple(_expired_prefixes(rules))
        harmful = sorted(
            whole
            for prefix in {self.settings.runs_prefix, self.settings.aggregate_prefix}
            for whole in [self.root + prefix]
            if any(whole.startswith(each) or each.startswith(whole) for each in expired)
        )
        if harmful:
            return CheckResult(
                "warn",
                f"a rule expires objects below {', '.join(harmful)}",
                "exclude both prefixes from the rule: a run file that expires before it is counted "
                "is lost, and an aggregate that expires is forgotten",
            )
        return CheckResult("ok", f"{len(rules)} rules, none expires run files or aggregates")


def _not_readable(response: S3Response) -> CheckResult:
    detail = f"not needed, and not readable: {response.status} {response.code}"
    return CheckResult("skipped", detail)


def _accepted(response: S3Response) -> CheckResult:
    if response.code in _BAD_CREDENTIALS:
        detail = f"the server rejects the credentials: {response.code}: {response.message}"
        advice = "renew them" if "Token" in response.code else "correct the key and the secret"
        return CheckResult("fail", detail, advice)
    return CheckResult("ok", "the server accepts the credentials")


def _clock(response: S3Response, received_at: datetime) -> CheckResult:
    try:
        date = in_utc(parsedate_to_datetime(response.headers.get("date", "")))
    except ValueError:
        return CheckResult("skipped", "the server does not send its time")
    skew = received_at - date
    seconds = skew.total_seconds()
    detail = f"{abs(seconds):.0f} seconds {'ahead of' if seconds > 0 else 'behind'} the server's"
    advice = "set this machine's clock by NTP"
    if response.code == "RequestTimeTooSkewed" or abs(skew) >= _ACCEPTED_SKEW:
        return CheckResult("fail", f"{detail}; S3 accepts up to 15 minutes", advice)
    if abs(skew) >= _NOTICED_SKEW:
        return CheckResult("warn", detail, advice)
    return CheckResult("ok", detail)


def _region(response: S3Response, given: str) -> CheckResult:
    in_error = response.content.get("Error", {}).get("Region", "")
    actual = printable(response.headers.get("x-amz-bucket-region") or in_error)
    configured = given or "none is set, so us-east-1"
    if response.code in _ELSEWHERE:
        where = actual or "another region"
        return CheckResult(
            "fail", f"{configured}; the bucket is in {where}", f"set AWS_DEFAULT_REGION={where}"
        )
    if not actual:
        return CheckResult("ok", f"{configured}; the server does not report the bucket's region")
    if actual != (given or "us-east-1"):
        return CheckResult(
            "warn",
            f"{configured}; the bucket is in {actual}: each start costs one more request",
            f"set AWS_DEFAULT_REGION={actual}",
        )
    return CheckResult("ok", f"{configured}, the same as the bucket's")


def _expired_prefixes(rules: Any) -> Iterator[str]:
    """Yield the prefixes of the rules that expire objects; a rule with only tags has none."""
    for rule in rules:
        if rule.get("Status") != "Enabled" or "Expiration" not in rule:
            continue
        chosen = rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}
        chosen = chosen.get("And", chosen)
        if "Prefix" in chosen:
            yield chosen["Prefix"]
