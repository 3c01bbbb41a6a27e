"""Every setting: its name, meaning, default, unit and range, declared once.

From this one declaration come the environment variables (``ASYNCAGG_*``), the options of the
command line and the table in the README.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from asyncagg.errors import UsageError
from asyncagg.windows import MINUTES_A_DAY, WindowBy

__all__ = (
    "ENV_BUCKET",
    "ENV_PREFIX",
    "Setting",
    "Settings",
    "described",
    "from_environment",
    "settings_from",
    "unknown_variables",
)

ENV_PREFIX = "ASYNCAGG_"
ENV_BUCKET = "SAM_MATCHING_OUT_RUNS_BUCKET"
"""Names the bucket where ``ASYNCAGG_STORE`` is not set: the matching service's own variable."""

_MIB = 1024 * 1024


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run needs to know: immutable, and checked as a whole by `settings_from`."""

    store: Annotated[
        str, Meta(description="Where the objects live: s3://bucket[/prefix] or a directory.")
    ] = ""
    endpoint_url: Annotated[
        str, Meta(description="Another S3 server than AWS, such as http://127.0.0.1:5000.")
    ] = ""
    runs_prefix: Annotated[str, Meta(description="Where run files arrive: the inbox.")] = "runs/"
    aggregate_prefix: Annotated[str, Meta(description="Where aggregates are written.")] = (
        "aggregates/"
    )
    archive_prefix: Annotated[str, Meta(description="Where counted run files go.")] = "archive/"
    quarantine_prefix: Annotated[
        str, Meta(description="Where files go that can never be counted.")
    ] = "quarantine/"
    rollup_prefix: Annotated[str, Meta(description="Where rollups are written.")] = "rollups/"
    work_prefix: Annotated[
        str, Meta(description="Where a backfill keeps partial aggregates while it runs.")
    ] = "work/"
    window_minutes: Annotated[
        int,
        Meta(
            ge=1,
            le=MINUTES_A_DAY,
            description="Length of a window; it divides a day.",
            extra={"unit": "minutes"},
        ),
    ] = 5
    window_by: Annotated[
        WindowBy,
        Meta(description="What decides a file's window: the store's clock or the file's name."),
    ] = "last_modified"
    concurrency: Annotated[
        int, Meta(ge=1, le=1024, description="Requests in flight.", extra={"unit": "requests"})
    ] = 32
    chunk_files: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Run files held at a time; a commit may take ten times as many.",
            extra={"unit": "files"},
        ),
    ] = 10_000
    max_inflight_bytes: Annotated[
        int,
        Meta(ge=1024, description="Bytes of bodies in flight.", extra={"unit": "bytes"}),
    ] = 16 * _MIB
    stream_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            description="A run file above this size is parsed as a stream.",
            extra={"unit": "bytes"},
        ),
    ] = 4 * _MIB
    max_file_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="A run file above this size, as stored or unzipped, is quarantined.",
            extra={"unit": "bytes"},
        ),
    ] = 256 * _MIB
    spool_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Rows of an aggregate held in memory before they go to a temporary file.",
            extra={"unit": "bytes"},
        ),
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
        Meta(description="off accepts a store that lacks guards: docs/explanation/guarantees.md."),
    ] = "required"
    data_plane: Annotated[
        Literal["lean", "boto"],
        Meta(description="What sends the requests per file: our own client or aioboto3."),
    ] = "lean"
    retry_attempts: Annotated[
        int,
        Meta(
            ge=1,
            le=50,
            description="Tries of one request, the first included.",
            extra={"unit": "tries"},
        ),
    ] = 8
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The least that is logged; debug has a line per file."),
    ] = "info"

    def __post_init__(self) -> None:
        """Check what spans a setting's own range.

        Raises:
            UsageError: A setting's value is not accepted; the message names it.
        """
        if MINUTES_A_DAY % self.window_minutes:
            raise UsageError(
                f"window_minutes {self.window_minutes!r}: expected a whole number from 1 to "
                f"{MINUTES_A_DAY} that divides {MINUTES_A_DAY}, such as 5, 15 or 60"
            )
        if self.store.startswith("s3:") and not self.store.startswith("s3://"):
            raise UsageError(f"store {self.store!r}: expected s3://bucket[/prefix] or a directory")
        if self.max_seconds is not None and not self.max_seconds >= 1:
            raise UsageError(f"max_seconds {self.max_seconds!r}: expected a number from 1")
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        prefixes = {
            name: getattr(self, name) for name in self.__struct_fields__ if name.endswith("_prefix")
        }
        for name, prefix in prefixes.items():
            if prefix and (not prefix.endswith("/") or prefix.startswith("/")):
                raise UsageError(
                    f"{name} {prefix!r}: expected an empty text, or one that ends with / and does "
                    "not start with it, such as runs/"
                )
        # Whatever moves into these must not come out as something else.
        closed = ("archive_prefix", "quarantine_prefix", "rollup_prefix", "work_prefix")
        for inner, outer in product(prefixes, closed):
            if inner != outer and prefixes[inner].startswith(prefixes[outer]):
                raise UsageError(
                    f"{inner} {prefixes[inner]!r} lies in {outer} {prefixes[outer]!r}: "
                    "expected a prefix outside of it"
                )


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, for whoever shows it.

    Attributes:
        name: Its name in `Settings`.
        kind: The Python type of its value, without annotations.
        default: What holds where nothing is said.
        accepted: What it accepts, in words.
        unit: Its unit, or empty.
        description: What it is for, in one sentence.
    """

    name: str
    kind: Any
    default: Any
    accepted: str
    unit: str
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"{ENV_PREFIX}{self.name.upper()}"

    @property
    def option(self) -> str:
        """The option of the command line that sets it."""
        return "--" + self.name.replace("_", "-")


def described() -> Iterator[Setting]:
    """Yield every setting, in the order of their declaration."""
    hints = get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        kind, meta = get_args(hints[field.name])[:2]
        yield Setting(
            name=field.name,
            kind=kind,
            default=field.default,
            accepted=_accepted(kind, meta),
            unit=(meta.extra or {}).get("unit", ""),
            description=meta.description or "",
        )


def _accepted(kind: Any, meta: Meta) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if kind is str:
        return "a text"
    least = meta.ge if meta.ge is not None else (meta.extra or {}).get("least")
    noun = "a whole number" if kind is int else "a number"
    return f"{noun} from {least}" + (f" to {meta.le}" if meta.le is not None else "")


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return the settings that ``values`` give by name; numbers may come as text.

    Raises:
        UsageError: A name or a value is not accepted; the message says what is.
    """
    try:
        return msgspec.convert(dict(values), Settings, strict=False)
    except msgspec.ValidationError as error:
        raise _refused(values, error) from None


def _refused(values: Mapping[str, Any], error: msgspec.ValidationError) -> UsageError:
    named = re.search(r"`\$\.(\w+)`", str(error))
    for setting in described():
        if named and setting.name == named[1]:
            return UsageError(
                f"{setting.name} {values[setting.name]!r}: expected {setting.accepted}"
            )
    unknown = sorted(set(values) - {setting.name for setting in described()})
    return UsageError(
        f"setting {', '.join(map(repr, unknown))}: expected one of "
        + ", ".join(setting.name for setting in described())
    )


def from_environment(environ: Mapping[str, str], **given: Any) -> Settings:
    """Return the settings of the environment, overridden by those that are ``given`` (not None).

    Raises:
        UsageError: A value is not accepted.
    """
    values: dict[str, Any] = {}
    if bucket := environ.get(ENV_BUCKET):
        values["store"] = f"s3://{bucket}"
    for setting in described():
        if (text := environ.get(setting.variable)) is not None:
            values[setting.name] = text
    values.update({name: value for name, value in given.items() if value is not None})
    try:
        return settings_from(values)
    except UsageError as error:
        refused = str(error).partition(" ")[0]  # each message starts with the setting
        variable = f"{ENV_PREFIX}{refused.upper()}"
        if variable not in environ or given.get(refused) is not None:
            raise
        raise UsageError(f"{error}; it comes from {variable}") from None


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables that look like settings and are none: a typing error, most likely."""
    known = {setting.variable for setting in described()}
    yield from (name for name in environ if name.startswith(ENV_PREFIX) and name not in known)
