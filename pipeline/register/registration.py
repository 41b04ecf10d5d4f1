"""Registration: a retraining's one version, made once.

A version is made by one request that carries its run key and digests as tags. MLflow numbers versions in the
order they are stored, so of several with one run key the lowest counts, every process agrees on that, and the
others are tagged `duplicate_of` and never enter the ledger. No version is ever deleted: MLflow would overwrite where it
came from.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import digest
from pipeline.errors import RegistryError
from pipeline.ledger import log
from pipeline.ledger.registration import enter
from pipeline.register.lineage import LineageRecord
from pipeline.register.origin import MADE_FROM, Origin
from pipeline.register.registry import DUPLICATE_OF, OUTCOME, PREFIX, RUN_KEY, Registry, registered
from pipeline.register.versions import (
    ADAPTER_DIGEST,
    BASE_DIGEST,
    DATASET_MD5,
    LINEAGE_DIGEST,
    MANIFEST_DIGEST,
    MANIFEST_FILE,
    RegisteredVersion,
    described,
    lineage_record,
    standing,
    with_run_key,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_MODEL_CODE = Path(__file__).parents[1] / "serve" / "serving_model.py"
_LIBRARIES = ("torch", "transformers", "safetensors")


def register(
    registry: Registry,
    *,
    run_id: str,
    record: LineageRecord,
    adapter: Path,
    example: Sequence[str],
    actor: str,
) -> RegisteredVersion:
    """Make the retraining's one registered version, enter it into the ledger as the candidate, and close its run.

    Idempotent by run key, also across processes: if there is a version it is completed and returned. An error
    on the way leaves no new version, or one whose registration a repeat completes.

    Args:
        record: its verdict must have passed.
        adapter: the folder whose files the record names.
        example: a few texts the model could be asked, kept as its input example.
        actor: who registers.

    Raises:
        RegistryError: the verdict did not pass, or MLflow refused.
        IntegrityError: the adapter's files are not the recorded ones.
        UnreachableError: MLflow does not answer.
    """
    if record.verdict.get("passed") is not True:
        raise RegistryError(f"{record.prefix}: the gate's verdict did not pass; nothing is registered")
    digest.verify(adapter, record.files)
    client = registry.client
    with registry.errors(f"registering {record.prefix}"):
        if not with_run_key(registry, record.prefix, record.run_key):
            model_id, manifest_digest = _logged_model(registry, run_id, record, adapter, example)
            _ensure_name(registry, record.prefix)
            client.create_model_version(
                record.prefix,
                # Where it lies, because for models:/ID MLflow would ask its global tracking store (tried).
                client.get_logged_model(model_id).artifact_location,
                run_id=run_id,
                model_id=model_id,
                tags={
                    RUN_KEY: record.run_key,
                    LINEAGE_DIGEST: record.digest,
                    ADAPTER_DIGEST: record.adapter_digest,
                    DATASET_MD5: record.dataset["md5"],
                    BASE_DIGEST: record.base_model["digest"],
                    MADE_FROM: Origin.of_record(record).tag(),
                    MANIFEST_DIGEST: manifest_digest,
                },
                await_creation_for=0,
            )
    version = complete(registry, record.prefix, record.run_key, actor=actor)
    if version.run_id != run_id:
        with registry.errors(f"closing run {run_id}"):
            registry.put(client.set_tag, run_id, DUPLICATE_OF, version.run_id)
        registered(registry, run_id, version.version)
    return version


def complete(registry: Registry, name: str, run_key: str, *, actor: str) -> RegisteredVersion:
    """Finish the registration of the version with this run key: mark duplicates, enter the ledger, close the run.

    A registration that was already finished is left as it is, wherever its version has been promoted since.

    Raises:
        RegistryError: there is no such version.
        IntegrityError: its lineage record is not the one it was registered with, or the ledger is not what was
            written.
    """
    client = registry.client
    with registry.errors(f"completing the registration of {name}"):
        versions = with_run_key(registry, name, run_key)
        if not versions:
            raise RegistryError(f"{name}: no version has the run key {run_key}; register it first")
        first, *rest = versions
        for other in rest:
            if DUPLICATE_OF not in other.tags:
                registry.put(
                    client.set_model_version_tag, name, other.version, DUPLICATE_OF, str(first.version)
                )
        if not _is_complete(registry, first):
            record = lineage_record(registry, described(first))
            enter(
                registry,
                name,
                str(first.version),
                lineage_digest=record.digest,
                verdict_digest=record.verdict_digest,
                actor=actor,
                reason="passed the gate",
            )
            registered(registry, first.run_id, str(first.version))
        return standing(client.get_model_version(name, first.version), log.read(registry, name).state)


def _logged_model(
    registry: Registry, run_id: str, record: LineageRecord, adapter: Path, example: Sequence[str]
) -> tuple[str, str]:
    """The run's MLflow model with this lineage, and its manifest's digest: one that an earlier try left, else a new one."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    client = registry.client
    run = client.get_run(run_id)
    made = client.search_logged_models(
        [run.info.experiment_id], f"tags.`{LINEAGE_DIGEST}` = '{record.digest}'"
    )
    # Not in the filter, where no spelling of a status matches (tried).
    ready = [
        model for model in made if model.status == LoggedModelStatus.READY and MANIFEST_DIGEST in model.tags
    ]
    if ready:
        model_id: str = ready[0].model_id
        manifest_digest: str = ready[0].tags[MANIFEST_DIGEST]
    else:
        model = client.create_logged_model(
            run.info.experiment_id,
            name=record.prefix,
            source_run_id=run_id,
            model_type="prefix",
            tags={RUN_KEY: record.run_key, PREFIX: record.prefix, LINEAGE_DIGEST: record.digest},
        )
        model_id = model.model_id
        try:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "model"
                _write_model(folder, model, run_id, record, adapter, example)
                content = digest.canonical_json(digest.manifest(folder))
                (folder / MANIFEST_FILE).write_bytes(content)
                manifest_digest = hashlib.sha256(content).hexdigest()
                client.log_model_artifacts(model_id, str(folder))
            client.set_logged_model_tags(model_id, {MANIFEST_DIGEST: manifest_digest})
            client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        except BaseException:
            with suppress(MlflowException):  # what went wrong first is what to report
                client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
            raise
    if not _is_output(registry, run_id, model_id):
        try:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        except MlflowException:  # MLflow takes it once: another process came first, or the reply was lost
            if not _is_output(registry, run_id, model_id):
                raise
    return model_id, manifest_digest


def _is_output(registry: Registry, run_id: str, model_id: str) -> bool:
    """Whether the run names the model as what came of it."""
    outputs = registry.client.get_run(run_id).outputs
    return model_id in {output.model_id for output in (outputs.model_outputs if outputs else ())}


def _write_model(
    folder: Path, model: Any, run_id: str, record: LineageRecord, adapter: Path, example: Sequence[str]
) -> None:
    """MLflow's model folder: code, adapter, lineage record, signature, example and short pinned requirements."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    if record.params["task"] == "classification":
        columns = [f"probability.{label}" for label in record.dataset["labels"]]
        outputs = [ColSpec("string", "label"), *(ColSpec("double", column) for column in columns)]
    else:
        outputs = [ColSpec("string", "text")]
    libraries = record.environment["libraries"]
    lineage = folder.parent / "lineage.json"
    lineage.write_bytes(record.to_json())
    pyfunc.save_model(
        folder,
        mlflow_model=Model(
            model_uuid=model.model_id,
            run_id=run_id,
            model_id=model.model_id,
        ),
        python_model=str(_MODEL_CODE),
        artifacts={"adapter": str(adapter), "lineage": str(lineage)},
        # Unnamed, so that a list of texts and a table with a column of any name are both taken.
        signature=ModelSignature(Schema([ColSpec("string")]), Schema(outputs)),
        input_example=list(example),
        # Given, because MLflow would otherwise load the model in a second process to find them.
        pip_requirements=[
            f"prefixline=={record.code['version']}",
            # Without a local part such as +cpu, which is the build's, not the release's.
            *(f"{name}=={libraries[name].split('+')[0]}" for name in _LIBRARIES if name in libraries),
        ],
    )
    # A version is given away, and MLflow has written where on this machine its files were copied from.
    saved = Model.load(folder)
    flavor = saved.flavors["python_function"]
    flavor["model_code_path"] = _MODEL_CODE.name
    for copied in flavor["artifacts"].values():
        copied["uri"] = copied["path"]
    saved.save(folder / "MLmodel")


def _ensure_name(registry: Registry, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _is_complete(registry: Registry, version: ModelVersion) -> bool:
    return bool(registry.client.get_run(version.run_id).data.tags.get(OUTCOME) == "registered")
