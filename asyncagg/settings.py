"""Every setting, declared once: its name, type, range, default, unit and description.

The environment variables (``ASYNCAGG_*``), the options of the command line and the tables in the
documentation are made from this declaration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from asyncagg.errors import UsageError
from asyncagg.windows import MINUTES_A_DAY, WindowBy

ENV_PREFIX = "ASYNCAGG_"
ENV_BUCKET = "SAM_MATCHING_OUT_RUNS_BUCKET"
"""The matching service's own variable; it names the bucket if ``ASYNCAGG_STORE`` is not set."""

STORAGE_CLASSES = (
    "",
    "STANDARD",
    "INTELLIGENT_TIERING",
    "STANDARD_IA",
    "ONEZONE_IA",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
)
"""S3's storage classes. What is in GLACIER or DEEP_ARCHIVE has to be restored before it is read."""

_MIB = 1024 * 1024


def _text(description: str) -> Meta:
    return Meta(description=description)


def _number(description: str, unit: str, least: int | None = None, most: int | None = None) -> Meta:
    return Meta(ge=least, le=most, description=description, extra={"unit": unit})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a run: immutable, and checked as a whole by `settings_from`.

    Attributes:
        explicit: The names of the settings that were given. A store's record decides the others.
    """

    store: Annotated[str, _text("Where the objects are: s3://bucket[/prefix] or a directory.")] = ""
    endpoint_url: Annotated[
        str, _text("An S3 server other than AWS, such as http://127.0.0.1:5000.")
    ] = ""
    runs_prefix: Annotated[str, _text("Where run files arrive: the inbox.")] = "runs/"
    aggregate_prefix: Annotated[str, _text("Where aggregates are written.")] = "aggregates/"
    archive_prefix: Annotated[str, _text("Where counted run files are moved to.")] = "archive/"
    archive_format: Annotated[
        Literal["files", "packs"],
        _text("How counted files are archived: an object each, or many in one ZIP."),
    ] = "files"
    archive_storage_class: Annotated[
        str,
        _text("S3's storage class of archived files and packs; empty for the bucket's default."),
    ] = ""
    sse: Annotated[
        Literal["", "AES256", "aws:kms", "aws:kms:dsse"],
        _text("Encryption that each write asks S3 for; empty for the bucket's default."),
    ] = ""
    sse_kms_key_id: Annotated[
        str, _text("The KMS key of sse=aws:kms: an ARN or an id; empty for AWS's own key.")
    ] = ""
    sse_bucket_key: Annotated[
        Literal["", "on", "off"],
        _text("Whether sse=aws:kms uses a bucket key; empty for the bucket's default."),
    ] = ""
    expected_bucket_owner: Annotated[
        str, _text("The account that must own the bucket: S3 refuses all requests otherwise.")
    ] = ""
    request_payer: Annotated[
        Literal["", "requester"], _text("requester pays for the requests to such a bucket.")
    ] = ""
    quarantine_prefix: Annotated[
        str, _text("Where run files are moved to that can never be counted.")
    ] = "quarantine/"
    rollup_prefix: Annotated[str, _text("Where rollups are written.")] = "rollups/"
    work_prefix: Annotated[
        str, _text("Where a backfill keeps partial aggregates while it runs.")
    ] = "work/"
    window_minutes: Annotated[
        int, _number("Length of a window; it must divide a day.", "minutes", 1, MINUTES_A_DAY)
    ] = 5
    window_by: Annotated[
        WindowBy,
        _text("What decides a file's window: the time stamp in its name, or the store's clock."),
    ] = "name"
    concurrency: Annotated[
        int,
        _number(
            "Requests in flight: more are faster where latency binds, but cost more CPU.",
            "requests",
            1,
            1024,
        ),
    ] = 32
    chunk_files: Annotated[
        int,
        _number("Run files held at a time; a commit may have ten times more.", "files", 1, 10**6),
    ] = 10_000
    max_inflight_bytes: Annotated[
        int, _number("Bytes of file contents in memory at a time.", "bytes", 1024)
    ] = 16 * _MIB
    stream_bytes: Annotated[
        int, _number("A larger run file is parsed as a stream.", "bytes", 1024)
    ] = 4 * _MIB
    max_file_bytes: Annotated[
        int, _number("A larger run file, as stored or unzipped, is quarantined.", "bytes", 1)
    ] = 256 * _MIB
    spool_bytes: Annotated[
        int, _number("Rows of an aggregate in memory, before a temporary file is used.", "bytes", 0)
    ] = _MIB
    max_seconds: Annotated[
        float | None,
        Meta(
            description="Time for the whole run; it stops taking work early enough to finish.",
            extra={"unit": "seconds", "least": 1},
        ),
    ] = None
    conditional_writes: Annotated[
        Literal["required", "off"],
        _text("off accepts a store without conditional writes: docs/explanation/guarantees.md."),
    ] = "required"
    data_plane: Annotated[
        Literal["lean", "boto"],
        _text("The client for the requests per file: lean is built in, boto is aioboto3."),
    ] = "lean"
    retry_attempts: Annotated[
        int, _number("Attempts of one request, the first included.", "tries", 1, 50)
    ] = 8
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _text("The lowest level that is logged; debug logs a line per file."),
    ] = "info"
    explicit: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check what depends on more than one setting, or on more than a range.

        Raises:
            UsageError: A setting's value is not accepted; the message names it.
        """
        if MINUTES_A_DAY % self.window_minutes:
            raise self._error(
                "window_minutes",
                f"expected a whole number from 1 to {MINUTES_A_DAY} that divides {MINUTES_A_DAY}, "
                "such as 5, 15 or 60",
            )
        if self.store.startswith("s3:") and not self.store.startswith("s3://"):
            raise self._error("store", "expected s3://bucket[/prefix] or a directory")
        if self.max_seconds is not None and not self.max_seconds >= 1:
            raise self._error("max_seconds", "expected a number from 1")
        if self.archive_storage_class not in STORAGE_CLASSES:
            accepted = ", ".join(filter(None, STORAGE_CLASSES))
            raise self._error("archive_storage_class", f"expected one of {accepted}")
        self._check_encryption()
        if not re.fullmatch("([0-9]{12})?", self.expected_bucket_owner):
            raise self._error("expected_bucket_owner", "expected an account's 12 digits")
        self._check_prefixes()
        changed = (each.name for each in all_settings() if getattr(self, each.name) != each.default)
        msgspec.structs.force_setattr(self, "explicit", self.explicit.union(changed))

    def _check_encryption(self) -> None:
        if self.sse_kms_key_id and not self.sse.startswith("aws:kms"):
            raise self._error("sse_kms_key_id", "expected only with sse=aws:kms or aws:kms:dsse")
        if self.sse_bucket_key and self.sse != "aws:kms":
            raise self._error("sse_bucket_key", "expected only with sse=aws:kms")

    def _check_prefixes(self) -> None:
        prefixes = {
            name: getattr(self, name) for name in self.__struct_fields__ if name.endswith("_prefix")
        }
        for name, prefix in prefixes.items():
            if prefix and (not prefix.endswith("/") or prefix.startswith("/")):
                raise self._error(
                    name,
                    "expected an empty prefix, or one that ends with / and does not start with /, "
                    "such as runs/",
                )
        # A file that is moved into one of these must not be listed under another prefix.
        closed = ("archive_prefix", "quarantine_prefix", "rollup_prefix", "work_prefix")
        for inner, outer in product(prefixes, closed):
            if inner != outer and prefixes[inner].startswith(prefixes[outer]):
                raise UsageError(
                    f"{inner} {prefixes[inner]!r} lies in {outer} {prefixes[outer]!r}: "
                    "expected a prefix outside of it",
                    setting=inner,
                )

    def _error(self, name: str, expected: str) -> UsageError:
        return UsageError(f"{name} {getattr(self, name)!r}: {expected}", setting=name)


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting: its name, type, range and description, and its default."""

    name: str
    kind: Any
    meta: Meta
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"{ENV_PREFIX}{self.name.upper()}"

    @property
    def option(self) -> str:
        """The option of the command line that sets it."""
        return "--" + self.name.replace("_", "-")

    @property
    def description(self) -> str:
        """What it is for, in one sentence."""
        return self.meta.description or ""

    @property
    def unit(self) -> str:
        """Its unit, or empty."""
        return str((self.meta.extra or {}).get("unit", ""))

    @property
    def accepted(self) -> str:
        """The values that it accepts, in words."""
        if get_origin(self.kind) is Literal:
            return " or ".join(filter(None, get_args(self.kind)))
        if self.kind is str:
            return "text"
        least = (self.meta.extra or {}).get("least", self.meta.ge)
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {least}" + (f" to {self.meta.le}" if self.meta.le is not None else "")

    def convert(self, value: Any) -> Any:
        """Return a value of its type.

        Raises:
            UsageError: The value is not accepted.
        """
        try:
            return msgspec.convert(value, Annotated[self.kind, self.meta], strict=False)
        except msgspec.ValidationError:
            raise UsageError(
                f"{self.name} {value!r}: expected {self.accepted}", setting=self.name
            ) from None


@cache
def all_settings() -> tuple[Setting, ...]:
    """Return every setting, in the order of their declaration."""
    hints = get_type_hints(Settings, include_extras=True)
    return tuple(
        Setting(field.name, kind, meta, field.default)
        for field in msgspec.structs.fields(Settings)
        if field.name != "explicit"
        for kind, meta in [get_args(hints[field.name])[:2]]
    )


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return the settings with these values, by name; a number may be given as text.

    Raises:
        UsageError: A name or a value is not accepted; the message says what is.
    """
    known = {setting.name: setting for setting in all_settings()}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(
            f"setting {', '.join(map(repr, unknown))}: expected one of {', '.join(known)}",
            setting=unknown[0],
        )
    converted = {name: known[name].convert(value) for name, value in values.items()}
    return Settings(**converted, explicit=frozenset(values))


def from_environment(environ: Mapping[str, str], **given: Any) -> Settings:
    """Return the settings of the environment; values that are ``given`` and not None win.

    Raises:
        UsageError: A value is not accepted.
    """
    values: dict[str, Any] = {}
    if bucket := environ.get(ENV_BUCKET):
        values["store"] = f"s3://{bucket}"
    for setting in all_settings():
        if (text := environ.get(setting.variable)) is not None:
            values[setting.name] = text
    values.update({name: value for name, value in given.items() if value is not None})
    try:
        return settings_from(values)
    except UsageError as error:
        variable = f"{ENV_PREFIX}{error.setting.upper()}"
        if variable not in environ or given.get(error.setting) is not None:
            raise
        raise UsageError(f"{error}; it comes from {variable}", setting=error.setting) from None


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables that are named like a setting but are not one."""
    known = {setting.variable for setting in all_settings()}
    yield from (name for name in environ if name.startswith(ENV_PREFIX) and name not in known)
