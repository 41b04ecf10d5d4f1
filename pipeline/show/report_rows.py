"""What the report shows beyond the verdict, counted from the per-row results.

Rows are read by `pipeline.evaluate.scored`, figures are those of `pipeline.evaluate.metrics`: nothing is defined twice.
N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import confusion_matrix, figure, per_class
from pipeline.evaluate.scored import Scored
from pipeline.show.plots import ReliabilityBin

NO_CLASS = "(no known class)"
"""Stands for a prediction that is none of today's labels."""


@dataclass(frozen=True)
class ClassRow:
    """One class: its number from 1, its test rows, the prefix's scores, and the base's F1 if it was scored."""

    number: int
    label: str
    rows: int
    precision: float
    recall: float
    f1: float
    base_f1: float | None


@dataclass(frozen=True)
class Confused:
    """How many rows of the class `true` were taken for `predicted`, and which share of the class that is."""

    true: str
    predicted: str
    rows: int
    share: float


@dataclass(frozen=True)
class SliceRow:
    """One value of one slice column: its test rows, and one metric per system (None where it has no such row)."""

    column: str
    value: str
    rows: int
    scores: Mapping[str, float | None]


def confusion(scored: Scored, system: str, classes: int) -> NDArray[np.int64] | None:
    """Counts [C, C + 1], true class by predicted class, no known class last; None if `system` has no rows."""
    columns = _columns(scored, system, "accuracy")
    if columns is None:
        return None
    return confusion_matrix(columns["label"], columns["prediction"], classes)


def class_rows(
    matrix: NDArray[np.int64], labels: Sequence[str], base: NDArray[np.int64] | None
) -> list[ClassRow]:
    """One row per class, the lowest F1 first.

    Args:
        matrix: the prefix's `confusion`.
        base: the frozen base's `confusion`, if it was scored.
    """
    keys = [str(i) for i in range(len(labels))]  # numbers, because two labels may read the same
    ours = per_class(matrix, keys)
    theirs = per_class(base, keys) if base is not None else None
    rows = [
        ClassRow(
            number=i + 1,
            label=label,
            rows=int(ours[key]["support"]),
            precision=ours[key]["precision"],
            recall=ours[key]["recall"],
            f1=ours[key]["f1"],
            base_f1=theirs[key]["f1"] if theirs is not None else None,
        )
        for i, (key, label) in enumerate(zip(keys, labels, strict=True))
    ]
    return sorted(rows, key=lambda row: (row.f1, row.number))


def most_confused(matrix: NDArray[np.int64], labels: Sequence[str], limit: int = 12) -> list[Confused]:
    """The largest cells off the diagonal, largest first."""
    names = [*labels, NO_CLASS]
    totals = matrix.sum(axis=1)
    wrong = [(int(matrix[i, j]), int(i), int(j)) for i, j in np.argwhere(matrix > 0) if i != j]
    wrong.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    return [Confused(names[i], names[j], rows, rows / int(totals[i])) for rows, i, j in wrong[:limit]]


def reliability(scored: Scored, bins: int) -> dict[str, list[ReliabilityBin]]:
    """{system: the bins of its calibration error that hold a row} (Guo et al. 2017, section 2)."""
    found = {}
    for system in scored.systems:
        columns = _columns(scored, system, "calibration_error")
        if columns is None:
            continue
        confidence = np.nan_to_num(columns["confidence"].astype(np.float64))
        right = (columns["label"] == columns["prediction"]).astype(np.float64)
        which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        rows = np.bincount(which, minlength=bins)
        means = np.bincount(which, confidence, bins) / np.maximum(rows, 1)
        shares = np.bincount(which, right, bins) / np.maximum(rows, 1)
        found[system] = [
            ReliabilityBin(float(means[i]), float(shares[i]), int(rows[i])) for i in np.flatnonzero(rows)
        ]
    return found


def losses_per_token(scored: Scored) -> dict[str, NDArray[np.float64]]:
    """{system: nats per target token of each of its rows, [N]}."""
    found = {}
    for system in scored.systems:
        columns = _columns(scored, system, "loss")
        if columns is not None:
            found[system] = columns["nll"] / np.maximum(columns["target_tokens"], 1)
    return found


def slice_rows(scored: Scored, metric: str) -> list[SliceRow]:
    """One row per value of every slice column, by column and then by value."""
    found = []
    samples = {system: scored.sample(system, metric) for system in scored.systems}
    for column, values in sorted(scored.slices.items()):
        for value in np.unique(values):
            places = np.flatnonzero(values == value)
            scores: dict[str, float | None] = {}
            for system, sample in samples.items():
                chosen = sample.only(places)
                here = len(chosen.places) > 0
                scores[system] = figure(metric, scored.task, chosen.columns) if here else None
            found.append(SliceRow(column, str(value), len(places), scores))
    return found


def _columns(scored: Scored, system: str, metric: str) -> Mapping[str, NDArray[np.float64]] | None:
    """What `metric` reads of `system`, or None where there is no row."""
    if system not in scored.systems:
        return None
    sample = scored.sample(system, metric)
    return sample.columns if len(sample.places) else None
