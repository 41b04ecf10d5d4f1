"""Digests and commits as a person gives them: whole, or the beginning of exactly one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import RegistryError, WorkspaceError
from pipeline.versioning import git

_FORMS: Mapping[str, tuple[str, str]] = {
    "dataset": (r"[0-9a-f]{7,32}|[0-9a-f]{32}\.dir", "a DVC hash: 32 hex characters, with .dir for a folder"),
    "base": (r"[0-9a-f]{7,64}", "a base model's digest: 64 hex characters"),
    "code": (r"[0-9a-f]{7,40}", "a git commit: 40 hex characters"),
}
_SHOWN = 5
_AT_ONCE = 5000
"""Commits named in one git command: some 200 kB of arguments."""


def check(kind: str, asked: str) -> None:
    """Refuse what cannot be a digest of this kind (dataset, base, code), nor the beginning of one.

    Raises:
        RegistryError: it is too short, too long, or not hexadecimal.
    """
    form, meaning = _FORMS[kind]
    if not re.fullmatch(form, asked):
        raise RegistryError(
            f"--{kind} {asked!r}: expected {meaning}, or at least the first 7 of them, in lower case"
        )


def whole(kind: str, asked: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `asked` is, or is the beginning of; None where it is of none.

    That none is known is an answer, not an error: nothing registered came from it.

    Raises:
        RegistryError: it is the beginning of several.
    """
    found = sorted({value for value in known if value.startswith(asked)})
    if len(found) > 1 and asked not in found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RegistryError(
            f"--{kind} {asked!r} is the beginning of {len(found)}: {', '.join(found[:_SHOWN])}{more}; give more of it"
        )
    if asked in found:
        return asked
    return found[0] if found else None


def code(root: Path, asked: str, commits: set[str]) -> tuple[str | None, frozenset[str], frozenset[str]]:
    """What the git repository says of a commit and of the versions' code commits.

    Returns:
        The whole commit, or None if neither git nor a version knows it; those of `commits` whose history contains it;
        those of `commits` that are not in the repository.

    Raises:
        RegistryError: `asked` is the beginning of several commits.
        WorkspaceError: the repository is a shallow clone, which does not know what a commit contains.
    """
    if git.run(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise WorkspaceError(
            f"{root}: is a shallow clone, so git cannot say which commits contain {asked}; "
            "run `git fetch --unshallow` first"
        )
    ordered = sorted(commits)
    present = set(_lines(root, ("rev-list", "--no-walk", "--ignore-missing"), ordered))
    in_git = _objects(root, asked)
    meant = whole("code", asked, commits | in_git)
    if meant is None or meant not in in_git:
        return meant, frozenset(), frozenset(commits - present)
    following = _lines(root, ("rev-list", "--ancestry-path", f"^{meant}"), sorted(present))
    return meant, frozenset(commits.intersection(following)), frozenset(commits - present)


def _objects(root: Path, asked: str) -> set[str]:
    """The commits in the repository that begin with `asked`."""
    named = git.run(root, "rev-parse", f"--disambiguate={asked}").split()
    return {name for name in named if git.run(root, "cat-file", "-t", name).strip() == "commit"}


def _lines(root: Path, command: Sequence[str], commits: Sequence[str]) -> list[str]:
    return [
        line
        for start in range(0, len(commits), _AT_ONCE)
        for line in git.run(root, *command, *commits[start : start + _AT_ONCE]).split()
    ]
