"""Runners of both forms, kills, faults and a producer, all at once."""

from __future__ import annotations

import pytest
from testkit.soak import soak


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_and_nothing_is_counted_twice(seed: int) -> None:
    """`python -m testkit.soak` has as many seeds as wanted."""
    await soak(seed)
