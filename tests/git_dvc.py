"""Small real git + DVC repositories for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ENV = {
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def run(root: Path, *command: str) -> str:
    """The command's output; its error output is shown where it fails."""
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **_ENV}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def workspace(root: Path) -> Path:
    """A new git + DVC repository with an empty data folder."""
    (root / "data").mkdir(parents=True)
    run(root, "git", "init", "-q", "-b", "main")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    (root / ".gitignore").write_text(".prefixline/\n")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "Start")
    return root


def snapshot(root: Path, *paths: str) -> str:
    """`dvc add` the paths and commit; the commit's id."""
    run(root, sys.executable, "-m", "dvc", "add", "-q", *paths)
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "Data")
    return head(root)


def head(root: Path) -> str:
    return run(root, "git", "rev-parse", "HEAD")


def md5(root: Path, path: str) -> str:
    """What the .dvc file beside `path` says."""
    from ruamel.yaml import YAML

    content = YAML(typ="safe").load((root / f"{path}.dvc").read_text())
    return str(content["outs"][0]["md5"])
