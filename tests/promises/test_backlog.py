"""What a run tells of the files that it leaves is true, or is marked as a lower bound."""

from __future__ import annotations

import pytest
from testkit.backlog import BACKLOG, cut_off


@pytest.mark.parametrize(
    ("seconds", "page_seconds", "exact"),
    [(5, 0.005, True), (10, 0.005, True), (30, 0.005, True), (5, 0.1, False), (10, 0.1, False)],
)
def test_the_told_backlog_is_the_truth_or_at_least_that(
    seconds: int, page_seconds: float, *, exact: bool
) -> None:
    """60,000 files, and time for a few: the rest of the inbox is listed and counted."""
    done = cut_off(seconds, page_seconds=page_seconds)
    report = done.report
    assert report.listed is exact
    assert 0 < report.total.archived == BACKLOG - done.left
    if exact:
        assert report.backlog == done.left
    else:
        assert 0 < report.backlog < done.left
    assert not report.complete
