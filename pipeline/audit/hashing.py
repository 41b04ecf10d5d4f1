"""Hashing files once, and comparing folders with manifests without stopping at the first difference."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pipeline.audit.faults import Fault, Kind, Link
from pipeline.digest import sha256_file

_LARGE = 1 << 18
"""Bytes from which a thread of its own is worth its cost."""

ABSENT = "no such file"


class Hashes:
    """SHA-256 of files: each is hashed once while this lives, whatever its names, large ones several at a time.

    Attributes:
        files, bytes: how many were hashed.
    """

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self._known: dict[tuple[int, int, int, int], str] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)

    def __enter__(self) -> Hashes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def of(self, paths: Iterable[Path]) -> dict[Path, str | OSError]:
        """{path: SHA-256, or why it cannot be read}."""
        found: dict[Path, str | OSError] = {}
        wanted: dict[tuple[int, int, int, int], Path] = {}
        identities: dict[Path, tuple[int, int, int, int]] = {}
        for path in paths:
            try:
                seen = path.stat()
            except OSError as error:
                found[path] = error
                continue
            identities[path] = identity = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
            if identity not in self._known:
                wanted[identity] = path
        large = {identity: path for identity, path in wanted.items() if identity[2] >= _LARGE}
        made = dict(zip(large, self._threads.map(_hash, large.values()), strict=True))
        made |= {identity: _hash(path) for identity, path in wanted.items() if identity not in large}
        for identity, result in made.items():
            if isinstance(result, str):
                self._known[identity] = result
                self.files += 1
                self.bytes += identity[2]
        return found | {
            path: self._known[identity] if identity in self._known else made[identity]
            for path, identity in identities.items()
        }


def _hash(path: Path) -> str | OSError:
    try:
        return sha256_file(path)
    except OSError as error:
        return error


def scan(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """What lies in `folder` and below: {path: regular file}, and {path: what else it is}, links not followed."""
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    todo = [folder]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                # A name need not be text; it is shown as what it is.
                name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
                if entry.is_symlink():
                    others[name] = f"symbolic link to {path.readlink()}"
                elif entry.is_dir():
                    todo.append(path)
                elif entry.is_file():
                    files[name] = path
                else:
                    others[name] = f"no regular file ({stat.filemode(entry.stat().st_mode)[0]})"
    return files, others


def compare(
    hashes: Hashes,
    link: Link,
    files: Mapping[str, Path],
    expected: Mapping[str, str],
    *,
    others: Mapping[str, str] | None = None,
    below: str = "",
) -> list[Fault]:
    """The whole difference between files and their manifest.

    Args:
        others: {name: what it is} of what is no regular file.
        below: what names are written behind, in faults.
    """
    faults = []
    others = others or {}
    found = hashes.of(files.values())
    for name in sorted(expected.keys() | files.keys() | others.keys()):
        where = f"{below}{name}"
        want = expected.get(name)
        if name in others:
            faults.append(Fault(link, Kind.TAMPERED, where, want or ABSENT, others[name]))
        elif name not in files:
            faults.append(Fault(link, Kind.MISSING, where, want or "", ABSENT))
        elif isinstance(actual := found[files[name]], OSError):
            faults.append(Fault(link, Kind.UNREACHABLE, where, want or ABSENT, str(actual)))
        elif want != actual:
            faults.append(Fault(link, Kind.TAMPERED, where, want or ABSENT, actual))
    return faults
