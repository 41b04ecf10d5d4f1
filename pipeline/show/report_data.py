"""What `pipeline.show.report` makes a page of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.params import EvaluationParams, GateParams, Task

Outcome = Literal["registered", "rejected", "unchanged", "failed"]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a page shows. What is None, or a path to nothing, is said to be missing on the page.

    Attributes:
        prefix: its name in params.yaml.
        outcome: how the retraining ended.
        task: what the rows are.
        created: ISO 8601 time of the retraining, with its offset.
        version: of the registered model; None if none was registered.
        run_key: identity of the retraining.
        verdict: `pipeline.judge.verdict.Verdict.to_json()`.
        evaluated: evaluated.json; `systems` is used where there are no rows, `labels` if none are given.
        trained: trained.json.
        card: card.json of the dataset.
        params: the prefix's parameters; by default those of the lineage record.
        lineage: the lineage record as plain objects.
        timings: {what: seconds} of the retraining's steps.
        labels: class names by class number.
        rows: path of rows.parquet.
        curves: path of curves.jsonl.
        samples: path of samples.json.
        gate: says at which confidence and with how many resamples the intervals are drawn.
        evaluation: says how many bins the calibration has.
    """

    prefix: str
    outcome: Outcome
    task: Task
    created: str
    version: str | None = None
    run_key: str | None = None
    verdict: Mapping[str, Any] | None = None
    evaluated: Mapping[str, Any] | None = None
    trained: Mapping[str, Any] | None = None
    card: Mapping[str, Any] | None = None
    params: Mapping[str, Any] | None = None
    lineage: Mapping[str, Any] | None = None
    timings: Mapping[str, float] | None = None
    labels: tuple[str, ...] | None = None
    rows: Path | None = None
    curves: Path | None = None
    samples: Path | None = None
    gate: GateParams = field(default_factory=GateParams)
    evaluation: EvaluationParams = field(default_factory=EvaluationParams)
