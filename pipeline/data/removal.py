"""Rows out of raw data files: found by digest, as the row index finds them, with all else left to the byte.

A JSONL or CSV file keeps the bytes of every other line, in order; a Parquet file keeps its schema, its row groups and its
compression, and is written anew. What will be left is written beside the data first, and takes its place file by file
when all of it is there; a file without a row left goes.

Laws (tested): what was found is not found again; every other row is there, in order; looking writes nothing.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.data.reading import BOM, FORMATS, MAX_LINE_BYTES, Faults, data_files, preview, read_rows
from pipeline.data.row_index import KEY_BYTES, Columns, entry
from pipeline.data.staging import Plain, text_problem, values
from pipeline.errors import DataError
from pipeline.params import DataParams, Task


@dataclass
class Removal:
    """The rows to take out of one or more data sets: `look` through each, `write` what will be left, `replace`.

    Attributes:
        found: {file: the lines its rows begin in; in Parquet their numbers; both from 1}.
    """

    found: dict[Path, set[int]] = field(default_factory=dict)
    _raws: list[Path] = field(default_factory=list)
    _files: dict[Path, tuple[Path, int]] = field(default_factory=dict)
    """{file: the data set it was first met in, and how many rows it has}."""

    def look(self, raw: Path, data: DataParams, task: Task, parts: Collection[bytes]) -> int:
        """Find the rows of the data at `raw` that an entry of a row index would be found by.

        Args:
            parts: what to look for: `row_index.key_digest`s, or whole `row_index.entry`s. A generation row goes when one of
                its targets is asked for.

        Returns:
            How many there are.

        Raises:
            DataError: the data is not usable, so that nobody can tell what is in it.
        """
        columns, faults, count = Columns.of(task, data), Faults(), 0
        label = Plain(columns.value)
        for path in data_files(raw).paths:
            rows = 0
            for line, (key, value) in read_rows(path, (columns.key, columns.value), faults):
                where, rows = f"{path}:{line}", rows + 1
                texts, problem = values(task, label, value, where)
                column, problem = (
                    (columns.key, key_problem)
                    if (key_problem := text_problem(key))
                    else (columns.value, problem)
                )
                if problem:
                    faults.add(where, f"column {preview(column)}: {problem}")
                elif any(e in parts or e[:KEY_BYTES] in parts for e in (entry(task, key, t) for t in texts)):
                    self.found.setdefault(path, set()).add(line)
                    count += 1
            self._files.setdefault(path, (raw, rows))
        faults.raise_if_any(raw)
        self._raws.append(raw)
        return count

    def write(self) -> None:
        """Write what will be left beside the data.

        Raises:
            DataError: of a data set nothing would be left.
        """
        self.discard()
        for raw in self._raws:
            own = [path for path in self._files if path == raw or raw in path.parents]
            if not any(self._left(path) for path in own):
                raise DataError(
                    [f"{raw}: no row would be left; add others first, or take the prefix out of params.yaml"]
                )
        for path, lines in self.found.items():
            if self._left(path):
                target = self._aside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                _WRITERS[FORMATS[path.suffix.lower()]](path, lines, target)

    def replace(self) -> None:
        """Put what was written in the place of the data."""
        for path in self.found:
            if self._left(path):
                self._aside(path).replace(path)
            else:
                path.unlink()
        self.discard()

    def discard(self) -> None:
        """Remove what was written, also by a process that was killed."""
        for raw in self._raws:
            shutil.rmtree(_aside_folder(raw), ignore_errors=True)

    def _left(self, path: Path) -> int:
        return self._files[path][1] - len(self.found.get(path, ()))

    def _aside(self, path: Path) -> Path:
        raw, _ = self._files[path]
        # Beside the data set and not in it, so that a kill leaves nothing that DVC would take for data.
        return _aside_folder(raw) / (path.name if path == raw else path.relative_to(raw))


def _aside_folder(raw: Path) -> Path:
    return raw.with_name(f".{raw.name}.erasing")


def _write_lines(path: Path, lines: Collection[int], target: Path) -> None:
    with path.open("rb") as source, target.open("wb") as left:
        for number, line in enumerate(source, start=1):
            if number not in lines:
                left.write(line)
            elif number == 1 and line.startswith(BOM):
                left.write(BOM)
        _to_disk(left)


def _write_records(path: Path, lines: Collection[int], target: Path) -> None:
    """A CSV record may span lines; it is named by its first."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    read: list[bytes] = []

    def texts() -> Iterator[str]:
        with path.open("rb") as source:
            for line in source:
                read.append(line)
                # Byte for byte: quotes, commas and line ends are the same in it as in UTF-8.
                yield line.removeprefix(BOM).decode("latin-1")

    try:
        with target.open("wb") as left:
            number = 1
            for _ in csv.reader(texts(), strict=True):
                if number not in lines:
                    left.writelines(read)
                number += len(read)
                read.clear()
            _to_disk(left)
    finally:
        csv.field_size_limit(before)


def _write_parquet(path: Path, lines: Collection[int], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as source:
        compression = source.metadata.row_group(0).column(0).compression.lower()
        named = {"uncompressed": "none", "lz4_raw": "lz4"}.get(compression, compression)
        with target.open("wb") as left:
            with pq.ParquetWriter(left, source.schema_arrow, compression=named) as writer:
                first = 1
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    kept = [number not in lines for number in range(first, first + table.num_rows)]
                    first += table.num_rows
                    if any(kept):
                        writer.write_table(table.filter(pa.array(kept)), row_group_size=table.num_rows)
            _to_disk(left)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


_WRITERS = {"JSONL": _write_lines, "CSV": _write_records, "Parquet": _write_parquet}
