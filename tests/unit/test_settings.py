"""Settings are declared once, and an error says what is accepted."""

from __future__ import annotations

import math
from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.strategies import json_values, prefixes, texts

from asyncagg.errors import UsageError
from asyncagg.settings import (
    ENV_BUCKET,
    ENV_PREFIX,
    Setting,
    Settings,
    all_settings,
    from_environment,
    settings_from,
    unknown_variables,
)
from asyncagg.windows import MINUTES_A_DAY

SETTINGS = {setting.name: setting for setting in all_settings()}

# Values that are not accepted, and what the error says is accepted.
INVALID: list[tuple[str, Any, str]] = [
    ("store", 5, "text"),
    ("endpoint_url", None, "text"),
    ("runs_prefix", 1.5, "text"),
    ("aggregate_prefix", [], "text"),
    ("archive_prefix", {}, "text"),
    *[("archive_format", value, "files or packs") for value in ("zip", "Packs", "", None, 1)],
    ("archive_storage_class", 3, "text"),
    ("sse", "aes", "AES256 or aws:kms or aws:kms:dsse"),
    ("sse_kms_key_id", 3, "text"),
    ("sse_bucket_key", "true", "on or off"),
    ("expected_bucket_owner", 3, "text"),
    ("request_payer", "owner", "requester"),
    ("quarantine_prefix", b"x/", "text"),
    ("rollup_prefix", 2, "text"),
    ("work_prefix", {}, "text"),
    *[
        ("window_minutes", value, "a whole number from 1 to 1440")
        for value in (0, -5, 1441, "0", "5.5", "five", "", " 5", True, None, 5.5, "\u0665", "nan")
    ],
    ("window_by", "size", "last_modified or name"),
    ("window_by", "", "last_modified or name"),
    ("window_by", 1, "last_modified or name"),
    ("concurrency", 0, "a whole number from 1 to 1024"),
    ("concurrency", "1025", "a whole number from 1 to 1024"),
    ("chunk_files", 1_000_001, "a whole number from 1 to 1000000"),
    ("chunk_files", "many", "a whole number from 1 to 1000000"),
    ("max_inflight_bytes", 1023, "a whole number from 1024"),
    ("max_inflight_bytes", "16M", "a whole number from 1024"),
    ("stream_bytes", "1_000_000", "a whole number from 1024"),
    ("max_file_bytes", 0, "a whole number from 1"),
    ("spool_bytes", -1, "a whole number from 0"),
    ("max_seconds", "soon", "a number from 1"),
    ("max_seconds", "", "a number from 1"),
    ("max_seconds", 0.99, "a number from 1"),
    ("max_seconds", -1, "a number from 1"),
    ("max_seconds", "nan", "a number from 1"),
    ("conditional_writes", "on", "required or off"),
    ("data_plane", "curl", "lean or boto"),
    ("retry_attempts", 0, "a whole number from 1 to 50"),
    ("retry_attempts", 51, "a whole number from 1 to 50"),
    ("log_level", "DEBUG", "debug or info or warning or error"),
]

BAD_PREFIXES = ["runs", "/runs/", "/", "a/b", "runs/x"]

# The first prefix must not lie in the second.
APART = [
    ("runs_prefix", "archive_prefix"),
    ("runs_prefix", "quarantine_prefix"),
    ("aggregate_prefix", "archive_prefix"),
    ("aggregate_prefix", "quarantine_prefix"),
    ("archive_prefix", "quarantine_prefix"),
    ("quarantine_prefix", "archive_prefix"),
    ("runs_prefix", "work_prefix"),
    ("rollup_prefix", "work_prefix"),
    ("work_prefix", "archive_prefix"),
    ("aggregate_prefix", "rollup_prefix"),
    ("work_prefix", "rollup_prefix"),
]


class TestErrors:
    @pytest.mark.parametrize(("name", "value", "accepted"), INVALID)
    def test_names_setting_value_and_accepted(self, name: str, value: Any, accepted: str) -> None:
        """An error is one sentence with the setting, the value and what is accepted."""
        with pytest.raises(UsageError) as error:
            settings_from({name: value})
        # A number that only the whole check rejects is shown as a number.
        number = name == "max_seconds" and value in (-1, "nan")
        shown = float(value) if number else value
        assert str(error.value) == f"{name} {shown!r}: expected {accepted}"
        assert error.value.setting == name

    def test_every_setting_is_in_the_list(self) -> None:
        """The list above has every setting, and agrees with the declaration."""
        assert {name for name, _, _ in INVALID} == set(SETTINGS)
        assert all(SETTINGS[name].accepted == accepted for name, _, accepted in INVALID)

    @pytest.mark.parametrize("minutes", [7, 11, 721, "1439"])
    def test_a_window_divides_a_day(self, minutes: object) -> None:
        """A length must divide a day; the error names lengths that do."""
        with pytest.raises(UsageError, match=rf"window_minutes {minutes}: .*divides 1440.*5, 15"):
            settings_from({"window_minutes": minutes})

    @pytest.mark.parametrize("name", [name for name in SETTINGS if name.endswith("_prefix")])
    @pytest.mark.parametrize("prefix", BAD_PREFIXES)
    def test_a_prefix_is_a_folder(self, name: str, prefix: str) -> None:
        """A prefix must end with a slash and must not start with one."""
        with pytest.raises(UsageError) as error:
            settings_from({name: prefix})
        assert str(error.value) == (
            f"{name} {prefix!r}: expected an empty prefix, or one that ends with / and does "
            "not start with /, such as runs/"
        )

    @pytest.mark.parametrize(("inner", "outer"), APART)
    @pytest.mark.parametrize("below", ["", "deeper/"])
    def test_prefixes_that_would_mix(self, inner: str, outer: str, below: str) -> None:
        """A prefix must not lie in another one if files would be mixed up."""
        with pytest.raises(UsageError) as error:
            settings_from({inner: f"same/{below}", outer: "same/"})
        message = str(error.value)
        assert message.endswith(": expected a prefix outside of it")
        assert f"{inner} 'same/{below}' lies in {outer} 'same/'" in message or not below

    @pytest.mark.parametrize("outer", ["archive_prefix", "quarantine_prefix"])
    def test_nothing_takes_the_whole_store(self, outer: str) -> None:
        """An empty archive or quarantine prefix is an error: it would contain the inbox."""
        with pytest.raises(UsageError, match=f"'runs/' lies in {outer} ''"):
            settings_from({outer: ""})

    @pytest.mark.parametrize("name", ["glacier", "S3", "STANDARD ", "GLACIER,STANDARD"])
    def test_an_unknown_storage_class(self, name: str) -> None:
        """A storage class has one of S3's names."""
        with pytest.raises(UsageError, match=r"archive_storage_class .*: expected one of STANDARD"):
            settings_from({"archive_storage_class": name})

    def test_an_unknown_setting(self) -> None:
        """An unknown name is an error that lists the known names."""
        with pytest.raises(UsageError) as error:
            settings_from({"windows": 5, "Concurrency": 5})
        assert str(error.value).startswith("setting 'Concurrency', 'windows': expected one of ")
        assert all(name in str(error.value) for name in SETTINGS)

    @given(st.sampled_from(sorted(SETTINGS)), texts | json_values)
    def test_any_value_is_accepted_or_named(self, name: str, value: Any) -> None:
        """Any value is accepted, or the error names the setting."""
        try:
            settings_from({name: value})
        except UsageError as error:
            assert name in str(error)  # noqa: PT017 - either outcome is right


class TestAccepted:
    @pytest.mark.parametrize(
        "minutes", [n for n in range(1, MINUTES_A_DAY + 1) if MINUTES_A_DAY % n == 0]
    )
    def test_every_divisor_of_a_day(self, minutes: int) -> None:
        """Each number of minutes that divides a day is accepted, as text too."""
        assert settings_from({"window_minutes": minutes}).window_minutes == minutes
        assert settings_from({"window_minutes": str(minutes)}).window_minutes == minutes

    @pytest.mark.parametrize(
        "given_prefixes",
        [
            ("runs/raw/", "runs/", "runs/archive/", "runs/quarantine/"),
            ("runs/", "runs/", "archive/", "quarantine/"),
            ("runs/", "runs/", "runs/archive/", "runs/quarantine/"),
            ("", "", "archive/", "quarantine/"),
            ("", "out/", "archive/", "quarantine/"),
            ("in/", "", "archive/", "quarantine/"),
            ("out/runs/", "out/", "out/archive/", "out/bad/"),
        ],
    )
    def test_prefixes_may_nest(self, given_prefixes: tuple[str, str, str, str]) -> None:
        """Prefixes may nest, and aggregates may be among the run files."""
        runs, aggregates, archive, quarantine = given_prefixes
        settings = settings_from(
            {
                "runs_prefix": runs,
                "aggregate_prefix": aggregates,
                "archive_prefix": archive,
                "quarantine_prefix": quarantine,
            }
        )
        assert settings.runs_prefix == runs

    @given(prefixes, prefixes, prefixes, prefixes)
    def test_accepted_prefixes_are_apart(
        self, runs: str, aggregates: str, archive: str, quarantine: str
    ) -> None:
        """Prefixes are accepted if and only if no files would be mixed up."""
        values = {
            "runs_prefix": runs,
            "aggregate_prefix": aggregates,
            "archive_prefix": archive,
            "quarantine_prefix": quarantine,
        }
        mixed = any(
            values[inner].startswith(values[outer])
            for inner, outer in APART
            if {inner, outer} <= set(values)
        )
        try:
            settings_from(values)
        except UsageError:
            assert mixed
        else:
            assert not mixed

    def test_limits_are_included(self) -> None:
        """Ranges are inclusive."""
        settings = settings_from(
            {"concurrency": 1024, "chunk_files": 1, "spool_bytes": 0, "max_seconds": 1}
        )
        assert (settings.concurrency, settings.chunk_files, settings.spool_bytes) == (1024, 1, 0)
        assert settings.max_seconds == 1

    def test_constructor_checks_as_well(self) -> None:
        """Checks across settings also run in the constructor."""
        with pytest.raises(UsageError, match="window_minutes 7"):
            Settings(window_minutes=7)
        with pytest.raises(UsageError, match="max_seconds nan"):
            Settings(max_seconds=math.nan)


class TestEnvironment:
    def test_empty(self) -> None:
        """An empty environment gives the defaults."""
        assert from_environment({}) == Settings()

    def test_the_services_own_bucket(self) -> None:
        """The matching service's variable names the bucket, until ASYNCAGG_STORE does."""
        assert from_environment({ENV_BUCKET: "b"}).store == "s3://b"
        assert from_environment({ENV_BUCKET: ""}).store == ""
        both = {ENV_BUCKET: "b", "ASYNCAGG_STORE": "./data"}
        assert from_environment(both).store == "./data"
        assert from_environment(both, store="s3://c/d").store == "s3://c/d"

    def test_given_values_override(self) -> None:
        """A value that is given wins, None is not given, and unrelated variables do not matter."""
        environ = {"ASYNCAGG_CONCURRENCY": "7", "ASYNCAGG_NO_SETTING": "1", "CONCURRENCY": "9"}
        assert from_environment(environ).concurrency == 7
        assert from_environment(environ, concurrency=None).concurrency == 7
        assert from_environment(environ, concurrency="8").concurrency == 8

    @pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
    def test_each_default_can_be_set(self, setting: Setting) -> None:
        """Each default can be set as a variable, to the same effect as none."""
        if setting.default is None:
            pytest.skip("has no default")
        given = from_environment({setting.variable: str(setting.default)})
        assert given == Settings(explicit=frozenset({setting.name}))

    @pytest.mark.parametrize(
        ("name", "value"),
        [(name, value) for name, value, _ in INVALID if isinstance(value, str)],
    )
    def test_errors_are_the_same(self, name: str, value: str) -> None:
        """A variable's value gives the same error as an option's."""
        with pytest.raises(UsageError, match=f"^{name} .*: expected {SETTINGS[name].accepted}"):
            from_environment({SETTINGS[name].variable: value})

    def test_the_error_names_the_variable(self) -> None:
        """An error names the variable that the value comes from, unless an option overrides it."""
        with pytest.raises(UsageError, match=r"or name; it comes from ASYNCAGG_WINDOW_BY$"):
            from_environment({"ASYNCAGG_WINDOW_BY": "day"})
        with pytest.raises(UsageError, match=r"or name$"):
            from_environment({"ASYNCAGG_WINDOW_BY": "name"}, window_by="day")

    def test_unknown_variables(self) -> None:
        """Only variables that are named like a setting are listed."""
        environ = {
            "ASYNCAGG_WINDOW_BY": "x",
            "ASYNCAGG_WINDOWBY": "x",
            "HOME": "/",
            ENV_BUCKET: "b",
        }
        assert list(unknown_variables(environ)) == ["ASYNCAGG_WINDOWBY"]


class TestDeclaration:
    def test_one_declaration(self) -> None:
        """Variables and options follow from the fields of `Settings`, in their order."""
        fields = [each for each in msgspec.structs.fields(Settings) if each.name != "explicit"]
        assert [setting.name for setting in all_settings()] == [field.name for field in fields]
        assert [setting.default for setting in all_settings()] == [
            field.default for field in fields
        ]
        assert SETTINGS["window_minutes"].variable == f"{ENV_PREFIX}WINDOW_MINUTES"
        assert SETTINGS["window_minutes"].option == "--window-minutes"

    @pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
    def test_each_is_described(self, setting: Setting) -> None:
        """Each setting has a description, and each quantity a unit."""
        assert setting.description.endswith(".")
        assert setting.accepted
        numeric = setting.kind is int or float in get_args(setting.kind)
        assert bool(setting.unit) == numeric
        if get_origin(setting.kind) is not None:
            assert setting.default is None or setting.default in get_args(setting.kind)

    def test_immutable(self) -> None:
        """Settings cannot be changed during a run."""
        with pytest.raises(AttributeError):
            Settings().concurrency = 1  # type: ignore[misc] # that is the point
