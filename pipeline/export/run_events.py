"""A retraining as OpenLineage run events (https://openlineage.io/docs/spec/object-model), made from its record alone.

Two events, START and COMPLETE, of one run: of the dataset and the base model (and the version it went on from) came
the version. Equal records give equal events. All facets are the standard's own; digests are tags, for which it has no
facet.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    dataset_type_dataset,
    dataset_version_dataset,
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

from pipeline.digest import canonical_json
from pipeline.register.lineage import LineageRecord

PRODUCER = "urn:prefixline"
NAMESPACE = "prefixline"
"""Of the job; what it reads and writes has that of its kind: dvc, mlflow, and where the base model is from."""


def run_id(record: LineageRecord) -> str:
    """The run's id: a UUID of version 5 (RFC 9562) over the MLflow run's address, so that one run has one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlflow:/runs/{record.runs['mlflow']}"))


def run_events(record: LineageRecord, version: str, registered: str) -> list[dict[str, Any]]:
    """START and COMPLETE, as OpenLineage writes them in JSON.

    Args:
        version: the number it was registered under.
        registered: when, ISO 8601: the time of COMPLETE.
    """
    code = record.code
    run = Run(
        run_id(record),
        {
            "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
                code["version"], "prefixline", producer=PRODUCER
            ),
            "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(
                [
                    execution_parameters_run.ExecutionParameter(key, value=value)
                    for key, value in _flat(record.params)
                ],
                producer=PRODUCER,
            ),
            "tags": tags_run.TagsRunFacet(
                [
                    tags_run.TagsRunFacetFields(key, value, "prefixline")
                    for key, value in {
                        "run_key": record.run_key,
                        "code_digest": code["digest"],
                        "lock": record.environment["lock"],
                        "experiment": record.experiment["commit"],
                        "mlflow_run": record.runs["mlflow"],
                    }.items()
                ],
                producer=PRODUCER,
            ),
        },
    )
    job = Job(
        NAMESPACE,
        record.prefix,
        {
            "jobType": job_type_job.JobTypeJobFacet("BATCH", "PREFIXLINE", "RETRAINING", producer=PRODUCER),
            "sourceCodeLocation": source_code_location_job.SourceCodeLocationJobFacet(
                "git", code_uri(record), version=code["commit"], producer=PRODUCER
            ),
        },
    )
    inputs = list(_inputs(record))
    output = OutputDataset(
        "mlflow",
        record.prefix,
        {
            "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                fileCount=len(record.files), producer=PRODUCER
            )
        },
        facets=_facets(
            version, "MODEL", {"adapter_digest": record.adapter_digest, "lineage_digest": record.digest}
        ),
    )
    events = (
        RunEvent(
            eventTime=record.created, producer=PRODUCER, run=run, job=job, eventType=RunState.START, inputs=inputs
        ),
        RunEvent(
            eventTime=registered, producer=PRODUCER, run=run, job=job, eventType=RunState.COMPLETE, inputs=inputs,
            outputs=[output],
        ),
    )  # fmt: skip
    return [Serde.to_dict(event) for event in events]


def code_uri(record: LineageRecord) -> str:
    """The code's commit as a SoftWare Hash IDentifier (ISO/IEC 18670): it names a commit, wherever that is kept."""
    return f"swh:1:rev:{record.code['commit']}"


def _inputs(record: LineageRecord) -> Iterator[InputDataset]:
    data, base, start = record.dataset, record.base_model, record.warm_start
    statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
        rowCount=data["rows"]["total"], fileCount=len(data["manifest"]), producer=PRODUCER
    )
    tags = {"git_commit": data["git_commit"], "row_root": data["row_root"]}
    yield InputDataset(
        "dvc", data["path"], {"inputStatistics": statistics}, facets=_facets(data["md5"], "FILE", tags)
    )
    source = base["source"]
    (kind,) = source.keys() & {"path", "hub", "package"}
    yield InputDataset(kind, source[kind], facets=_facets(base["digest"], "MODEL", {"name": base["name"]}))
    if start is not None:
        known = "version" in start
        yield InputDataset(
            "mlflow" if known else "path",
            start["prefix" if known else "adapter"],
            facets=_facets(
                start["version"] if known else start["adapter_digest"],
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


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner if isinstance(inner, str) else canonical_json(inner).decode()
