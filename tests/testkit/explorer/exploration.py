"""Explore a scenario, of the package or of a mutation of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from asyncagg.job.layout import Layout
from asyncagg.job.pipeline import run
from asyncagg.job.record import ensure_record
from asyncagg.store.memory import MemoryStore
from testkit.explorer.invariants import (
    counted_rows,
    original,
)
from testkit.explorer.mutations import Mutation
from testkit.explorer.programs import deterministic
from testkit.explorer.scenarios import PLAIN, Scenario, new_context
from testkit.explorer.search import Explored, Explorer
from testkit.explorer.worlds import World
from testkit.promises import Original, final_bytes
from testkit.scenario import Clock, File, in_thread, moment

__all__ = ("explore",)

_EARLIER = moment(13, 56)
_AGGREGATE = "aggregates/20251021t1355Z.json"
"""What the earlier run writes."""


def explore(scenario: Scenario, mutation: Mutation | None = None) -> Explored:
    """Explore a scenario, of the package or of one that a mutation changes."""
    before = {original(file).identity for file in scenario.settled}
    documents: dict[object, bytes] = {}

    def check_ends(world: World, results: Sequence[object]) -> None:
        scenario.end(world)
        # A file that its producer replaced between the commit and the copy is a finding.
        assert world.lost or not results[-1], f"the promises hold, but verify finds {results[-1]}"
        # The same files give the same bytes, whatever the schedule.
        for key, data in final_bytes(world.seen).items():
            document = json.loads(world.seen[key].data)
            files = (key, str(document["source_files"]), str(document["quarantined_files"]))
            same = documents.setdefault(files, data)
            assert data == same, f"the same files give {data!r}, and also {same!r}"

    def check_results(world: World, results: Sequence[object], faults: int) -> None:
        totals = [each for each in results if isinstance(each, tuple)]
        if totals and len(results) == len(scenario.programs) and not scenario.broken:
            counted, deferred = map(sum, zip(*totals, strict=True))
            true = sum((row["key"], row["etag"]) not in before for row in counted_rows(world))
            # Another program may replace an aggregate before its writer finds that it was written.
            unseen = faults and len(results) > 1 and counted < true
            exact = deferred or unseen or counted == true
            assert exact, f"the reports count {counted} files, not {true}"

    with deterministic(scenario.page, scenario.windows) as patch:
        store, written = _prepare(scenario)
        if mutation:
            mutation.apply(patch)
        return Explorer(
            store,
            written,
            scenario.programs,
            scenario.ends,
            scenario.faults,
            check_now=scenario.now,
            check_end=check_ends,
            check_results=check_results,
        ).explore()


def _prepare(scenario: Scenario) -> tuple[MemoryStore, frozenset[Original]]:
    """Return the objects at the start, and the run files."""
    clock = Clock()
    store = MemoryStore(clock)

    async def write(files: Iterable[File]) -> None:
        for file in files:
            clock.now = file.moment
            await store.put(file.key, file.data)

    async def prepare() -> None:
        if scenario.record:
            await ensure_record(new_context(store, settings=scenario.record))
        if scenario.settled:
            await write(scenario.settled)
            await run(store, scenario.settled_with, at=_EARLIER, now=lambda: _EARLIER)
        if scenario.unmoved:
            await write(scenario.settled)
            for file in scenario.settled:
                store._objects.pop(Layout(PLAIN).archive_key(file.key), None)
        if scenario.broken:
            aggregate = await store.get(_AGGREGATE)
            await store.put(_AGGREGATE, scenario.broken(aggregate.data))
        await write(scenario.inbox)

    in_thread(prepare)
    return store, frozenset(map(original, (*scenario.settled, *scenario.inbox)))
