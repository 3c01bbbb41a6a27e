"""What only S3 can answer about itself: credentials, region, endpoint, clock, bucket, hints."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import ByteStream

from asyncagg.doctor.checks import CheckResult, Examination
from asyncagg.settings import Settings
from asyncagg.store.s3.boto import Answer, Control, Location
from asyncagg.store.s3.http import tls_context

__all__ = ("ACCEPTED_SKEW", "S3Checks")

ACCEPTED_SKEW = timedelta(minutes=15)
"""How far a clock may be off before S3 refuses its signatures."""

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
_FIND = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
)


@dataclass(frozen=True, slots=True)
class S3Checks:
    """Checks of one bucket.

    Attributes:
        control: Who knows credentials, regions and endpoints.
        bucket: The bucket.
        root: What all keys of the store start with.
        settings: The prefixes.
        environ: The environment, for ``AWS_CA_BUNDLE``.
        now: The clock of this machine.
    """

    control: Control
    bucket: str
    root: str
    settings: Settings
    environ: Mapping[str, str]
    now: Callable[[], datetime]

    async def diagnose(self, exam: Examination) -> None:
        """Run the checks whose passing all others need; the last is ``bucket``."""
        await exam.check("credentials", self._credentials)
        await exam.check("endpoint", self._endpoint, needs=["credentials"])
        if not exam.passed("endpoint"):
            for name in ("accepted", "clock", "region", "bucket"):
                exam.skip(name, "needs endpoint, which did not pass")
            return
        answers: list[tuple[Answer, datetime]] = []

        async def accepted() -> CheckResult:
            prefix = self.root + self.settings.runs_prefix
            answer = await self._ask("list_objects_v2", Prefix=prefix, MaxKeys=1)
            answers.append((answer, self.now()))
            return _accepted(answer)

        await exam.check("accepted", accepted)
        judges: dict[str, Callable[[Answer, datetime], CheckResult]] = {
            "clock": _clock,
            "region": lambda answer, _: self._region(answer),
            "bucket": lambda answer, _: self._bucket(answer),
        }
        for name, judge in judges.items():
            if answers:
                exam.add(name, judge(*answers[0]))
            else:
                exam.skip(name, "there was no answer")

    async def hints(self, exam: Examination) -> None:
        """Look at how the bucket is set up, where that is permitted."""
        await exam.check("versioning", self._versioning)
        await exam.check("lifecycle", self._lifecycle)

    def question(self, action: str, key: str) -> Callable[[], Awaitable[Answer]] | None:
        """Return a request on a key that does not exist, which only an action's grant lets pass.

        None where the action is one that a `Store` can be asked for.
        """
        match action:
            case "s3:AbortMultipartUpload":
                return lambda: self._ask("abort_multipart_upload", Key=key, UploadId="none")
            case "s3:GetObjectTagging":
                return lambda: self._ask("get_object_tagging", Key=key)
            case "s3:PutObjectTagging":
                return lambda: self._ask("put_object_tagging", Key=key, Tagging={"TagSet": []})
        return None

    async def _ask(self, operation: str, **parameters: Any) -> Answer:
        if "Key" in parameters:
            parameters["Key"] = self.root + parameters["Key"]
        return await self.control.ask(operation, bucket=self.bucket, **parameters)

    async def _credentials(self) -> CheckResult:
        found = await self.control.identity()
        if found is None:
            return CheckResult("fail", "none found", _FIND)
        return CheckResult("ok", f"those that end with {found.access_key[-4:]}, of {found.source}")

    async def _endpoint(self) -> CheckResult:
        at = await self.control.locate(self.bucket)
        host = at.host if at.path_style else f"{self.bucket}.{at.host}"
        try:
            addresses = await anyio.getaddrinfo(host, at.port)
        except OSError as error:
            return CheckResult(
                "fail",
                f"{host}: its name is not known ({error})",
                "look at the endpoint's and the region's name, and at this machine's DNS",
            )
        return await self._connected(at, host, len({each[4] for each in addresses}))

    async def _connected(self, at: Location, host: str, addresses: int) -> CheckResult:
        where = f"{host}:{at.port}"
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                await self._connect(at, host)
        except ssl.SSLError as error:
            return CheckResult(
                "fail",
                f"{where}: its certificate is not trusted ({error})",
                "set AWS_CA_BUNDLE to the file of its authority, or correct the endpoint's name",
            )
        except (OSError, anyio.BrokenResourceError) as error:  # a timeout among them
            told = str(error) or f"no answer within {_CONNECT_SECONDS:g} seconds"
            return CheckResult(
                "fail",
                f"{where}: not reached ({told})",
                "look at firewalls, security groups, routes and VPC endpoints on the way",
            )
        kind = "TLS, its certificate verified" if at.tls else "no TLS"
        return CheckResult("ok", f"{where}, {addresses} addresses, {kind}")

    async def _connect(self, at: Location, host: str) -> None:
        if at.tls:
            tls = await to_thread.run_sync(tls_context, self.environ.get("AWS_CA_BUNDLE"))
            stream: ByteStream = await anyio.connect_tcp(
                host, at.port, tls=True, ssl_context=tls, tls_standard_compatible=False
            )
        else:
            stream = await anyio.connect_tcp(host, at.port)
        await stream.aclose()

    def _region(self, answer: Answer) -> CheckResult:
        told = answer.content.get("Error", {}).get("Region", "")
        true = answer.headers.get("x-amz-bucket-region") or told
        given = self.control.region
        used = given or "us-east-1"
        named = given or "none given: us-east-1"
        if answer.code in _ELSEWHERE:
            where = true or "another region"
            return CheckResult(
                "fail", f"{named}; the bucket is in {where}", f"set AWS_REGION={where}"
            )
        if not true:
            return CheckResult("ok", f"{named}; the server does not say where the bucket is")
        if true != used:
            return CheckResult(
                "warn",
                f"{named}; the bucket is in {true}: each start costs a request more",
                f"set AWS_REGION={true}",
            )
        return CheckResult("ok", f"{named}, as the bucket's")

    def _bucket(self, answer: Answer) -> CheckResult:
        if answer.status < 300 or answer.code == "AccessDenied":
            return CheckResult("ok", f"{self.bucket} is there")
        if answer.code == "NoSuchBucket":
            advice = "create it, or correct the store's name"
            return CheckResult("fail", f"there is no bucket {self.bucket!r}", advice)
        return CheckResult("fail", f"{answer.status} {answer.code}: {answer.message}")

    async def _versioning(self) -> CheckResult:
        answer = await self._ask("get_bucket_versioning")
        if answer.status >= 300:
            return CheckResult("skipped", f"only a hint: {answer.status} {answer.code}")
        if answer.content.get("Status") == "Enabled":
            told = "on: deleted run files stay as old versions until a lifecycle rule expires them"
            return CheckResult("ok", told)
        return CheckResult("ok", "off: a run file that its producer overwrites is gone")

    async def _lifecycle(self) -> CheckResult:
        answer = await self._ask("get_bucket_lifecycle_configuration")
        if answer.code == "NoSuchLifecycleConfiguration":
            return CheckResult("ok", "no rules")
        if answer.status >= 300:
            return CheckResult("skipped", f"only a hint: {answer.status} {answer.code}")
        kept = {self.settings.runs_prefix, self.settings.aggregate_prefix}
        rules = answer.content.get("Rules", ())
        harmful = sorted(
            f"{self.root}{prefix}"
            for prefix in kept
            if any(_meet(prefix, expired, self.root) for expired in _expiring(rules))
        )
        if harmful:
            return CheckResult(
                "warn",
                f"a rule expires objects below {', '.join(harmful)}",
                "a run file that expires before it is counted is lost, and an aggregate that "
                "expires is forgotten: leave both prefixes out of the rule",
            )
        return CheckResult("ok", f"{len(rules)} rules, none expires run files or aggregates")


def _accepted(answer: Answer) -> CheckResult:
    if answer.code in _BAD_CREDENTIALS:
        told = f"the server refuses them: {answer.code}: {answer.message}"
        advice = "renew them" if "Token" in answer.code else "correct key and secret"
        return CheckResult("fail", told, advice)
    return CheckResult("ok", "the server takes them")


def _clock(answer: Answer, now: datetime) -> CheckResult:
    try:
        date = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return CheckResult("skipped", "the server does not tell its time")
    skew = now - date
    seconds = skew.total_seconds()
    told = f"{abs(seconds):.0f} seconds {'ahead of' if seconds > 0 else 'behind'} the server's"
    advice = "set this machine's clock by NTP"
    if answer.code == "RequestTimeTooSkewed" or abs(skew) >= ACCEPTED_SKEW:
        return CheckResult("fail", f"{told}; accepted are 15 minutes", advice)
    return (
        CheckResult("warn", told, advice) if abs(skew) >= _NOTICED_SKEW else CheckResult("ok", told)
    )


def _expiring(rules: Any) -> Iterator[str]:
    """Yield the prefixes of the rules that expire objects; one that goes by tag alone has none."""
    for rule in rules:
        if rule.get("Status") != "Enabled" or "Expiration" not in rule:
            continue
        chosen = rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}
        chosen = chosen.get("And", chosen)
        if "Prefix" in chosen:
            yield chosen["Prefix"]


def _meet(prefix: str, expired: str, root: str) -> bool:
    whole = root + prefix
    return whole.startswith(expired) or expired.startswith(whole)
