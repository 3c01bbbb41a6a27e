"""Times, intervals, names and alignment of windows, and the window of a file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.strategies import moments, texts, window_lengths, windows

from asyncagg.errors import UsageError
from asyncagg.model import RunFile, Window
from asyncagg.windows import (
    WindowBy,
    parse_time,
    parse_window,
    stamp_of,
    window_of,
    window_selector,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2025, 10, 21, 12, 0, tzinfo=UTC)


def file(key: str, last_modified: datetime = NOON) -> RunFile:
    """Return a reference to a file."""
    return RunFile(key, 2, "etag", last_modified)


class TestAlignment:
    @given(moments, window_lengths)
    def test_a_moment_is_in_its_window(self, moment: datetime, minutes: int) -> None:
        """A window contains its moment, is aligned to the epoch and has the given length."""
        window = window_of(moment, minutes)
        assert window.start <= moment < window.end
        assert (window.start - EPOCH) % timedelta(minutes=minutes) == timedelta(0)
        assert window.end - window.start == timedelta(minutes=minutes)

    @given(windows)
    def test_half_open(self, window: Window) -> None:
        """The start and the last microsecond are in the window, the end is in the next one."""
        last = window.end - timedelta(microseconds=1)
        assert window_of(window.start, window.minutes) == window
        assert window_of(last, window.minutes) == window
        assert window_of(window.end, window.minutes).start == window.end

    @given(moments, window_lengths)
    def test_windows_start_anew_each_day(self, moment: datetime, minutes: int) -> None:
        """No window spans midnight, because its length divides a day."""
        window = window_of(moment, minutes)
        assert window.start.date() == (window.end - timedelta(microseconds=1)).date()

    @given(st.lists(moments, max_size=5), window_lengths)
    def test_order_of_windows_is_that_of_time(self, found: list[datetime], minutes: int) -> None:
        """Windows of one length sort like their moments."""
        assert sorted(window_of(moment, minutes) for moment in found) == [
            window_of(moment, minutes) for moment in sorted(found)
        ]

    def test_another_zone_is_the_same_moment(self) -> None:
        """A moment in another zone is in the window of the same moment in UTC."""
        kathmandu = timezone(timedelta(hours=5, minutes=45))
        assert window_of(NOON.astimezone(kathmandu), 60) == window_of(NOON, 60)

    @pytest.mark.parametrize(
        ("moment", "minutes", "name"),
        [
            ("2025-10-21T13:55:00+00:00", 5, "20251021t1400Z"),
            ("2025-10-21T13:59:59.999999+00:00", 5, "20251021t1400Z"),
            ("2025-10-21T14:00:00+00:00", 5, "20251021t1405Z"),
            ("2025-10-21T23:59:00+00:00", 1440, "20251022t0000Z"),
            ("2025-12-31T23:59:00+00:00", 1, "20260101t0000Z"),
            ("1969-12-31T23:59:59+00:00", 5, "19700101t0000Z"),
            ("0999-12-31T12:00:00+00:00", 5, "09991231t1205Z"),
        ],
    )
    def test_name_is_the_end(self, moment: str, minutes: int, name: str) -> None:
        """A window is named by its end in UTC, with four digits for any year."""
        assert window_of(datetime.fromisoformat(moment), minutes).name == name


class TestStamps:
    @pytest.mark.parametrize(
        ("key", "stamp"),
        [
            ("runs/20251021t1302Z_DARPA-PS-25-32.json", "2025-10-21T13:02:00"),
            ("20251021t1302Z.json", "2025-10-21T13:02:00"),
            ("20251021T130259z", "2025-10-21T13:02:59"),
            ("a/b/20240229t0000Zx", "2024-02-29T00:00:00"),
        ],
    )
    def test_at_the_start_of_the_name(self, key: str, stamp: str) -> None:
        """A stamp is read at the start of the last part of a key, with or without seconds."""
        assert stamp_of(key) == datetime.fromisoformat(stamp).replace(tzinfo=UTC)

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "runs/",
            "20251021t1302Z/a.json",
            "runs/a20251021t1302Z.json",
            "20251021t1302.json",
            "20251321t1302Z.json",
            "20250229t1302Z.json",
            "20251021t2402Z.json",
            "20251021t130261Z.json",
            "00000101t0000Z.json",
            "20251021t13029Z.json",
        ],
    )
    def test_no_stamp(self, key: str) -> None:
        """Other text, and dates that do not exist, give no stamp."""
        assert stamp_of(key) is None

    @given(texts | st.from_regex(r"\A\d{8}t\d{4,6}[zZ]"))
    def test_never_fails(self, key: str) -> None:
        """Any key gives a stamp or None."""
        stamp = stamp_of(key)
        assert stamp is None or stamp.tzinfo is UTC


class TestMembership:
    @given(moments, window_lengths)
    def test_by_last_modified(self, moment: datetime, minutes: int) -> None:
        """With ``last_modified``, the name does not matter."""
        found = window_selector("last_modified", minutes)(
            file("runs/20251021t1302Z_a.json", moment)
        )
        assert found == window_of(moment, minutes)

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("runs/20251021t1302Z_a.json", "2025-10-21T13:02:00"),
            ("runs/20200101t0000Z_old.json", "2020-01-01T00:00:00"),
            ("runs/00010101t0000Z_oldest.json", "0001-01-01T00:00:00"),
            ("runs/20251022t1200Z_a_day_ahead.json", "2025-10-22T12:00:00"),
            ("runs/20251022t1201Z_more_than_a_day_ahead.json", "2025-10-21T12:00:00"),
            ("runs/99991231t2359Z_never.json", "2025-10-21T12:00:00"),
            ("runs/plain.json", "2025-10-21T12:00:00"),
            ("runs/20251321t1302Z_no_date.json", "2025-10-21T12:00:00"),
        ],
    )
    def test_by_name(self, key: str, expected: str) -> None:
        """With ``name``, the stamp decides unless there is none or it is far in the future."""
        moment = datetime.fromisoformat(expected).replace(tzinfo=UTC)
        assert window_selector("name", 5)(file(key)) == window_of(moment, 5)

    @pytest.mark.parametrize("by", ["last_modified", "name"])
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("runs/a.putback-20251021t1130Z-0123.json", "2025-10-21T11:30:00"),
            ("runs/20251021t1000Z_a.putback-20251021t1130Z-0123.json", "2025-10-21T11:30:00"),
            ("runs/a.putback-20991021t1130Z-0123.json", "2025-10-21T12:00:00"),
            ("runs/a.putback-0123.json", "2025-10-21T12:00:00"),
            ("runs.putback-20251021t1130Z-0/a.json", "2025-10-21T12:00:00"),
        ],
    )
    def test_a_restored_file_keeps_its_window(self, by: WindowBy, key: str, expected: str) -> None:
        """Its mark decides, unless it has no time or one that is far in the future."""
        moment = datetime.fromisoformat(expected).replace(tzinfo=UTC)
        assert window_selector(by, 5)(file(key)) == window_of(moment, 5)

    @given(st.sampled_from(["last_modified", "name"]), texts, moments, window_lengths)
    def test_every_file_has_one(
        self, by: WindowBy, name: str, moment: datetime, minutes: int
    ) -> None:
        """Every file has a window, which ends at most a day and a window after the file's time."""
        window = window_selector(by, minutes)(file(f"runs/{name}", moment))
        assert window.start <= moment + timedelta(days=1)


class TestReading:
    @given(windows)
    def test_a_name_reads_back(self, window: Window) -> None:
        """A window's name gives the window."""
        assert parse_window(window.name, window.minutes) == window

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "20251021t1401Z",
            "20251021t1400z",
            "20251021T1400Z",
            "20251021t1400Z.json",
            "20251021t140000Z",
            "aggregates/20251021t1400Z",
            "20251321t1400Z",
            "now",
        ],
    )
    def test_not_a_window_name(self, name: str) -> None:
        """Any other name is an error that says what is accepted."""
        with pytest.raises(UsageError) as error:
            parse_window(name, 5)
        assert repr(name) in str(error.value)
        assert "20251021t1400Z" in str(error.value)

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2025-10-21T14:00:00Z", "2025-10-21T14:00:00+00:00"),
            ("2025-10-21T14:00:00", "2025-10-21T14:00:00+00:00"),
            ("2025-10-21T16:00:00+02:00", "2025-10-21T14:00:00+00:00"),
            ("2025-10-21", "2025-10-21T00:00:00+00:00"),
            ("20251021t1400Z", "2025-10-21T14:00:00+00:00"),
            ("20251021t140030Z", "2025-10-21T14:00:30+00:00"),
        ],
    )
    def test_a_time(self, text: str, moment: str) -> None:
        """A time is ISO 8601 or a window's name, in UTC if it has no zone."""
        assert parse_time(text, "--at") == datetime.fromisoformat(moment)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "yesterday",
            "14:00",
            "2025-13-01",
            "20251321t1400Z",
            "1761055200",
            "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59",
        ],
    )
    def test_not_a_time(self, text: str) -> None:
        """Other text is an error with what it was for, the text and what is accepted."""
        with pytest.raises(UsageError) as error:
            parse_time(text, "--at")
        assert str(error.value).startswith(f"--at {text!r}: expected a time such as 2025-10-21T")

    @given(moments)
    def test_a_time_reads_back(self, moment: datetime) -> None:
        """A moment's ISO text gives the moment."""
        assert parse_time(moment.isoformat(), "--at") == moment

    @given(texts | st.from_regex(r"\A[0-9T:Z+-]{0,25}\Z"))
    def test_any_text_is_a_time_or_an_error(self, text: str) -> None:
        """Any text gives a moment in UTC or an error."""
        try:
            assert parse_time(text, "--at").utcoffset() == timedelta(0)
        except UsageError as error:
            assert repr(text) in str(error)  # noqa: PT017 - either outcome is right
