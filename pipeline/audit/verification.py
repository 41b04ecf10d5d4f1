"""Verify registered versions: follow each from its stage to the code it was made by, and hash everything again.

    alias → ledger → version → run → artefact → lineage record → adapter → dataset → base model → experiment → code

The whole difference is told, not the first fault; what cannot be followed because its record is not to be trusted is
named as unchecked. A file that many versions share is hashed once.
"""

from __future__ import annotations

import re
import time
from functools import cached_property
from pathlib import Path

from pipeline import server_access
from pipeline.audit.faults import Fault, Gone, Kind, Link, Verification, Verified
from pipeline.audit.hashing import Hashes
from pipeline.audit.registered import RegisteredName
from pipeline.audit.sources import Sources
from pipeline.data.row_progress import Progress
from pipeline.errors import RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import STAGES
from pipeline.ledger.rules import rules_of
from pipeline.params import Params
from pipeline.register.lineage import LineageRecord
from pipeline.register.registry import Registry
from pipeline.register.versions import ADAPTER_DIGEST, RegisteredVersion
from pipeline.tracking.connection import pages
from pipeline.versioning import dvc_repo
from pipeline.versioning.git_objects import GitObjects
from pipeline.versioning.workspace import find_workspace

_FROM_RECORD = (Link.ADAPTER, Link.DATASET, Link.BASE_MODEL, Link.EXPERIMENT, Link.CODE)
"""The links that a lineage record names."""


def verify(root: Path, reference: str | None = None) -> Verification:
    """Verify registered versions against everything they were made from.

    How far it is shows on stderr where it takes long.

    Args:
        reference: NAME (all of its versions), NAME:NUMBER or NAME@STAGE; None for every version of every name.

    Raises:
        RegistryError: there is no such name, version or stage; or MLflow refused.
        UnreachableError: MLflow does not answer.
        WorkspaceError: `root` is in no workspace.
        ParamsError: params.yaml, which has the rules of the stages, is wrong.
    """
    started = time.monotonic()
    workspace = find_workspace(root)
    connection = server_access.connect(workspace.root)
    names = _Names(connection, workspace.params())
    chosen, gone = _choose(names, reference)
    with (
        Hashes() as hashes,
        GitObjects(workspace.root) as objects,
        dvc_repo.opened(workspace.root) as repo,
        Progress("Verifying", len(chosen)) as progress,
    ):
        sources = Sources(workspace, repo, objects, hashes)
        verified = []
        for version in chosen:
            verified.append(_verify(names, version, sources, hashes))
            progress.advance(1)
        seconds = round(time.monotonic() - started, 3)
        return Verification(tuple(verified), gone, hashes.files, hashes.bytes, seconds)


class _Names:
    """The registered names, each read when it is first asked for."""

    def __init__(self, connection: Registry, params: Params) -> None:
        self._connection = connection
        self._params = params
        self._read: dict[str, RegisteredName] = {}

    def __getitem__(self, name: str) -> RegisteredName:
        if name not in self._read:
            self._read[name] = RegisteredName(self._connection, name, rules_of(self._params, name))
        return self._read[name]

    @cached_property
    def all(self) -> list[str]:
        """Every registered name, sorted, and those that MLflow has deleted and that have a ledger."""
        with self._connection.errors("listing the registered names"):
            there = {model.name for model in pages(self._connection.client.search_registered_models)}
        return sorted(there | log.names(self._connection))


def _choose(names: _Names, reference: str | None) -> tuple[list[RegisteredVersion], tuple[Gone, ...]]:
    """The versions asked for, and where whole names were, those of them that are gone."""
    if reference is None:
        read = [names[name] for name in names.all]
        return [version for name in read for version in name.versions], tuple(
            gone for name in read for gone in name.gone()
        )
    # A name made by hand in MLflow may be anything but these two and a slash.
    parts = re.fullmatch(r"([^:@/]+)(?:[:@]([\w-]+))?", reference)
    if parts is None:
        raise RegistryError(f"{reference!r} is no version's name; expected NAME, NAME:NUMBER or NAME@STAGE")
    name, which = parts[1], parts[2]
    if name not in names.all:
        raise RegistryError(
            f"{name}: nothing is registered under this name; available: {', '.join(names.all) or 'none'}"
        )
    found = names[name]
    if which is None:
        return list(found.versions), found.gone()
    if which in STAGES and not found.knows_stages:  # it may be any of them, and each says what is wrong
        return list(found.versions), found.gone()
    chosen = [v for v in found.versions if which == v.version or which in v.stages]
    if not chosen:
        there = [f"{v.version} {' '.join('@' + stage for stage in v.stages)}".strip() for v in found.versions]
        raise RegistryError(
            f"{name}: no version {reference.removeprefix(name)!r}; available: {', '.join(there) or 'none'}"
        )
    return chosen, ()


def _verify(names: _Names, version: RegisteredVersion, sources: Sources, hashes: Hashes) -> Verified:
    found = names[version.name].check(version, hashes)
    record = found.record
    unchecked: tuple[Link, ...] = ()
    if record is not None:
        found.faults += sources.check(record)
        found.faults += _warm_start(names, record)
    elif not found.by_hand:
        unchecked = _FROM_RECORD
    order = list(Link)
    return Verified(
        name=version.name,
        version=version.version,
        stages=version.stages if names[version.name].knows_stages else None,
        duplicate_of=version.duplicate_of,
        by_hand=found.by_hand,
        faults=tuple(sorted(set(found.faults), key=lambda fault: (order.index(fault.link), fault))),
        unchecked=unchecked,
        tainted=version.tainted,
    )


def _warm_start(names: _Names, record: LineageRecord) -> list[Fault]:
    """The version the training went on from; a folder that it went on from is nobody's to keep."""
    start = record.warm_start
    if start is None or "version" not in start:
        return []
    where = f"{start['prefix']} version {start['version']}"
    there = names[start["prefix"]].versions if start["prefix"] in names.all else ()
    earlier = next((version for version in there if version.version == start["version"]), None)
    if earlier is None:
        return [Fault(Link.WARM_START, Kind.MISSING, where, start["adapter_digest"], "no such version")]
    actual = earlier.tags.get(ADAPTER_DIGEST, "no such tag")
    if actual != start["adapter_digest"]:
        return [Fault(Link.WARM_START, Kind.OUT_OF_STEP, where, start["adapter_digest"], actual)]
    return []
