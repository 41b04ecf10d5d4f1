"""What a lineage record names outside of MLflow: dataset, base model, experiment and code, each looked at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipeline.audit.faults import Fault, Kind, Link, shown
from pipeline.audit.hashing import ABSENT, Hashes, compare
from pipeline.base import base_files
from pipeline.data.card import ROW_IDS, rows_root
from pipeline.digest import canonical_json, digest
from pipeline.errors import BaseModelError, IntegrityError, WorkspaceError
from pipeline.params import BaseModelParams, HubSource
from pipeline.register.lineage import LineageRecord, pinned_params, split_digests
from pipeline.versioning import git
from pipeline.versioning.experiment import anchor
from pipeline.versioning.git_objects import GitObjects
from pipeline.versioning.stored import RECORDS, Held, hash_in, locked_outputs, look
from pipeline.versioning.workspace import Workspace

_KINDS = {"missing": Kind.MISSING, "tampered": Kind.TAMPERED, "unreachable": Kind.UNREACHABLE}


@dataclass(frozen=True)
class _Stage:
    """A stage's record in an experiment's commit, and its stored outputs by dvc.lock."""

    record: Mapping[str, Any]
    outputs: Mapping[str, str]


class Sources:
    """The workspace a record's sources are looked for in.

    Args:
        repo: its DVC repository, open.
        objects: its git repository.
    """

    def __init__(self, workspace: Workspace, repo: Any, objects: GitObjects, hashes: Hashes) -> None:
        self._workspace = workspace
        self._repo = repo
        self._objects = objects
        self._hashes = hashes
        self._known: dict[tuple[Link, bytes], list[Fault]] = {}
        self._held: dict[str, Held] = {}
        self._roots: dict[str, str] = {}
        self._anchors = _anchors(workspace)

    def check(self, record: LineageRecord) -> list[Fault]:
        """Everything wrong with what the record names. What many records name is hashed and compared once."""
        data, base = record.dataset, record.base_model
        dataset = {name: data[name] for name in ("path", "md5", "git_commit", "manifest")}
        return [
            *self._once(Link.DATASET, dataset, lambda: self._dataset(dataset)),
            *self._once(Link.BASE_MODEL, dict(base), lambda: self._base_model(base)),
            *self._once(Link.CODE, record.code["commit"], lambda: self._code(record.code["commit"])),
            *self._experiment(record),
        ]

    def _once(self, link: Link, key: Any, check: Callable[[], list[Fault]]) -> list[Fault]:
        known = (link, canonical_json(key))
        if known not in self._known:
            self._known[known] = check()
        return self._known[known]

    def _read(
        self, link: Link, commit: str, path: str, faults: list[Fault], *, absent: Kind = Kind.MISSING
    ) -> bytes | None:
        """A file of a commit; what is wrong with it is noted."""
        where = f"{path} in commit {commit}"
        try:
            content = self._objects.read(commit, path)
        except (IntegrityError, WorkspaceError) as error:
            faults.append(Fault(link, Kind.TAMPERED, where, "a whole git object", str(error)))
            return None
        if content is None:
            faults.append(Fault(link, absent, where, "a file", ABSENT))
        return content

    def _commit(self, link: Link, commit: str, faults: list[Fault]) -> str | None:
        """A commit's object; what is wrong with it is noted."""
        where = f"commit {commit}"
        try:
            content = self._objects.commit(commit)
        except (IntegrityError, WorkspaceError) as error:
            faults.append(Fault(link, Kind.TAMPERED, where, "a whole git object", str(error)))
            return None
        if content is None:
            faults.append(Fault(link, Kind.MISSING, where, "a commit of the workspace", "no such commit"))
        return content

    def _stored(self, md5: str) -> Held:
        if md5 not in self._held:
            self._held[md5] = look(self._repo, md5)
        return self._held[md5]

    def _compare_stored(self, link: Link, md5: str, manifest: Mapping[str, str], where: str) -> list[Fault]:
        """What cache or remote hold under `md5` against {path within: SHA-256}."""
        held = self._stored(md5)
        if whole := held.absent.get(""):
            return [Fault(link, _KINDS[whole.reason], where, f"the object {md5}", whole.what)]
        below = f"{where}/" if md5.endswith(".dir") else ""
        files = (
            dict(held.files) if md5.endswith(".dir") else dict.fromkeys(manifest or [where], held.files[""])
        )
        faults = compare(
            self._hashes,
            link,
            files,
            {name: sha for name, sha in manifest.items() if name not in held.absent},
            below=below,
        )
        for name, absent in held.absent.items():
            expected = manifest.get(name, ABSENT)
            faults.append(Fault(link, _KINDS[absent.reason], f"{below}{name}", expected, absent.what))
        return faults

    def _dataset(self, dataset: Mapping[str, Any]) -> list[Fault]:
        faults: list[Fault] = []
        path, md5, commit, manifest = (dataset[name] for name in ("path", "md5", "git_commit", "manifest"))
        if self._commit(Link.DATASET, commit, faults) is not None:
            tracked = self._read(Link.DATASET, commit, f"{path}.dvc", faults)
            if tracked is not None:
                self._same(Link.DATASET, f"md5 of {path}.dvc", md5, _hash_in(tracked), faults)
            described = self._read(Link.DATASET, commit, f"{path}.manifest.json", faults)
            if described is not None:
                files = _json(described).get("files", {})
                self._same(Link.DATASET, f"{path}.manifest.json", digest(manifest), digest(files), faults)
        return faults + self._compare_stored(Link.DATASET, md5, manifest, path)

    def _same(self, link: Link, where: str, expected: Any, actual: Any, faults: list[Fault]) -> None:
        if expected != actual:
            faults.append(Fault(link, Kind.OUT_OF_STEP, where, shown(expected), shown(actual)))

    def _base_model(self, base: Mapping[str, Any]) -> list[Fault]:
        where = f"base model {base['name']}"
        source = BaseModelParams.model_validate({"source": base["source"], "digest": base["digest"]}).source
        try:
            if isinstance(source, HubSource):
                folder, _ = base_files.find(source, base["digest"], self._workspace.root, where)
            else:
                folder = base_files.folder_of(source, self._workspace.root, where)
        except BaseModelError as error:
            return [Fault(Link.BASE_MODEL, Kind.MISSING, where, base["digest"], str(error))]
        if not folder.is_dir():
            return [Fault(Link.BASE_MODEL, Kind.MISSING, where, base["digest"], f"{folder}: {ABSENT}")]
        names = [name for name in base["files"] if (folder / name).is_file()]
        faults = []
        try:
            names = base_files.identity_names(folder, where=where)
        except BaseModelError as error:
            faults.append(
                Fault(Link.BASE_MODEL, Kind.TAMPERED, where, "files that make a base model", str(error))
            )
        files = {name: folder / name for name in names}
        return faults + compare(
            self._hashes, Link.BASE_MODEL, files, base["files"], below=f"{base['name']}: "
        )

    def _code(self, commit: str) -> list[Fault]:
        faults: list[Fault] = []
        self._commit(Link.CODE, commit, faults)
        return faults

    def _experiment(self, record: LineageRecord) -> list[Fault]:
        """The experiment's commit, what keeps it from git's collector, and what it says it made of what."""
        faults: list[Fault] = []
        name, commit = record.prefix, record.experiment["commit"]
        reference = anchor(name, record.run_key)
        kept = self._anchors.get(reference)
        if kept is None:
            faults.append(Fault(Link.EXPERIMENT, Kind.MISSING, reference, commit, "no such reference"))
        else:
            self._same(Link.EXPERIMENT, reference, commit, kept, faults)
        content = self._commit(Link.EXPERIMENT, commit, faults)
        if content is None:
            return faults
        parents = [line.split()[1] for line in content.splitlines() if line.startswith("parent ")]
        self._same(
            Link.EXPERIMENT, f"parent of commit {commit}", record.code["commit"], " ".join(parents), faults
        )
        pins = self._read(Link.EXPERIMENT, commit, f"pins/{name}.json", faults)
        if pins is not None:
            self._check_pins(record, _json(pins), faults)
        lock = self._read(Link.EXPERIMENT, commit, "dvc.lock", faults)
        for stage in RECORDS if lock is not None else ():
            assert lock is not None
            found = self._stage(record, stage, lock, faults)
            if found is not None:
                self._check_stage(record, stage, found, faults)
        return faults

    def _check_pins(self, record: LineageRecord, pins: Mapping[str, Any], faults: list[Fault]) -> None:
        where = f"pins/{record.prefix}.json: "
        data, base = pins.get("data") or {}, pins.get("base_model") or {}
        code = {key: record.code[key] for key in ("version", "digest")}
        for key, expected, actual in (
            ("run_key", record.run_key, pins.get("run_key")),
            ("data.md5", record.dataset["md5"], data.get("md5")),
            ("data.manifest", record.dataset["manifest"], data.get("manifest")),
            ("base_model.digest", record.base_model["digest"], base.get("digest")),
            ("code", code, pins.get("code")),
            ("warm_start", record.warm_start, pins.get("warm_start")),
            ("params", record.params, pinned_params(record.params, pins.get("params") or {})),
        ):
            self._same(Link.EXPERIMENT, where + key, expected, actual, faults)

    def _stage(self, record: LineageRecord, stage: str, lock: bytes, faults: list[Fault]) -> _Stage | None:
        """A stage's record, where dvc.lock agrees with it; what does not is noted."""
        commit, name = record.experiment["commit"], record.prefix
        path = f"artifacts/{name}/{RECORDS[stage]}"
        content = self._read(Link.EXPERIMENT, commit, path, faults)
        try:
            outputs = locked_outputs(lock, commit, name, stage)
        except WorkspaceError as error:
            faults.append(
                Fault(
                    Link.EXPERIMENT,
                    Kind.MISSING,
                    f"dvc.lock in commit {commit}",
                    f"stage {stage}",
                    str(error),
                )
            )
            return None
        if content is None:
            return None
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self._same(Link.EXPERIMENT, f"{path} by dvc.lock", outputs.get(path), md5, faults)
        base = PurePosixPath(f"artifacts/{name}")
        parts = {
            PurePosixPath(out).relative_to(base).as_posix(): md5
            for out, md5 in outputs.items()
            if out != path
        }
        return _Stage(_json(content), parts)

    def _check_stage(self, record: LineageRecord, stage: str, found: _Stage, faults: list[Fault]) -> None:
        """What the stage says it made against the lineage record, and its stored outputs against what it says."""
        said, where = found.record, f"{RECORDS[stage]}: "
        manifest: Mapping[str, str] = said.get("manifest", {})
        data = record.dataset
        if stage == "prepare":
            rows = said.get("rows", {})
            expected = {split: count for split, count in data["rows"].items() if split != "total"}
            for key, ours, theirs in (
                ("rows", expected, rows),
                ("labels", data["labels"], said.get("labels")),
                ("splits", data["splits"], split_digests(manifest)),
                ("row_ids", data["row_ids"], said.get("row_ids")),
                ("row_root", data["row_root"], said.get("row_root")),
                ("row_index", data.get("row_index"), said.get("row_index")),
                (f"prepared/{ROW_IDS}", data["row_ids"], manifest.get(f"prepared/{ROW_IDS}")),
            ):
                self._same(Link.EXPERIMENT, where + key, ours, theirs, faults)
        elif stage == "train":
            adapter = {
                name.partition("/")[2]: sha for name, sha in manifest.items() if name.startswith("adapter/")
            }
            self._same(Link.EXPERIMENT, where + "adapter", dict(record.files), adapter, faults)
        else:
            self._same(Link.EXPERIMENT, where + "systems", record.metrics, said.get("systems"), faults)
        for part, md5 in found.outputs.items():
            inside = _inside(manifest, part)
            faults += self._once(
                Link.EXPERIMENT,
                [part, md5, inside],
                partial(self._compare_stored, Link.EXPERIMENT, md5, inside, part),
            )
            if part == "prepared":
                self._check_root(record, md5, faults)

    def _check_root(self, record: LineageRecord, md5: str, faults: list[Fault]) -> None:
        """The Merkle root, made again from the row ids where those are the recorded ones."""
        path = self._stored(md5).files.get(ROW_IDS)
        recorded = record.dataset["row_ids"]
        if path is None or self._hashes.of([path])[path] != recorded:
            return
        if recorded not in self._roots:
            self._roots[recorded] = rows_root(path.read_bytes())
        self._same(
            Link.DATASET,
            "Merkle root of the row ids",
            record.dataset["row_root"],
            self._roots[recorded],
            faults,
        )


def _inside(manifest: Mapping[str, str], part: str) -> dict[str, str]:
    """The part of a stage's manifest that is about one output: names below a folder, or a file under its own."""
    if part in manifest:
        return {part: manifest[part]}
    return {
        name.removeprefix(f"{part}/"): sha for name, sha in manifest.items() if name.startswith(f"{part}/")
    }


def _anchors(workspace: Workspace) -> dict[str, str]:
    listed = git.run(workspace.root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/prefixline")
    return dict(line.split(" ", 1) for line in listed.splitlines())


def _json(content: bytes) -> Mapping[str, Any]:
    """The mapping in `content`; an empty one for anything else, which is then out of step in every key."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _hash_in(content: bytes) -> str:
    try:
        return hash_in(content, "")
    except WorkspaceError as error:
        return str(error)
