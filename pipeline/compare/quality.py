"""How good each method is on the test rows, and how much better or worse than the prefix: figures with intervals.

Two things make a figure uncertain. Over rows: the test rows are a sample; the bootstrap of `pipeline.judge` draws them
again, the same ones for both methods and all seeds. Over seeds: another training would have come out otherwise;
where there are several, the interval is Student's for their mean, each seed's two methods being compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import Floats, Statistic, statistic
from pipeline.evaluate.scored import Scored, read
from pipeline.judge.bootstrap import percentile_interval, resample, seed_of
from pipeline.params import METRICS, TASK_METRICS, EvaluationParams, GateParams, Task


def judged(
    rows: Mapping[str, Sequence[Path]], task: Task, evaluation: EvaluationParams, gate: GateParams
) -> dict[str, dict[str, dict[str, Any]]]:
    """{method: {metric: {figure, seeds, over_rows, over_seeds, difference, …}}}.

    Args:
        rows: method → the scored rows of each of its seeds, the same seeds for all (or one, where a method draws none).
        gate: whose confidence and resamples are used.

    Returns:
        `figure` is the mean over `seeds`, the figures one by one; `over_rows` and `over_seeds` are [low, high] or None.
        `difference` holds the same of (method − prefix), turned so that higher is better; None for the prefix.
    """
    read_rows = {method: [read(path, task) for path in paths] for method, paths in rows.items()}
    return {
        method: {
            metric: {
                **_estimate([[s] for s in scored], metric, evaluation, gate),
                "difference": None
                if method == "prefix"
                else _estimate(
                    _pairs(scored, read_rows["prefix"]), metric, evaluation, gate, sign=_sign(metric)
                ),
            }
            for metric in TASK_METRICS[task]
        }
        for method, scored in read_rows.items()
    }


def _sign(metric: str) -> int:
    return 1 if METRICS[metric] == "higher" else -1


def _pairs(ours: Sequence[Scored], prefix: Sequence[Scored]) -> list[list[Scored]]:
    """[method, prefix] of each seed; what has one seed only meets each of the prefix's."""
    one = list(ours) * len(prefix) if len(ours) == 1 else list(ours)
    return [[mine, theirs] for mine, theirs in zip(one, prefix, strict=True)]


def _estimate(
    seeds: Sequence[Sequence[Scored]],
    metric: str,
    evaluation: EvaluationParams,
    gate: GateParams,
    *,
    sign: int = 1,
) -> dict[str, Any]:
    """The mean over seeds of a figure, or of a difference of two."""
    samples = [[one.sample("prefix", metric) for one in group] for group in seeds]
    places = samples[0][0].places
    for sample in (one for group in samples for one in group):
        assert np.array_equal(sample.places, places), "methods were scored on different rows"
    statistics: list[Statistic] = [
        statistic(metric, seeds[0][0].task, sample.columns, bins=evaluation.calibration_bins)
        for group in samples
        for sample in group
    ]
    size = len(seeds[0])

    def differences(figures: Floats) -> Floats:
        """[statistics, R] → [seeds, R]."""
        grouped = figures.reshape(len(seeds), size, -1)
        return grouped[:, 0] if size == 1 else sign * (grouped[:, 0] - grouped[:, 1])

    rows = len(places)
    every = differences(np.stack([function(np.ones((1, rows))) for function in statistics]))[:, 0]
    row_ids = seeds[0][0].row_ids[places].tolist()
    drawn = differences(
        resample(statistics, rows, gate.resamples, seed_of(row_id.decode() for row_id in row_ids))
    ).mean(axis=0)
    interval = percentile_interval(drawn, gate.confidence)
    return {
        "figure": _finite(float(every.mean())),
        "seeds": [_finite(float(value)) for value in every],
        "over_rows": [interval.low, interval.high] if interval.finite else None,
        "over_seeds": _student(every, gate.confidence),
    }


def _student(values: Floats, confidence: float) -> list[float] | None:
    """Student's interval for the mean of `values`; None where there is one value, or one that is not finite.

    Source: Student 1908, The Probable Error of a Mean.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * float(values.std(ddof=1))
    half /= math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
