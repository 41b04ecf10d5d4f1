"""The few git commands a workspace needs, with errors of ours.

Only the command line is used: it is what the user has, and its locking and safety are git's own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import WorkspaceError

FALLBACK_IDENTITY = ("prefixline", "prefixline@localhost")
"""Name and address of a commit of ours where the machine has none: a scheduled run must not stop for that."""

# Set for a process started by a git hook; they would point our commands at another repository.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def environment() -> dict[str, str]:
    """This process's environment without what a git hook puts there."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def run(root: Path, *arguments: str, ok: Sequence[int] = (0,)) -> str:
    """`git ARGUMENTS` in `root`; its standard output.

    Args:
        ok: exit statuses that are answers, not faults.

    Raises:
        WorkspaceError: git is not installed, or ended with another status; with what it said.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={**environment(), "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise WorkspaceError(
            f"{root}: cannot run git; install it and put it on PATH, and check that the folder exists"
        ) from None
    if done.returncode not in ok:
        said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
        raise WorkspaceError(f"{root}: `git {' '.join(arguments)}` failed ({done.returncode}): {said}")
    return done.stdout.decode(errors="surrogateescape")


def top_level(folder: Path) -> Path | None:
    """The root of the git repository that holds `folder`, or None.

    Raises:
        WorkspaceError: there is one that git refuses to work in, such as another user's; with what it said.
    """
    try:
        return Path(run(folder, "rev-parse", "--show-toplevel").strip()).resolve()
    except WorkspaceError as error:
        if "not a git repository" in str(error):
            return None
        raise


def resolve(root: Path, revision: str) -> str | None:
    """The full hash of the commit that `revision` names, or None."""
    name = f"{revision}^{{commit}}"
    return (
        run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", name, ok=(0, 1, 128)).strip()
        or None
    )


def changed(root: Path) -> list[str]:
    """Tracked files that differ from HEAD, staged or not, as posix paths relative to `root`, sorted."""
    listed = run(root, "status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    return sorted(entry[3:] for entry in listed.split("\0") if entry)


def untracked(root: Path, paths: Iterable[str]) -> list[str]:
    """Files below `paths` that git neither tracks nor ignores, sorted."""
    listed = run(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths)
    return sorted(entry for entry in listed.split("\0") if entry)


def identity(root: Path) -> tuple[str, str]:
    """The name and address a commit in `root` gets: the user's own, else `FALLBACK_IDENTITY`."""
    name = os.environ.get("GIT_COMMITTER_NAME") or run(root, "config", "user.name", ok=(0, 1)).strip()
    address = os.environ.get("GIT_COMMITTER_EMAIL") or run(root, "config", "user.email", ok=(0, 1)).strip()
    return (name, address) if name and address else FALLBACK_IDENTITY


def commit(root: Path, paths: Sequence[str], message: str) -> bool:
    """Commit `paths` as they are on disk, and nothing else; what others have staged stays staged.

    Returns:
        False when they equal HEAD already and there was nothing to commit.

    Raises:
        WorkspaceError: git refused; `paths` are then unstaged again.
    """
    try:
        run(root, "add", "--", *paths)
        if not run(root, "status", "--porcelain=v1", "--untracked-files=no", "--", *paths):
            return False
        name, address = identity(root)
        who = ["-c", f"user.name={name}", "-c", f"user.email={address}"]
        # Hooks and signatures are for people's commits; these files are written by a machine, at any hour.
        who += ["-c", "commit.gpgsign=false"]
        run(root, *who, "commit", "--quiet", "--no-verify", "--only", "-m", message, "--", *paths)
    except BaseException:
        run(root, "reset", "--quiet", "--", *paths, ok=(0, 1, 128))
        raise
    return True


def last_commit(root: Path, paths: Sequence[str]) -> str | None:
    """The last commit reachable from HEAD that changed one of `paths`, or None."""
    return run(root, "log", "-1", "--format=%H", "--", *paths).strip() or None


def read(root: Path, revision: str, path: str) -> bytes | None:
    """The bytes of `path` at `revision`, or None when it is not there."""
    name = f"{revision}:{path}"
    if not run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", name, ok=(0, 1, 128)).strip():
        return None
    return run(root, "cat-file", "blob", name).encode(errors="surrogateescape")
