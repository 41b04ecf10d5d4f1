"""The intervals against scipy's bootstrap, the normal approximation, and the truth they should cover."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.evaluate.metrics import statistic
from pipeline.judge.bootstrap import Interval, percentile_interval, resample, seed_of, weights
from pipeline.judge.gate import MINIMUM_ROWS


def _pair(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a good system's predictions, a worse one's, with some errors in common."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 5, rows)
    hard = generator.random(rows) < 0.15
    ours = np.where(hard | (generator.random(rows) < 0.05), (label + 1) % 5, label)
    theirs = np.where(hard | (generator.random(rows) < 0.15), (label + 2) % 5, label)
    return label, ours, theirs


def _difference(
    label: np.ndarray, ours: np.ndarray, theirs: np.ndarray, metric: str, resamples: int = 2000
) -> Interval:
    both = [
        statistic(metric, "classification", {"label": label, "prediction": each}) for each in (ours, theirs)
    ]
    drawn = resample(both, len(label), resamples, seed=7)
    return percentile_interval(drawn[0] - drawn[1], 0.95)


def test_every_resample_has_as_many_rows_as_there_are() -> None:
    pieces = list(weights(700_000, 3, seed=1))
    assert [piece.shape for piece in pieces] == [(1, 700_000)] * 3
    assert all((piece.sum(axis=1) == 700_000).all() for piece in pieces)
    assert sum(piece.shape[0] for piece in weights(10, 137, seed=1)) == 137


def test_each_row_is_drawn_equally_often() -> None:
    drawn = np.concatenate([*weights(10, 20_000, seed=3)])
    # A count is binomial(10, 1/10): mean 1, variance 0.9; 20,000 of them put the mean within 0.03 (4 deviations).
    assert np.allclose(drawn.mean(axis=0), 1, atol=0.03)
    assert np.allclose(drawn.var(axis=0), 0.9, atol=0.05)


def test_the_interval_of_a_difference_equals_scipys_paired_bootstrap() -> None:
    from scipy.stats import bootstrap
    from sklearn.metrics import f1_score

    label, ours, theirs = _pair(300, seed=0)

    def accuracy(i: np.ndarray) -> float:
        return float((ours[i] == label[i]).mean() - (theirs[i] == label[i]).mean())

    def macro_f1(i: np.ndarray) -> float:
        return float(
            f1_score(label[i], ours[i], average="macro") - f1_score(label[i], theirs[i], average="macro")
        )

    for metric, function, resamples in (("accuracy", accuracy, 4000), ("macro_f1", macro_f1, 400)):
        expected = bootstrap(
            (np.arange(300),), function, vectorized=False, n_resamples=resamples, method="percentile", rng=1
        ).confidence_interval
        got = _difference(label, ours, theirs, metric, resamples)
        # Two independent sets of draws: the ends differ by the bootstrap's own noise, some 5 % of the width.
        width = expected.high - expected.low
        assert got.low == pytest.approx(expected.low, abs=0.15 * width), metric
        assert got.high == pytest.approx(expected.high, abs=0.15 * width), metric


def test_the_interval_of_an_accuracy_difference_is_near_the_normal_one() -> None:
    label, ours, theirs = _pair(2000, seed=1)
    gap = (ours == label).astype(float) - (theirs == label)
    error = gap.std() / np.sqrt(len(gap))
    got = _difference(label, ours, theirs, "accuracy", 4000)
    assert got.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.2 * error)
    assert got.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.2 * error)


def _coverage(rows: int, trials: int = 400) -> float:
    """How often a nominal 95 % interval of an accuracy difference holds the true one, 0.085."""
    covered = 0
    for trial in range(trials):
        label, ours, theirs = _pair(rows, seed=1000 + trial)
        interval = _difference(label, ours, theirs, "accuracy", 300)
        covered += interval.low <= 0.085 <= interval.high
    return covered / trials


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    assert 0.91 <= _coverage(200) <= 0.98


def test_below_the_minimum_of_rows_the_interval_covers_clearly_less_than_it_says() -> None:
    assert _coverage(MINIMUM_ROWS // 2) < 0.88


def test_the_seed_follows_from_the_rows_and_not_from_their_order() -> None:
    assert seed_of(["a", "b"]) == seed_of(["b", "a"])
    assert seed_of(["a", "b"]) != seed_of(["a", "c"])
    assert np.array_equal(next(weights(9, 5, 3)), next(weights(9, 5, 3)))
    assert not np.array_equal(next(weights(9, 5, 3)), next(weights(9, 5, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_resample_without_a_figure_leaves_no_interval(bad: float) -> None:
    # One infinity in a thousand lies beyond the tail that a quantile would look at.
    assert not percentile_interval(np.append(np.arange(1000.0), bad), 0.95).finite


def test_the_ends_are_percentiles() -> None:
    interval = percentile_interval(np.arange(101.0), 0.9)
    assert (interval.low, interval.high) == pytest.approx((5, 95))


def test_macro_f1_of_ten_thousand_rows_is_resampled_two_thousand_times_in_seconds() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 77, 10_000)
    prediction = np.where(generator.random(10_000) < 0.9, label, 0)
    started = time.perf_counter()
    interval = _difference(label, prediction, label, "macro_f1")
    assert time.perf_counter() - started < 15  # 2 s when the machine does nothing else
    assert interval.high < 0
