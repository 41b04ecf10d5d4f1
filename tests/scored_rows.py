"""Scored rows made from arrays, in the form evaluation writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.digest import digest
from pipeline.evaluate.metrics import score_hypothesis
from pipeline.evaluate.scored import SLICE, schema


def row_ids(rows: int) -> list[str]:
    return [digest(i) for i in range(rows)]


def classification(
    labels: Sequence[int],
    predictions: Mapping[str, Sequence[int]],
    *,
    confidence: float = 0.8,
    slices: Mapping[str, Sequence[str]] | None = None,
    expected: Sequence[str] | None = None,
) -> pa.Table:
    """Every system's predictions for the same rows; `expected` are the systems named in the metadata."""
    slices = slices or {}
    lines: list[dict[str, Any]] = []
    for system, predicted in predictions.items():
        for i, (row_id, label, prediction) in enumerate(
            zip(row_ids(len(labels)), labels, predicted, strict=True)
        ):
            lines.append(
                {
                    "row_id": row_id,
                    "system": system,
                    "label": int(label),
                    "prediction": int(prediction),
                    "confidence": confidence,
                    "loss": -float(np.log(confidence if label == prediction else 1 - confidence)),
                    **{SLICE + name: values[i] for name, values in slices.items()},
                }
            )
    made = schema("classification", [*slices], expected if expected is not None else [*predictions])
    return pa.Table.from_pylist(lines, schema=made)


def generation(
    references: Sequence[Sequence[str]],
    hypotheses: Mapping[str, Sequence[str | None]],
    *,
    nll: Mapping[str, Sequence[float]] | None = None,
) -> pa.Table:
    """Texts of each system against the same references; None was not generated. 5 target tokens a row."""
    lines: list[dict[str, Any]] = []
    for system, texts in hypotheses.items():
        for i, (row_id, targets, text) in enumerate(
            zip(row_ids(len(references)), references, texts, strict=True)
        ):
            scores = {} if text is None else vars(score_hypothesis(text, targets))
            lines.append(
                {
                    "row_id": row_id,
                    "system": system,
                    "nll": float(nll[system][i]) if nll else 10.0,
                    "target_tokens": 5,
                    "hypothesis": text,
                    **scores,
                }
            )
    return pa.Table.from_pylist(lines, schema=schema("generation", [], [*hypotheses]))
