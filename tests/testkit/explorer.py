"""Every interleaving of a few runners, producers and operators, with every promise checked.

    PYTHONPATH=tests python -m testkit.explorer

Each scenario is small: one to three files, two or three programs. But all of its schedules are
explored: every order of the requests, a crash of every program at every step, and in most of them a
request whose answer is lost. `testkit.interleaving` explains how. Each mutation takes away one step
by which the package keeps a promise; the explorer must find a schedule that breaks the promise.
The command writes what it saw into docs/explanation/guarantees.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.layout import Layout
from asyncagg.job.pipeline import run, run_pipeline
from asyncagg.job.record import ensure_record
from asyncagg.quarantine.restore import Restorer
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.guards import GuardedStore, Guards
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.verify.findings import FindingKind, Plan, VerifyReport
from asyncagg.verify.repair import repair
from testkit.interleaving import (
    Explored,
    Explorer,
    Program,
    ScheduledStore,
    World,
    deterministic,
)
from testkit.mutations import MUTATIONS, Mutation
from testkit.promises import (
    Original,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
)
from testkit.scenario import AT, Clock, File, in_thread, moment, run_data

__all__ = ("SCENARIOS", "Scenario", "explore", "main")

EARLIER, DELIVERED, RESTORED = moment(13, 56), moment(13, 57), moment(14, 1)

PLAIN = Settings(concurrency=1)
BY_CLOCK = Settings(concurrency=1, window_by="last_modified")
CHUNKS = Settings(concurrency=1, chunk_files=1)
PACKS = Settings(concurrency=1, archive_format="packs")
SMALL = Settings(concurrency=1, max_file_bytes=len(run_data(1)) - 1)
"""The settings of a runner that rejects every run file as too large."""

A = File("runs/a.json", run_data(1), DELIVERED)
B = File("runs/b.json", run_data(2), DELIVERED)
BAD = File("runs/b.json", b"{not json", DELIVERED, good=False)
OTHER = File("runs/d.json", run_data(4), moment(14, 2))
"""A file of another window."""
NEW_A = File("runs/a.json", run_data(5), DELIVERED)
"""Other content for the key of `A`."""
OLD = File("runs/old.json", run_data(6), moment(13, 52))
NEW_OLD = File("runs/old.json", run_data(8), DELIVERED)
STAMPED = File("runs/20251021t1352Z_e.json", run_data(9), DELIVERED)
"""A file of another window by its name than by its time."""
LATE = File("runs/late.json", run_data(7), moment(13, 53))
"""A file of the window of `OLD`."""


# ------------------------------------------------------------------------------ programs


def _context(store: Store, number: int = 0, settings: Settings = PLAIN) -> JobContext:
    ids = count()
    return JobContext(
        store, settings, now=lambda: AT, new_id=lambda: f"{number:08x}{next(ids):08x}"
    )


def runner(number: int, settings: Settings = PLAIN) -> Program:
    """Return a program that runs the job; its result: how many files it counted and deferred."""

    async def work(store: Store) -> tuple[int, int]:
        committer = Committer()
        context = _context(store, number, settings)
        report = await run_pipeline(context, committer.count, committed=committer.committed, at=AT)
        return report.total.counted, report.total.deferred

    return Program(f"runner {number}", work, AT)


def producer(*steps: File | str) -> Program:
    """Return a program that writes files, and deletes those of which only the key is given."""

    async def work(store: ScheduledStore) -> None:
        for step in steps:
            if isinstance(step, File):
                await store.deliver(step.key, step.data)
            else:
                await store.remove(step, producer=True)

    return Program("producer", work, DELIVERED)


def restorer(number: int) -> Program:
    """Return a program that restores every quarantined file; two in turn write in two windows."""

    async def work(store: Store) -> None:
        await Restorer(_context(store, 10 + number)).restore_all(lambda _: None)

    return Program(f"restorer {number}", work, RESTORED.replace(minute=5 * (number % 2) + 1))


def verifier(*expected: FindingKind) -> Program:
    """Return a program that verifies the store, and may find nothing but what is expected."""

    async def work(store: Store) -> dict[str, Any]:
        report = await verify(_context(store))
        assert set(report.found) <= set(expected), f"verify finds {report.findings}"
        return {kind: finding.examples for kind, finding in report.findings.items()}

    return Program("verifier", work, AT)


def repairer(plan: Plan, *expected: FindingKind) -> Program:
    """Return a program that does the repairs of a plan, and verifies the result."""

    async def work(store: Store) -> None:
        after = (await repair(_context(store, 20), VerifyReport(plan=plan))).after
        assert set(after.found) <= set(expected), f"verify finds {after.findings}"

    return Program("repairer", work, AT)


def without_copy_if_absent(program: Program) -> Program:
    """Return a program that works on a store which ignores ``If-None-Match`` of a copy."""

    async def work(store: ScheduledStore) -> object:
        guarded: Any = GuardedStore(store, prefix="archive/", required=True)
        guarded._guards = Guards(
            put_if_absent=True,
            put_if_match=True,
            copy_if_match=True,
            copy_if_absent=False,
            delete_if_match=True,
        )
        return await program.work(guarded)

    return program._replace(work=work)


# ------------------------------------------------------------------------------ invariants


def original(file: File) -> Original:
    """Return a run file as the checks of the promises know it."""
    etag = hashlib.md5(file.data).hexdigest()
    return Original(file.key, file.data, etag, file.moment, file.good)


def check_now(world: World) -> None:
    """Check the promises that hold at any moment."""
    check_at_any_moment(world.seen, world.written, overwritten=world.lost)


def check_end(world: World) -> None:
    """Check every promise after a clean run."""
    check_after_clean_run(world.seen, world.written, at=AT, overwritten=world.lost)


def check_held(world: World) -> None:
    """Check what holds while an aggregate is damaged: nothing is lost."""
    held = {each.data for each in world.seen.values()}
    for each in world.written:
        assert each.data in held or each.identity in world.lost, f"promise 2: {each.key} is nowhere"


def check_restored_now(world: World) -> None:
    """Check promises 1 to 3 by content: a restored file has another key than the original."""
    check_held(world)
    data_of = {each.etag: each.data for each in world.written}
    counted = Counter(data_of[row["etag"]] for row in _rows(world))
    for each in world.written:
        assert counted[each.data] <= 1, f"promise 1: {each.key} is counted twice"
    for key, seen in world.seen.items():
        archived = key.startswith("archive/")
        assert not archived or seen.data in counted, f"promise 3: no aggregate counts {key}"


def check_restored_end(world: World) -> None:
    """Check every promise after clean runs where files are restored from quarantine."""
    check_restored_now(world)
    left = [key for key in world.seen if key.startswith(("runs/", "quarantine/"))]
    assert not left, f"promise 4: left are {left}"
    archived = {each.data for key, each in world.seen.items() if key.startswith("archive/")}
    for each in world.written:
        assert each.data in archived or each.identity in world.lost, f"{each.key} is not archived"


def _rows(world: World) -> list[dict[str, Any]]:
    """Return the rows of all counted files."""
    return [
        row
        for key, each in world.seen.items()
        if key.startswith("aggregates/")
        for row in json.loads(each.data)["source_files"]
    ]


# ------------------------------------------------------------------------------ scenarios


async def _nothing(_: Store) -> None:
    """Do nothing."""


UNVERIFIED = Program("nobody", _nothing, AT)
END = (runner(99), verifier(*FindingKind))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is explored.

    Attributes:
        name: Its name.
        programs: What is interleaved.
        inbox: The files in the inbox at the start.
        settled: Files that an earlier run settled.
        settled_with: The settings of that run.
        unmoved: Whether that run stopped before it moved them.
        record: The settings in the store's record; None if it has none.
        broken: Changes the aggregates of that run.
        ends: What runs when all programs have ended or crashed; the last one verifies.
        faults: The most answers that are lost.
        page: Objects of a page of a listing.
        now: Checks what holds at any moment.
        end: Checks what holds after the ends.
        quick: Whether it is explored in each test run.
    """

    name: str
    programs: tuple[Program, ...]
    inbox: tuple[File, ...] = ()
    settled: tuple[File, ...] = ()
    settled_with: Settings = PLAIN
    unmoved: bool = False
    record: Settings | None = PLAIN
    broken: Callable[[bytes], bytes] | None = None
    ends: tuple[Program, ...] = END
    faults: int = 0
    page: int = 1000
    now: Callable[[World], None] = check_now
    end: Callable[[World], None] = check_end
    quick: bool = False


TWO = (runner(1), runner(2))
FULL_PLAN = Plan(moves=1, rewrite=["20251021t1355Z"], rebuild=["20251021t1355Z"])
BROKEN = "aggregates/20251021t1355Z.json"


def truncated(aggregate: bytes) -> bytes:
    """Return an aggregate without its end."""
    return aggregate[:-10]


def wrong(aggregate: bytes) -> bytes:
    """Return an aggregate with a wrong sum."""
    return aggregate.replace(b'"total_matches":', b'"total_matches":1')


def restoring(name: str, *programs: Program, **more: Any) -> Scenario:
    """Return a scenario in which files go into quarantine and are restored from there.

    At the end, whatever is in quarantine is restored and counted, twice: the first time, a file may
    still be in the inbox, or be restored under two keys.
    """
    return Scenario(
        name=name,
        programs=programs,
        ends=(
            runner(90),
            restorer(8),
            runner(91),
            restorer(9),
            runner(92),
            verifier(*FindingKind),
        ),
        now=check_restored_now,
        end=check_restored_end,
        **more,
    )


def packing(name: str, *programs: Program, **more: Any) -> Scenario:
    """Return a scenario in which some runners archive into packs."""
    return Scenario(name=name, programs=programs, ends=(runner(99), UNVERIFIED), **more)


def repairing(name: str, plan: Plan, *expected: FindingKind, **more: Any) -> Scenario:
    """Return a scenario in which a repair works next to a run that counts a late file."""
    return Scenario(
        name=name,
        programs=(runner(1), repairer(plan, FindingKind.UNFINISHED, *expected)),
        inbox=(LATE,),
        settled=(OLD,),
        ends=(repairer(FULL_PLAN), *END),
        **more,
    )


IN_QUARANTINE: dict[str, Any] = {"settled": (OLD,), "settled_with": SMALL}
SMALL_RUNNER = runner(2, SMALL)

SCENARIOS = (
    Scenario(name="two runners", programs=TWO, inbox=(A, B), faults=1, quick=True),
    packing(
        "two runners with packs",
        runner(1, PACKS),
        runner(2, PACKS),
        inbox=(A, B),
        faults=1,
        quick=True,
    ),
    packing(
        "packs next to files",
        runner(1, PACKS),
        runner(2),
        inbox=(A, B),
        faults=1,
        quick=True,
    ),
    packing(
        "packs, overwritten",
        runner(1, PACKS),
        runner(2, PACKS),
        producer(NEW_A),
        inbox=(A,),
        faults=1,
    ),
    packing(
        "packs, delivered again",
        runner(1, PACKS),
        runner(2),
        producer(A),
        inbox=(A, B),
    ),
    packing(
        "an unfinished run, then packs",
        runner(1, PACKS),
        runner(2, PACKS),
        inbox=(LATE,),
        settled=(OLD,),
        unmoved=True,
    ),
    packing(
        "an unfinished run with packs, then files",
        *TWO,
        inbox=(LATE,),
        settled=(OLD,),
        settled_with=PACKS,
        unmoved=True,
    ),
    Scenario(name="two runners, one file", programs=TWO, inbox=(A,), faults=2),
    Scenario(name="two runners, two windows", programs=TWO, inbox=(A, B, OTHER)),
    Scenario(name="one runner", programs=TWO[:1], inbox=(A, B, OTHER), faults=2),
    Scenario(
        name="two runners, chunks",
        programs=(runner(1, CHUNKS), runner(2, CHUNKS)),
        inbox=(A, B),
        page=1,
    ),
    Scenario(name="three runners", programs=(*TWO, runner(3)), inbox=(A,)),
    Scenario(name="a new store", programs=TWO, inbox=(A,), record=None, faults=1),
    Scenario(
        name="other settings than the record",
        programs=(runner(1), runner(2, BY_CLOCK)),
        inbox=(STAMPED,),
        record=BY_CLOCK,
        ends=(runner(99, BY_CLOCK), END[1]),
        faults=1,
        quick=True,
    ),
    Scenario(name="a bad file", programs=TWO, inbox=(A, BAD), faults=1),
    Scenario(name="a taken archive key", programs=TWO, inbox=(NEW_OLD,), settled=(OLD,), faults=1),
    Scenario(
        name="an unfinished run",
        programs=TWO,
        inbox=(LATE,),
        settled=(OLD,),
        unmoved=True,
        faults=1,
    ),
    Scenario(name="arriving", programs=(*TWO, producer(B)), inbox=(A,), faults=1),
    Scenario(name="overwritten", programs=(*TWO, producer(NEW_A)), inbox=(A,), quick=True),
    Scenario(name="deleted", programs=(*TWO, producer(A.key)), inbox=(A, B)),
    Scenario(name="delivered again", programs=(*TWO, producer(A)), inbox=(A, B), faults=1),
    Scenario(
        name="overwritten, deleted, delivered again",
        programs=(*TWO, producer(NEW_A, A.key, A)),
        inbox=(A,),
        faults=1,
    ),
    restoring("restored", *TWO, restorer(1), inbox=(B,), **IN_QUARANTINE),
    restoring("restored by two", runner(1), restorer(1), restorer(2), quick=True, **IN_QUARANTINE),
    restoring(
        "restored by two, no conditional copies",
        *map(without_copy_if_absent, (runner(1), restorer(1), restorer(2))),
        faults=1,
        **IN_QUARANTINE,
    ),
    Scenario(
        name="overwritten, no conditional copies",
        programs=(*map(without_copy_if_absent, TWO), producer(NEW_A)),
        inbox=(A,),
    ),
    restoring(
        "restored next to smaller limits",
        runner(1),
        SMALL_RUNNER,
        restorer(1),
        faults=1,
        **IN_QUARANTINE,
    ),
    restoring(
        "restored by two next to smaller limits",
        runner(1),
        SMALL_RUNNER,
        restorer(1),
        restorer(2),
        **IN_QUARANTINE,
    ),
    restoring(
        "restored by three next to smaller limits",
        runner(1),
        SMALL_RUNNER,
        *(restorer(1),) * 3,
        **IN_QUARANTINE,
    ),
    restoring("different limits", runner(1), SMALL_RUNNER, inbox=(A, B), faults=1),
    restoring(
        "different limits, deleted",
        runner(1),
        SMALL_RUNNER,
        producer(A.key),
        restorer(1),
        inbox=(A,),
        quick=True,
    ),
    restoring(
        "different limits, deleted, no answer",
        runner(1),
        SMALL_RUNNER,
        producer(A.key),
        inbox=(A,),
        faults=1,
    ),
    Scenario(
        name="verification",
        programs=(runner(1), verifier(FindingKind.UNFINISHED)),
        inbox=(A, LATE),
        settled=(OLD,),
    ),
    repairing("repair of moves", Plan(moves=1), FindingKind.UNREAD, unmoved=True, faults=1),
    repairing(
        "repair of a damaged aggregate",
        Plan(rebuild=FULL_PLAN.rebuild),
        FindingKind.UNREAD,
        FindingKind.DAMAGED,
        broken=truncated,
        now=check_held,
        faults=1,
    ),
    repairing(
        "repair of a wrong sum",
        Plan(rewrite=FULL_PLAN.rewrite),
        FindingKind.UNREAD,
        FindingKind.DIFFERENT,
        broken=wrong,
        now=check_held,
        faults=1,
    ),
)


# ------------------------------------------------------------------------------ exploration


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
            true = sum((row["key"], row["etag"]) not in before for row in _rows(world))
            # Another program may replace an aggregate before its writer finds that it was written.
            unseen = faults and len(results) > 1 and counted < true
            exact = deferred or unseen or counted == true
            assert exact, f"the reports count {counted} files, not {true}"

    with deterministic(scenario.page) as patch:
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
            await ensure_record(_context(store, settings=scenario.record))
        if scenario.settled:
            await write(scenario.settled)
            await run(store, scenario.settled_with, at=EARLIER, now=lambda: EARLIER)
        if scenario.unmoved:
            await write(scenario.settled)
            for file in scenario.settled:
                store._objects.pop(Layout(PLAIN).archive_key(file.key), None)
        if scenario.broken:
            aggregate = await store.get(BROKEN)
            await store.put(BROKEN, scenario.broken(aggregate.data))
        await write(scenario.inbox)

    in_thread(prepare)
    return store, frozenset(map(original, (*scenario.settled, *scenario.inbox)))


# ------------------------------------------------------------------------------ report

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "guarantees.md"
_TABLE = re.compile(r"(<!-- explorer -->\n).*?(<!-- end -->)", re.DOTALL)


def main(names: Sequence[str]) -> int:
    """Explore the scenarios and mutations with these names; without names, all of them.

    Returns:
        0 if all promises hold and each mutation is found, else 1.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    cases: list[tuple[str, Scenario, Mutation | None]] = [
        *((scenario.name, scenario, None) for scenario in SCENARIOS),
        *((each.name, by_name[each.scenario], each) for each in MUTATIONS),
    ]
    rows: dict[bool, list[str]] = {False: [], True: []}
    surprises: list[str] = []
    for name, scenario, mutation in cases:
        if names and name not in names:
            continue
        explored = explore(scenario, mutation)
        rows[mutation is not None].append(_row(name, scenario, explored))
        sys.stdout.write(f"{rows[mutation is not None][-1]} {explored.seconds:.0f} s\n")
        sys.stdout.flush()
        if bool(explored.broken) != (mutation is not None):
            surprises.append(f"{name}: {explored if explored.broken else 'not found'}")
    if not names and not surprises:
        text = "\n".join([*_HEAD, *rows[False], "", *_MUTATIONS_HEAD, *rows[True], ""])
        PAGE.write_text(_TABLE.sub(lambda place: place[1] + text + place[2], PAGE.read_text()))
    sys.stdout.write("\n".join(["", *surprises, ""]))
    return 1 if surprises else 0


_HEAD = (
    "| scenario | lost answers | schedules | states | contents |",
    "| --- | ---: | ---: | ---: | ---: |",
)
_MUTATIONS_HEAD = ("| mutation | found in | after |", "| --- | --- | ---: |")


def _row(name: str, scenario: Scenario, explored: Explored) -> str:
    if explored.broken:
        return f"| {name} | {scenario.name} | {explored.states:,} states |"
    counts = f"{explored.states:,} | {explored.worlds:,}"
    return f"| {name} | {scenario.faults} | {explored.schedules:.1e} | {counts} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
