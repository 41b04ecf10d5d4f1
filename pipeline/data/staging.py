"""Raw rows → checked rows in one Arrow file on disk, and 16-byte digests of them in memory.

What stays in memory is about 80 bytes a row, and as much again while duplicates are looked for, whatever the
texts' lengths; the texts lie in a memory-mapped file in a temporary folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.reading import DataFiles, Faults, preview, read_rows
from pipeline.data.splits import DIGEST_BYTES, Digests, as_digests, content_digest, split_digest
from pipeline.params import DataParams, Task

BATCH_ROWS = 4096
BATCH_CHARACTERS = 4_000_000
"""A batch is flushed at whichever comes first, so that long texts do not add up in memory."""

MISSING_NUMBERS = frozenset({"nan", "NaN", "NAN"})
"""How writers of CSV spell a missing number; as a label they are refused unless declared in `data.labels`."""


@dataclass(frozen=True)
class Staged:
    """The checked rows: a line per text and label, or per source and one of its targets.

    Attributes:
        path: Arrow stream with columns key, value, slice.*, file (position in the data files) and line.
        files: rows of each raw file, by its path relative to the raw folder.
        row: digests of key and value: [rows, 16].
        group: digests of the key as it is written: [rows, 16].
        spread: leading parts of the salted digests of the normalised key: [rows, 16].
        slices: digests of the slice columns' values: [rows, 16].
        labels: the label set, in the order of the label numbers; None for generation.
        label: each row's label number; zeros for generation: [rows].
        size: characters of key and value: [rows].
    """

    path: Path
    files: Mapping[str, int]
    row: Digests
    group: Digests
    spread: Digests
    slices: Digests
    labels: tuple[str, ...] | None
    label: npt.NDArray[np.int32]
    size: npt.NDArray[np.int64]


def stage(
    files: DataFiles,
    raw: Path,
    data: DataParams,
    task: Task,
    folder: Path,
    faults: Faults,
    progress: Callable[[int], None] = lambda done: None,
) -> Staged:
    """Check every row and write the good ones into `folder`; what is wrong goes to `faults`.

    Args:
        files: what to read (see `data_files`).
        raw: the file or folder they were found in.
        data: the columns, the label set and the splits' salt.
        task: classification reads text and label, generation source and target.
        folder: where the Arrow file goes.
        faults: where faults are noted.
        progress: called with the bytes read since the last call.
    """
    writer = _Writer(folder / "staged.arrow", data, task, faults)
    key, value = (data.text, data.label) if task == "classification" else (data.source, data.target)
    counts = {}
    with writer:
        for position, path in enumerate(files.paths):
            rows = 0
            for line, values in read_rows(path, (key, value, *data.slices), faults, progress):
                writer.add(path, position, line, values)
                rows += 1
            counts[path.relative_to(raw).as_posix() if path != raw else path.name] = rows
    if not any(counts.values()) and not faults.count:
        faults.add(str(raw), "has no rows; expected at least one")
    return writer.finish(counts)


def gather(batches: list[pa.RecordBatch], indices: npt.NDArray[np.int64]) -> pa.Table:
    """The rows at `indices`, in that order, copying only them: pyarrow's own `take` may copy every batch."""
    ends = np.cumsum([batch.num_rows for batch in batches])
    owner = np.searchsorted(ends, indices, side="right")
    order = np.argsort(owner, kind="stable")
    parts = []
    for number in np.unique(owner):
        inside = indices[order][owner[order] == number] - (ends[number] - batches[number].num_rows)
        parts.append(pa.Table.from_batches([batches[number].take(pa.array(inside))]))
    together = pa.concat_tables(parts)
    if np.array_equal(order, np.arange(len(order))):
        return together
    return together.take(pa.array(np.argsort(order, kind="stable")))


def text_problem(value: Any) -> str | None:
    """Why `value` cannot be a text for the model, or None where it can."""
    if type(value) is str:
        if not value or value.isspace():
            return "got only white space; expected text" if value else "got an empty text; expected text"
        if value.isascii():
            return "got a NUL character; expected text" if "\0" in value else None
        if "\0" in value:
            return "got a NUL character; expected text"
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"got half of a surrogate pair at character {error.start + 1}; expected text"
        return None
    return f"got {_missing(value) or f'{_kind(value)} {preview(value)}'}; expected text"


class Plain:
    """A column of texts, whole numbers or true/false, of one kind throughout, as texts."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.first: tuple[str, str] | None = None

    def text(self, value: Any, where: str) -> tuple[str, str | None]:
        """The value as text, or a problem."""
        kind = _kind(value)
        if kind not in ("text", "whole number", "true/false"):
            got = _missing(value) or f"{kind} {preview(value)}"
            return "", f"got {got}; expected text or a whole number"
        if self.first is None:
            self.first = (kind, where)
        elif kind != self.first[0]:
            return "", f"got {kind} {preview(value)}; expected {self.first[0]}, as in {self.first[1]}"
        if kind == "text":
            return value, text_problem(value)
        return (str(value) if kind == "whole number" else str(value).lower()), None


def values(task: Task, label: Plain, value: Any, where: str) -> tuple[list[str], str | None]:
    """A row's label, or its targets, as texts; or what is wrong with them.

    Args:
        label: the column of labels, which must be of one kind throughout.
    """
    if task == "classification":
        text, problem = label.text(value, where)
        return [text], problem
    targets = value if isinstance(value, list) else [value]
    if not targets:
        return [], "got an empty list; expected a text or texts"
    return targets, next(filter(None, map(text_problem, targets)), None)


class _Writer:
    def __init__(self, path: Path, data: DataParams, task: Task, faults: Faults) -> None:
        self.path, self.data, self.task, self.faults = path, data, task, faults
        self._label = Plain(data.label)
        self._slices = [Plain(column) for column in data.slices]
        self._labels: dict[str, int] = {label: number for number, label in enumerate(data.labels or ())}
        names = ["key", "value", *(f"slice.{column}" for column in data.slices)]
        self._schema = pa.schema(
            [*((name, pa.string()) for name in names), ("file", pa.int32()), ("line", pa.int64())]
        )
        self._row, self._group, self._spread, self._sliced = (bytearray() for _ in range(4))
        self._label_parts: list[npt.NDArray[np.int32]] = []
        self._size_parts: list[npt.NDArray[np.int64]] = []
        self._clear()

    def __enter__(self) -> None:
        self._stream = pa.ipc.new_stream(str(self.path), self._schema)

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._stream.close()

    def add(self, path: Path, position: int, line: int, values: tuple[Any, ...]) -> None:
        """Check one raw row and stage it."""
        where = f"{path}:{line}"
        key, value, *rest = values
        good = True
        problem = text_problem(key)
        if problem:
            column = self.data.text if self.task == "classification" else self.data.source
            self.faults.add(where, f"column {preview(column)}: {problem}")
            good = False
        slices = []
        for plain, cell in zip(self._slices, rest, strict=True):
            text, problem = plain.text(cell, where)
            slices.append(text)
            if problem:
                self.faults.add(where, f"slice column {preview(plain.column)}: {problem}")
                good = False
        for text in self._texts(value, where):
            if good:
                self._stage(key, text, slices, position, line)

    def finish(self, files: Mapping[str, int]) -> Staged:
        """What was staged, with labels numbered in their final order."""
        labels = None
        label = np.concatenate([np.zeros(0, np.int32), *self._label_parts])
        if self.task == "classification":
            labels = self.data.labels or tuple(sorted(self._labels))
            final = {name: number for number, name in enumerate(labels)}
            rank = np.array([final[name] for name in self._labels], dtype=np.int32)
            label = rank[label] if len(label) else label
        return Staged(
            path=self.path,
            files=files,
            row=as_digests(self._row),
            group=as_digests(self._group),
            spread=as_digests(self._spread),
            slices=as_digests(self._sliced),
            labels=labels,
            label=label,
            size=np.concatenate([np.zeros(0, np.int64), *self._size_parts]),
        )

    def _texts(self, value: Any, where: str) -> Iterator[str]:
        """The label as text, or each of the targets; problems are noted."""
        if self.task == "classification":
            text, problem = self._label.text(value, where)
            if not problem and text not in self._labels:
                if self.data.labels is not None:
                    problem = f"got {preview(text)}; expected one of data.labels: {_some(self.data.labels)}"
                elif text in MISSING_NUMBERS:
                    problem = f"got {preview(text)}, a missing number; expected a label (or declare it in data.labels)"
                else:
                    self._labels[text] = len(self._labels)
            if problem:
                self.faults.add(where, f"column {preview(self.data.label)}: {problem}")
            else:
                yield text
            return
        targets = value if isinstance(value, list) else [value]
        if not targets:
            self.faults.add(
                where, f"column {preview(self.data.target)}: got an empty list; expected a text or texts"
            )
        for target in targets:
            problem = text_problem(target)
            if problem:
                self.faults.add(where, f"column {preview(self.data.target)}: {problem}")
            else:
                yield target

    def _stage(self, key: str, value: str, slices: list[str], position: int, line: int) -> None:
        self._row += content_digest((key, value))[:DIGEST_BYTES]
        self._group += content_digest((key,))[:DIGEST_BYTES]
        self._spread += split_digest(key, self.data.splits.salt)[:DIGEST_BYTES]
        self._sliced += content_digest(slices)[:DIGEST_BYTES]
        self._keys.append(key)
        self._values.append(value)
        for column, text in zip(self._cells, slices, strict=True):
            column.append(text)
        self._places.append((position, line))
        self._numbers.append(self._labels[value] if self.task == "classification" else 0)
        self._sizes.append(len(key) + len(value))
        self._characters += len(key) + len(value)
        if len(self._keys) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._keys:
            columns = [self._keys, self._values, *self._cells, *zip(*self._places, strict=True)]
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)
            ]
            self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
            self._label_parts.append(np.array(self._numbers, dtype=np.int32))
            self._size_parts.append(np.array(self._sizes, dtype=np.int64))
        self._clear()

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._values: list[str] = []
        self._cells: list[list[str]] = [[] for _ in self.data.slices]
        self._places: list[tuple[int, int]] = []
        self._numbers: list[int] = []
        self._sizes: list[int] = []
        self._characters = 0


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true/false"
    names = {str: "text", int: "whole number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _missing(value: Any) -> str | None:
    if value is None:
        return "null"
    return "NaN" if isinstance(value, float) and math.isnan(value) else None


def _some(names: tuple[str, ...], limit: int = 12) -> str:
    shown = ", ".join(preview(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
