"""The row index of a dataset version: whether a row is in it, by its text alone or as a whole, without its texts.

Kept with the prepared rows as one file, at most 24 bytes a row and a hundredth of that for its table:

    one line of JSON            format version, task, the two columns' names, entries
    a table                     for each block of 2,048 entries: its first entry, and the SHA-256 of the block
    the entries, ascending      16 bytes of the digest of the key, 8 bytes of the digest of the value

The key is a classification row's text or a generation row's source, in the form in which rows are given their
split (`splits.normalise`); the value is the label as it is written, or one of the source's targets, normalised. So
rows whose texts differ only in case, width, composition or spacing are one. The splits and their salt are not part
of it: versions with equal rows have equal files, and a row is found whichever split it fell into.

The file's name is its digest, the SHA-256 of line and table together. A question reads those and one block, and
both are hashed before they are believed: what is asked of a file of 24 MB is answered from under 100 kB.

Laws (tested): every row that went in is found, by key and as a whole, and no other; the bytes do not depend on the
order of the rows or on repeats; a byte changed in what an answer is read from is an IntegrityError.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.data.splits import content_digest, normalise
from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError
from pipeline.files import write_bytes
from pipeline.params import DataParams, Task

ROW_INDEX = "row_index"
"""The file's name among the prepared ones."""

FORMAT_VERSION = 1
KEY_BYTES, VALUE_BYTES = 16, 8
ENTRY_BYTES = KEY_BYTES + VALUE_BYTES
"""Of a value 8 bytes are enough: it only has to tell apart the values of one key."""

BLOCK_ENTRIES = 2048
_HASH_BYTES = 32
_LINE_LIMIT = 4096


@dataclass(frozen=True)
class Columns:
    """What the rows of an index are: the task, and the columns that key and value stand in."""

    task: Task
    key: str
    value: str

    @classmethod
    def of(cls, task: Task, data: DataParams) -> Columns:
        """The columns that `prepare` reads for this task."""
        if task == "classification":
            return cls(task, data.text, data.label)
        return cls(task, data.source, data.target)


def key_digest(key: str) -> bytes:
    """The first 16 bytes of an entry, by which a row is found whatever its value."""
    return content_digest((normalise(key),))[:KEY_BYTES]


def entry(task: Task, key: str, value: str) -> bytes:
    """The entry of a row: its text and label, or its source and one of its targets."""
    return key_digest(key) + _value_digest(task, value)


def entries(task: Task, key: str, values: Iterable[str]) -> bytes:
    """The entries of an example, one after the other: one for its label, or one for each target."""
    first = key_digest(key)
    return b"".join([first + _value_digest(task, value) for value in values])


def _value_digest(task: Task, value: str) -> bytes:
    return content_digest((value if task == "classification" else normalise(value),))[:VALUE_BYTES]


def write(path: Path, columns: Columns, content: bytes | bytearray) -> str:
    """Put the index of these entries, in any order, at `path`; its digest."""
    rows = _sorted(content)
    count = len(rows) // ENTRY_BYTES
    described = {
        "entries": count,
        "format_version": FORMAT_VERSION,
        "key": columns.key,
        "task": columns.task,
        "value": columns.value,
    }
    table = []
    for start in range(0, len(rows), BLOCK_ENTRIES * ENTRY_BYTES):
        block = rows[start : start + BLOCK_ENTRIES * ENTRY_BYTES]
        table += [block[:ENTRY_BYTES], hashlib.sha256(block).digest()]
    head = canonical_json(described) + b"\n" + b"".join(table)
    write_bytes(path, head + rows)
    return hashlib.sha256(head).hexdigest()


def _sorted(content: bytes | bytearray) -> bytes:
    """The entries in ascending order, each once."""
    words = np.frombuffer(content, dtype=">u8").reshape(-1, ENTRY_BYTES // 8)
    ordered = words[np.lexsort(words.astype(np.uint64).T[::-1])]
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[first].tobytes()


class RowIndex:
    """An index opened for questions; close it, or use it as a context manager.

    Args:
        path: the file.
        digest: what `write` returned for it.

    Raises:
        IntegrityError: line, table or length are not those of the index with this digest.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            raise self._fault("is empty") from None
        try:
            self._read_head(digest)
        except BaseException:
            self._map.close()
            raise
        self._verified: set[int] = set()

    def __enter__(self) -> RowIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, wanted: bytes) -> bool:
        """Whether an entry begins with `wanted`: a `key_digest`, or a whole `entry`.

        Raises:
            IntegrityError: the block where it would be is not the one that was written.
        """
        low = wanted.ljust(ENTRY_BYTES, b"\0")
        number = bisect_right(range(self._blocks), low, key=self._first) - 1
        if number >= 0:
            rows = self._verified_rows(number)
            place = bisect_left(rows, low, key=self._entry)
            if place < len(rows):
                return self._entry(rows[place]).startswith(wanted)
        # The next block's first entry stands in the table.
        return number + 1 < self._blocks and self._first(number + 1).startswith(wanted)

    def _read_head(self, digest: str) -> None:
        line_end = self._map.find(b"\n", 0, _LINE_LIMIT) + 1
        try:
            described = json.loads(self._map[:line_end])
            count, version = int(described["entries"]), described["format_version"]
            self.columns = Columns(described["task"], described["key"], described["value"])
        except (ValueError, TypeError, LookupError):
            raise self._fault("does not begin with the line of a row index") from None
        self._count, self._table = count, line_end
        self._blocks = -(-count // BLOCK_ENTRIES)
        self._rows = line_end + self._blocks * (ENTRY_BYTES + _HASH_BYTES)
        found = hashlib.sha256(self._map[: self._rows]).hexdigest()
        if found != digest:
            raise self._fault(f"SHA-256 of its table is {found}, expected {digest}")
        if version != FORMAT_VERSION:
            raise self._fault(f"format version is {version!r}; this release reads {FORMAT_VERSION}")
        if len(self._map) != (expected := self._rows + count * ENTRY_BYTES):
            raise self._fault(f"has {len(self._map):,} bytes, expected {expected:,}")

    def _first(self, number: int) -> bytes:
        """The first entry of a block, by the table."""
        at = self._table + number * (ENTRY_BYTES + _HASH_BYTES)
        return self._map[at : at + ENTRY_BYTES]

    def _entry(self, row: int) -> bytes:
        at = self._rows + row * ENTRY_BYTES
        return self._map[at : at + ENTRY_BYTES]

    def _verified_rows(self, number: int) -> range:
        """The numbers of a block's entries, which have been hashed."""
        rows = range(number * BLOCK_ENTRIES, min((number + 1) * BLOCK_ENTRIES, self._count))
        if number not in self._verified:
            block = self._map[self._rows + rows.start * ENTRY_BYTES : self._rows + rows.stop * ENTRY_BYTES]
            at = self._table + number * (ENTRY_BYTES + _HASH_BYTES) + ENTRY_BYTES
            if hashlib.sha256(block).digest() != self._map[at : at + _HASH_BYTES]:
                raise self._fault(
                    f"entries {rows.start + 1:,} to {rows.stop:,} are not those whose SHA-256 is recorded"
                )
            self._verified.add(number)
        return rows

    def _fault(self, what: str) -> IntegrityError:
        return IntegrityError(
            [f"{self._path}: {what}"],
            heading="A row index is not what was recorded (tampered or corrupted); it was not used. Delete the file "
            "and run this again: it is then fetched anew:",
        )
