"""Raw files → rows of the wanted columns, with every fault of form named by file and line.

This reads the files itself instead of handing them to `datasets.load_dataset`, whose readers change content
without a word, also when told the features (tried, datasets 5.2): a CSV cell `NA` or `null` becomes a
missing value, a JSON column of ISO dates becomes timestamps, a label 7 and a label "7" become one, and
a column nobody asked for can make the whole file fail. What is validated here is what is trained on.

Everything streams: a line, or a Parquet batch, at a time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

MAX_LINE_BYTES = 10_000_000
"""The longest line of a JSONL or CSV file, and the longest CSV cell; longer is a fault, not a memory bill."""

PARQUET_ROWS = 4096
"""Parquet rows decoded at a time."""

FORMATS = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".parquet": "Parquet"}

BOM = b"\xef\xbb\xbf"

Row = tuple[int, tuple[Any, ...]]
"""Line number (in Parquet: row number; both from 1) and the wanted columns' values."""


@dataclass
class Faults:
    """Collects what is wrong with the data so that it can be said at once; remembers the first `limit`."""

    limit: int = 20
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, message: str) -> None:
        """Note one fault, e.g. `add("train.csv:7", "got 3 fields; expected 2")`."""
        self.count += 1
        if len(self.lines) < self.limit:
            self.lines.append(f"{where}: {message}")

    def raise_if_any(self, raw: Path) -> None:
        """Report everything noted so far.

        Raises:
            DataError: there was at least one fault.
        """
        if self.count:
            more = self.count - len(self.lines)
            raise DataError(
                [*self.lines, *([f"… and {more:,} more"] if more else [])],
                heading=f"{raw} is not usable as data; {self.count:,} fault{'s' * (self.count > 1)}:",
            )


@dataclass(frozen=True)
class DataFiles:
    """The files of one format that make up a data set, in reading order."""

    format: str
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of all of them."""
        return sum(path.stat().st_size for path in self.paths)


def data_files(raw: Path) -> DataFiles:
    """The file `raw`, or every file below the folder `raw` sorted by path; hidden files do not count.

    Raises:
        DataError: nothing is there, a file is empty or of an unknown format, or formats are mixed.
    """
    faults = Faults()
    if not raw.exists():
        faults.add(str(raw), "no such file or folder; expected the data that `data.path` names")
        faults.raise_if_any(raw)
    paths = [raw] if raw.is_file() else sorted(path for path in raw.rglob("*") if path.is_file())
    paths = [path for path in paths if path == raw or not _hidden(path.relative_to(raw))]
    if not paths:
        faults.add(str(raw), f"is a folder without data files; expected {_or(FORMATS)}")
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            got = path.suffix or "no suffix"
            faults.add(
                str(path), f"got {got}; expected {_or(FORMATS)} (move other files out of the data folder)"
            )
        elif path.stat().st_size == 0:
            faults.add(str(path), "is empty (0 bytes); expected at least one row")
    kinds = {FORMATS[path.suffix.lower()]: path for path in paths if path.suffix.lower() in FORMATS}
    if len(kinds) > 1:
        got = " and ".join(f"{kind} ({path.relative_to(raw)})" for kind, path in sorted(kinds.items()))
        faults.add(str(raw), f"got {got}; expected files of one format")
    faults.raise_if_any(raw)
    return DataFiles(next(iter(kinds)), tuple(paths))


def read_rows(
    path: Path, columns: Sequence[str], faults: Faults, progress: Callable[[int], None] = lambda done: None
) -> Iterator[Row]:
    """The rows of one file that are well formed; what is not goes to `faults`.

    Args:
        path: a JSONL, CSV or Parquet file.
        columns: the wanted columns, in the order of the values yielded. CSV values are texts.
        faults: where faults are noted.
        progress: called with the bytes (in Parquet: a share of them) read since the last call.
    """
    reader = {"JSONL": _read_jsonl, "CSV": _read_csv, "Parquet": _read_parquet}[FORMATS[path.suffix.lower()]]
    return reader(path, columns, faults, progress)


def preview(value: Any, length: int = 40) -> str:
    """A value for a message: as JSON writes it, cut to `length` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace").decode()
    return text if len(text) <= length else f"{text[:length]}…"


def _read_jsonl(
    path: Path, columns: Sequence[str], faults: Faults, progress: Callable[[int], None]
) -> Iterator[Row]:
    for number, text in _lines(path, faults, progress):
        if text.isspace() or not text:
            continue  # a blank line holds no row
        try:
            value = json.loads(text, object_pairs_hook=_object)
        except _DuplicateKeyError as error:
            faults.add(f"{path}:{number}", f"got the key {preview(str(error))} twice; expected it once")
            continue
        except RecursionError:
            faults.add(
                f"{path}:{number}", "got JSON nested too deeply to read; expected an object of plain values"
            )
            continue
        except ValueError as error:
            faults.add(f"{path}:{number}", f"got broken JSON ({error}); expected one complete object a line")
            continue
        if not isinstance(value, dict):
            faults.add(f"{path}:{number}", f"got {preview(value)}; expected a JSON object")
            continue
        missing = [column for column in columns if column not in value]
        if missing:
            faults.add(f"{path}:{number}", _no_column(missing, value))
            continue
        yield number, tuple([value[column] for column in columns])


def _read_csv(
    path: Path, columns: Sequence[str], faults: Faults, progress: Callable[[int], None]
) -> Iterator[Row]:
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = csv.reader((text for _, text in _lines(path, faults, progress)), strict=True)
        header: list[str] | None = None
        places: list[int] = []
        while True:
            number = reader.line_num + 1  # a record may span lines; it is named by its first
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                faults.add(
                    f"{path}:{number}", f"got broken CSV ({error}); expected fields as RFC 4180 quotes them"
                )
                continue
            if not record:
                continue  # a blank line holds no row
            if header is None:
                header = record
                if not _header_is_good(path, header, columns, faults):
                    return
                places = [header.index(column) for column in columns]
            elif len(record) != len(header):
                faults.add(
                    f"{path}:{number}", f"got {len(record)} fields; expected {len(header)}, as in the header"
                )
            else:
                yield number, tuple([record[place] for place in places])
    finally:
        csv.field_size_limit(before)


def _read_parquet(
    path: Path, columns: Sequence[str], faults: Faults, progress: Callable[[int], None]
) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 1
    size = path.stat().st_size
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not _header_is_good(path, file.schema_arrow.names, columns, faults):
                return
            wanted = list(dict.fromkeys(columns))
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                # A text that is not UTF-8 is found here, not in the middle of training.
                batch.validate(full=True)
                values = [batch.column(column).to_pylist() for column in columns]
                for row in zip(*values, strict=True):
                    yield number, row
                    number += 1
                progress(size * batch.num_rows // file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        faults.add(
            f"{path}:{number}", f"got a broken Parquet file ({error}); expected one that reads to its end"
        )


def _lines(path: Path, faults: Faults, progress: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line; bad bytes are noted and replaced, so that later lines are seen too."""
    offset = 0
    unreported = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            start, offset = offset, offset + len(line)
            unreported += len(line)
            if unreported > 1_000_000:
                progress(unreported)
                unreported = 0
            if len(line) > MAX_LINE_BYTES:
                faults.add(
                    f"{path}:{number}", f"got a line of over {MAX_LINE_BYTES:,} bytes; expected at most that"
                )
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                    offset += len(line)
                yield number, ""
                continue
            if number == 1 and line.startswith(BOM):
                line, start = line[len(BOM) :], start + len(BOM)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                faults.add(
                    f"{path}:{number}",
                    f"got byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line (byte"
                    f" {start + error.start + 1:,} of the file), which is not UTF-8 ({error.reason});"
                    " expected a file saved as UTF-8",
                )
                text = line.decode(errors="replace")
            if "\0" in text:
                faults.add(
                    f"{path}:{number}",
                    f"got a NUL byte at byte {line.index(0) + 1} of the line; expected text",
                )
                text = text.replace("\0", "\ufffd")
            yield number, text
    progress(unreported)


class _DuplicateKeyError(ValueError):
    """A JSON object names one key twice; its message is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return value


def _header_is_good(path: Path, header: Sequence[str], columns: Sequence[str], faults: Faults) -> bool:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        faults.add(f"{path}:1", f"got the column {preview(twice[0])} twice in the header; expected each once")
    missing = [column for column in columns if column not in header]
    if missing:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        hint = f"; the fields seem to be separated by {preview(other)}: expected commas" if other else ""
        faults.add(f"{path}:1", _no_column(missing, header) + hint)
    return not twice and not missing


def _no_column(missing: Sequence[str], present: Any) -> str:
    there = ", ".join(preview(column) for column in present) or "none"
    return f"no column {', '.join(preview(column) for column in missing)}; columns there are: {there}"


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _or(names: Any) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}"
