"""What a finished retraining leaves: the lineage record, the answer, what goes on the MLflow run, and the page's data."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data import card_page
from pipeline.digest import canonical_json, digest
from pipeline.files import write_bytes, write_json
from pipeline.outcome import Outcome
from pipeline.plan import Judged, Plan
from pipeline.register import lineage, registry
from pipeline.register.curves import log_curves, read_curves
from pipeline.register.dataset_source import DvcDatasetSource
from pipeline.register.lineage import LineageRecord
from pipeline.register.registry import Registry
from pipeline.show.report_data import ReportData

OUTCOME_FILE = "outcome.json"
"""The run's artifact that a later, unchanged retraining reads its answer from."""

LINEAGE_FILE, LOCK_FILE = "lineage.json", "lock.json"
"""The run's artifacts that hold the lineage record, and what was installed, whose SHA-256 is in it."""


def known_at_start(plan: Plan, run_id: str, commit: str) -> dict[str, Any]:
    """What the lineage record will say, as far as it is known before anything is computed, from `commit` on."""
    dataset, base = plan.dataset, plan.base
    return {
        "prefix": plan.name,
        "run_key": plan.run_key,
        "base_model": {
            "name": base.name,
            "digest": base.digest,
            "source": dict(base.source),
            "files": dict(base.files),
        },
        "dataset": {
            "path": dataset.path,
            "md5": dataset.md5,
            "git_commit": dataset.git_commit,
            "manifest": dict(dataset.manifest),
        },
        "params": lineage.identity_params(plan.entry),
        "code": {"commit": commit, "dirty": False, **plan.code},
        "environment": lineage.environment_identity(),
        "runs": {"mlflow": run_id, "prefect": plan.prefect_run},
        "seed": plan.entry.training.seed,
        "warm_start": None if plan.warm_start is None else plan.warm_start.to_json(),
    }


def lineage_record(plan: Plan, judged: Judged, rows: Mapping[str, int], created: str) -> LineageRecord:
    """What made this adapter: base model, data, code, parameters, experiment and runs.

    `rows` are per split, with their total; `created` is when the MLflow run began, so that a repeat says the same.
    """
    files = {path.name: sha for path, sha in _adapter_files(judged)}
    known = known_at_start(plan, judged.run_id, judged.experiment.baseline)
    dataset = {
        **known.pop("dataset"),
        "rows": dict(rows),
        "labels": judged.prepared["labels"],
        "row_index": judged.prepared["row_index"],
        "splits": lineage.split_digests(judged.prepared["manifest"]),
        "row_ids": judged.prepared["row_ids"],
        "row_root": judged.prepared["row_root"],
    }
    return LineageRecord(
        **known,
        files=files,
        adapter_digest=digest(files),
        dataset=dataset,
        experiment={"commit": judged.experiment.commit, "name": judged.experiment.name},
        metrics=judged.evaluated["systems"],
        verdict=judged.verdict.to_json(),
        created=created,
    )


def _adapter_files(judged: Judged) -> Iterator[tuple[PurePosixPath, str]]:
    for name, sha in judged.trained["manifest"].items():
        path = PurePosixPath(name)
        if path.parts[0] == "adapter":
            yield path, sha


def first_outcome(plan: Plan, judged: Judged, rows: int) -> Outcome:
    """The answer as far as it is known before the registration, which adds the version."""
    seconds = {
        "prepare": float(judged.prepared["stage_seconds"]),
        "train": float(judged.trained["seconds"]),
        "evaluate": float(judged.evaluated["seconds"]),
        "total": time.time() - plan.started,
    }
    return Outcome(
        prefix=plan.name,
        outcome="registered" if judged.verdict.passed else "rejected",
        version=None,
        run_key=plan.run_key,
        dataset={"md5": plan.dataset.md5, "rows": rows, "git_commit": plan.dataset.git_commit},
        metrics=judged.evaluated["systems"],
        verdict=judged.verdict.to_json(),
        runs={"mlflow": judged.run_id, "prefect": plan.prefect_run},
        experiment=judged.experiment.commit,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def log(
    plan: Plan,
    judged: Judged,
    connection: Registry,
    record: LineageRecord,
    outcome: Outcome,
    rows: Mapping[str, int],
) -> None:
    """Inputs, figures, curve and files onto the run."""
    run_id, dataset = judged.run_id, plan.dataset
    source = DvcDatasetSource.of_version(
        plan.workspace.root,
        path=dataset.path,
        rev=dataset.git_commit,
        md5=dataset.md5,
        manifest=dataset.manifest,
    )
    registry.log_dataset_input(connection, run_id, plan.name, source, rows)
    log_curves(connection, run_id, read_curves(judged.curves))
    figures = {
        f"test/{system}/{metric}": value
        for system, metrics in judged.evaluated["systems"].items()
        for metric, value in metrics.items()
        if value is not None
    }
    registry.log_metrics(connection, run_id, figures)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_bytes(folder / LINEAGE_FILE, record.to_json())
        write_bytes(folder / LOCK_FILE, canonical_json(lineage.installed()))
        for name, value in {
            OUTCOME_FILE: outcome.to_json(),
            "verdict.json": outcome.verdict,
            "dataset_card.json": judged.prepared["card"],
            "evaluated.json": judged.evaluated,
        }.items():
            write_json(folder / name, value)
        write_bytes(folder / "dataset_card.html", card_page.render(judged.prepared["card"]).encode())
        registry.log_files(connection, run_id, sorted(folder.iterdir()))


def report_data(plan: Plan, judged: Judged, record: LineageRecord, outcome: Outcome) -> ReportData:
    """What the page of this retraining shows."""
    return ReportData(
        prefix=plan.name,
        outcome=outcome.outcome,
        task=plan.entry.task,
        created=record.created,
        version=outcome.version,
        run_key=plan.run_key,
        verdict=outcome.verdict,
        evaluated=judged.evaluated,
        trained=judged.trained,
        card=judged.prepared["card"],
        lineage=json.loads(record.to_json()),
        # In this order also where the outcome was read back from JSON, which sorts it.
        timings={step: outcome.seconds[step] for step in ("prepare", "train", "evaluate", "total")},
        labels=None if judged.prepared["labels"] is None else tuple(judged.prepared["labels"]),
        rows=judged.rows,
        curves=judged.curves,
        samples=judged.samples,
        gate=plan.entry.gate,
        evaluation=plan.entry.evaluation,
    )
