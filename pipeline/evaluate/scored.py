"""rows.parquet: what each system made of each test row, and how it is read back for judging.

One line per (row_id, system). The file's metadata names the systems that were to be scored, so that a champion
whose comparison has no rows is not mistaken for there being no champion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.evaluate.metrics import COLUMNS, Columns
from pipeline.params import Task

SYSTEMS = ("prefix", "base", "champion")
SLICE = "slice."
"""What the names of slice columns begin with."""

_COUNTS = pa.list_(pa.int32())
_FIELDS: Mapping[Task, Mapping[str, pa.DataType]] = {
    "classification": {
        "label": pa.int32(),
        "prediction": pa.int32(),
        "confidence": pa.float64(),
        "loss": pa.float64(),
    },
    "generation": {
        "nll": pa.float64(),
        "target_tokens": pa.int32(),
        "hypothesis": pa.string(),
        "bleu_counts": _COUNTS,
        "bleu_totals": _COUNTS,
        "hypothesis_length": pa.int32(),
        "reference_length": pa.int32(),
        "chrf_statistics": _COUNTS,
        "chrf": pa.float64(),
        "rouge_l": pa.float64(),
    },
}
_MAY_BE_NULL = frozenset(_FIELDS["generation"]) - {"nll", "target_tokens"}
"""Rows beyond `max_generated_rows` have no generated text."""


def schema(task: Task, slices: Sequence[str], systems: Sequence[str]) -> pa.Schema:
    """The columns of rows.parquet, with `systems` in its metadata.

    Args:
        slices: column names without `SLICE`.
    """
    columns = {"row_id": pa.string(), "system": pa.string()}
    columns |= {SLICE + name: pa.string() for name in slices}
    return pa.schema(
        [*(columns | dict(_FIELDS[task])).items()], metadata={"systems": json.dumps(list(systems))}
    )


@dataclass(frozen=True)
class Sample:
    """The rows of one system that have what a metric reads.

    Attributes:
        places: [n] ascending positions in `Scored.row_ids`.
        columns: what the metric reads, each n long.
    """

    places: NDArray[np.int64]
    columns: Columns

    def only(self, places: NDArray[np.int64]) -> Sample:
        """The rows that are also in `places`."""
        keep = np.isin(self.places, places, assume_unique=True)
        return Sample(self.places[keep], {name: values[keep] for name, values in self.columns.items()})


@dataclass(frozen=True)
class Scored:
    """A checked rows.parquet.

    Attributes:
        task: what the rows are.
        row_ids: [N] every row the prefix was scored on, sorted.
        slices: slice column (without `SLICE`) → [N] values.
        systems: system → its lines sorted by row_id; one that was to be scored but has no lines is there, empty.
    """

    task: Task
    row_ids: NDArray[Any]
    slices: Mapping[str, NDArray[Any]]
    systems: Mapping[str, pa.Table]

    def sample(self, system: str, metric: str) -> Sample:
        """The rows of `system` that can be judged by `metric`."""
        names = COLUMNS[self.task][metric]
        lines = self.systems[system].select(["row_id", *names]).drop_null()
        places = np.searchsorted(self.row_ids, _strings(lines["row_id"]))
        return Sample(places, {name: _array(lines[name]) for name in names})


def read(rows: Path | pa.Table, task: Task) -> Scored:
    """Check and sort what `evaluate` wrote.

    Raises:
        DataError: a column is missing, a figure is null, a row is there twice, the prefix has no rows, another
            system has rows that the prefix was not scored on, or systems disagree on a row's label.
    """
    table = rows if isinstance(rows, pa.Table) else pq.read_table(rows)
    heading = f"{'the scored rows' if isinstance(rows, pa.Table) else rows} cannot be judged:"
    wanted = ["row_id", "system", *_FIELDS[task]]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError([f"{name}: no such column; expected for {task}" for name in missing], heading=heading)
    problems = [
        f"{name}: {table[name].null_count} cells are null"
        for name in wanted
        if name not in _MAY_BE_NULL and table[name].null_count
    ]
    metadata = table.schema.metadata or {}
    expected = json.loads(metadata.get(b"systems", b"[]"))
    found = table["system"].unique().to_pylist()
    problems += [
        f"system: got {name!r}; expected one of {', '.join(SYSTEMS)}"
        for name in sorted({*expected, *found} - {*SYSTEMS}, key=str)
    ]
    if problems:
        raise DataError(problems, heading=heading)

    systems = {
        name: table.filter(pc.equal(table["system"], name)).sort_by("row_id")
        for name in SYSTEMS
        if name in expected or name in found
    }
    problems = _contradictions(systems, task)
    if problems:
        raise DataError(problems, heading=heading)
    ours = systems["prefix"]
    slices = {
        name.removeprefix(SLICE): np.asarray(ours[name].fill_null("").to_pylist(), dtype=str)
        for name in ours.column_names
        if name.startswith(SLICE)
    }
    return Scored(task, _strings(ours["row_id"]), slices, systems)


def _contradictions(systems: Mapping[str, pa.Table], task: Task) -> list[str]:
    if "prefix" not in systems or not len(systems["prefix"]):
        return ["system: no row of the prefix itself"]
    ours = _strings(systems["prefix"]["row_id"])
    problems = []
    for system, lines in systems.items():
        row_ids = _strings(lines["row_id"])
        twice = row_ids[1:][row_ids[1:] == row_ids[:-1]]
        if len(twice):
            problems.append(
                f"row_id: {len(twice)} rows are there twice for {system}, the first {twice[0].decode()}"
            )
            continue
        strangers = np.setdiff1d(row_ids, ours)
        if len(strangers):
            problems.append(f"row_id: {len(strangers)} rows of {system} were not scored for the prefix")
        elif task == "classification" and not problems:
            labels = _array(systems["prefix"]["label"])[np.searchsorted(ours, row_ids)]
            wrong = int((labels != _array(lines["label"])).sum())
            if wrong:
                problems.append(f"label: {wrong} rows of {system} have another label than for the prefix")
    return problems


def _strings(column: pa.ChunkedArray) -> NDArray[Any]:
    """As UTF-8 bytes, which sort as row_ids do in Arrow and take a quarter of numpy's text."""
    encoded = [value.encode() for value in column.to_pylist()]
    return np.asarray(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(column), -1) if len(column) else np.zeros((0, 0))
    return np.asarray(column.to_numpy())
