"""Every column of raw files as a table, as it is written there: for people and notebooks, not for training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.reading import BOM, Faults, data_files, read_rows
from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def read_whole(raw: Path) -> pa.Table:
    """All rows and columns of the file or folder `raw`, in memory.

    CSV values are texts; JSON and Parquet values keep their types. `datasets.load_dataset` would turn the text `null`
    into a missing value and `01` into 1 (see `pipeline.data.reading`).

    Raises:
        DataError: a file is missing, empty, broken or of an unknown format, or a JSON column mixes types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = data_files(raw)
    read = {"JSONL": _jsonl, "CSV": _csv, "Parquet": pq.read_table}[files.format]
    try:
        return pa.concat_tables([read(path) for path in files.paths], promote_options="default")
    except (pa.ArrowException, ValueError) as error:
        raise DataError([f"{raw}: cannot be read as one table ({error})"]) from error


def _jsonl(path: Path) -> pa.Table:
    import pyarrow as pa

    content = path.read_bytes().removeprefix(BOM).decode()
    return pa.Table.from_pylist([json.loads(line) for line in content.split("\n") if line.strip()])


def _csv(path: Path) -> pa.Table:
    import pyarrow as pa

    with path.open(newline="", encoding="utf-8-sig") as file:
        columns = next(record for record in csv.reader(file) if record)
    faults = Faults()
    rows = [row for _, row in read_rows(path, columns, faults)]
    faults.raise_if_any(path)
    text = pa.string()
    return pa.table({name: pa.array([row[i] for row in rows], text) for i, name in enumerate(columns)})
