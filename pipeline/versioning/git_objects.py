"""Reading many git objects: one `git cat-file --batch` for all of them, where a process each would take longer than
everything else. What is read is hashed again, which git itself leaves to `git fsck`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from pipeline.errors import IntegrityError, WorkspaceError
from pipeline.versioning import git


class GitObjects:
    """The objects of the repository at `root`, as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this)

    def __enter__(self) -> GitObjects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._said.close()

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
            self._said.seek(0)
            self._said.truncate()
            self._process = subprocess.Popen(
                ["git", "cat-file", "--batch"],
                cwd=self._root,
                env={**git.environment(), "LC_ALL": "C"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        answer = self._ask(self._process, name)
        header, _, content = answer.partition(b"\n")
        words = header.decode(errors="replace").split()
        if answer and words[-1:] in (["missing"], ["ambiguous"]) and not self._said.tell():
            return None
        if len(words) != 3 or len(content) != int(words[2]) + 1:
            raise self._stopped(name)
        oid, kind, size = words
        hashed = hashlib.sha1 if len(oid) == 40 else hashlib.sha256
        content = content[:-1]
        if hashed(f"{kind} {size}\0".encode() + content, usedforsecurity=False).hexdigest() != oid:
            raise IntegrityError([f"git object {oid} ({name}): its content is not what its name says"])
        return kind, content

    def _ask(self, process: subprocess.Popen[bytes], name: str) -> bytes:
        """What git answers; empty where it ended.

        A second question, for something that is not there, ends the answer: of a damaged object git promises more bytes
        than it gives, and then waits (tried).
        """
        assert process.stdin is not None
        assert process.stdout is not None
        nonce = secrets.token_hex(20)
        end = f"{nonce} missing\n".encode()
        try:
            process.stdin.write(f"{name}\n{nonce}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        answer = b""
        while not answer.endswith(end):
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            answer += piece
        self._said.seek(0, os.SEEK_END)
        return answer.removesuffix(end)

    def _stopped(self, name: str) -> WorkspaceError:
        self._end()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        said = "; ".join(lines) or "it gave no whole answer"
        return WorkspaceError(f"{self._root}: git cannot read {name}: {said}; `git fsck` says more")

    def _end(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None
