"""The accumulator is a commutative monoid, to the byte, and what it says is exact."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from testkit.strategies import keys, match_objects, plain_results, run_results, scores, seconds

from asyncagg.aggregate.accumulator import RESERVED, Accumulator, RankedMatch, best, rank
from asyncagg.aggregate.rows import RowSpool
from asyncagg.aggregate.sketch import Sketch
from asyncagg.aggregate.spool import Spool
from asyncagg.aggregate.writer import AggregateWriter
from asyncagg.model import TOP, Match, RunResult, Window

WINDOW = Window(datetime(2025, 10, 21, 14, tzinfo=UTC), 5)


class Folded(NamedTuple):
    """What is folded of one file."""

    key: str
    size: int
    result: RunResult


def folded(results: st.SearchStrategy[RunResult]) -> st.SearchStrategy[Folded]:
    """Return a strategy for what is folded; of few keys, so that two versions of one are met."""
    few = st.sampled_from(["runs/a.json", "runs/b.json", "runs/c/\N{SNOWMAN}.json"])
    return st.builds(Folded, key=few, size=st.integers(0, 2**40), result=results)


folds = st.lists(folded(plain_results), max_size=5)


def fold(files: list[Folded]) -> Accumulator:
    """Return an accumulator with the files folded in, in their order."""
    value = Accumulator()
    for file in files:
        value.fold(*file)
    return value


def merged(*values: Accumulator) -> Accumulator:
    """Return a new accumulator into which the values are merged, in their order."""
    total = Accumulator()
    for value in values:
        total.merge(value)
    return total


def shown(value: Accumulator) -> bytes:
    """Return the bytes of an aggregate's head: all that an accumulator says."""
    nothing = RowSpool(Spool(None, None), Spool(None, None))
    document = AggregateWriter(WINDOW, value, 1, "", 0, WINDOW.end, [nothing])
    return document._head()


def run(*scored: float, seconds: float | None = None) -> RunResult:
    """Return the result of a run with matches of these scores."""
    matches = tuple(
        [Match(score, n, orjson.dumps({"match_score": score})) for n, score in enumerate(scored)]
    )
    return RunResult("id", "2025-10-21T13:59:00", processing_time=seconds, top_matches=matches)


def timed(values: list[float]) -> Accumulator:
    """Return an accumulator of runs that took so long."""
    return fold([Folded("runs/a.json", 1, run(seconds=value)) for value in values])


class TestMonoid:
    @given(folds, folds, folds)
    def test_associative(self, a: list[Folded], b: list[Folded], c: list[Folded]) -> None:
        """Merging three with either pair first gives the same bytes."""
        left = merged(merged(fold(a), fold(b)), fold(c))
        right = merged(fold(a), merged(fold(b), fold(c)))
        assert shown(left) == shown(right)

    @given(folds, folds)
    def test_commutative(self, a: list[Folded], b: list[Folded]) -> None:
        """Merging two either way round gives the same bytes."""
        assert shown(merged(fold(a), fold(b))) == shown(merged(fold(b), fold(a)))

    @given(folds)
    def test_identity(self, files: list[Folded]) -> None:
        """The empty accumulator changes nothing, on either side."""
        value = fold(files)
        before = shown(value)
        value.merge(Accumulator())
        assert shown(value) == before
        assert shown(merged(Accumulator(), value)) == before

    @given(folds, folds)
    def test_fold_is_a_homomorphism(self, a: list[Folded], b: list[Folded]) -> None:
        """Folding two lists one after the other is merging what each folds to."""
        assert shown(fold(a + b)) == shown(merged(fold(a), fold(b)))

    @given(st.lists(folded(run_results), max_size=8), st.randoms(use_true_random=False))
    def test_any_order_any_split_any_tree(self, files: list[Folded], dice: random.Random) -> None:
        """However the files are ordered, split and merged, the bytes are the same."""
        expected = shown(fold(files))
        shuffled = dice.sample(files, len(files))
        parts: list[Accumulator] = [Accumulator() for _ in range(dice.randint(1, 4))]
        for file in shuffled:
            dice.choice(parts).fold(*file)
        while len(parts) > 1:
            one = parts.pop(dice.randrange(len(parts)))
            dice.choice(parts).merge(one)
        assert shown(parts[0]) == expected

    @given(folds, folds)
    def test_merge_leaves_the_other_alone(self, a: list[Folded], b: list[Folded]) -> None:
        """What is merged in does not change, not even when the total goes on folding."""
        total, other = Accumulator(), fold(b)
        before = shown(other)
        total.merge(other)
        for file in a:
            total.fold(*file)
        assert shown(other) == before


class TestSums:
    @given(folds)
    def test_are_exact(self, files: list[Folded]) -> None:
        """Every sum is that of whole numbers and fractions, with nothing lost."""
        value = fold(files)
        results = [file.result for file in files]
        times = [each.processing_time for each in results if each.processing_time is not None]
        assert value.counted == len(files)
        assert value.bytes == sum(file.size for file in files)
        assert value.opportunities == sum(each.opportunities for each in results)
        assert value.matches == sum(each.matches for each in results)
        assert value.no_matches == sum(each.no_matches for each in results)
        assert value.errors == sum(each.errors for each in results)
        assert value.timed == len(times)
        assert Fraction(value.seconds) == sum((Fraction(repr(time)) for time in times), Fraction(0))

    @given(st.lists(seconds, min_size=1, max_size=30))
    @example([5e-324, 1e12])
    @example([1e12, 5e-324, 2.2250738585072014e-308] * 3)
    @example([0.1] * 10)
    def test_processing_time(self, times: list[float]) -> None:
        """Count, least and greatest are exact; mean and text are those of the exact sum."""
        told = timed(times).processing_time()
        exact = sum((Fraction(repr(time)) for time in times), Fraction(0))
        assert told["count"] == len(times)
        assert (told["min"], told["max"]) == (min(times), max(times))
        assert told["min"] <= told["mean"] <= told["max"]
        assert told["mean"] == pytest.approx(float(exact / len(times)), rel=1e-15, abs=5e-324)
        assert Fraction(Decimal(told["exact_sum"])) == exact
        assert "E" not in told["exact_sum"]

    def test_do_not_drift(self) -> None:
        """A million tenths are 100,000 seconds; added as floats they would not be."""
        tenth = timed([0.1] * 1000)
        total = merged(*[tenth] * 1000)
        # Not sum(): from Python 3.12 on it compensates for rounding.
        assert reduce(add, [0.1] * 1_000_000) != 100_000
        assert total.seconds == 100_000
        assert total.processing_time()["mean"] == 0.1

    def test_beyond_64_bits(self) -> None:
        """Sums grow as far as they have to."""
        most = 2**53 - 1
        value = Accumulator()
        value.fold("a", 2**62, RunResult("a", "", most, most, most, most))
        doubled = reduce(lambda total, _: merged(total, total), range(20), value)
        assert doubled.opportunities == most * 2**20
        assert doubled.bytes == 2**82
        assert f'"total_opportunities":{most * 2**20},'.encode() in shown(doubled)

    def test_of_nothing(self) -> None:
        """Nothing has no mean, no extremes and no quantiles, and sums of 0."""
        told = Accumulator().processing_time()
        assert told == {
            "count": 0,
            "mean": None,
            "min": None,
            "max": None,
            "p50": None,
            "p90": None,
            "p99": None,
            "exact_sum": "0",
            "sketch": {"accuracy": 0.01, "zeros": 0, "bins": []},
        }

    def test_a_run_that_does_not_say(self) -> None:
        """A run without a processing time is no run of 0 seconds."""
        value = fold([Folded("a", 1, run()), Folded("b", 1, run(seconds=2.0))])
        assert (value.counted, value.timed, value.processing_time()["mean"]) == (2, 1, 2.0)


def brute_force(files: list[Folded]) -> list[RankedMatch]:
    """Return the top matches by sorting all of them."""
    every = [
        (
            -match.score,
            file.key,
            match.position,
            orjson.dumps({k: v for k, v in orjson.loads(match.body).items() if k not in RESERVED}),
        )
        for file in files
        for match in file.result.top_matches
    ]
    return sorted(every)[:10]


class TestTop:
    @given(st.lists(folded(plain_results), max_size=12))
    def test_is_that_of_a_sort(self, files: list[Folded]) -> None:
        """The ten best are those of a sort of all matches, in the same order."""
        assert fold(files).top == brute_force(files)

    @given(st.lists(st.lists(st.sampled_from([0, 1, 1.0, 0.5, True + 1]), max_size=6), max_size=8))
    def test_ties_break_by_key_then_position(self, runs: list[list[float]]) -> None:
        """Of equal scores the lesser key is first, of one key the earlier position."""
        files = [Folded(f"runs/{n}.json", 1, run(*scored)) for n, scored in enumerate(runs)]
        top = fold(files[::-1]).top
        assert top == brute_force(files)
        for (a, *left), (b, *right) in pairwise(top):
            assert a < b or (a == b and left[:2] < right[:2])

    @given(st.lists(folded(plain_results), max_size=12))
    def test_what_cannot_compete_may_be_left_out(self, files: list[Folded]) -> None:
        """Without the matches below `Accumulator.top_cutoff` the value is the same."""
        value = Accumulator()
        for file in files:
            rivals = [each for each in file.result.top_matches if each.score >= value.top_cutoff]
            result = structs.replace(file.result, top_matches=tuple(rivals))
            value.fold(file.key, file.size, result)
        assert value.top == fold(files).top

    def test_two_versions_of_one_key(self) -> None:
        """Where score, key and position agree, the content decides, in any order."""
        one = Folded("a", 1, RunResult("1", "", top_matches=(Match(1, 0, b'{"v":1}'),)))
        two = Folded("a", 1, RunResult("2", "", top_matches=(Match(1, 0, b'{"v":2}'),)))
        assert fold([one, two]).top == fold([two, one]).top
        assert [row[3] for row in fold([two, one]).top] == [b'{"v":1}', b'{"v":2}']

    def test_a_late_tie_takes_its_place(self) -> None:
        """A match as good as the tenth is not passed over, if its key comes first."""
        value = fold([Folded("runs/b.json", 1, run(*[1] * TOP))])
        value.fold("runs/a.json", 1, run(1))
        assert [(key, position) for _, key, position, _ in value.top[:2]] == [
            ("runs/a.json", 0),
            ("runs/b.json", 0),
        ]
        assert len(value.top) == TOP

    @pytest.mark.parametrize(
        ("less", "more"),
        [
            (2**53, 2**53 + 1),
            (float(2**53), 2**53 + 1),
            (2**64 - 2, 2**64 - 1),
            (-(2**63), -(2**63) + 1),
            (2**64 - 1, 2.0**64),
            (-1e308, -1e307),
            (-0.0, 5e-324),
            (1, 1.0000000000000002),
        ],
    )
    def test_scores_compare_exactly(self, less: float, more: float) -> None:
        """Whole numbers and floats are compared as numbers, not rounded to each other's kind."""
        top = fold([Folded("a", 1, run(less)), Folded("b", 1, run(more))]).top
        assert [key for _, key, _, _ in top] == ["b", "a"]

    def test_zeros_are_equal(self) -> None:
        """0, 0.0, -0.0 and no score at all are the same score."""
        bodies = [b'{"match_score":-0.0}', b"{}", b'{"match_score":0}']
        files = [
            Folded(
                f"runs/{n}",
                1,
                RunResult("", "", top_matches=(Match(score, 0, body),)),
            )
            for n, (score, body) in enumerate(zip([-0.0, 0, 0], bodies, strict=True))
        ]
        assert [row[1] for row in fold(files[::-1]).top] == ["runs/0", "runs/1", "runs/2"]

    @given(keys, match_objects, scores)
    def test_reserved_names(self, key: str, body: dict[str, Any], score: float) -> None:
        """The names that say where a match came from are ours: a match's own are left out."""
        claimed = body | dict.fromkeys(RESERVED, "forged")
        kept = {name: value for name, value in body.items() if name not in RESERVED}
        ranked = rank(key, Match(score, 7, orjson.dumps(claimed)))
        assert ranked[:3] == (-score, key, 7)
        assert orjson.loads(ranked[3]) == orjson.loads(orjson.dumps(kept))
        assert claimed["source_key"] == "forged"  # the caller's object is left as it was

    @given(st.lists(st.tuples(scores, keys, st.integers(0, 9), st.just(b"{}")), max_size=30))
    def test_best_is_idempotent(self, ranked: list[RankedMatch]) -> None:
        """The best of the best are the best."""
        assert best(best(ranked)) == best(ranked) == sorted(ranked)[:TOP]

    def test_order_of_names_is_kept(self) -> None:
        """A match object is shown with its names in the order in which they came."""
        body = {"z": 1, "a": {"y": 1, "b": 2}, "match_score": 3}
        assert (
            rank("k", Match(3, 0, orjson.dumps(body)))[3]
            == b'{"z":1,"a":{"y":1,"b":2},"match_score":3}'
        )


def exact_quantile(values: list[float], q: float) -> float:
    """Return the value at the lower nearest rank, as the sketch defines it."""
    return sorted(values)[math.floor(q * (len(values) - 1))]


quantiles = st.sampled_from([0, 0.01, 0.25, 0.5, 0.9, 0.99, 1]) | st.floats(0, 1)
measurable = st.floats(Sketch.SMALLEST, 1e12) | st.floats(0.001, 60)


class TestSketch:
    @given(st.lists(measurable, min_size=1, max_size=50), quantiles)
    def test_relative_error(self, values: list[float], q: float) -> None:
        """Every quantile is within 1 % of the exact one."""
        sketch = Sketch()
        for value in values:
            sketch.add(value)
        assert sketch.quantile(q) == pytest.approx(exact_quantile(values, q), rel=0.01 + 1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_relative_error_of_many(self, seed: int) -> None:
        """Of 20,000 log-normal times, p50, p90 and p99 are within 1 %."""
        dice = random.Random(seed)
        values = [dice.lognormvariate(0.5, 1.5) for _ in range(20_000)]
        told = timed(values).processing_time()
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert told[name] == pytest.approx(exact_quantile(values, q), rel=0.01)

    @given(st.lists(seconds, min_size=1, max_size=30))
    @example([0.0])
    @example([5e-324, 1e-10])
    @example([1e-9])
    def test_quantiles_lie_between_the_extremes(self, values: list[float]) -> None:
        """No quantile shown is less than the least or more than the greatest; they are ordered."""
        told = timed(values).processing_time()
        quantile = [told[name] for name in ("min", "p50", "p90", "p99", "max")]
        assert quantile == sorted(quantile)
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            exact = exact_quantile(values, q)
            assert told[name] == pytest.approx(exact, rel=0.01 + 1e-9, abs=Sketch.SMALLEST)

    @given(st.lists(seconds, max_size=30))
    def test_state_reads_back(self, values: list[float]) -> None:
        """The state in the document gives the same sketch, and counts each value once."""
        sketch = timed(values).sketch
        again = Sketch.from_state(orjson.loads(orjson.dumps(sketch.state())))
        assert again.state() == sketch.state()
        assert again.count == len(values)
        bins = [index for index, _ in sketch.state()["bins"]]
        assert bins == sorted(set(bins))

    def test_another_accuracy(self) -> None:
        """A sketch of another accuracy cannot be merged: refused, with the one that can."""
        state = Sketch().state() | {"accuracy": 0.02}
        with pytest.raises(ValueError, match=r"accuracy 0.02: expected 0.01"):
            Sketch.from_state(state)

    def test_few_bins(self) -> None:
        """Times from a nanosecond to 30,000 years need no more than 2,500 bins."""
        sketch = Sketch()
        for exponent in range(-900, 1201):
            sketch.add(10 ** (exponent / 100))
        low, high = min(sketch.bins), max(sketch.bins)
        assert high - low < 2500

    def test_zeros(self) -> None:
        """Zeros are counted apart and come first."""
        sketch = Sketch()
        for value in (0.0, 0.0, 5e-324, 1.0):
            sketch.add(value)
        assert sketch.zeros == 3
        assert sketch.quantile(0) == sketch.quantile(0.5) == 0.0
        assert sketch.quantile(1) == pytest.approx(1, rel=0.01)
