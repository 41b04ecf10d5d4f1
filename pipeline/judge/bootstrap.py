"""The bootstrap: how far a figure could be from what it is on these rows.

Rows are drawn with replacement, as many as there are, and a figure is computed from how often each was drawn.
A comparison draws the same rows for both systems (paired), which takes out what makes a row hard for both.
Draws follow from a seed made of the rows' own digests: the same rows give the same interval.

Sources: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 16; for texts, Koehn 2004,
Statistical Significance Tests for Machine Translation Evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.metrics import Floats, Statistic

_CHUNK = 1_000_000
"""Weights drawn at a time: 8 MB, which stays near the cache, whatever the number of rows."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval; NaN on both sides when a resample had no figure."""

    low: float
    high: float

    @property
    def finite(self) -> bool:
        """Whether both ends are numbers."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


def seed_of(row_ids: Iterable[str]) -> int:
    """A seed that is the same for the same rows in any order."""
    joined = "\n".join(sorted(row_ids)).encode()
    return int.from_bytes(hashlib.sha256(joined).digest()[:16], "big")


def weights(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Pieces of [resamples, rows]: how often each row was drawn; every line sums to `rows`."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // rows)
    for start in range(0, resamples, at_once):
        lines = min(at_once, resamples - start)
        drawn = generator.integers(0, rows, size=(lines, rows))
        drawn += np.arange(lines)[:, None] * rows
        counts = np.bincount(drawn.ravel(), minlength=lines * rows)
        yield counts.reshape(lines, rows).astype(float)


def resample(statistics: Sequence[Statistic], rows: int, resamples: int, seed: int) -> Floats:
    """[len(statistics), resamples] figures, every statistic on the same draws.

    Args:
        rows: how many rows the statistics are over; at least 1.
    """
    pieces = [[function(piece) for function in statistics] for piece in weights(rows, resamples, seed)]
    return np.concatenate(pieces, axis=1)


def percentile_interval(figures: Floats, confidence: float) -> Interval:
    """The middle `confidence` of the figures; NaN where any is not finite: none is left out quietly."""
    if not np.isfinite(figures).all():
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return Interval(float(low), float(high))
