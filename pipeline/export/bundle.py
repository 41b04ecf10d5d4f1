"""Give out a registered version: a bundle that says what it is, or the adapter alone. Only what was verified is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import digest, server_access
from pipeline.errors import ExportError, IntegrityError
from pipeline.export import layout
from pipeline.export.model_card import model_card
from pipeline.export.offline import verify_offline
from pipeline.files import new_folder
from pipeline.keys import SigningKey
from pipeline.ledger import log
from pipeline.ledger.events import Event, Registered
from pipeline.ledger.fold import fold
from pipeline.ledger.log import Reading
from pipeline.prefix.adapter import adapter_facts
from pipeline.prefix.adapter_config import CONFIG
from pipeline.register import versions
from pipeline.register.reference import parse
from pipeline.register.versions import (
    ADAPTER_PATH,
    MANIFEST_FILE,
    VerifiedVersion,
)
from pipeline.versioning.workspace import find_workspace


@dataclass(frozen=True)
class Exported:
    """What was written where.

    Attributes:
        signed_by: the public key of the signature; None where there is none.
    """

    name: str
    version: str
    stage: str | None
    folder: Path
    files: int
    bytes: int
    signed_by: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "folder": str(self.folder)}


def export_bundle(root: Path, reference: str, out: Path | None, key: SigningKey | None) -> Exported:
    """Write a version with its record, ledger, provenance and card to a new folder, as docs/bundle-v1.md has it.

    Args:
        root: in a workspace.
        reference: NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest.
        out: the folder; NAME-NUMBER in the current one if None.
        key: what its provenance is signed with, if with anything.

    Raises:
        ExportError: `out` is there already, or the version is a duplicate or in no ledger.
        RegistryError: there is no such version, or it was registered by hand.
        IntegrityError: a file is not the registered one, or the ledger is not what was written.
        AdapterError: the adapter is not whole.
    """
    with _model_of(root, reference) as (verified, reading, model):
        version = verified.version
        registered = _registration(verified, reading)
        with _new(out or Path(f"{version.name}-{version.version}")) as (folder, fresh):
            _fill(fresh, model, verified, reading.events, registered, key)
            found = verify_offline(fresh, None if key is None else key.public).verification
            if not found.sound:
                problems = [f"{f.where}: expected {f.expected}, found {f.actual}" for _, f in found.faults()]
                raise IntegrityError(
                    problems, heading=f"{version.name} version {version.version} is not what was recorded:"
                )
        return _exported(verified, reading, folder, key)


def export_adapter(root: Path, reference: str, out: Path | None) -> Exported:
    """Write a version's adapter alone to a new folder, in PEFT's format; arguments as for `export_bundle`.

    Raises:
        ExportError: `out` is there already, or PEFT has no such prefix or head.
        RegistryError, IntegrityError, AdapterError: as in `export_bundle`.
    """
    with _model_of(root, reference) as (verified, reading, model):
        version = verified.version
        kind = json.loads((model / ADAPTER_PATH / CONFIG).read_bytes())["peft_type"]
        if kind != "PREFIX_TUNING":
            mean = adapter_facts(model / ADAPTER_PATH).pooling is not None
            lacks = "head on the mean of the tokens" if mean else "prefix for such a base model"
            raise ExportError(
                f"{version.name} version {version.version}: PEFT has no {lacks}; "
                "--format bundle gives it out for prefixline"
            )
        with _new(out or Path(f"{version.name}-{version.version}-peft")) as (folder, fresh):
            shutil.copytree(model / ADAPTER_PATH, fresh, dirs_exist_ok=True)
        return _exported(verified, reading, folder, None)


@contextmanager
def _model_of(root: Path, reference: str) -> Iterator[tuple[VerifiedVersion, Reading, Path]]:
    """The version, its ledger, and a copy of its model folder in which every file is the registered one."""
    workspace = find_workspace(root)
    connection = server_access.connect(workspace.root)
    verified = versions.lookup(connection, *parse(connection, reference))
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        versions.download_model(connection, verified, model)
        adapter_facts(model / ADAPTER_PATH)
        yield verified, log.read(connection, verified.version.name), model


@contextmanager
def _new(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(`folder`, an empty folder to fill that is then put there), where nothing is there before and nothing after."""
    _refuse_taken(folder)
    with new_folder(folder) as fresh:
        yield folder, fresh
        _refuse_taken(folder)  # again, since filling it takes seconds


def _refuse_taken(folder: Path) -> None:
    if folder.parent.exists() and not folder.parent.is_dir():
        raise ExportError(f"{folder}: {folder.parent} is a file; expected a folder")
    if folder.exists() or folder.is_symlink():
        raise ExportError(
            f"{folder}: is there already, and nothing is written over; choose another with --out"
        )


def _registration(verified: VerifiedVersion, reading: Reading) -> Registered:
    """The version's first event."""
    version = verified.version
    if version.duplicate_of is not None:
        raise ExportError(
            f"{version.name} version {version.version} is a duplicate; export the one that counts: "
            f"{version.name}:{version.duplicate_of}"
        )
    registered = reading.state.registered.get(version.version)
    if registered is None:
        raise ExportError(
            f"{version.name} version {version.version} is in no ledger: its registration was cut off; "
            f"`prefixline retrain {version.name}` completes it"
        )
    return registered


def _fill(
    folder: Path,
    model: Path,
    verified: VerifiedVersion,
    events: Sequence[Event],
    registered: Registered,
    key: SigningKey | None,
) -> None:
    """Everything that a bundle holds, in an order in which each file can name those before it."""
    # Here, because the standards' libraries take a second to import.
    from pipeline.export.provenance import sealed, statement
    from pipeline.openlineage.run_events import run_events

    record, version, at = verified.record, verified.version.version, registered.time
    shutil.copytree(model, folder / layout.MODEL)
    shutil.copytree(model / ADAPTER_PATH, folder, dirs_exist_ok=True)
    facts = layout.facts(record, version, fold(events), digest.sha256_file(model / MANIFEST_FILE))
    config = json.loads((folder / CONFIG).read_bytes())
    _write(folder / layout.FACTS, digest.canonical_json(facts))
    _write(folder / layout.LINEAGE, record.to_json())
    _write(folder / layout.LEDGER, _lines(event.to_json() for event in events))
    _write(folder / layout.CARD, model_card(record, config, version, facts["stage"]).encode())
    _write(folder / layout.EVENTS, _lines(map(digest.canonical_json, run_events(record, version, at))))
    others = {name: sha for name, sha in digest.manifest(folder).items() if name not in record.files}
    made = digest.canonical_json(statement(record, others, version=version, registered=at))
    if key is None:
        _write(folder / layout.UNSIGNED, made)
    else:
        _write(folder / layout.SIGNED, sealed(made, key))
    _write(folder / layout.SUMS, layout.sums(digest.manifest(folder)))


def _lines(contents: Iterable[bytes]) -> bytes:
    return b"".join(content + b"\n" for content in contents)


def _write(path: Path, content: bytes) -> None:
    if path.exists():
        raise IntegrityError(
            [f"{path.name}: the adapter has a file of this name; a bundle needs it for its own"]
        )
    path.write_bytes(content)


def _exported(verified: VerifiedVersion, reading: Reading, folder: Path, key: SigningKey | None) -> Exported:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    name, version = verified.version.name, verified.version.version
    signed_by = None if key is None else key.public
    return Exported(name, version, reading.state.stage_of(version), folder, len(sizes), sum(sizes), signed_by)
