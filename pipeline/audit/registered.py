"""What MLflow holds of a version: alias, ledger, tags, run and artefact, followed to its lineage record."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipeline import recording
from pipeline.audit.faults import Fault, Gone, Kind, Link
from pipeline.audit.hashing import ABSENT, Hashes, compare, scan
from pipeline.digest import digest
from pipeline.errors import IntegrityError, RegistryError, UnreachableError
from pipeline.ledger import log
from pipeline.ledger.fold import State
from pipeline.ledger.projection import OutOfStep, out_of_step
from pipeline.ledger.registration import differences
from pipeline.ledger.rules import Ruled, Rules, standing
from pipeline.register import versions
from pipeline.register.lineage import LineageRecord
from pipeline.register.origin import MADE_FROM, Origin
from pipeline.register.registry import DUPLICATE_OF, OUTCOME, RUN_KEY, VERSION, Registry
from pipeline.register.versions import RegisteredVersion
from pipeline.tracking.connection import pages

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

TAGS = (
    RUN_KEY,
    versions.LINEAGE_DIGEST,
    versions.ADAPTER_DIGEST,
    versions.DATASET_MD5,
    versions.BASE_DIGEST,
    versions.MANIFEST_DIGEST,
    MADE_FROM,
)
"""What every version that prefixline registers is tagged with."""


@dataclass
class Findings:
    """What was found of a version so far.

    Attributes:
        record: its lineage record, where its bytes are the recorded ones; None where there is none to be trusted.
    """

    by_hand: bool = False
    record: LineageRecord | None = None
    faults: list[Fault] = field(default_factory=list)

    def add(self, link: Link, kind: Kind, where: str, expected: object, actual: object) -> None:
        """Note a fault."""
        self.faults.append(Fault(link, kind, where, str(expected), str(actual)))


class RegisteredName:
    """One registered model with its versions, runs and logged models, read in few requests.

    Attributes:
        versions: all of them, oldest first; in no stage where the ledger cannot be read.

    Args:
        rules: of each stage, by which what stands there is judged.
    """

    def __init__(self, registry: Registry, name: str, rules: Mapping[Ruled, Rules]) -> None:
        self.name = name
        self._registry = registry
        self._rules = rules
        self._ledger_problems: tuple[str, ...] = ()
        self._out_of_step: tuple[OutOfStep, ...] = ()
        self._state = State()
        try:
            reading = log.read(registry, name)
            self._state, self._out_of_step = reading.state, out_of_step(reading)
        except IntegrityError as error:
            self._ledger_problems = error.problems
        self.versions = versions.versions_of(registry, name, self._state)
        with registry.errors(f"reading the runs of {name}"):
            experiment = registry.client.get_experiment_by_name(name)
            experiments = [] if experiment is None else [experiment.experiment_id]
            self._runs = {run.info.run_id: run for run in _runs(registry, experiments)}
            self._models = tuple(_models(registry, experiments))

    @property
    def knows_stages(self) -> bool:
        """Whether the ledger, by which versions stand in stages, is what was written."""
        return not self._ledger_problems

    def gone(self) -> tuple[Gone, ...]:
        """Versions that a run was closed with, or that stand in a stage, and that are no more: MLflow deletes them
        without a trace of its own.

        Not those in no stage, or archived, whose run was deleted as well, which is how a version is made anew on purpose.
        """
        there = {version.version for version in self.versions}
        by_run = {
            run.data.tags.get(VERSION, ""): run.info.run_id
            for run in self._runs.values()
            if run.info.lifecycle_stage == "active"
            and run.data.tags.get(OUTCOME) == "registered"
            and DUPLICATE_OF not in run.data.tags
        }
        held = (version for stage, version in self._state.stages.items() if stage != "archived")
        recorded: dict[str, str | None] = {**dict.fromkeys(held), **by_run}
        return tuple(
            Gone(self.name, version, run_id) for version, run_id in recorded.items() if version not in there
        )

    def check(self, version: RegisteredVersion, hashes: Hashes) -> Findings:
        """Follow a version from its aliases to its lineage record."""
        found = Findings()
        tagged, location = any(tag in version.tags for tag in TAGS), self._location(version)
        if not tagged and not _is_local(location):
            self._by_hand(version, found)  # it may be anything, of any size
            return found
        with _local(self._registry, location, found, Link.ARTEFACT) as folder:
            files, others = ({}, {}) if folder is None else _scan(folder, found)
            if not tagged and versions.LINEAGE_PATH not in files:
                self._by_hand(version, found)
                return found
            for tag in TAGS:
                if tag not in version.tags:
                    found.add(Link.VERSION, Kind.MISSING, f"tag {tag}", "a tag", "no such tag")
            model = self._model(version)
            manifest: Mapping[str, str] = {}
            if folder is not None:
                manifest = self._check_artefact(version, model, files, others, hashes, found)
            expected = [version.tags.get(versions.LINEAGE_DIGEST), manifest.get(versions.LINEAGE_PATH)]
            expected += [model.tags.get(versions.LINEAGE_DIGEST)] if model is not None else []
            self._check_run(version, files.get(versions.LINEAGE_PATH), expected, hashes, found)
            self._check_model(version, model, location, found)
            self._check_duplicates(version, found)
            self._check_ledger(version, found)
            if found.record is not None:
                self._check_record(version, found.record, files, others, hashes, found)
        return found

    def _by_hand(self, version: RegisteredVersion, found: Findings) -> None:
        found.by_hand = True
        what = "none: it was registered by hand, not by prefixline"
        found.add(Link.LINEAGE, Kind.MISSING, "lineage record", "a lineage record", what)
        self._check_ledger(version, found)

    def _check_ledger(self, version: RegisteredVersion, found: Findings) -> None:
        """The aliases, which follow the ledger, and what the ledger entered of the version."""
        if self._ledger_problems:
            where = f"the ledger of {self.name}"
            found.add(
                Link.LEDGER,
                Kind.TAMPERED,
                where,
                "an unbroken chain of events",
                "; ".join(self._ledger_problems),
            )
            return
        for each in self._out_of_step:
            if version.version in (each.ledger, each.alias):
                expected, actual = each.ledger or "none", each.alias or "none"
                found.add(Link.ALIAS, Kind.OUT_OF_STEP, f"@{each.stage}", expected, actual)
        for wrong in (w for w in standing(self._state, self._rules) if w.event.version == version.version):
            where = f"epoch {wrong.event.epoch}: {wrong.event.sentence}"
            found.add(Link.LEDGER, Kind.UNAUTHORISED, where, wrong.expected, wrong.actual)
        if found.by_hand or version.duplicate_of is not None:
            return
        entered = self._state.registered.get(version.version)
        if entered is None:
            found.add(Link.LEDGER, Kind.MISSING, "its registration", "an event", "no such event")
        elif found.record is not None:
            record = found.record
            for what, was, is_now in differences(entered, record.digest, record.verdict_digest):
                found.add(Link.LEDGER, Kind.OUT_OF_STEP, f"epoch {entered.epoch}: {what}", was, is_now)

    def _location(self, version: RegisteredVersion) -> str:
        with self._registry.errors(f"looking where {self.name} version {version.version} lies"):
            # What a client that loads the version is told, which need not be what the version says of itself. Asked
            # below the client, which would read all versions of the name each time, to see whether it is a prompt.
            store = self._registry.client._get_registry_client()
            return str(store.get_model_version_download_uri(self.name, version.version))

    def _model(self, version: RegisteredVersion) -> LoggedModel | None:
        """MLflow's logged model that the version is of; MLflow itself forgets which that was (tried)."""
        there = [model for model in self._models if model.artifact_location == version.source]
        of_run = [model for model in self._models if model.source_run_id == version.run_id]
        return next(iter([*there, *of_run]), None)

    def _check_artefact(
        self,
        version: RegisteredVersion,
        model: LoggedModel | None,
        files: Mapping[str, Path],
        others: Mapping[str, str],
        hashes: Hashes,
        found: Findings,
    ) -> Mapping[str, str]:
        """Every file against the manifest, and the manifest against the tag; the manifest where it is to be trusted."""
        listing = files.get(versions.MANIFEST_FILE)
        tagged = [version.tags.get(versions.MANIFEST_DIGEST)]
        tagged += [model.tags.get(versions.MANIFEST_DIGEST)] if model is not None else []
        if listing is None:
            kind = Kind.TAMPERED if versions.MANIFEST_FILE in others else Kind.MISSING
            what = others.get(versions.MANIFEST_FILE, ABSENT)
            found.add(Link.ARTEFACT, kind, versions.MANIFEST_FILE, tagged[0], what)
            return {}
        actual = hashes.of([listing])[listing]
        if actual not in tagged:
            found.add(Link.ARTEFACT, Kind.TAMPERED, versions.MANIFEST_FILE, tagged[0], actual)
            return {}
        for owner, value in zip(("version", "logged model"), tagged, strict=False):
            if value != actual:
                found.add(
                    Link.VERSION,
                    Kind.OUT_OF_STEP,
                    f"tag {versions.MANIFEST_DIGEST} of the {owner}",
                    actual,
                    value,
                )
        rest = {name: path for name, path in files.items() if name != versions.MANIFEST_FILE}
        if (mark := rest.get(_MARK)) is not None and hashes.of([mark])[mark] in self._marks(version):
            del rest[_MARK]
        manifest: dict[str, str] = json.loads(listing.read_bytes())
        found.faults += compare(hashes, Link.ARTEFACT, rest, manifest, others=others)
        return manifest

    def _marks(self, version: RegisteredVersion) -> set[str]:
        """SHA-256 of all that MLflow's mark in the version's folder can say."""
        # Several versions may be of one model; any of them may have been loaded last. YAML quotes some words, and the
        # number where the version was asked for by it, not by an alias.
        same = [other.version for other in self.versions if other.source == version.source]
        marks = [
            f"model_name: {name}\nmodel_version: {number}\n"
            for name in (self.name, f"'{self.name}'")
            for number in (*same, *(f"'{other}'" for other in same))
        ]
        return {hashlib.sha256(mark.encode()).hexdigest() for mark in marks}

    def _check_run(
        self,
        version: RegisteredVersion,
        lineage: Path | None,
        expected: Sequence[str | None],
        hashes: Hashes,
        found: Findings,
    ) -> None:
        """The run, and of the two copies of the record, the model's and the run's, one to be trusted.

        Args:
            expected: the record's digest, by the tag first.
        """
        run = self._run(version.run_id)
        copies = [] if lineage is None else [lineage]
        if run is None:
            found.add(
                Link.RUN,
                Kind.MISSING,
                f"run {version.run_id}",
                "the run it came from",
                "no such run in MLflow",
            )
            self._read_record(copies, expected, hashes, found)
            return
        if run.info.lifecycle_stage != "active":
            mend = f"deleted; mlflow runs restore --run-id {version.run_id}"
            found.add(Link.RUN, Kind.MISSING, f"run {version.run_id}", "an active run", mend)
        number = version.duplicate_of or version.version
        for tag, value in ((RUN_KEY, version.run_key), (OUTCOME, "registered"), (VERSION, number)):
            if run.data.tags.get(tag) != value:
                actual = run.data.tags.get(tag, "no such tag")
                found.add(Link.RUN, Kind.OUT_OF_STEP, f"tag {tag} of run {version.run_id}", value, actual)
        with _local(self._registry, run.info.artifact_uri, found, Link.RUN, _KEPT) as folder:
            kept = None if folder is None else folder / recording.LINEAGE_FILE
            whole = kept is not None and kept.is_file() and not kept.is_symlink()
            self._read_record([*copies, *([kept] if kept and whole else [])], expected, hashes, found)
            if folder is None:
                return
            digest = expected[0] if found.record is None else found.record.digest
            self._check_kept(folder, recording.LINEAGE_FILE, digest, hashes, found)
            if found.record is not None:
                lock = found.record.environment["lock"]
                self._check_kept(folder, recording.LOCK_FILE, lock, hashes, found)

    def _run(self, run_id: str | None) -> Run | None:
        from mlflow.exceptions import MlflowException

        if not run_id:  # MLflow's client would end in a TypeError
            return None
        if run_id not in self._runs:
            with self._registry.errors(f"reading run {run_id}"):
                try:
                    self._runs[run_id] = self._registry.client.get_run(run_id)
                except MlflowException as error:
                    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                        raise
                    return None
        return self._runs[run_id]

    def _check_kept(
        self, folder: Path, name: str, expected: str | None, hashes: Hashes, found: Findings
    ) -> None:
        """A file that the run keeps, against its digest."""
        path = folder / name
        others = {name: f"symbolic link to {path.readlink()}"} if path.is_symlink() else {}
        files = {name: path} if path.is_file() and not others else {}
        for fault in compare(hashes, Link.RUN, files, {name: expected or "no digest"}, others=others):
            found.add(fault.link, fault.kind, f"{name} of the run", fault.expected, fault.actual)

    def _read_record(
        self, copies: Sequence[Path], expected: Sequence[str | None], hashes: Hashes, found: Findings
    ) -> None:
        """The record, from the first copy that has a digest it should have."""
        digests = hashes.of(copies)
        trusted = [path for path in copies if digests[path] in expected]
        if not trusted:
            seen = ", ".join(str(value) for value in digests.values()) or ABSENT
            found.add(Link.LINEAGE, Kind.TAMPERED, "lineage record", expected[0] or "a tagged digest", seen)
            return
        if (actual := digests[trusted[0]]) != expected[0]:
            where = f"tag {versions.LINEAGE_DIGEST}"
            found.add(Link.VERSION, Kind.OUT_OF_STEP, where, actual, expected[0] or "no such tag")
        try:
            found.record = LineageRecord.from_json(trusted[0].read_bytes())
        except IntegrityError as error:
            found.add(Link.LINEAGE, Kind.OUT_OF_STEP, "lineage record", "a record this release reads", error)

    def _check_model(
        self, version: RegisteredVersion, model: LoggedModel | None, location: str, found: Findings
    ) -> None:
        """MLflow's logged model, which the version is of."""
        if model is None:
            where = f"logged model at {version.source}"
            found.add(Link.ARTEFACT, Kind.MISSING, where, "the model it is of", "no such model in MLflow")
            return
        where = f"logged model {model.model_id}"
        if version.source != model.artifact_location:
            found.add(
                Link.VERSION,
                Kind.OUT_OF_STEP,
                "the version's source",
                model.artifact_location,
                version.source,
            )
        if location != model.artifact_location:
            found.add(
                Link.VERSION, Kind.OUT_OF_STEP, "where it is loaded from", model.artifact_location, location
            )
        if model.source_run_id != version.run_id:
            found.add(Link.ARTEFACT, Kind.OUT_OF_STEP, f"run of {where}", version.run_id, model.source_run_id)
        for tag in (RUN_KEY, versions.LINEAGE_DIGEST):
            if tag in version.tags and model.tags.get(tag) != version.tags[tag]:
                actual = model.tags.get(tag, "no such tag")
                found.add(
                    Link.ARTEFACT, Kind.OUT_OF_STEP, f"tag {tag} of the {where}", version.tags[tag], actual
                )

    def _check_duplicates(self, version: RegisteredVersion, found: Findings) -> None:
        """Of several versions with one run key the lowest counts, and the others say so."""
        same = [other.version for other in self.versions if other.run_key == version.run_key]
        counts = same[0] if same and same[0] != version.version else None
        if version.run_key and version.duplicate_of != counts:
            expected = "no such tag" if counts is None else counts
            actual = version.duplicate_of or "no such tag"
            found.add(Link.VERSION, Kind.OUT_OF_STEP, f"tag {DUPLICATE_OF}", expected, actual)

    def _check_record(
        self,
        version: RegisteredVersion,
        record: LineageRecord,
        files: Mapping[str, Path],
        others: Mapping[str, str],
        hashes: Hashes,
        found: Findings,
    ) -> None:
        """The record against the tags, the run and the adapter's files."""
        for tag, value in {
            RUN_KEY: record.run_key,
            versions.ADAPTER_DIGEST: record.adapter_digest,
            versions.DATASET_MD5: record.dataset["md5"],
            versions.BASE_DIGEST: record.base_model["digest"],
            MADE_FROM: Origin.of_record(record).tag(),
        }.items():
            if tag in version.tags and version.tags[tag] != value:
                found.add(Link.VERSION, Kind.OUT_OF_STEP, f"tag {tag}", value, version.tags[tag])
        if record.prefix != self.name:
            found.add(Link.LINEAGE, Kind.OUT_OF_STEP, "the record's prefix", self.name, record.prefix)
        if record.runs["mlflow"] != version.run_id:
            found.add(
                Link.VERSION, Kind.OUT_OF_STEP, "the version's run", record.runs["mlflow"], version.run_id
            )
        if record.verdict.get("passed") is not True:
            found.add(
                Link.LINEAGE, Kind.OUT_OF_STEP, "the verdict", "passed", record.verdict.get("passed", "none")
            )
        if (made := record.made_run_key()) != record.run_key:
            found.add(Link.LINEAGE, Kind.OUT_OF_STEP, "run_key", made, record.run_key)
        start = f"{versions.ADAPTER_PATH}/"
        adapter = {name.removeprefix(start): path for name, path in files.items() if name.startswith(start)}
        odd = {name.removeprefix(start): what for name, what in others.items() if name.startswith(start)}
        found.faults += compare(hashes, Link.ADAPTER, adapter, record.files, others=odd, below=start)
        if digest(record.base_model["files"]) != record.base_model["digest"]:
            found.add(
                Link.LINEAGE,
                Kind.OUT_OF_STEP,
                "base_model.digest",
                digest(record.base_model["files"]),
                record.base_model["digest"],
            )


def _is_local(uri: str) -> bool:
    return urlparse(uri).scheme in ("", "file")


def _scan(folder: Path, found: Findings) -> tuple[dict[str, Path], dict[str, str]]:
    try:
        return scan(folder)
    except OSError as error:
        found.add(Link.ARTEFACT, Kind.UNREACHABLE, str(folder), "a folder that can be read", error)
        return {}, {}


_MARK = "registered_model_meta"
"""Left by MLflow in a local model folder each time it is loaded by its registered name: that name, and the version."""

_KEPT = (recording.LINEAGE_FILE, recording.LOCK_FILE)


@contextmanager
def _local(
    registry: Registry, uri: str, found: Findings, link: Link, names: Sequence[str] = ()
) -> Iterator[Path | None]:
    """The folder at `uri`: where it lies if that is this machine, so that links are seen; else downloaded.

    Args:
        names: the files that are wanted of it; all if none are named.

    Yields:
        None where it is not to be had, which is then noted.
    """
    if _is_local(uri):
        folder = Path(unquote(urlparse(uri).path))
        if folder.is_dir() and not folder.is_symlink():
            yield folder
            return
        actual = f"symbolic link to {folder.readlink()}" if folder.is_symlink() else "no such folder"
        kind = Kind.TAMPERED if folder.is_symlink() else Kind.MISSING
        found.add(link, kind, str(uri), "a folder", actual)
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _download(registry, uri, Path(scratch), names)
        except (UnreachableError, RegistryError, ImportError) as error:  # the last for a store's own library
            found.add(link, Kind.UNREACHABLE, str(uri), "a folder", error)
            yield None
            return
        yield Path(scratch)


def _download(registry: Registry, uri: str, target: Path, names: Sequence[str]) -> None:
    from mlflow.artifacts import download_artifacts, list_artifacts

    with registry.errors(f"downloading {uri}"):
        listed = list_artifacts(artifact_uri=uri, tracking_uri=registry.uri) or ()
        # By name, since some stores tell paths from the folder's parent on (tried).
        there = {PurePosixPath(item.path).name for item in listed}
        for name in sorted(there & set(names) if names else there):
            download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=str(target), tracking_uri=registry.uri)


def _runs(registry: Registry, experiments: Sequence[str]) -> Iterator[Run]:
    """Deleted ones among them. For no experiments MLflow would search them all."""
    from mlflow.entities import ViewType

    if experiments:
        yield from pages(
            registry.client.search_runs, list(experiments), run_view_type=ViewType.ALL, max_results=1000
        )


def _models(registry: Registry, experiments: Sequence[str]) -> Iterator[LoggedModel]:
    if experiments:
        yield from pages(registry.client.search_logged_models, list(experiments))
