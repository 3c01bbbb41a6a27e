"""The demo's numbers, compared with independent sums over the same sample files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asyncagg.sample import last_windows, samples
from asyncagg.sample.demo import BAD_FRACTION, WINDOWS, run_demo

FILES = 300


def independent_sums(seed: int) -> dict[str, int]:
    """Add up the good sample files with the standard library only."""
    sums = dict.fromkeys(
        ("total_opportunities", "total_matches", "total_no_matches", "total_errors"), 0
    )
    for each in samples(
        files=FILES,
        windows=last_windows(WINDOWS, 5),
        prefix="runs/",
        bad_fraction=BAD_FRACTION,
        seed=seed,
    ):
        if each.good:
            run: dict[str, Any] = json.loads(each.data)
            sums["total_opportunities"] += run["total_opportunities"]
            sums["total_matches"] += run["matches_found"]
            sums["total_no_matches"] += run["no_matches"]
            sums["total_errors"] += run["errors"]
    return sums


@pytest.mark.parametrize("on_s3", [True, False], ids=["s3", "directory"])
async def test_the_totals_shown_equal_an_independent_sum(
    on_s3: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On moto's server and on a directory the sums are right and the inbox is empty."""
    monkeypatch.setenv("AWS_PROFILE", "somebody-real")
    shown = await run_demo(on_s3=on_s3, files=FILES, seed=3)
    bad = shown.objects["quarantine/"]
    assert bad > 0
    assert shown.totals == independent_sums(seed=3)
    assert shown.objects == {
        "runs/": 0,
        "aggregates/": WINDOWS,
        "archive/": FILES - bad,
        "quarantine/": bad,
    }
    assert shown.second.total.late == 1
    assert len(shown.top_matches) == 10
