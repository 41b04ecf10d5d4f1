"""Registered versions of a prefix: register once, find, verify, load.

A version is made by one request that carries its run key and digests as tags. MLflow numbers versions in the
order they are stored, so of several with one run key the lowest counts, every process agrees on that, and the
others are tagged `duplicate_of` and never enter the ledger. Stages are read from the ledger, whose projection MLflow's
aliases are. No version is ever deleted: MLflow would overwrite where it
came from.

A version's files, MLflow's own among them, are listed with their SHA-256 in its `manifest.json`, whose own SHA-256 is
tagged on version and model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import digest
from pipeline.errors import IntegrityError, RegistryError
from pipeline.files import new_folder
from pipeline.ledger import log
from pipeline.ledger.events import STAGES
from pipeline.ledger.fold import State
from pipeline.ledger.log import Reading
from pipeline.ledger.registration import enter
from pipeline.register.lineage import LineageRecord
from pipeline.register.origin import MADE_FROM, Origin
from pipeline.register.registry import DUPLICATE_OF, OUTCOME, PREFIX, RUN_KEY, TAG, Registry, registered
from pipeline.tracking.connection import pages

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LINEAGE_DIGEST, ADAPTER_DIGEST = TAG + "lineage_digest", TAG + "adapter_digest"
DATASET_MD5, BASE_DIGEST = TAG + "dataset_md5", TAG + "base_digest"
MANIFEST_DIGEST = TAG + "manifest_digest"

MANIFEST_FILE, LINEAGE_PATH, ADAPTER_PATH = "manifest.json", "artifacts/lineage.json", "artifacts/adapter"
"""In a version's model folder: {file: SHA-256} of all others, the lineage record, and the adapter's folder."""

_MODEL_CODE = Path(__file__).parents[1] / "serve" / "serving_model.py"
_LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a prefix in MLflow's registry.

    Attributes:
        version: its number, as MLflow writes it.
        stages: where it stands, by the ledger: one stage, or none.
        duplicate_of: the version with the same run key that counts instead; None for one that counts.
        source: where MLflow says that its files lie.
        tainted: whether it saw a row that was to be erased, by the ledger.
    """

    name: str
    version: str
    stages: tuple[str, ...]
    run_id: str
    run_key: str
    tags: dict[str, str]
    duplicate_of: str | None = None
    source: str | None = None
    tainted: bool = False


@dataclass(frozen=True)
class VerifiedVersion:
    """A version and its lineage record, whose bytes have the digest the version is tagged with."""

    version: RegisteredVersion
    record: LineageRecord


@dataclass(frozen=True)
class FetchedVersion:
    """A version, its adapter downloaded and verified into `folder`."""

    version: str
    adapter_digest: str
    folder: Path
    record: LineageRecord


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
        if not _with_run_key(registry, record.prefix, record.run_key):
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
        versions = _with_run_key(registry, name, run_key)
        if not versions:
            raise RegistryError(f"{name}: no version has the run key {run_key}; register it first")
        first, *rest = versions
        for other in rest:
            if DUPLICATE_OF not in other.tags:
                registry.put(
                    client.set_model_version_tag, name, other.version, DUPLICATE_OF, str(first.version)
                )
        if not _is_complete(registry, first):
            record = lineage_record(registry, _describe(first, ()))
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
        return _standing(client.get_model_version(name, first.version), log.read(registry, name).state)


def list_versions(registry: Registry, name: str) -> tuple[RegisteredVersion, ...]:
    """All versions, oldest first, duplicates among them (see `RegisteredVersion.duplicate_of`)."""
    return versions_of(registry, name, log.read(registry, name).state)


def versions_of(registry: Registry, name: str, state: State) -> tuple[RegisteredVersion, ...]:
    """All versions, as `list_versions`, where they stand by `state`, which the ledger came to."""
    with registry.errors(f"listing the versions of {name}"):
        return tuple(_standing(version, state) for version in _all(registry, name))


def list_all(registry: Registry) -> tuple[RegisteredVersion, ...]:
    """The versions of every registered model of which prefixline made at least one, by name, oldest first.

    Versions registered by hand, which have no tag `LINEAGE_DIGEST`, and duplicates are among them. Of whom a model is,
    its ledger says as well as the tags, which anybody may take away.
    """
    client = registry.client
    with registry.errors("listing all versions"):
        found: dict[str, list[ModelVersion]] = {}
        for version in pages(client.search_model_versions, ""):
            found.setdefault(version.name, []).append(version)
    with_ledger = log.names(registry)
    ours = {
        name: versions
        for name, versions in sorted(found.items())
        if name in with_ledger or any(LINEAGE_DIGEST in version.tags for version in versions)
    }
    states = {name: log.read(registry, name).state for name in ours}
    return tuple(
        _standing(version, states[name])
        for name, versions in ours.items()
        for version in sorted(versions, key=lambda version: int(version.version))
    )


def with_adapter(registry: Registry, adapter_digest: str) -> tuple[RegisteredVersion, ...]:
    """The versions of all names whose adapter this is, by their tags."""
    with registry.errors("looking for the versions with an adapter"):
        found = list(
            pages(registry.client.search_model_versions, f"tags.`{ADAPTER_DIGEST}` = '{adapter_digest}'")
        )
    states = {name: log.read(registry, name).state for name in {version.name for version in found}}
    return tuple(_standing(version, states[version.name]) for version in found)


def origin(registry: Registry, version: RegisteredVersion) -> Origin:
    """What a version was made from: by its tags, or by its verified lineage record where they do not say.

    Raises:
        RegistryError: it was registered by hand, or its record cannot be had.
        IntegrityError: the record is not the one the version was registered with.
    """
    tagged = Origin.from_tag(version.tags.get(MADE_FROM, ""))
    return tagged if tagged is not None else Origin.of_record(lineage_record(registry, version))


def lookup(registry: Registry, name: str, which: str, *, reading: Reading | None = None) -> VerifiedVersion:
    """The version `which` with its verified lineage record: a number, or a stage (`candidate`, `@production`).

    A stage is read from the ledger; any other alias is MLflow's.

    Args:
        reading: the ledger, for who has read it.

    Raises:
        RegistryError: there is none, or it was not registered by prefixline.
        IntegrityError: the record is not the one the version was registered with, or the ledger is not what was
            written.
    """
    from mlflow.exceptions import MlflowException

    client = registry.client
    if reading is None:
        reading = log.read(registry, name)
    alias = which.removeprefix("@")
    with registry.errors(f"looking up {name}@{alias}"):
        number: str | None
        if alias in STAGES:
            number = reading.state.stages.get(alias)
        elif (
            alias.isdecimal()
        ):  # before the aliases: MLflow lets anybody give a version another's number as one
            number = alias if alias.isascii() and alias[0] != "0" else None
        else:
            number = reading.aliases.get(alias)
        try:
            found = None if number is None else client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = None
    if found is None:
        there = [
            f"{v.version} {' '.join('@' + stage for stage in v.stages)}".strip()
            for v in versions_of(registry, name, reading.state)
        ]
        raise RegistryError(f"{name}: no version {which!r}; available: {', '.join(there) or 'none'}")
    version = _standing(found, reading.state)
    return VerifiedVersion(version, lineage_record(registry, version))


def production(registry: Registry, name: str) -> VerifiedVersion | None:
    """The version in production, by the ledger; None if there is none.

    Raises:
        RegistryError: nothing is, but MLflow's alias says otherwise. The two are for a person to put in step: going on
            without a champion would let through what it would have stopped.
        IntegrityError: its record is not the one it was registered with, or the ledger is not what was written.
    """
    reading = log.read(registry, name)
    if "production" in reading.state.stages:
        return lookup(registry, name, "production", reading=reading)
    if (alias := reading.aliases.get("production")) is not None:
        raise RegistryError(
            f"{name}: MLflow's alias production is on version {alias}, but the ledger says that nothing is in production: "
            f"the alias was moved by hand. `prefixline promote {name} {alias} --to staging`, then `--to production`, "
            f"makes it so; `prefixline history {name} --repair` takes the alias away"
        )
    return None


def fetch(registry: Registry, verified: VerifiedVersion, adapters: Path) -> FetchedVersion:
    """A version with its adapter.

    Args:
        adapters: where adapters are kept by digest; they are hashed again on every call.

    Raises:
        IntegrityError: the adapter is not that of the version.
    """
    record, version = verified.record, verified.version
    name = version.name
    if version.tags.get(ADAPTER_DIGEST) != record.adapter_digest:
        raise IntegrityError(
            [f"tagged  {version.tags.get(ADAPTER_DIGEST)}", f"recorded {record.adapter_digest}"],
            heading=f"{name} version {version.version}: its tag names another adapter than its lineage record:",
        )
    folder = adapters / record.adapter_digest
    if not folder.exists():
        with new_folder(folder) as fresh, tempfile.TemporaryDirectory() as scratch:
            (adapter,) = _download(registry, version, Path(scratch), ADAPTER_PATH)
            shutil.copytree(adapter, fresh, dirs_exist_ok=True)
            digest.verify(fresh, record.files)
    digest.verify(folder, record.files)
    return FetchedVersion(version.version, record.adapter_digest, folder, record)


def download_model(registry: Registry, verified: VerifiedVersion, target: Path) -> None:
    """A copy of the version's model folder in the new folder `target`, every file as it was registered.

    Raises:
        IntegrityError: a file is not that of its manifest, the manifest not that of its tag, or the adapter not the recorded
            one.
        RegistryError: a file cannot be had.
    """
    record, version = verified.record, verified.version
    tagged = version.tags.get(MANIFEST_DIGEST)
    target.mkdir()
    (listing,) = _download(registry, version, target, MANIFEST_FILE)
    if (found := digest.sha256_file(listing)) != tagged:
        raise IntegrityError(
            [f"{MANIFEST_FILE}: SHA-256 is {found}, expected {tagged}"],
            heading=f"{version.name} version {version.version} is not what was registered; do not use it:",
        )
    manifest: dict[str, str] = json.loads(listing.read_bytes())
    _download(registry, version, target, *sorted({name.split("/")[0] for name in manifest}))
    try:
        digest.verify(target, {**manifest, MANIFEST_FILE: found})
        digest.verify(target / ADAPTER_PATH, record.files)
    except IntegrityError as error:
        raise IntegrityError(
            error.problems,
            heading=f"{version.name} version {version.version} is not what was registered; do not use it:",
        ) from error


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


def _all(registry: Registry, name: str, filters: str = "") -> list[ModelVersion]:
    found = pages(registry.client.search_model_versions, f"name = '{name}'{filters}")
    return sorted(found, key=lambda version: int(version.version))


def _with_run_key(registry: Registry, name: str, run_key: str) -> list[ModelVersion]:
    return _all(registry, name, f" and tags.`{RUN_KEY}` = '{run_key}'")


def _standing(version: ModelVersion, state: State) -> RegisteredVersion:
    number = str(version.version)
    stage = state.stage_of(number)
    described = _describe(version, () if stage is None else (stage,))
    return replace(described, tainted=number in state.tainted)


def _describe(version: ModelVersion, stages: Iterable[str]) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        stages=tuple(sorted(stages)),
        run_id=version.run_id,
        run_key=version.tags.get(RUN_KEY, ""),
        tags=dict(version.tags),
        duplicate_of=version.tags.get(DUPLICATE_OF),
        source=version.source,
    )


def lineage_record(registry: Registry, version: RegisteredVersion) -> LineageRecord:
    """The verified lineage record of a version.

    Raises:
        RegistryError: it was registered by hand, or its record cannot be had.
        IntegrityError: the record is not the one the version was registered with.
    """
    where = f"{version.name} version {version.version}"
    expected = version.tags.get(LINEAGE_DIGEST)
    if expected is None:
        raise RegistryError(f"{where}: has no lineage; it was not registered by prefixline")
    with tempfile.TemporaryDirectory() as scratch:
        (path,) = _download(registry, version, Path(scratch), LINEAGE_PATH)
        found = digest.sha256_file(path)
        if found != expected:
            raise IntegrityError(
                [f"lineage.json: SHA-256 is {found}, expected {expected}"],
                heading=f"{where}: its lineage record is not the one it was registered with; do not use it:",
            )
        return LineageRecord.from_json(path.read_bytes())


def _download(registry: Registry, version: RegisteredVersion, target: Path, *paths: str) -> list[Path]:
    """Files or folders of the version's model, below `target`, not verified; where each lies there.

    From where the files lie: for a `models:/` address MLflow would ask its global registry (tried).
    """
    from mlflow.artifacts import download_artifacts

    with registry.errors(f"downloading {', '.join(paths)} of {version.name} version {version.version}"):
        root = registry.client.get_model_version_download_uri(version.name, version.version)
        return [
            Path(
                download_artifacts(
                    artifact_uri=f"{root}/{path}", dst_path=str(target), tracking_uri=registry.uri
                )
            )
            for path in paths
        ]
