"""Stored data by hash: out of DVC's cache or remote into a folder, and never used before it is verified.

DVC checks out a tampered cache object without a word, and writes outside the repository where a folder's listing says
so. Hence files are taken by hash from the listing we checked ourselves, and hashed against a SHA-256 manifest that is
in git.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline import digest, files
from pipeline.errors import IntegrityError, WorkspaceError
from pipeline.versioning import dvc_repo, git
from pipeline.versioning.workspace import Workspace, read_json_at

RECORDS: Mapping[str, str] = {
    "prepare": "prepared.json",
    "train": "trained.json",
    "evaluate": "evaluated.json",
}
"""Each stage's git-tracked record below artifacts/NAME/; its `manifest` has the SHA-256 of the stage's other outputs."""


def locked_outputs(content: bytes, commit: str, name: str, stage: str) -> dict[str, str]:
    """{path from the workspace's root: DVC hash} of the outputs of a stage, its record too, by the dvc.lock of `commit`.

    Raises:
        WorkspaceError: `content`, the dvc.lock, does not have the stage, or is no YAML.
    """
    from ruamel.yaml.error import YAMLError

    try:
        entry = _locked_stages(content).get(f"{stage}@{name}")
    except YAMLError as error:
        raise WorkspaceError(f"dvc.lock in commit {commit}: is not YAML ({error})") from None
    if entry is None:
        raise WorkspaceError(f"dvc.lock in commit {commit}: has no stage {stage}@{name}")
    return {out["path"]: out["md5"] for out in entry.get("outs", ())}


@lru_cache(maxsize=4)
def _locked_stages(content: bytes) -> dict[str, Any]:
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load(content.decode()) or {}
    return lock.get("stages") or {}


def fetch_outputs(workspace: Workspace, commit: str, name: str, stage: str, destination: Path) -> Path:
    """Put the outputs of `stage` (prepare, train or evaluate) of an experiment's `commit` into `destination`.

    Paths below `destination` are those below artifacts/NAME/ (`adapter/adapter_config.json`, `curves.jsonl`).
    Whatever was at `destination` is replaced, in one step and only by verified files.

    Raises:
        IntegrityError: the bytes are not those the stage recorded; `destination` is as it was.
        WorkspaceError: the commit, or an object in both cache and remote, is missing.
    """
    parts, manifest = _recorded(workspace, commit, name, stage)
    return _fetch(workspace, parts, manifest, destination)


def fetch_file(workspace: Workspace, commit: str, name: str, stage: str, path: str, target: Path) -> Path:
    """Put one file of a stage's outputs at `target`, in one step and only when it is verified.

    Args:
        path: below artifacts/NAME/, as the stage's manifest names it.

    Raises:
        IntegrityError: its bytes are not those the stage recorded.
        WorkspaceError: there is no such file; or see `fetch_outputs`.
    """
    parts, manifest = _recorded(workspace, commit, name, stage)
    own = {part: md5 for part, md5 in parts.items() if path == part or path.startswith(f"{part}/")}
    with dvc_repo.opened(workspace.root) as repo:
        found = _objects(repo, own).get(path)
        if found is None or path not in manifest:
            raise WorkspaceError(f"stage {stage} of {name} in {commit} stored no {path}")
        content = found.read_bytes()
        actual = {path: hashlib.sha256(content).hexdigest()}
        _verify(actual, {path: manifest[path]}, {path: found}, path)
    files.write_bytes(target, content)
    return target


def check_outputs(workspace: Workspace, commit: str, name: str, stage: str) -> None:
    """Hash the stored outputs of `stage` in an experiment's `commit` where they lie, in DVC's cache.

    For a stage that DVC took from its run cache: it restores a tampered object, or record, without a word.

    Raises:
        IntegrityError: they, or the record itself, are not what the stage wrote.
        WorkspaceError: see `fetch_outputs`.
    """
    parts, manifest = _recorded(workspace, commit, name, stage)
    with dvc_repo.opened(workspace.root) as repo:
        objects = _objects(repo, parts)
        actual = {path: digest.sha256_file(file) for path, file in objects.items()}
        _verify(actual, manifest, objects, f"stage {stage} of {name} in {commit}")


def _recorded(
    workspace: Workspace, commit: str, name: str, stage: str
) -> tuple[dict[str, str], Mapping[str, str]]:
    """What a stage stored, {path below artifacts/NAME/: DVC hash}, and the manifest it recorded."""
    base = f"artifacts/{name}"
    record_path = f"{base}/{RECORDS[stage]}"
    record = read_json_at(workspace, commit, record_path)
    outputs = locked_outputs(git.read(workspace.root, commit, "dvc.lock") or b"", commit, name, stage)
    found = hashlib.md5(
        git.read(workspace.root, commit, record_path) or b"", usedforsecurity=False
    ).hexdigest()
    if found != outputs[record_path]:
        raise IntegrityError(
            [f"{record_path} in commit {commit}: MD5 is {found}, expected {outputs[record_path]} by dvc.lock"]
        )
    try:
        manifest: Mapping[str, str] = record["manifest"]
    except (TypeError, LookupError):
        raise IntegrityError([f"{record_path} in commit {commit}: has no manifest"]) from None
    parts = {
        PurePosixPath(path).relative_to(base).as_posix(): md5
        for path, md5 in outputs.items()
        if path != record_path
    }
    return parts, manifest


def push_outputs(workspace: Workspace, commit: str, name: str) -> None:
    """Copy all stored outputs of the prefix `name` in an experiment's `commit` to the DVC remote.

    Raises:
        WorkspaceError: see `dvc_repo.push`.
    """
    hashes = [md5 for stage in RECORDS for md5 in _recorded(workspace, commit, name, stage)[0].values()]
    with dvc_repo.opened(workspace.root) as repo:
        dvc_repo.push(repo, hashes)


def fetch_dataset(
    workspace: Workspace, git_commit: str, path: str, manifest: Mapping[str, str], destination: Path
) -> Path:
    """Put the data that `path` had at `git_commit` into the folder `destination`.

    A single file keeps its name below `destination`; of a folder, the files lie directly in it. Whatever was at
    `destination` is replaced, in one step and only by verified files.

    Args:
        manifest: the version's own {file: SHA-256}, as `snapshot` returned it.

    Raises:
        IntegrityError: the bytes are not those of `manifest`; `destination` is as it was.
        WorkspaceError: the commit, or an object in both cache and remote, is missing.
    """
    md5 = dataset_hash(workspace, git_commit, path)
    part = "" if md5.endswith(".dir") else PurePosixPath(path).name
    return _fetch(workspace, {part: md5}, manifest, destination)


def dataset_hash(workspace: Workspace, git_commit: str, path: str) -> str:
    """DVC's hash of the data at `path`, by its .dvc file in `git_commit`.

    Raises:
        WorkspaceError: there is no such file.
    """
    content = git.read(workspace.root, git_commit, f"{path}.dvc")
    if content is None:
        raise WorkspaceError(f"{path}.dvc: is not in commit {git_commit} of {workspace.root}")
    return hash_in(content, f"{path}.dvc in commit {git_commit}")


def hash_in(content: bytes, where: str) -> str:
    """DVC's hash in the content of a .dvc file.

    Raises:
        WorkspaceError: it has none.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return str(YAML(typ="safe").load(content.decode())["outs"][0]["md5"])
    except (YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise WorkspaceError(f"{where}: is not a .dvc file with one hashed output ({error})") from None


def check_cached(repo: Any, md5: str, manifest: Mapping[str, str], what: str) -> None:
    """Hash what DVC's cache holds under `md5` against `manifest`; whatever the cache lacks is fetched first.

    Raises:
        IntegrityError: with the whole difference.
    """
    objects = _locate(repo, md5)
    if not md5.endswith(".dir"):
        objects = dict.fromkeys(manifest, objects[""])
    _verify({name: digest.sha256_file(path) for name, path in objects.items()}, manifest, objects, what)


def _verify(
    actual: Mapping[str, str], expected: Mapping[str, str], objects: Mapping[str, Path], what: str
) -> None:
    """Compare two manifests; a fault names the cache object it came from, for that is what must be deleted."""
    problems = [
        f"{name}: {fault}" + (f" (from {objects[name]})" if name in objects else "")
        for name, fault in digest.difference(actual, expected).items()
    ]
    if problems:
        raise IntegrityError(
            problems,
            heading=f"{what} is not what was recorded (DVC's cache was tampered with or is corrupted); do not use it. "
            "Delete the objects named here, and they are fetched again from the remote:",
        )


def _fetch(
    workspace: Workspace, parts: Mapping[str, str], manifest: Mapping[str, str], destination: Path
) -> Path:
    """Copy `parts`, {path below `destination`: DVC hash}, and verify the whole against `manifest`."""
    with dvc_repo.opened(workspace.root) as repo:
        wanted = _objects(repo, parts)
        # Verified before it is in place, so that nobody ever sees unverified files there.
        with files.new_folder(destination) as fresh:
            for name, path in wanted.items():
                target = fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            _verify(digest.manifest(fresh), manifest, wanted, str(destination))
    return destination


def _objects(repo: Any, parts: Mapping[str, str]) -> dict[str, Path]:
    """{path of each file: file in DVC's cache} of `parts`, {path of a file or folder: DVC hash}."""
    return {
        str(PurePosixPath(part) / name): path
        for part, md5 in parts.items()
        for name, path in _locate(repo, md5).items()
    }


def _locate(repo: Any, md5: str) -> dict[str, Path]:
    """{path within the stored thing: file in DVC's cache}; a single file's path is "".

    Raises:
        IntegrityError: a folder's listing is not what its hash says, or names something outside the folder.
        WorkspaceError: an object is neither in the cache nor in the remote.
    """
    _bring(repo, {md5})
    own = Path(repo.cache.local.oid_to_path(md5))
    if not md5.endswith(".dir"):
        return {"": own}
    entries = _entries(own, md5)
    bad = [entry["relpath"] for entry in entries if not _is_inside(entry["relpath"])]
    if bad:
        raise IntegrityError(
            [f"{name!r}: expected a relative path that stays inside the folder" for name in bad],
            heading=f"{own}: a stored folder's listing names files outside of it; nothing was written:",
        )
    _bring(repo, {entry["md5"] for entry in entries})
    return {entry["relpath"]: Path(repo.cache.local.oid_to_path(entry["md5"])) for entry in entries}


def _entries(listing: Path, md5: str) -> list[dict[str, str]]:
    """The entries {relpath, md5} of a folder's listing."""
    content = listing.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        raise IntegrityError(
            [f"{listing}: is not what its name says (MD5); delete it to have it fetched again"]
        )
    entries: list[dict[str, str]] = json.loads(content)
    return entries


@dataclass(frozen=True)
class Held:
    """What cache and remote hold under a DVC hash, once the cache's gaps are filled.

    Attributes:
        files: {path within the stored thing: file in DVC's cache}, not hashed yet; a single file's path is "".
        absent: {path: why it cannot be had}; the path "" is the whole thing's own object.
    """

    files: Mapping[str, Path]
    absent: Mapping[str, Absent]


@dataclass(frozen=True)
class Absent:
    """Why an object cannot be had.

    Attributes:
        reason: `tampered` where it is there, but not what its name says; `unreachable` where the remote did not answer.
    """

    reason: Literal["missing", "tampered", "unreachable"]
    what: str


def look(repo: Any, md5: str) -> Held:
    """What is held under `md5`; like what the functions here use, but every fault is told instead of the first raised."""
    own = Path(repo.cache.local.oid_to_path(md5))
    if fault := _fill(repo, {md5}).get(md5):
        return Held({}, {"": fault})
    if not md5.endswith(".dir"):
        return Held({"": own}, {})
    try:
        entries = _entries(own, md5)
    except IntegrityError as error:
        return Held({}, {"": Absent("tampered", str(error))})
    absent = {
        entry["relpath"]: Absent("tampered", f"{own}: the listing names a file outside of the folder")
        for entry in entries
        if not _is_inside(entry["relpath"])
    }
    inside = {entry["relpath"]: entry["md5"] for entry in entries if entry["relpath"] not in absent}
    faults = _fill(repo, set(inside.values()))
    absent |= {name: faults[value] for name, value in inside.items() if value in faults}
    files = {
        name: Path(repo.cache.local.oid_to_path(value))
        for name, value in inside.items()
        if value not in faults
    }
    return Held(files, absent)


def _fill(repo: Any, hashes: set[str]) -> dict[str, Absent]:
    """`_bring`, but {hash: why it cannot be had} instead of an error."""
    from dvc.exceptions import DvcException

    cache = repo.cache.local
    try:
        _bring(repo, hashes)
    except (DvcException, OSError, IntegrityError, WorkspaceError) as error:
        faults = {}
        for value in sorted(hashes):
            if not Path(cache.oid_to_path(value)).exists():
                faults[value] = _absence(repo, value, error)
        return faults
    return {}


def _absence(repo: Any, value: str, error: Exception) -> Absent:
    if isinstance(error, IntegrityError) and value in str(error).replace("/", ""):
        return Absent("tampered", str(error))
    if isinstance(error, IntegrityError | WorkspaceError) and _answers(repo):
        return Absent("missing", f"neither DVC's cache nor its remote has {value}")
    return Absent("unreachable", f"{value} is not in DVC's cache, and the remote cannot be asked: {error}")


def _answers(repo: Any) -> bool:
    """Whether the default remote is there at all: of a folder that is gone, DVC just says that it lacks everything."""
    remote = repo.cloud.get_remote_odb()
    return bool(remote.fs.protocol != "local" or Path(remote.path).is_dir())


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _bring(repo: Any, hashes: set[str]) -> None:
    """Fetch what the cache lacks from the remote, which verifies each object's MD5 (`remote.verify`)."""
    from dvc_data.hashfile.hash_info import HashInfo

    cache = repo.cache.local
    absent = [value for value in sorted(hashes) if not Path(cache.oid_to_path(value)).exists()]
    if not absent:
        return
    remote = repo.cloud.get_remote_odb()
    held = {value for value in absent if remote.exists(value)}  # DVC deletes what it finds tampered with
    repo.cloud.pull([HashInfo("md5", value) for value in absent])
    absent = [value for value in absent if not Path(cache.oid_to_path(value)).exists()]
    if not absent:
        return
    tampered = [value for value in absent if value in held]
    if tampered:
        raise IntegrityError(
            [f"{remote.oid_to_path(value)}: did not arrive with that MD5" for value in tampered],
            heading="the DVC remote holds objects that are not what their names say (tampered or corrupted); "
            "bring back good copies of:",
        )
    raise WorkspaceError(
        f"{repo.root_dir}: neither DVC's cache nor its remote has {', '.join(absent)}; "
        "bring back the remote these were pushed to"
    )
