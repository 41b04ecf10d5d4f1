"""From a dataset version, a row, a base model or a code commit forward to every registered version that came from it.

A version came from it directly, by what its lineage record names, or through the version that its training went on
from, at however many removes. What cannot be told of a version is said with the reason; nothing is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import server_access
from pipeline.audit import asked_rows, digests, warm_starts
from pipeline.audit.asked_rows import AskedRows
from pipeline.audit.warm_starts import Key, key_of
from pipeline.data.row_index import ROW_INDEX, Columns, RowIndex
from pipeline.errors import IntegrityError, RegistryError, WorkspaceError
from pipeline.ledger.events import STAGES
from pipeline.register import versions
from pipeline.register.origin import Origin
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion
from pipeline.state import row_index_file
from pipeline.versioning.stored import fetch_file
from pipeline.versioning.workspace import Workspace, find_workspace

Kind = Literal["dataset", "row", "base", "code"]


@dataclass(frozen=True)
class Finding:
    """What is known of one version.

    Attributes:
        came: whether it came from what was asked about; None where that cannot be told.
        why: the reason, as a sentence's end; empty for a version that did not.
        through: the version that its training went on from and that it came through; None for a direct one.
        rows: how many of the rows asked about its own dataset version holds.
    """

    came: bool | None
    why: str = ""
    through: str | None = None
    rows: int | None = None


_NO = Finding(False)


def impact(folder: Path, kind: Kind, asked: str) -> dict[str, Any]:
    """Every version of every prefix in the workspace's registry that came from what is asked about.

    Args:
        folder: the workspace, or a folder below it.
        kind: what `asked` is: the DVC hash of a dataset version, a base model's digest, a code commit (each whole, or
            at least 8 characters of its beginning), or a row: a text, or a file (see `asked_rows.read`).

    Returns:
        {kind, asked, meant: the whole digest or null, rows: how many were asked about or null, searched: versions,
        complete: whether it could be told of all of them, versions: [{name, version, stages, duplicate_of, tainted,
        why, through, rows, dataset_md5}], unknown: [{name, version, stages, duplicate_of, tainted, why}], by_hand: [{name,
        version, stages}]}

    Raises:
        RegistryError: `asked` is no digest, or the beginning of several.
        DataError: the file of rows is not usable.
        IntegrityError: a row index in the workspace's state is damaged.
        WorkspaceError: git has only a part of the history.
        UnreachableError: MLflow does not answer.
    """
    workspace = find_workspace(folder)
    rows = (
        asked_rows.read(asked) if kind == "row" else None
    )  # a wrong file is said before anything is searched
    if kind != "row":
        digests.check(kind, asked)
    connection = server_access.connect(workspace.root)
    everything = versions.list_all(connection)
    by_hand = [version for version in everything if versions.LINEAGE_DIGEST not in version.tags]
    made = {key_of(version): version for version in everything if versions.LINEAGE_DIGEST in version.tags}
    origins, unreadable = warm_starts.origins(connection, made.values())
    found = {key: Finding(None, why) for key, why in unreadable.items()}
    meant, count = None, None
    if rows is not None:
        direct, count = _Rows(workspace, connection, rows, made, origins).findings()
    elif kind == "code":
        direct, meant = _by_code(workspace, asked, origins)
    else:
        direct, meant = _by_digest(kind, asked, origins)
    found |= direct
    parents, lost = warm_starts.parents(made, origins)
    for key, what in lost.items():
        if found[key].came is False:
            found[key] = Finding(None, f"its training went on from {what}")
    found = _follow(found, parents)
    came = [key for key in made if found[key].came]
    unknown = [key for key in made if found[key].came is None]
    return {
        "kind": kind,
        "asked": asked,
        "meant": meant,
        "rows": count,
        "searched": len(everything),
        "complete": not unknown and not by_hand,
        "versions": [
            _described(made[key])
            | {
                "why": found[key].why,
                "through": found[key].through,
                "rows": found[key].rows,
                "dataset_md5": origins[key].dataset_md5,
            }
            for key in came
        ],
        "unknown": [_described(made[key]) | {"why": found[key].why} for key in unknown],
        "by_hand": [_described(version) for version in by_hand],
    }


def _described(version: RegisteredVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "stages": [stage for stage in STAGES if stage in version.stages],
        "duplicate_of": version.duplicate_of,
        "tainted": version.tainted,
    }


def _by_digest(
    kind: Kind, asked: str, origins: Mapping[Key, Origin]
) -> tuple[dict[Key, Finding], str | None]:
    """Whether each version's dataset version, or base model, is the one that `asked` means; and which that is."""
    if kind == "dataset":
        what, values = "dataset version", {key: origin.dataset_md5 for key, origin in origins.items()}
    else:
        what, values = "base model", {key: origin.base_digest for key, origin in origins.items()}
    meant = digests.whole(kind, asked, values.values())
    came = Finding(True, f"its {what} is {meant}")
    return {key: came if value == meant else _NO for key, value in values.items()}, meant


def _by_code(
    workspace: Workspace, asked: str, origins: Mapping[Key, Origin]
) -> tuple[dict[Key, Finding], str | None]:
    """Whether each version was trained by the code of the commit that `asked` means, or by code that contains it.

    Every retraining starts from a commit of its own, the one of its pins, so that the commit of a change is
    rarely the very commit of a version.
    """
    commits = {key: origin.code_commit for key, origin in origins.items()}
    meant, containing, absent = digests.code(workspace.root, asked, set(commits.values()))
    found = {}
    for key, commit in commits.items():
        if commit == meant:
            found[key] = Finding(True, f"it was trained by the code of commit {commit}")
        elif commit in containing:
            found[key] = Finding(True, f"the code of its commit {commit} contains commit {meant}")
        elif commit in absent:
            found[key] = Finding(
                None,
                f"its code commit {commit} is not in this repository, so git cannot say what it contains",
            )
        else:
            found[key] = _NO
    return found, meant


def _follow(found: Mapping[Key, Finding], parents: Mapping[Key, Sequence[Key]]) -> dict[Key, Finding]:
    """The findings, with what follows along warm starts: nearest first, and what is certain before what is not."""
    children = warm_starts.children(parents)
    result = dict(found)
    for came in (True, None):
        waiting = deque(key for key, finding in found.items() if finding.came is came)
        while waiting:
            name, number = parent = waiting.popleft()
            if result[parent].came is not came:
                continue  # unknown by itself, but known to have come from it through another
            for child in children.get(parent, ()):
                if result[child].came is True or (came is None and result[child].came is None):
                    continue
                said = f"its training went on from version {number} of {name}"
                if came is None:
                    said += ", of which it cannot be told"
                result[child] = replace(result[child], came=came, why=said, through=f"{name}:{number}")
                waiting.append(child)
    return result


class _Rows:
    """Asks the row index of each dataset version, once however many versions were made from it."""

    def __init__(
        self,
        workspace: Workspace,
        connection: Registry,
        rows: AskedRows,
        made: Mapping[Key, RegisteredVersion],
        origins: Mapping[Key, Origin],
    ) -> None:
        self._workspace, self._connection = workspace, connection
        self._rows, self._origins = rows, origins
        self._made_from: dict[str, list[RegisteredVersion]] = {}
        for key, origin in origins.items():
            if origin.row_index is not None:
                self._made_from.setdefault(origin.row_index, []).append(made[key])

    def findings(self) -> tuple[dict[Key, Finding], int | None]:
        """Of each version with a known origin, whether its dataset version holds one of the rows.

        Also how many rows were asked about; None where no index says how a file of rows is to be read.
        """
        unknown = {index: why for index in self._made_from if (why := self._bring(index)) is not None}
        known = [index for index in self._made_from if index not in unknown]
        # Only a file's rows depend on the columns of all prefixes.
        every = tuple(dict.fromkeys(map(self._columns, known))) if self._rows.file is not None else ()
        held = {index: self._held(index, every) for index in known}
        asked = max((count for _, count in held.values()), default=len(self._rows.texts) or None)
        return {
            key: self._finding(origin.row_index, unknown, held) for key, origin in self._origins.items()
        }, asked

    def _finding(
        self, index: str | None, unknown: Mapping[str, str], held: Mapping[str, tuple[int, int]]
    ) -> Finding:
        if index is None:
            return Finding(None, "it was registered before the rows of a dataset version were indexed")
        if index in unknown:
            return Finding(None, f"the index of its rows cannot be had: {unknown[index]}")
        rows, asked = held[index]
        if not rows:
            return Finding(False, rows=0)
        what = "the row" if asked == 1 else f"{rows:,} of the {asked:,} rows"
        return Finding(True, f"its dataset version holds {what}", rows=rows)

    def _columns(self, index: str) -> Columns:
        with self._opened(index) as opened:
            return opened.columns

    def _held(self, index: str, every: tuple[Columns, ...]) -> tuple[int, int]:
        """How many of the rows an index holds, and how many it was asked for."""
        with self._opened(index) as opened:
            wanted = self._rows.wanted(every, opened.columns)
            return sum(any(part in opened for part in row) for row in wanted), len(wanted)

    def _opened(self, index: str) -> RowIndex:
        return RowIndex(row_index_file(self._workspace.root, index), index)

    def _bring(self, index: str) -> str | None:
        """Have the index in the workspace's state; the reason where it cannot be had."""
        target = row_index_file(self._workspace.root, index)
        if target.exists():
            return None
        reasons = []
        for version in self._made_from[index]:
            try:
                record = versions.lookup(self._connection, version.name, version.version).record
                if record.dataset.get("row_index") != index:
                    raise IntegrityError(
                        [f"tagged   {index}", f"recorded {record.dataset.get('row_index')}"],
                        heading=f"version {version.version} of {version.name} is tagged with another row index than "
                        "its lineage record names:",
                    )
                commit, path = record.experiment["commit"], f"prepared/{ROW_INDEX}"
                fetch_file(self._workspace, commit, version.name, "prepare", path, target)
                return None
            except (IntegrityError, RegistryError, WorkspaceError) as error:
                reasons.append(str(error))
        return reasons[0]
