"""Reading many git objects: one `git cat-file --batch` for all of them, where a process each would take longer than
everything else. What is read is hashed again, which git itself leaves to `git fsck`.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from types import TracebackType

from pipeline.errors import IntegrityError, WorkspaceError
from pipeline.versioning import git


class GitObjects:
    """The objects of the repository at `root`, as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GitObjects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def commit(self, name: str) -> str | None:
        """The content of the commit object `name` (a whole hash), or None where there is none.

        Raises:
            IntegrityError, WorkspaceError: see `read`.
        """
        found = self._object(name)
        return found[1].decode(errors="replace") if found is not None and found[0] == "commit" else None

    def read(self, commit: str, path: str) -> bytes | None:
        """The bytes of `path` in `commit`, or None where it is not there.

        Raises:
            IntegrityError: they are not those that the object's name says.
            WorkspaceError: git stopped, as it does at an object that is damaged; with its words.
        """
        found = self._object(f"{commit}:{path}")
        return found[1] if found is not None and found[0] == "blob" else None

    def _object(self, name: str) -> tuple[str, bytes] | None:
        """(type, content)."""
        if "\n" in name:
            return None
        if self._process is None:
            self._process = subprocess.Popen(
                ["git", "cat-file", "--batch"],
                cwd=self._root,
                env={**git.environment(), "LC_ALL": "C"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name.encode() + b"\n")
        process.stdin.flush()
        header = process.stdout.readline().decode(errors="replace").split()
        if len(header) != 3:
            if header and header[-1] in ("missing", "ambiguous"):
                return None
            raise self._stopped(name)
        oid, kind, size = header
        content = process.stdout.read(int(size) + 1)[:-1]
        if len(content) != int(size):
            raise self._stopped(name)
        hashed = hashlib.sha1 if len(oid) == 40 else hashlib.sha256
        if hashed(f"{kind} {size}\0".encode() + content, usedforsecurity=False).hexdigest() != oid:
            raise IntegrityError([f"git object {oid} ({name}): its content is not what its name says"])
        return kind, content

    def _stopped(self, name: str) -> WorkspaceError:
        said = self._end()
        return WorkspaceError(f"{self._root}: git cannot read {name}: {said}; `git fsck` says more")

    def _end(self) -> str:
        if self._process is None:
            return ""
        _, said = self._process.communicate()
        self._process = None
        return said.decode(errors="replace").strip()
