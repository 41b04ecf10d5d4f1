"""Git objects by one process: the same answers as git's own commands, and nothing damaged is read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import IntegrityError, WorkspaceError
from pipeline.versioning.git_objects import GitObjects
from tests import git_dvc
from tests.workspaces import tamper


@pytest.fixture
def root(tmp_path: Path) -> Path:
    git_dvc.run(tmp_path, "git", "init", "-q")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_bytes(b"one\ntwo")
    (tmp_path / "empty").write_bytes(b"")
    git_dvc.run(tmp_path, "git", "add", "-A")
    git_dvc.run(tmp_path, "git", "commit", "-qm", "Start")
    return tmp_path


@pytest.fixture
def objects(root: Path) -> Iterator[GitObjects]:
    with GitObjects(root) as opened:
        yield opened


def test_files_and_commits_are_read_as_git_shows_them(root: Path, objects: GitObjects) -> None:
    head = git_dvc.head(root)
    assert objects.read(head, "deep/file") == b"one\ntwo"
    assert objects.read(head, "empty") == b""
    assert (objects.commit(head) or "").strip() == git_dvc.run(root, "git", "cat-file", "commit", head)


def test_what_is_not_there_or_something_else_is_none(root: Path, objects: GitObjects) -> None:
    head = git_dvc.head(root)
    blob = git_dvc.run(root, "git", "rev-parse", f"{head}:deep/file")
    assert objects.read(head, "deep") is None  # a folder
    assert objects.read(head, "nothing") is None
    assert objects.read("0" * 40, "deep/file") is None
    assert objects.commit("0" * 40) is None
    assert objects.commit(blob) is None
    assert objects.read(head, "deep/file\nHEAD") is None
    assert objects.read(head, "deep/file") == b"one\ntwo"  # and it goes on


def loose(root: Path, name: str) -> Path:
    oid = git_dvc.run(root, "git", "rev-parse", name)
    return root / ".git/objects" / oid[:2] / oid[2:]


def test_an_object_with_other_content_is_refused(root: Path, objects: GitObjects) -> None:
    tamper(loose(root, "HEAD:deep/file"), zlib.compress(b"blob 7\0one\ntwO"))
    with pytest.raises(IntegrityError, match="its content is not what its name says"):
        objects.read(git_dvc.head(root), "deep/file")


def test_an_object_that_git_cannot_unpack_stops_nothing_but_itself(root: Path, objects: GitObjects) -> None:
    tamper(loose(root, "HEAD:deep/file"), b"no zlib")
    with pytest.raises(WorkspaceError, match=r"git cannot read .*deep/file.*git fsck"):
        objects.read(git_dvc.head(root), "deep/file")
    assert objects.read(git_dvc.head(root), "empty") == b""


def test_an_object_that_ends_early_is_refused(root: Path, objects: GitObjects) -> None:
    packed = zlib.compress(b"blob 100000\0" + b"x" * 1000)
    tamper(loose(root, "HEAD:deep/file"), packed)
    with pytest.raises((WorkspaceError, IntegrityError)):
        objects.read(git_dvc.head(root), "deep/file")
