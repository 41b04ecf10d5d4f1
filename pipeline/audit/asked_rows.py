"""The rows that a question is about: a text as it is given, or a file of rows with a prefix's own columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from pipeline.data.reading import BOM, FORMATS, Faults, data_files, preview, read_rows
from pipeline.data.row_index import Columns, entry, key_digest
from pipeline.data.staging import Plain, text_problem, values
from pipeline.errors import DataError

_TEXT_SUFFIXES = (".txt", *FORMATS)

Wanted = tuple[bytes, ...]
"""What one row is looked for by: it is there where one of these begins an entry of a row index."""


@dataclass
class AskedRows:
    """The rows of one question. Made by `read`.

    Attributes:
        texts: the texts themselves; none for a file with columns.
        file: the file with columns.
        columns: its columns.
    """

    texts: tuple[str, ...] = ()
    file: Path | None = None
    columns: tuple[str, ...] = ()
    _read: dict[Columns, tuple[Wanted, ...]] = field(default_factory=dict)

    def wanted(self, known: tuple[Columns, ...], asked: Columns) -> tuple[Wanted, ...]:
        """What to look for, row by row, in the index of a prefix with the columns `asked`.

        A text, and a row of a file that has no column of labels or targets, is looked for by its text alone, and so
        is a file's row in an index of a prefix whose columns have other names.

        Args:
            known: the columns of all prefixes.

        Raises:
            DataError: the file has none of the columns that the prefixes' texts are in, or its rows are not usable.
        """
        if self.file is None:
            return tuple((key_digest(text),) for text in self.texts)
        if asked not in self._read:
            self._read[asked] = self._wanted(self.file, known, asked)
        return self._read[asked]

    def _wanted(self, file: Path, known: tuple[Columns, ...], asked: Columns) -> tuple[Wanted, ...]:
        if asked.key in self.columns:
            return tuple(self._rows(file, asked))
        others = [columns for columns in known if columns.key in self.columns]
        if not others:
            names = ", ".join(sorted({preview(columns.key) for columns in known}))
            there = ", ".join(map(preview, self.columns)) or "none"
            raise DataError(
                [
                    f"{file}: got the columns {there}; expected one that a prefix's texts or sources are in: {names}"
                ]
            )
        by_text = dict.fromkeys(replace(other, task="classification", value="") for other in others)
        return tuple(row for other in by_text for row in self._rows(file, other))

    def _rows(self, file: Path, asked: Columns) -> Iterator[Wanted]:
        """Each row of the file, checked as `prepare` checks it."""
        faults = Faults()
        whole = asked.value in self.columns
        label = Plain(asked.value)
        rows = []
        for line, (key, *rest) in read_rows(
            file, (asked.key, asked.value) if whole else (asked.key,), faults
        ):
            where = f"{file}:{line}"
            problem = text_problem(key)
            if problem:
                faults.add(where, f"column {preview(asked.key)}: {problem}")
                continue
            texts, problem = values(asked.task, label, rest[0], where) if whole else ([], None)
            if problem:
                faults.add(where, f"column {preview(asked.value)}: {problem}")
            elif whole:
                rows.append(tuple(entry(asked.task, key, value) for value in texts))
            else:
                rows.append((key_digest(key),))
        faults.raise_if_any(file)
        if not rows:
            raise DataError([f"{file}: has no rows; expected at least one"])
        yield from rows


def read(asked: str) -> AskedRows:
    """What `asked` means: the name of a file there is, or else a text.

    JSONL, CSV and Parquet are files of rows; any other file is one text, however many lines it has.

    Raises:
        DataError: it is a folder, looks like a file that is not there, or is not usable as rows or as a text.
    """
    path = Path(asked)
    try:
        # An empty text would be the current folder.
        is_file, is_folder = bool(asked) and path.is_file(), bool(asked) and path.is_dir()
    except OSError:  # too long for a file's name
        is_file = is_folder = False
    if is_folder:
        raise DataError([f"{path}: is a folder; expected a file of rows, or a text. {_ESCAPE}"])
    if is_file and path.suffix.lower() in FORMATS:
        data_files(path)  # which refuses an empty one
        return AskedRows(file=path, columns=_columns(path))
    if is_file:
        return AskedRows(texts=(_checked(_content(path), str(path)),))
    if PurePath(asked).suffix.lower() in _TEXT_SUFFIXES and not any(map(str.isspace, asked)):
        raise DataError([f"{path}: no such file. {_ESCAPE}"])
    return AskedRows(texts=(_checked(asked, "--row"),))


_ESCAPE = "To look for a text that reads like a file's name, put it into a text file and name that"


def _checked(text: str, where: str) -> str:
    if problem := text_problem(text):
        raise DataError([f"{where}: {problem}"])
    return text


def _content(path: Path) -> str:
    try:
        return path.read_bytes().removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: is not UTF-8 ({error}); expected a text file saved as UTF-8"]) from None


def _columns(path: Path) -> tuple[str, ...]:
    """The columns of a file's first row; what cannot be read has none, and `read_rows` says why."""
    kind = FORMATS[path.suffix.lower()]
    if kind == "Parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return tuple(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise DataError([f"{path}: got a broken Parquet file ({error})"]) from None
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if kind == "CSV":
            return tuple(next((record for record in csv.reader(file) if record), ()))
        line = next((line for line in file if line.strip()), "{}")
    try:
        first = json.loads(line)
    except ValueError as error:
        raise DataError([f"{path}: its first row is broken JSON ({error})"]) from None
    if not isinstance(first, dict):
        raise DataError([f"{path}: its first row is {preview(first)}; expected a JSON object"])
    return tuple(first)
