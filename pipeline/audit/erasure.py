"""Take rows out: out of the data of every prefix, and, by retraining, out of what is in use.

No version can forget a row. So each that saw it, itself or through a warm start, is marked in the ledger as tainted:
it never moves up again, nothing goes on from it, and a prefix is rid of the row once a version made without it has taken
its place. Each step can be repeated: cut off anywhere, the same call goes on.

What is written down of the row is a digest (`row_digest`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actor import actor
from pipeline.audit import asked_rows
from pipeline.audit.asked_rows import AskedRows
from pipeline.audit.impact import impact
from pipeline.data.removal import Removal
from pipeline.data.row_index import Columns
from pipeline.errors import DataError, RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import REASON_LIMIT, text_problem
from pipeline.ledger.registration import enter
from pipeline.ledger.tainting import taint
from pipeline.params import Params
from pipeline.register import versions
from pipeline.register.registry import Registry
from pipeline.server_access import connect
from pipeline.versioning import dvc_repo, snapshot
from pipeline.versioning.workspace import Workspace, find_workspace, open_workspace

REASON = "a row was to be erased"
"""The reason in the ledger where none is given."""

IN_USE = ("candidate", "staging", "production")
"""The stages that a tainted version must leave: from these it is served or promoted."""


@dataclass(frozen=True)
class Erasure:
    """What an erasure did, or would do.

    Attributes:
        row: `row_digest` of what was asked.
        rows: how many rows were asked about; None where nobody can tell.
        searched: how many versions were.
        versions: those that saw it, as `impact` describes them.
        unknown, by_hand: those of which it cannot be told.
        removed: {data file from the workspace's root: rows taken out}.
        tainted: the versions marked just now, [NAME, NUMBER] each.
        retrain: the prefixes that are to be retrained, in the order of params.yaml: whose data held the row, or is no
            dataset version yet, or of which a version that saw it holds a stage of `IN_USE`.
        left_out: prefixes with such a version that params.yaml does not have any more.
        not_erased: where the row still is, in sentences.
    """

    row: str
    rows: int | None
    searched: int
    versions: tuple[Mapping[str, Any], ...]
    unknown: tuple[Mapping[str, Any], ...]
    by_hand: tuple[Mapping[str, Any], ...]
    removed: Mapping[str, int]
    tainted: tuple[tuple[str, str], ...]
    retrain: tuple[str, ...]
    left_out: tuple[str, ...]
    not_erased: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether it could be told of every version."""
        return not self.unknown and not self.by_hand


def erase(root: Path, asked: str, *, reason: str = REASON, dry_run: bool = False) -> Erasure:
    """Mark the versions that saw the rows, and take the rows out of the data. The retrainings are the caller's.

    Everything is looked at before anything is changed.

    Args:
        asked: a text, or a file of rows, as `impact` takes them. A text goes whatever its label.
        reason: kept in the ledger; it should not name the row.
        dry_run: change nothing.

    Raises:
        DataError: a prefix's data is imported, is not usable, or nothing of it would be left; or `asked` is not usable.
        RegistryError: the reason is empty or too long; or MLflow refused.
        WorkspaceError: there are uncommitted changes, which the retrainings would refuse.
        IntegrityError: a ledger or a lineage record is not what was written.
        UnreachableError: MLflow does not answer.
    """
    if (problem := text_problem(reason, REASON_LIMIT)) is not None:
        raise RegistryError(f"reason: {problem}")
    workspace = find_workspace(root) if dry_run else open_workspace(root)
    params = workspace.params()
    rows = asked_rows.read(asked)
    seen = impact(workspace.root, "row", asked)
    connection = connect(workspace.root)
    with workspace.locked():
        removal, holding = _look(workspace, params, rows, seen)
        row = row_digest(part for parts in _wanted(params, rows).values() for part in parts)
        marked: tuple[tuple[str, str], ...] = ()
        try:
            if not dry_run:
                removal.write()
                marked = _mark(connection, workspace, seen, row, reason)
                removal.replace()
        finally:
            removal.discard()
    names = {version["name"] for version in seen["versions"]}
    return Erasure(
        row=row,
        rows=seen["rows"],
        searched=seen["searched"],
        versions=tuple(seen["versions"]),
        unknown=tuple(seen["unknown"]),
        by_hand=tuple(seen["by_hand"]),
        removed={
            path.relative_to(workspace.root).as_posix(): len(lines)
            for path, lines in sorted(removal.found.items())
        },
        tainted=marked,
        retrain=_to_retrain(workspace, params, seen, holding),
        left_out=tuple(sorted(names - params.prefixes.keys())),
        not_erased=_not_erased(seen),
    )


def row_digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over what the rows are looked for by (see `row_index`), each once, in ascending order."""
    return hashlib.sha256(b"".join(sorted(set(parts)))).hexdigest()


def in_use(root: Path, saw: Collection[tuple[str, str]]) -> list[dict[str, str | None]]:
    """Which of the versions that saw the row hold a stage of `IN_USE` now.

    Args:
        saw: (name, version) of each.

    Returns:
        [{name, version, stage, clean: the newest version that neither saw it nor is tainted | null}]
    """
    connection = connect(find_workspace(root).root)
    found: list[dict[str, str | None]] = []
    for name in sorted({name for name, _ in saw}):
        every = [each for each in versions.list_versions(connection, name) if each.duplicate_of is None]
        clean = [
            each.version
            for each in every
            if not each.tainted and (name, each.version) not in saw and versions.LINEAGE_DIGEST in each.tags
        ]
        found += [
            {"name": name, "version": each.version, "stage": stage, "clean": clean[-1] if clean else None}
            for each in every
            for stage in each.stages
            if (name, each.version) in saw and stage in IN_USE
        ]
    return found


def _look(
    workspace: Workspace, params: Params, rows: AskedRows, seen: Mapping[str, Any]
) -> tuple[Removal, set[str]]:
    """The rows in the data that is there now, and the prefixes whose data holds them."""
    direct = {version["name"] for version in seen["versions"] if version["through"] is None}
    removal, holding = Removal(), set()
    for name, parts in _wanted(params, rows).items():
        entry = params.prefixes[name]
        raw = workspace.root / entry.data.path
        versioned = (workspace.root / dvc_repo.files_of(entry.data.path)[0]).exists()
        if not raw.exists() and name not in direct and not versioned:
            continue  # there never was any; what DVC could bring back must be looked at
        if removal.look(raw, entry.data, entry.task, parts):
            holding.add(name)
            if entry.data.imported_from is not None:
                raise DataError(
                    [
                        f"{entry.data.path} holds the row, and is imported from {entry.data.imported_from}: the next "
                        "retraining would bring it back. Take it out there, run `prefixline retrain "
                        f"{name}`, which takes in what is there then, and run this again. Nothing was changed"
                    ]
                )
    return removal, holding


def _to_retrain(
    workspace: Workspace, params: Params, seen: Mapping[str, Any], holding: set[str]
) -> tuple[str, ...]:
    """The prefixes that are not rid of the row yet.

    Of those with a tainted version not one whose versions in use are clean and whose data is that of a retraining: going on
    from a version in production is a new start each time, so that a repeated erasure would train without end.
    """
    names = {version["name"] for version in seen["versions"]}
    standing = {
        version["name"] for version in seen["versions"] if not set(IN_USE).isdisjoint(version["stages"])
    }
    return tuple(
        name
        for name, entry in params.prefixes.items()
        if name in holding
        or name in standing
        or (name in names and snapshot.current(workspace, entry.data) is None)
    )


def _wanted(params: Params, rows: AskedRows) -> dict[str, frozenset[bytes]]:
    """{prefix: what its rows are looked for by}."""
    columns = {name: Columns.of(entry.task, entry.data) for name, entry in params.prefixes.items()}
    every = tuple(dict.fromkeys(columns.values()))
    return {
        name: frozenset(part for wanted in rows.wanted(every, own) for part in wanted)
        for name, own in columns.items()
    }


def _mark(
    connection: Registry, workspace: Workspace, seen: Mapping[str, Any], row: str, reason: str
) -> tuple[tuple[str, str], ...]:
    """The versions marked just now."""
    who, marked = actor(workspace.root), []
    names = {version["name"] for version in seen["versions"]}
    entered = {name: log.read(connection, name).state.registered for name in names}
    for version in seen["versions"]:
        name, number = version["name"], version["version"]
        if version["duplicate_of"] is not None:  # it is not in the ledger, and is never promoted
            continue
        if number not in entered[name]:
            record = versions.lookup(connection, name, number).record
            # Made before there was a ledger, or its registration was cut off on the way.
            enter(
                connection, name, number, lineage_digest=record.digest, verdict_digest=record.verdict_digest,
                actor=who, reason="passed the gate",
            )  # fmt: skip
        if taint(connection, name, number, row=row, actor=who, reason=reason):
            marked.append((name, number))
    return tuple(marked)


def _not_erased(seen: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a row stays that was in the dataset versions of these versions."""
    direct = [version for version in seen["versions"] if version["through"] is None]
    if not direct:
        return ()
    hashes = ", ".join(sorted({version["dataset_md5"] for version in direct}))
    names = ", ".join(sorted({version["name"] for version in direct}))
    told = ", ".join(f"{version['name']}:{version['version']}" for version in seen["versions"])
    return (
        f"DVC's cache and remote: the dataset versions {hashes}, and what the experiments of {names} stored (prepared "
        "rows, scored rows, samples)",
        f"git: pins, manifests and records (artifacts/NAME/*.json, whose data card may quote texts) of the commits of {names}",
        f"MLflow: the artifacts of the runs of {names} (data card, report), and the input examples of their models",
        f"reports/ and .prefixline/ (fetched, checkpoints, row_ids, row_index) of this workspace, for {names}",
        f"the weights of {told}: delete them in MLflow when no stage holds them any more",
        "backups, clones, and whatever else has copied any of these",
    )
