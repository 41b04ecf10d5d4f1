"""Registered versions of a prefix: find, verify, load. `pipeline.register.registration` makes them.

Stages are read from the ledger, whose projection MLflow's aliases are. A version's files, MLflow's own among them, are
listed with their SHA-256 in its `manifest.json`, whose own SHA-256 is tagged on version and model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import digest
from pipeline.errors import IntegrityError, RegistryError
from pipeline.files import new_folder
from pipeline.ledger import log
from pipeline.ledger.events import STAGES
from pipeline.ledger.fold import State
from pipeline.ledger.log import Reading
from pipeline.register.lineage import LineageRecord
from pipeline.register.origin import MADE_FROM, Origin
from pipeline.register.registry import DUPLICATE_OF, RUN_KEY, TAG, Registry
from pipeline.tracking.connection import pages

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LINEAGE_DIGEST, ADAPTER_DIGEST = TAG + "lineage_digest", TAG + "adapter_digest"
DATASET_MD5, BASE_DIGEST = TAG + "dataset_md5", TAG + "base_digest"
MANIFEST_DIGEST = TAG + "manifest_digest"

MANIFEST_FILE, LINEAGE_PATH, ADAPTER_PATH = "manifest.json", "artifacts/lineage.json", "artifacts/adapter"
"""In a version's model folder: {file: SHA-256} of all others, the lineage record, and the adapter's folder."""


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


def list_versions(registry: Registry, name: str) -> tuple[RegisteredVersion, ...]:
    """All versions, oldest first, duplicates among them (see `RegisteredVersion.duplicate_of`)."""
    return versions_of(registry, name, log.read(registry, name).state)


def versions_of(registry: Registry, name: str, state: State) -> tuple[RegisteredVersion, ...]:
    """All versions, as `list_versions`, where they stand by `state`, which the ledger came to."""
    with registry.errors(f"listing the versions of {name}"):
        return tuple(standing(version, state) for version in _all(registry, name))


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
        standing(version, states[name])
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
    return tuple(standing(version, states[version.name]) for version in found)


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
    version = standing(found, reading.state)
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


def _all(registry: Registry, name: str, filters: str = "") -> list[ModelVersion]:
    found = pages(registry.client.search_model_versions, f"name = '{name}'{filters}")
    return sorted(found, key=lambda version: int(version.version))


def with_run_key(registry: Registry, name: str, run_key: str) -> list[ModelVersion]:
    """MLflow's versions with this run key, oldest first: the first is the one that counts."""
    return _all(registry, name, f" and tags.`{RUN_KEY}` = '{run_key}'")


def described(version: ModelVersion) -> RegisteredVersion:
    """What MLflow holds of a version; that it stands in no stage, and is not tainted, is not known by that."""
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        stages=(),
        run_id=version.run_id,
        run_key=version.tags.get(RUN_KEY, ""),
        tags=dict(version.tags),
        duplicate_of=version.tags.get(DUPLICATE_OF),
        source=version.source,
    )


def standing(version: ModelVersion, state: State) -> RegisteredVersion:
    """A version where it stands by `state`, which its ledger came to."""
    number = str(version.version)
    stage = state.stage_of(number)
    stages = () if stage is None else (stage,)
    return replace(described(version), stages=stages, tainted=number in state.tainted)


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
