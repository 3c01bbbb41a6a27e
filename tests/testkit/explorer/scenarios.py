"""What is explored: a few programs on a few files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from asyncagg.archive.packing import pack_archive
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run_pipeline
from asyncagg.job.record import follow_record
from asyncagg.job.refusals import Refusals
from asyncagg.quarantine.restore import Restorer
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.guards import GuardedStore, Guards
from asyncagg.verify import verify
from asyncagg.verify.findings import FindingKind, Plan, VerifyReport
from asyncagg.verify.repair import repair
from asyncagg.windows import check_interval
from testkit.explorer.invariants import (
    check_end,
    check_held,
    check_now,
    check_restored_end,
    check_restored_now,
)
from testkit.explorer.programs import Program
from testkit.explorer.store import ScheduledStore
from testkit.explorer.worlds import World
from testkit.scenario import AT, File, moment, run_data

__all__ = ("PLAIN", "SCENARIOS", "Scenario", "new_context")


DELIVERED, RESTORED = moment(13, 57), moment(14, 1)

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
EARLY = File("runs/20251021t1352Z_f.json", run_data(10), moment(13, 52))
"""A file whose name has the time of its window."""
LATE = File("runs/late.json", run_data(7), moment(13, 53))
"""A file of the window of `OLD`."""


def new_context(store: Store, number: int = 0, settings: Settings = PLAIN) -> JobContext:
    """Return the dependencies of a program; its commits have ids with its number."""
    ids = count()
    return JobContext(
        store, settings, now=lambda: AT, new_id=lambda: f"{number:08x}{next(ids):08x}"
    )


def runner(number: int, settings: Settings = PLAIN) -> Program:
    """Return a program that runs the job; its result: how many files it counted and deferred."""

    async def work(store: Store) -> tuple[int, int]:
        committer = Committer()
        context = new_context(store, number, settings)
        report = await run_pipeline(
            context, committer.count, Refusals(), committed=committer.committed, at=AT
        )
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


def archiver(number: int) -> Program:
    """Return a program that puts the single files of the archive into packs."""

    async def work(store: Store) -> None:
        await pack_archive(new_context(store, 30 + number), check_interval(None, None))

    return Program(f"archiver {number}", work, AT)


def restorer(number: int) -> Program:
    """Return a program that restores every quarantined file; two in turn write in two windows."""

    async def work(store: Store) -> None:
        await Restorer(new_context(store, 10 + number)).restore_all(lambda _: None)

    return Program(f"restorer {number}", work, RESTORED.replace(minute=5 * (number % 2) + 1))


def verifier(*expected: FindingKind) -> Program:
    """Return a program that verifies the store, and may find nothing but what is expected."""

    async def work(store: Store) -> dict[str, Any]:
        report = await verify(await follow_record(new_context(store)))
        assert set(report.found) <= set(expected), f"verify finds {report.findings}"
        return {kind: finding.examples for kind, finding in report.findings.items()}

    return Program("verifier", work, AT)


def repairer(plan: Plan, *expected: FindingKind) -> Program:
    """Return a program that does the repairs of a plan, and verifies the result."""

    async def work(store: Store) -> None:
        after = (await repair(new_context(store, 20), VerifyReport(plan=plan))).after
        assert set(after.found) <= set(expected), f"verify finds {after.findings}"

    return Program("repairer", work, AT)


def without_copy_if_absent(program: Program) -> Program:
    """Return a program that works on a store which ignores ``If-None-Match`` of a copy."""

    async def work(store: ScheduledStore) -> object:
        guarded: Any = GuardedStore(store, prefix="archive/", required=True)
        guarded._guards = Guards(
            get_if_match=True,
            put_if_absent=True,
            put_if_match=True,
            copy_if_match=True,
            copy_if_absent=False,
            delete_if_match=True,
        )
        return await program.work(guarded)

    return program._replace(work=work)


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
        windows: Windows that a run has in progress. They share nothing but the request slots, so
            with more than one, the states are little else than all pairs of their states.
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
    windows: int = 1
    now: Callable[[World], None] = check_now
    end: Callable[[World], None] = check_end
    quick: bool = False


TWO = (runner(1), runner(2))
FULL_PLAN = Plan(moves=1, rewrite=["20251021t1355Z"], rebuild=["20251021t1355Z"])


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


PACKERS = (runner(1, PACKS), runner(2, PACKS))
MIXED = (runner(1, PACKS), runner(2))
IN_QUARANTINE: dict[str, Any] = {"settled": (OLD,), "settled_with": SMALL}
SMALL_RUNNER = runner(2, SMALL)

SCENARIOS = (
    Scenario(name="two runners", programs=TWO, inbox=(A, B), faults=1, quick=True),
    Scenario(name="two runners with packs", programs=PACKERS, inbox=(A, B), faults=1, quick=True),
    Scenario(name="packs next to files", programs=MIXED, inbox=(A, B), faults=1, quick=True),
    Scenario(name="packs, arriving", programs=(*PACKERS, producer(B)), inbox=(A,), faults=1),
    Scenario(name="packs, overwritten", programs=(*PACKERS, producer(NEW_A)), inbox=(A,), faults=1),
    Scenario(name="packs, delivered again", programs=(*MIXED, producer(A)), inbox=(A, B)),
    Scenario(
        name="an unfinished run, then packs",
        programs=PACKERS,
        inbox=(LATE,),
        settled=(OLD,),
        unmoved=True,
    ),
    Scenario(
        name="an unfinished run with packs, then files",
        programs=TWO,
        inbox=(LATE,),
        settled=(OLD,),
        settled_with=PACKS,
        unmoved=True,
    ),
    Scenario(
        name="archive pack next to a run",
        programs=(archiver(1), runner(1)),
        inbox=(LATE,),
        settled=(OLD,),
        ends=(archiver(2), *END),
        faults=1,
        quick=True,
    ),
    Scenario(
        name="archive pack twice, next to a run with packs",
        programs=(archiver(1), archiver(2), runner(1, PACKS)),
        inbox=(LATE,),
        settled=(OLD,),
        ends=(archiver(3), *END),
    ),
    Scenario(
        name="archive pack next to a run, delivered again",
        programs=(archiver(1), runner(1), producer(EARLY)._replace(at=EARLY.moment)),
        settled=(EARLY,),
        ends=(archiver(2), *END),
    ),
    Scenario(name="two runners, one file", programs=TWO, inbox=(A,), faults=2),
    Scenario(name="two runners, two windows", programs=TWO, inbox=(A, B, OTHER)),
    Scenario(name="one runner", programs=TWO[:1], inbox=(A, B, OTHER), faults=2),
    Scenario(
        name="one runner, two windows at once",
        programs=TWO[:1],
        inbox=(A, OTHER),
        faults=1,
        windows=2,
    ),
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
    repairing("repair of moves", Plan(moves=1), FindingKind.UNREAD, unmoved=True),
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
