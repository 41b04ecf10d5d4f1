"""Criteria → verdict: what a trained prefix must show before it is registered.

`judge` fails closed. A criterion fails where its figure is not a number, where a system it compares with was not
scored, and where there are fewer than `MINIMUM_ROWS` rows to compare; slice criteria of which no slice is large
enough fail; a gate without any criteria lets nothing through. Only one thing passes unseen: a comparison with the
version in production while there is none, and the verdict says so.

The same rows give the same verdict on any machine, in any order: the draws follow from the row ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluate.metrics import Statistic, statistic
from pipeline.evaluate.scored import Sample, Scored, read
from pipeline.judge.bootstrap import Interval, percentile_interval, resample, seed_of
from pipeline.judge.verdict import TABLE_HEADER, Criterion, Kind, Verdict, number, table
from pipeline.params import (
    METRICS,
    TASK_METRICS,
    Comparison,
    EvaluationParams,
    GateParams,
    SliceCriteria,
    Task,
)

__all__ = [
    "MINIMUM_ROWS", "TABLE_HEADER", "Criterion", "Estimate", "Verdict", "estimates", "judge", "table",
]  # fmt: skip

MINIMUM_ROWS = 20
"""Below this many rows a percentile interval covers clearly less than it says (tests/test_bootstrap.py)."""

_OTHER: Mapping[Kind, tuple[Literal["base", "champion"], str]] = {
    "better_than_base": ("base", "the frozen base"),
    "not_worse_than_champion": ("champion", "the version in production"),
}


@dataclass(frozen=True)
class Estimate:
    """One metric of one system over all of its rows; None where it is not a number."""

    figure: float | None
    interval: tuple[float, float] | None
    rows: int


def judge(rows: Path | Any, gate: GateParams, task: Task, evaluation: EvaluationParams) -> Verdict:
    """The verdict on the prefix whose scored test rows are `rows`.

    Args:
        rows: rows.parquet as `pipeline.evaluate.evaluation.evaluate` wrote it, or the same as a pyarrow.Table.

    Raises:
        DataError: the rows are incomplete or contradict themselves (see `pipeline.evaluate.scored.read`).
    """
    court = _Court(read(rows, task), gate, evaluation)
    return Verdict.of(tuple(court.criteria()))


def estimates(
    rows: Path | Any, gate: GateParams, task: Task, evaluation: EvaluationParams
) -> dict[str, dict[str, Estimate]]:
    """{system: {metric: figure with its own interval}} for every metric of the task, for tables and plots.

    Whether one system is better than another is not to be read from whether two of these overlap: that is what
    `judge` computes, on paired rows.
    """
    court = _Court(read(rows, task), gate, evaluation)
    return {
        system: {metric: court.estimate(system, metric) for metric in TASK_METRICS[task]}
        for system in court.scored.systems
    }


@dataclass(frozen=True)
class _Court:
    scored: Scored
    gate: GateParams
    evaluation: EvaluationParams

    def criteria(self) -> Iterator[Criterion]:
        gate = self.gate
        for metric, threshold in gate.floors.items():
            yield self.floor(metric, threshold)
        if gate.better_than_base is not None:
            yield self.comparison("better_than_base", gate.better_than_base)
        if gate.not_worse_than_champion is not None:
            yield self.comparison("not_worse_than_champion", gate.not_worse_than_champion)
        for wanted in gate.slices:
            yield from self.slice_criteria(wanted)

    def slice_criteria(self, wanted: SliceCriteria) -> Iterator[Criterion]:
        if wanted.column not in self.scored.slices:
            available = ", ".join(sorted(self.scored.slices)) or "none"
            raise DataError(
                [f"slice.{wanted.column}: no such column in the scored rows; available: {available}"]
            )
        column = self.scored.slices[wanted.column]
        values, counts = np.unique(column, return_counts=True)
        large = values[counts >= wanted.min_rows]
        if not len(large):
            yield from self._no_large_slice(wanted, int(counts.max()))
        for value in large:
            where, places = f"{wanted.column}={value}", np.flatnonzero(column == value)
            for metric, threshold in wanted.floors.items():
                yield self.floor(metric, threshold, where, places)
            if wanted.not_worse_than_champion is not None and "champion" in self.scored.systems:
                yield self.comparison(
                    "not_worse_than_champion", wanted.not_worse_than_champion, where, places
                )
        if (
            len(large)
            and wanted.not_worse_than_champion is not None
            and "champion" not in self.scored.systems
        ):
            yield self.comparison(
                "not_worse_than_champion", wanted.not_worse_than_champion, f"{wanted.column}=*"
            )

    def _no_large_slice(self, wanted: SliceCriteria, largest: int) -> Iterator[Criterion]:
        reason = (
            f"no value of {wanted.column} has at least {wanted.min_rows:,} test rows (the largest has {largest:,}), "
            "so nothing was judged: give more data or lower gate.slices min_rows"
        )
        where = f"{wanted.column}=*"
        for metric, threshold in wanted.floors.items():
            yield Criterion("floor", metric, where, None, None, threshold, False, reason, 0)
        comparison = wanted.not_worse_than_champion
        if comparison is not None:
            threshold = _threshold("not_worse_than_champion", comparison)
            yield Criterion(
                "not_worse_than_champion", comparison.metric, where, None, None, threshold, False, reason, 0
            )

    def floor(
        self, metric: str, threshold: float, where: str | None = None, places: NDArray[np.int64] | None = None
    ) -> Criterion:
        sample = self.scored.sample("prefix", metric)
        if places is not None:
            sample = sample.only(places)
        found = self._estimate(sample, metric)
        here = _here(metric, where)

        def criterion(passed: bool, reason: str) -> Criterion:
            return Criterion(
                "floor", metric, where, found.figure, found.interval, threshold, passed, reason, found.rows,
                ours=found.figure,
            )  # fmt: skip

        least = 1 if where else MINIMUM_ROWS
        if found.rows < least:
            return criterion(False, f"{here} was measured on {found.rows} rows; at least {least} are needed")
        if found.figure is None or found.interval is None:
            return criterion(False, f"{here} is not a finite number on {found.rows:,} rows")
        higher = METRICS[metric] == "higher"
        passed = found.figure >= threshold if higher else found.figure <= threshold
        limit = "floor" if higher else "ceiling"
        side = ("at or above" if higher else "at or below") if passed else ("below" if higher else "above")
        return criterion(
            passed,
            f"{here} is {number(found.figure)} on {found.rows:,} rows ({self._interval(found.interval)}), "
            f"{side} the {limit} of {number(threshold)}",
        )

    def comparison(
        self,
        kind: Kind,
        wanted: Comparison,
        where: str | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> Criterion:
        metric, threshold = wanted.metric, _threshold(kind, wanted)
        system, name = _OTHER[kind]
        here = _here(metric, where)
        if system not in self.scored.systems:
            # Without a champion there is nothing to be worse than; without the base something went wrong.
            passed = system == "champion"
            reason = f"there is no {name[4:]} yet" if passed else f"{here}: {name} was not scored"
            return Criterion(kind, metric, where, None, None, threshold, passed, reason, 0)
        ours, theirs = self._paired(system, metric, places)
        rows = len(ours.places)
        if rows < MINIMUM_ROWS:
            reason = (
                f"{here} can be compared with {name} on {rows} common test rows; {MINIMUM_ROWS} are needed"
            )
            return Criterion(kind, metric, where, None, None, threshold, False, reason, rows)

        statistics = [self._statistic(sample, metric) for sample in (ours, theirs)]
        own, other = (_finite(float(function(np.ones((1, rows)))[0])) for function in statistics)
        drawn = resample(statistics, rows, self.gate.resamples, self._seed(ours))
        sign = 1 if METRICS[metric] == "higher" else -1
        interval = _pair(percentile_interval(sign * (drawn[0] - drawn[1]), self.gate.confidence))
        if own is None or other is None or interval is None:
            reason = f"{here} compared with {name} is not a finite number on {rows:,} rows"
            return Criterion(kind, metric, where, None, None, threshold, False, reason, rows, own, other)
        better = sign * (own - other)
        passed = interval[0] > threshold if kind == "better_than_base" else interval[0] >= threshold
        reason = (
            f"{here} is {number(own)} against {number(other)} for {name} on the same {rows:,} rows: "
            f"{number(abs(better))} {'better' if better > 0 else 'worse' if better < 0 else 'apart'} "
            f"({self._interval(interval, signed=True)}); the low end must be "
            f"{'above' if kind == 'better_than_base' else 'at or above'} {number(threshold)}"
        )
        return Criterion(kind, metric, where, better, interval, threshold, passed, reason, rows, own, other)

    def estimate(self, system: str, metric: str) -> Estimate:
        return self._estimate(self.scored.sample(system, metric), metric)

    def _estimate(self, sample: Sample, metric: str) -> Estimate:
        rows = len(sample.places)
        if not rows:
            return Estimate(None, None, 0)
        function = self._statistic(sample, metric)
        drawn = resample([function], rows, self.gate.resamples, self._seed(sample))
        figure = _finite(float(function(np.ones((1, rows)))[0]))
        interval = _pair(percentile_interval(drawn[0], self.gate.confidence))
        return Estimate(figure, interval, rows)

    def _statistic(self, sample: Sample, metric: str) -> Statistic:
        return statistic(metric, self.scored.task, sample.columns, bins=self.evaluation.calibration_bins)

    def _paired(self, system: str, metric: str, places: NDArray[np.int64] | None) -> tuple[Sample, Sample]:
        ours, theirs = (self.scored.sample(name, metric) for name in ("prefix", system))
        common = np.intersect1d(ours.places, theirs.places, assume_unique=True)
        if places is not None:
            common = np.intersect1d(common, places, assume_unique=True)
        return ours.only(common), theirs.only(common)

    def _seed(self, sample: Sample) -> int:
        return seed_of(row_id.decode() for row_id in self.scored.row_ids[sample.places].tolist())

    def _interval(self, interval: tuple[float, float], *, signed: bool = False) -> str:
        low, high = (f"{end:+.4g}" if signed else number(end) for end in interval)
        return f"{100 * self.gate.confidence:g} % interval {low} to {high}"


def _threshold(kind: Kind, wanted: Comparison) -> float:
    """What the low end is held against; written so that no −0.0 arises."""
    return wanted.margin if kind == "better_than_base" else 0.0 - wanted.margin


def _here(metric: str, where: str | None) -> str:
    return f"{metric} where {where}" if where else metric


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(interval: Interval) -> tuple[float, float] | None:
    return (interval.low, interval.high) if interval.finite else None
