"""A retraining as OpenLineage run events (https://openlineage.io/docs/spec/object-model).

Of one run, START and how it ended: of the dataset and the base model (and the version it went on from) came the version,
or none. What is `known` of it is said in the words of `LineageRecord.to_json`, of which a retraining that has only begun
knows a part. All facets are the standard's own; digests are tags, for which it has no facet.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    RunFacet,
    dataset_type_dataset,
    dataset_version_dataset,
    error_message_run,
    execution_parameters_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    processing_engine_run,
    source_code_location_job,
    tags_dataset,
    tags_run,
)
from openlineage.client.serde import Serde

from pipeline import nested
from pipeline.digest import canonical_json
from pipeline.register.lineage import LineageRecord

PRODUCER = "urn:prefixline"
NAMESPACE = "prefixline"
"""Of the job; what it reads and writes has that of its kind: dvc, mlflow, and where the base model is from."""


def run_id(mlflow_run: str) -> str:
    """The run's id: a UUID of version 5 (RFC 9562) over the MLflow run's address, so that one run has one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlflow:/runs/{mlflow_run}"))


def run_events(record: LineageRecord, version: str, time: str) -> list[dict[str, Any]]:
    """START and COMPLETE, as OpenLineage writes them in JSON. Equal records give equal events.

    Args:
        version: the number it was registered under.
        time: when, ISO 8601.
    """
    events = (started(asdict(record), record.created), registered(record, version, time))
    return [Serde.to_dict(event) for event in events]


def started(known: Mapping[str, Any], time: str) -> RunEvent:
    """START, at `time` (ISO 8601)."""
    return _event(RunState.START, known, time)


def registered(record: LineageRecord, version: str, time: str) -> RunEvent:
    """COMPLETE, with the version that came of it."""
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        fileCount=len(record.files), producer=PRODUCER
    )
    digests = {"adapter_digest": record.adapter_digest, "lineage_digest": record.digest}
    output = OutputDataset(
        "mlflow", record.prefix, {"outputStatistics": statistics}, facets=_facets(version, "MODEL", digests)
    )
    return _event(RunState.COMPLETE, asdict(record), time, outputs=[output])


def rejected(record: LineageRecord, time: str) -> RunEvent:
    """COMPLETE, without a version: the run did all that it was to do, and the gate rejected what was trained."""
    return _event(RunState.COMPLETE, asdict(record), time, tags={"outcome": "rejected"})


def broken_off(known: Mapping[str, Any], error: BaseException, time: str) -> RunEvent:
    """FAIL with the error; ABORT where somebody ended it, by Ctrl-C or a signal."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _event(
        RunState.FAIL if isinstance(error, Exception) else RunState.ABORT,
        known,
        time,
        facets={"errorMessage": error_message_run.ErrorMessageRunFacet(message, "PYTHON", producer=PRODUCER)},
    )


def code_uri(commit: str) -> str:
    """The code's commit as a SoftWare Hash IDentifier (ISO/IEC 18670): it names a commit, wherever that is kept."""
    return f"swh:1:rev:{commit}"


def _event(
    state: RunState,
    known: Mapping[str, Any],
    time: str,
    *,
    facets: Mapping[str, RunFacet] | None = None,
    tags: Mapping[str, str] | None = None,
    outputs: Sequence[OutputDataset] = (),
) -> RunEvent:
    code, mlflow_run = known["code"], known["runs"]["mlflow"]
    parameters = [
        execution_parameters_run.ExecutionParameter(
            key, value=value if isinstance(value, str) else canonical_json(value).decode()
        )
        for key, value in nested.flat(known["params"])
    ]
    all_tags = {
        "run_key": known["run_key"],
        "code_digest": code["digest"],
        "lock": known["environment"]["lock"],
        **({"experiment": known["experiment"]["commit"]} if "experiment" in known else {}),
        "mlflow_run": mlflow_run,
        **(tags or {}),
    }
    run = Run(
        run_id(mlflow_run),
        {
            "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                code["version"], "prefixline", producer=PRODUCER
            ),
            "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(
                parameters, producer=PRODUCER
            ),
            "tags": tags_run.TagsRunFacet(
                [tags_run.TagsRunFacetFields(key, value, "prefixline") for key, value in all_tags.items()],
                producer=PRODUCER,
            ),
            **(facets or {}),
        },
    )
    job = Job(
        NAMESPACE,
        known["prefix"],
        {
            "jobType": job_type_job.JobTypeJobFacet("BATCH", "PREFIXLINE", "RETRAINING", producer=PRODUCER),
            # Always there: the client would put the address of the workspace's git remote into its place.
            "sourceCodeLocation": source_code_location_job.SourceCodeLocationJobFacet(
                "git", code_uri(code["commit"]), version=code["commit"], producer=PRODUCER
            ),
        },
    )
    return RunEvent(
        eventTime=time, producer=PRODUCER, run=run, job=job, eventType=state, inputs=list(_inputs(known)),
        outputs=list(outputs),
    )  # fmt: skip


def _inputs(known: Mapping[str, Any]) -> Iterator[InputDataset]:
    data, base, start = known["dataset"], known["base_model"], known["warm_start"]
    statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
        rowCount=data["rows"]["total"] if "rows" in data else None,
        fileCount=len(data["manifest"]),
        producer=PRODUCER,
    )
    tags = {key: data[key] for key in ("git_commit", "row_root") if key in data}
    yield InputDataset(
        "dvc", data["path"], {"inputStatistics": statistics}, facets=_facets(data["md5"], "FILE", tags)
    )
    source = base["source"]
    (kind,) = source.keys() & {"path", "hub", "package"}
    yield InputDataset(kind, source[kind], facets=_facets(base["digest"], "MODEL", {"name": base["name"]}))
    if start is not None:
        of_version = "version" in start
        yield InputDataset(
            "mlflow" if of_version else "path",
            start["prefix" if of_version else "adapter"],
            facets=_facets(
                start["version"] if of_version else start["adapter_digest"],
                "MODEL",
                {"adapter_digest": start["adapter_digest"]},
            ),
        )


def _facets(version: str, kind: str, tags: Mapping[str, str]) -> dict[str, DatasetFacet]:
    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(version, producer=PRODUCER),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(kind, producer=PRODUCER),
        "tags": tags_dataset.TagsDatasetFacet(
            [tags_dataset.TagsDatasetFacetFields(key, value, "prefixline") for key, value in tags.items()],
            producer=PRODUCER,
        ),
    }
