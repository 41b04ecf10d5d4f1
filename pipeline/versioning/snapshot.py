"""Versions of raw data: DVC stores the bytes, git remembers which, and a SHA-256 manifest says what they are.

The manifest of `data/rows.jsonl` is `data/rows.jsonl.manifest.json`, in git beside `rows.jsonl.dvc`. It is a file of
its own, rather than `meta` in the .dvc file, since a folder of many files would make that file unreadable, and since
DVC rewrites its own file. It names the DVC hash it belongs to, so that a `dvc add` by hand cannot leave it stale.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import digest, files
from pipeline.errors import DataError, WorkspaceError
from pipeline.params import DataParams
from pipeline.versioning import dvc_repo, git
from pipeline.versioning.stored import check_cached, hash_in
from pipeline.versioning.workspace import Workspace, restore


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a raw data file or folder.

    Attributes:
        path: posix path from the workspace's root.
        md5: DVC's hash, with `.dir` for a folder.
        git_commit: the last commit that changed the version's .dvc file or manifest.
        manifest: {file: SHA-256}; of a single file, under its own name.
        changed: whether this snapshot made the version (else it was there already).
    """

    path: str
    md5: str
    git_commit: str
    manifest: Mapping[str, str]
    changed: bool


def snapshot(
    workspace: Workspace, prefix_name: str, data: DataParams, *, check: Callable[[], None] = lambda: None
) -> DatasetVersion:
    """Version the raw data of a prefix: into DVC's cache and remote, then a commit of what names it.

    With `data.imported_from` the source is first taken in (`dvc import-url`) or looked at again (`dvc update`).
    The order makes a commit the last step: when anything fails before it, the workspace is as it was.

    Args:
        check: called once the data is in place, unless it is the version on record; what it raises refuses the data.

    Raises:
        DataError: there is no data, it is empty, lies outside the workspace, or changed while it was read.
        IntegrityError: DVC's cache holds other bytes under the data's hash.
        WorkspaceError: DVC, the remote or git failed.
    """
    raw = _inside(workspace, prefix_name, data.path)
    own = dvc_repo.files_of(data.path)
    with workspace.locked():
        before = {name: _content(workspace.root / name) for name in own}
        known, existed = current(workspace, data), raw.exists()
        try:
            with dvc_repo.opened(workspace.root) as repo:
                if data.imported_from is None:
                    _refuse_unusable(workspace, raw, prefix_name, data)
                    if known is None:
                        check()  # before anything is copied
                    _add(repo, raw)
                else:
                    _import(repo, workspace, raw, data.imported_from)
                    _refuse_empty(raw, prefix_name, data)
                    if known is None or _content(workspace.root / own[0]) != before[own[0]]:
                        try:
                            check()
                        except DataError as error:
                            heading = f"The data from {data.imported_from} is refused, and what was here before is back:"
                            raise DataError([str(error)], heading=heading) from error
                md5 = hash_in((workspace.root / own[0]).read_bytes(), own[0])
                manifest = _manifest(repo, workspace, raw, md5, own[1])
                dvc_repo.push(repo, [md5])
            present = [name for name in own if (workspace.root / name).exists()]
            made = git.commit(workspace.root, present, f"Data of {prefix_name}: {data.path} is {md5}")
        except BaseException:
            taken_in = _content(workspace.root / own[0]) != before[own[0]]
            for name, content in before.items():
                restore(workspace.root / name, content)
            if data.imported_from is not None and before[own[0]] is None and not existed:
                _remove(raw)
            elif (
                data.imported_from is not None
                and before[own[0]] is not None
                and (taken_in or not raw.exists())
            ):
                # Also where nothing came: `dvc update` removes the data before it knows that it can get new.
                with dvc_repo.opened(workspace.root) as repo:
                    repo.checkout([str(workspace.root / own[0])], force=True)
            raise
        commit = git.last_commit(workspace.root, list(own[:2]))
    assert commit is not None
    return DatasetVersion(data.path, md5, commit, manifest, made)


def current(workspace: Workspace, data: DataParams) -> DatasetVersion | None:
    """The version on record, if it is the data on disk, in the last commit and with our manifest; else None.

    Files are compared by DVC's hash, which it computes again only for files whose size, time or inode changed.

    Raises:
        WorkspaceError: DVC or git failed.
    """
    raw = workspace.root / data.path
    file, manifest, _ = own = dvc_repo.files_of(data.path)
    versioned = git.read(workspace.root, "HEAD", file)
    described = git.read(workspace.root, "HEAD", manifest)
    if not raw.exists() or versioned is None or described is None:
        return None
    if _content(workspace.root / file) != versioned or _content(workspace.root / manifest) != described:
        return None
    md5, recorded = hash_in(versioned, file), _described(described, manifest)
    if recorded["md5"] != md5:
        return None
    with dvc_repo.opened(workspace.root) as repo:
        outs = [out for stage in repo.stage.collect(str(workspace.root / file)) for out in stage.outs]
        if any(out.changed_checksum() for out in outs):
            return None
    commit = git.last_commit(workspace.root, list(own[:2]))
    assert commit is not None
    return DatasetVersion(data.path, md5, commit, recorded["files"], changed=False)


def _inside(workspace: Workspace, name: str, path: str) -> Path:
    raw = workspace.root / path
    # Compared without resolving the last part: DVC may itself link data to its cache.
    if not (raw.parent.resolve() / raw.name).is_relative_to(workspace.root) or raw.name in ("", ".", ".."):
        raise DataError(
            [f"prefixes.{name}.data.path: {path!r} is outside the workspace; "
             "copy the data in, or name its source as data.imported_from"]
        )  # fmt: skip
    return raw


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _refuse_unusable(workspace: Workspace, raw: Path, name: str, data: DataParams) -> None:
    _refuse_empty(raw, name, data)
    if git.run(workspace.root, "ls-files", "--", data.path):
        raise WorkspaceError(
            f"{data.path}: is tracked by git, and data is versioned by DVC; "
            f"run `git rm -r --cached {data.path}` and commit"
        )


def _add(repo: Any, raw: Path) -> None:
    seen = _state(raw)
    # relink=False: the user's file stays the file it is, and a kill cannot catch it half replaced.
    repo.add([str(raw)], relink=False)
    if _state(raw) != seen:
        raise DataError([f"{raw}: changed while it was read; start again when nothing writes to it"])


def _refuse_empty(raw: Path, name: str, data: DataParams) -> None:
    if not raw.exists():
        known = " (it was versioned before: `dvc checkout` or `dvc pull` brings it back)"
        hint = known if raw.with_name(f"{raw.name}.dvc").exists() else ""
        raise DataError([f"{raw}: no such file or folder, named by prefixes.{name}.data.path{hint}"])
    if raw.is_dir():
        if not any(path.stat().st_size for path in raw.rglob("*") if path.is_file()):
            raise DataError([f"{raw}: has no file with anything in it; expected the rows of {name}"])
    elif not raw.stat().st_size:
        raise DataError([f"{raw}: is empty; expected the rows of {name}"])


def _state(raw: Path) -> list[tuple[str, int, int]]:
    paths = sorted(raw.rglob("*")) if raw.is_dir() else [raw]
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]


def _import(repo: Any, workspace: Workspace, raw: Path, source: str) -> None:
    """`dvc import-url` the first time or when the source is another one, else `dvc update`."""
    file = raw.with_name(f"{raw.name}.dvc")
    address = source if "://" in source else str((workspace.root / source).resolve())
    recorded = _imported_from(workspace, file) if file.exists() else None
    if recorded == address:
        repo.update([str(file)])
        return
    if recorded is None and raw.exists():
        raise WorkspaceError(
            f"{raw}: is there already, and data.imported_from would overwrite it; move it away, "
            "or remove data.imported_from"
        )
    raw.parent.mkdir(parents=True, exist_ok=True)
    repo.imp_url(address, out=str(raw), force=True)


def _remove(raw: Path) -> None:
    shutil.rmtree(raw) if raw.is_dir() else raw.unlink(missing_ok=True)


def _imported_from(workspace: Workspace, file: Path) -> str | None:
    from ruamel.yaml import YAML

    recorded = (YAML(typ="safe").load(file.read_text()).get("deps") or [{}])[0].get("path")
    if recorded is None or "://" in recorded:
        return recorded
    return str((file.parent / recorded).resolve())


def _manifest(repo: Any, workspace: Workspace, raw: Path, md5: str, name: str) -> Mapping[str, str]:
    """The manifest on record for `md5`, or a new one, written to `name` and checked against DVC's cache."""
    path = workspace.root / name
    if path.exists():
        recorded = _described(path.read_bytes(), name)
        if recorded["md5"] == md5:
            known: dict[str, str] = recorded["files"]
            return known
    manifest = digest.manifest(raw)
    check_cached(repo, md5, manifest, str(raw))
    files.write_json(path, {"files": manifest, "md5": md5})
    return manifest


def _described(content: bytes, name: str) -> dict[str, Any]:
    """The content of a manifest file: {"md5": DVC's hash, "files": {file: SHA-256}}."""
    try:
        recorded = json.loads(content)
        if isinstance(recorded["md5"], str) and isinstance(recorded["files"], dict):
            return {"md5": recorded["md5"], "files": recorded["files"]}
    except (ValueError, LookupError, TypeError):
        pass
    raise WorkspaceError(
        f"{name}: is not a manifest of ours; restore it with `git checkout -- {name}`, or delete it"
    )
