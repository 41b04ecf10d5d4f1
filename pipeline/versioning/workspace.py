"""A workspace: one folder that is a git and a DVC repository, with params.yaml at its root.

`init_workspace` makes one, `open_workspace` checks that one is fit for a retraining, `find_workspace` is enough to
read from one. Data, experiments and stored outputs are next door: `snapshot`, `experiment`, `stored`.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import WorkspaceError
from pipeline.locks import exclusive
from pipeline.params import Params
from pipeline.params_file import load_params
from pipeline.versioning import dvc_repo, git

REMOTE_FOLDER = ".prefixline/dvc-remote"
_TEMPLATES = {
    "params.yaml": "params.yaml",
    "dvc.yaml": "dvc.yaml",
    "prefect.yaml": "prefect.yaml",
    "gitignore": ".gitignore",
    "dvcignore": ".dvcignore",
    "README.md": "README.md",
}
_HALF_DONE = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


@dataclass(frozen=True)
class Workspace:
    """A workspace by its root, the folder with params.yaml; absolute, symbolic links resolved."""

    root: Path

    @property
    def state(self) -> Path:
        """`.prefixline`: databases, checkpoints, experiment copies; never in git."""
        return self.root / ".prefixline"

    @property
    def params_file(self) -> Path:
        """`params.yaml`."""
        return self.root / "params.yaml"

    def params(self) -> Params:
        """params.yaml, validated.

        Raises:
            ParamsError: see `load_params`.
        """
        return load_params(self.params_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among prefixline's processes in looking at and changing the workspace's files and commits."""
        with exclusive(self.state / "workspace.lock"):
            yield


def init_workspace(folder: Path) -> Workspace:
    """Make `folder` a workspace: git, DVC with a verifying local remote, the templates, one commit.

    `folder` may be missing, empty, or hold a fresh git repository and nothing else.

    Raises:
        WorkspaceError: `folder` holds anything else, or git or DVC failed; `folder` is then as it was.
    """
    folder = folder.expanduser().resolve()
    _refuse_occupied(folder)
    existed, own_git = folder.exists(), (folder / ".git").exists()
    missing = [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    moved: list[Path] = []
    try:
        git.run(fresh, "init", "--quiet")
        dvc_repo.init(fresh, remote_folder=REMOTE_FOLDER)
        templates = importlib.resources.files("pipeline") / "templates" / "workspace"
        for template, name in _TEMPLATES.items():
            (fresh / name).write_bytes((templates / template).read_bytes())
        (fresh / "data").mkdir()
        (fresh / REMOTE_FOLDER).mkdir(parents=True)
        if own_git:
            shutil.rmtree(fresh / ".git")
        else:
            _first_commit(fresh)
        folder.mkdir(exist_ok=True)
        for entry in sorted(fresh.iterdir()):
            moved.append(folder / entry.name)
            entry.rename(folder / entry.name)
        if own_git:
            _first_commit(folder)
    except BaseException:
        for entry in moved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        for made in missing if existed else [folder, *missing]:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        raise
    fresh.rmdir()
    return Workspace(folder)


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WorkspaceError(f"{folder}: is a file; expected a folder, or nothing there yet")
    found = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if "params.yaml" in found and ".dvc" in found:
        raise WorkspaceError(f"{folder}: is a workspace already; to start over, choose another folder")
    occupied = [name for name in found if name != ".git"]
    if occupied:
        names = ", ".join(occupied[:5]) + (", …" if len(occupied) > 5 else "")
        raise WorkspaceError(
            f"{folder}: is not empty (it holds {names}); a workspace is made in a new or empty folder, "
            "or in a git repository without files"
        )


def _first_commit(root: Path) -> None:
    names = [*_TEMPLATES.values(), ".dvc/config", ".dvc/.gitignore"]
    git.commit(root, names, "Make a prefixline workspace")


def find_workspace(folder: Path) -> Workspace:
    """The workspace that `folder` is in: the nearest folder upwards with a params.yaml.

    Raises:
        WorkspaceError: there is none, or it is not the root of a git and a DVC repository.
    """
    folder = folder.expanduser().resolve()
    for root in (folder, *folder.parents):
        if (root / "params.yaml").is_file():
            break
    else:
        raise WorkspaceError(
            f"{folder}: no params.yaml here or in any folder above; make a workspace with `prefixline init DIR`, "
            "or change into one"
        )
    top = git.top_level(root)
    if top is None:
        raise WorkspaceError(
            f"{root}: is not a git repository, so nothing could be traced to a commit; "
            "make a workspace with `prefixline init DIR` and move params.yaml and data into it"
        )
    if top != root:
        raise WorkspaceError(
            f"{root}: lies inside the git repository {top}; a workspace is the root of a repository of its own"
        )
    if not (root / ".dvc" / "config").is_file():
        raise WorkspaceError(f"{root}: is not a DVC repository (no .dvc/config); make one with `dvc init`")
    return Workspace(root)


def open_workspace(folder: Path) -> Workspace:
    """The workspace that `folder` is in, checked to be fit for a retraining.

    Raises:
        WorkspaceError: besides `find_workspace`'s reasons: uncommitted changes, a merge or rebase that is not
            finished, a DVC remote that is missing or does not verify, or a broken DVC lock file.
        ParamsError: params.yaml is not valid.
    """
    workspace = find_workspace(folder)
    with workspace.locked():
        _refuse_broken_lock(workspace)
        _refuse_dirty(workspace)
    dvc_repo.require_verifying_remote(workspace.root)
    return workspace


def _refuse_broken_lock(workspace: Workspace) -> None:
    path = workspace.root / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise WorkspaceError(
            f"{path}: is not JSON ({error}): a DVC process was killed while writing it, and every DVC command fails "
            "until it is gone. When no DVC command is running in this workspace, delete the file and start again."
        ) from None


def _refuse_dirty(workspace: Workspace) -> None:
    root = workspace.root
    if git.resolve(root, "HEAD") is None:
        raise WorkspaceError(f"{root}: has no commit yet; commit params.yaml, dvc.yaml and .dvc/config")
    git_folder = Path(git.run(root, "rev-parse", "--absolute-git-dir").strip())
    for name in _HALF_DONE:
        if (git_folder / name).exists():
            raise WorkspaceError(
                f"{root}: a merge or rebase is not finished ({name} exists); finish or abort it"
            )
    own = own_files(workspace)
    changed = [path for path in git.changed(root) if path not in own]
    # An experiment runs in a copy of the commit, where an untracked file would be missing without a word.
    needed = ("params.yaml", "dvc.yaml", ".dvc/config", "pipeline", "flows")
    unknown = git.untracked(root, needed)
    absent = [name for name in needed[:3] if name not in unknown and git.read(root, "HEAD", name) is None]
    if changed or unknown or absent:
        lines = [f"{path}: changed, not committed" for path in changed if path not in absent]
        lines += [f"{path}: not under version control" for path in unknown]
        lines += [f"{path}: not in the last commit" for path in absent]
        listing = "".join(f"\n  {line}" for line in lines)
        raise WorkspaceError(
            f"{root}: has uncommitted changes, so a version made now could not be traced to a commit:{listing}\n"
            "Commit or undo them, then start again."
        )


def own_files(workspace: Workspace) -> frozenset[str]:
    """The tracked files prefixline itself writes and commits, as posix paths from the root.

    A change in them is not the user's unfinished work: it is what a killed retraining left, and what the next one
    commits.
    """
    names = {f"pins/{path.name}" for path in (workspace.root / "pins").glob("*.json")}
    for entry in workspace.params().prefixes.values():
        names.update(dvc_repo.files_of(entry.data.path))
    return frozenset(names)


def write_pins(workspace: Workspace, name: str, pins: Mapping[str, Any]) -> str:
    """Write and commit `pins/NAME.json`, what an experiment of the prefix `name` starts from.

    Returns:
        The commit to start from: HEAD, whether or not anything had changed.

    Raises:
        WorkspaceError: git refused; the file is then as it was.
    """
    path = workspace.root / "pins" / f"{name}.json"
    with workspace.locked():
        before = path.read_bytes() if path.exists() else None
        try:
            files.write_json(path, pins)
            git.commit(workspace.root, [f"pins/{name}.json"], f"Pin what {name} is retrained from")
        except BaseException:
            restore(path, before)
            raise
        head = git.resolve(workspace.root, "HEAD")
        assert head is not None
        return head


def restore(path: Path, content: bytes | None) -> None:
    """Put `content` back at `path`; None: there was no such file."""
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        files.write_bytes(path, content)


def read_json_at(workspace: Workspace, commit: str, path: str) -> Any:
    """The JSON file `path` as it is in `commit`.

    Raises:
        WorkspaceError: the commit or the file is not there, or is not JSON.
    """
    if git.resolve(workspace.root, commit) is None:
        raise WorkspaceError(
            f"{workspace.root}: has no commit {commit}; fetch it from where the workspace is shared"
        )
    content = git.read(workspace.root, commit, path)
    if content is None:
        raise WorkspaceError(f"{path}: is not in commit {commit}")
    try:
        return json.loads(content)
    except ValueError as error:
        raise WorkspaceError(f"{path} in commit {commit}: is not JSON: {error}") from None
