"""MLflow: the connection, and the run of a retraining. Registered versions are in `versions`, curves in `curves`.

Works with `sqlite:///...` directly and with a server over REST. Rules that hold everywhere here:

- MLflow's client repeats a POST whose reply was lost, so whatever is created is looked for before and after,
  found again by its key (run key, digest), and duplicates are reconciled.
- Everything can be called again after an error and completes what is missing.
- A call ends in bounded time (see `connection.BOUNDS`).
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import nested
from pipeline.digest import canonical_json, digest
from pipeline.errors import RegistryError
from pipeline.tracking.connection import Registry as Registry
from pipeline.tracking.connection import connect as connect

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.base.base_model import ResolvedBase
    from pipeline.register.dataset_source import DvcDatasetSource

TAG = "prefixline."
RUN_KEY, PREFIX, OUTCOME = TAG + "run_key", TAG + "prefix", TAG + "outcome"
VERSION, REASONS, ERROR = TAG + "version", TAG + "reasons", TAG + "error"
ATTEMPT, DUPLICATE_OF, BASE_DIGEST = TAG + "attempt", TAG + "duplicate_of", TAG + "base_digest"
"""Tags: the keys under which runs, models and versions are found again."""

PARAM_LIMIT, TAG_LIMIT, BATCH = 6_000, 8_000, 100
"""MLflow's limits: characters of a param value and of a tag value, params in one request."""


@dataclass(frozen=True)
class Known:
    """What is known of a run key.

    Attributes:
        outcome: `incomplete` is a registration that was cut off after its version was made;
            `registration.complete` finishes it.
        version: the registered version, None where the gate rejected.
    """

    run_id: str
    outcome: Literal["registered", "rejected", "incomplete"]
    version: str | None


def find_run_key(registry: Registry, prefix: str, run_key: str) -> Known | None:
    """What is known of `run_key` of this prefix; None if it was never carried to an outcome.

    Raises:
        RegistryError: it was registered, and the version has been deleted since.
    """
    with registry.errors(f"looking for run key {run_key[:12]} of {prefix}"):
        filters = f"name = '{prefix}' and tags.`{RUN_KEY}` = '{run_key}'"
        versions = registry.client.search_model_versions(filters)
        for run in _runs(registry, prefix, run_key):
            outcome = run.data.tags.get(OUTCOME)
            if outcome == "registered" and not versions:
                raise RegistryError(
                    f"{prefix} version {run.data.tags.get(VERSION)}, made from exactly this, has been deleted in MLflow. "
                    f"To register it anew, delete its run as well: mlflow runs delete --run-id {run.info.run_id}"
                )
            if outcome in ("registered", "rejected"):
                return Known(run.info.run_id, outcome, run.data.tags.get(VERSION))
        if not versions:
            return None
        first = min(versions, key=lambda version: int(version.version))
        # The run may have been deleted, which leaves its tags as they were.
        finished = registry.client.get_run(first.run_id).data.tags.get(OUTCOME) == "registered"
    return Known(first.run_id, "registered" if finished else "incomplete", str(first.version))


def start_run(
    registry: Registry,
    prefix: str,
    run_key: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> str:
    """The MLflow run of this retraining, as a run id: the one there is, else a new one.

    It is then running, unless it has its outcome already: that one stays as it is.

    Two processes that start the same run key at once agree on the earlier run; the other is deleted (it is
    empty) and tagged with the one it duplicates.

    Args:
        params: nested plain values; logged flattened, `training.learning_rate`.
        tags: more tags for the run, e.g. the Prefect run's id.
    """
    client = registry.client
    with registry.errors(f"starting the run of {prefix}"):
        experiment = registry.experiment(prefix)
        if not _runs(registry, prefix, run_key):
            attempt = uuid.uuid4().hex
            run_tags = {RUN_KEY: run_key, PREFIX: prefix, ATTEMPT: attempt}
            client.create_run(experiment, tags=run_tags, run_name=f"{prefix}-{run_key[:8]}")
            first, *rest = _runs(registry, prefix, run_key)
            for run in rest:
                if run.data.tags.get(ATTEMPT) == attempt:
                    client.set_tag(run.info.run_id, DUPLICATE_OF, first.info.run_id)
                    client.delete_run(run.info.run_id)
        run = _runs(registry, prefix, run_key)[0]
        run_id: str = run.info.run_id
        if OUTCOME in run.data.tags:
            return run_id
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        for key, value in (tags or {}).items():
            registry.put(client.set_tag, run_id, key, value)
    log_params(registry, run_id, params)
    return run_id


def log_params(registry: Registry, run_id: str, params: Mapping[str, Any]) -> None:
    """Log nested plain values, flattened with dots. Values MLflow would cut are logged as their SHA-256.

    Raises:
        RegistryError: one is already logged with another value.
    """
    from mlflow.entities import Param

    flat = []
    for key, value in nested.flat(params):
        text = value if isinstance(value, str) else canonical_json(value).decode()
        flat.append(Param(key, text if len(text) <= PARAM_LIMIT else f"sha256:{digest(value)}"))
    with registry.errors(f"logging params of run {run_id}"):
        for start in range(0, len(flat), BATCH):
            registry.put(registry.client.log_batch, run_id, params=flat[start : start + BATCH])


def log_metrics(registry: Registry, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log final figures; what is already there with the same value is left alone."""
    from mlflow.entities import Metric

    with registry.errors(f"logging metrics of run {run_id}"):
        there = registry.client.get_run(run_id).data.metrics
        now = int(time.time() * 1000)
        new = [Metric(key, value, now, 0) for key, value in metrics.items() if there.get(key) != value]
        for start in range(0, len(new), 1000):
            registry.put(registry.client.log_batch, run_id, metrics=new[start : start + 1000])


def log_files(registry: Registry, run_id: str, paths: Iterable[Path], folder: str | None = None) -> None:
    """Upload files, and folders under their own names, to the run's artifacts. A repeat replaces them."""
    with registry.errors(f"uploading artifacts of run {run_id}"):
        for path in paths:
            if path.is_dir():
                target = f"{folder}/{path.name}" if folder else path.name
                registry.client.log_artifacts(run_id, str(path), target)
            else:
                registry.client.log_artifact(run_id, str(path), folder)


def log_dataset_input(
    registry: Registry, run_id: str, name: str, source: DvcDatasetSource, rows: Mapping[str, int]
) -> None:
    """Record the dataset version as the run's input; `mlflow.data.get_source` on it gives back the exact rows.

    It is one input, because the splits are parts of the same raw data. MLflow keeps the source of the first run
    with this name and md5 in an experiment; a later commit with equal bytes refers to that one.

    Args:
        rows: {split: count}, kept as the dataset's profile.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=source.md5,
        source_type=source._get_source_type(),
        source=source.to_json(),
        profile=json.dumps({"num_rows": rows.get("total", sum(rows.values())), "splits": dict(rows)}),
    )
    context = InputTag("mlflow.data.context", "training, validation, test")
    with registry.errors(f"recording the dataset of run {run_id}"):
        registry.put(registry.client.log_inputs, run_id, datasets=[DatasetInput(dataset, [context])])


def log_base_model(registry: Registry, run_id: str, base: ResolvedBase) -> str:
    """Record the base model as the run's model input; its MLflow model id.

    The base is a logged model without files, found by its digest, so that a prefix's runs share one.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelStatus

    client = registry.client
    with registry.errors(f"recording the base model of run {run_id}"):
        run = client.get_run(run_id)
        experiment = run.info.experiment_id
        if (model := _base(registry, experiment, base.digest)) is None:
            made = client.create_logged_model(
                experiment,
                name=base.name,
                model_type="base model",
                tags={BASE_DIGEST: base.digest, "mlflow.model.isExternal": "true"},
                params={"source": canonical_json(dict(base.source)).decode(), "files": str(len(base.files))},
            )
            client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
            model = _base(registry, experiment, base.digest) or made.model_id
        inputs = run.inputs.model_inputs if run.inputs else []
        if model not in {item.model_id for item in inputs}:
            registry.put(client.log_inputs, run_id, models=[LoggedModelInput(model)])
    return model


def started_at(registry: Registry, run_id: str) -> str:
    """When the run was first started, as ISO 8601 in UTC: the same however often it is resumed."""
    with registry.errors(f"reading run {run_id}"):
        milliseconds = registry.client.get_run(run_id).info.start_time
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def read_json(registry: Registry, run_id: str, artifact: str) -> dict[str, Any]:
    """The content of a JSON artifact of the run.

    Raises:
        RegistryError: the run has no such artifact.
    """
    with registry.errors(f"reading {artifact} of run {run_id}"), tempfile.TemporaryDirectory() as scratch:
        path = registry.client.download_artifacts(run_id, artifact, scratch)
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def last_outcome(registry: Registry, prefix: str) -> dict[str, str] | None:
    """{outcome, run, ended} of the prefix's newest finished retraining; None if there is none."""
    with registry.errors(f"looking for the retrainings of {prefix}"):
        experiment = registry.client.get_experiment_by_name(prefix)
        if experiment is None:
            return None
        runs = registry.client.search_runs([experiment.experiment_id], order_by=["attributes.end_time DESC"])
    for run in runs:
        if OUTCOME in run.data.tags and run.info.end_time:
            ended = datetime.fromtimestamp(run.info.end_time / 1000, UTC).isoformat(timespec="seconds")
            return {"outcome": run.data.tags[OUTCOME], "run": run.info.run_id, "ended": ended}
    return None


def reject(registry: Registry, run_id: str, reasons: Iterable[str]) -> None:
    """Close the run as rejected by the gate, with the reasons. Nothing is registered."""
    _close(registry, run_id, {REASONS: "\n".join(reasons), OUTCOME: "rejected"})


def registered(registry: Registry, run_id: str, version: str) -> None:
    """Close the run as the one `version` came from."""
    _close(registry, run_id, {VERSION: version, OUTCOME: "registered"})


def interrupt(registry: Registry, run_id: str, error: str) -> bool:
    """Mark the run as failed, with the error; starting the same run key again resumes it.

    Returns:
        Whether it was marked: a run that has its outcome keeps it, for what failed afterwards is not the retraining.
    """
    with registry.errors(f"marking run {run_id} as failed"):
        if OUTCOME in registry.client.get_run(run_id).data.tags:
            return False
        registry.put(registry.client.set_tag, run_id, ERROR, _short(error))
        registry.client.set_terminated(run_id, "FAILED")
    return True


def _close(registry: Registry, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    with registry.errors(f"closing run {run_id}"):
        registry.client.set_terminated(run_id, "FINISHED")
        # Last, and in one request: only a run with an outcome counts as known.
        closing = [RunTag(key, _short(value)) for key, value in tags.items()]
        registry.put(registry.client.log_batch, run_id, tags=closing)


def _short(text: str) -> str:
    end = " … (cut; the whole is in the artifacts)"
    return text if len(text) <= TAG_LIMIT else text[: TAG_LIMIT - len(end)] + end


def _runs(registry: Registry, prefix: str, run_key: str) -> list[Run]:
    """The prefix's runs with this run key, those with an outcome first, then by age; deleted ones are left out."""
    experiment = registry.client.get_experiment_by_name(prefix)
    if experiment is None:
        return []
    runs = registry.client.search_runs([experiment.experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'")
    return sorted(runs, key=lambda run: (OUTCOME not in run.data.tags, run.info.start_time, run.info.run_id))


def _base(registry: Registry, experiment: str, base_digest: str) -> str | None:
    found = registry.client.search_logged_models(
        [experiment], f"tags.`{BASE_DIGEST}` = '{base_digest}' AND model_type = 'base model'"
    )
    ids = sorted((model.creation_timestamp, model.model_id) for model in found)
    return ids[0][1] if ids else None
