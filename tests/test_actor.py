"""Who acts: as the environment says, else as git does, else the system's user."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from pathlib import Path

import pytest

from pipeline.actor import actor
from pipeline.errors import WorkspaceError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "PREFIXLINE_ACTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_it_is_the_systems_user_where_nothing_else_is_known(root: Path):
    assert actor(root) == f"{getpass.getuser()}@{socket.gethostname()}"


def test_it_is_who_commits_in_the_workspace(root: Path):
    for key, value in (("user.name", "A tester"), ("user.email", "tester@localhost")):
        subprocess.run(["git", "config", key, value], cwd=root, check=True)
    assert actor(root) == "A tester <tester@localhost>"


def test_it_is_what_the_environment_says_first(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFIXLINE_ACTOR", "nightly run")
    assert actor(root) == "nightly run"


@pytest.mark.parametrize(("given", "problem"), [("", "expected some words"), ("a\nb", "several lines")])
def test_what_cannot_be_a_name_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: str, problem: str
):
    monkeypatch.setenv("PREFIXLINE_ACTOR", given)
    with pytest.raises(WorkspaceError, match=f"PREFIXLINE_ACTOR: .*{problem}"):
        actor(root)


def test_a_user_without_a_name_is_a_number(root: Path, monkeypatch: pytest.MonkeyPatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert actor(root) == f"{os.getuid()}@{socket.gethostname()}"
