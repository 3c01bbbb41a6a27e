"""The explorer: every schedule of small scenarios keeps the promises, and no mutation does."""

from __future__ import annotations

import pytest
from testkit.explorer.exploration import explore
from testkit.explorer.mutations import MUTATIONS, Mutation
from testkit.explorer.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if each.quick], ids=lambda each: each.name
)
def test_every_schedule_keeps_the_promises(scenario: Scenario) -> None:
    """Also with a crash of every program at every step; `tox -e explore` has more scenarios."""
    explored = explore(scenario)
    assert not explored.broken, str(explored)
    assert explored.schedules > 1000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_is_found(mutation: Mutation) -> None:
    """Each step that is taken away from the package breaks a promise in some schedule."""
    (scenario,) = [each for each in SCENARIOS if each.name == mutation.scenario]
    explored = explore(scenario, mutation)
    assert explored.broken
    assert explored.schedule, "the scenario does not even begin"
