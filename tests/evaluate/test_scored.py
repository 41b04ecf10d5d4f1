"""Scored rows that contradict themselves are refused before anything is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import DataError
from pipeline.evaluate.scored import read, schema
from tests import scored_rows

LABELS = [0, 1, 2, 0]
GOOD = scored_rows.classification(
    LABELS, {"prefix": LABELS, "base": [0, 0, 0, 0]}, slices={"town": ["x", "é", "x", "y"]}
)


def _changed(column: str, line: int, value: Any) -> pa.Table:
    values = GOOD[column].to_pylist()
    values[line] = value
    place = GOOD.column_names.index(column)
    return GOOD.set_column(place, GOOD.schema.field(column), pa.array(values, GOOD.schema.field(column).type))


def test_rows_are_read_back_sorted_and_aligned() -> None:
    scored = read(GOOD.take([5, 2, 7, 0, 1, 4, 3, 6]), "classification")
    assert [row_id.decode() for row_id in scored.row_ids] == sorted(scored_rows.row_ids(4))
    original = dict(zip(scored_rows.row_ids(4), zip(LABELS, ["x", "é", "x", "y"], strict=True), strict=True))
    base = scored.sample("base", "accuracy")
    assert base.places.tolist() == [0, 1, 2, 3]
    assert not base.columns["prediction"].any()
    got = zip(base.columns["label"].tolist(), scored.slices["town"].tolist(), strict=True)
    assert [*got] == [original[row_id.decode()] for row_id in scored.row_ids]


def test_only_some_places_of_a_sample() -> None:
    sample = read(GOOD, "classification").sample("prefix", "accuracy").only(np.array([1, 3]))
    assert sample.places.tolist() == [1, 3]
    assert all(len(values) == 2 for values in sample.columns.values())


def test_lists_of_counts_become_rows_of_numbers() -> None:
    rows = scored_rows.generation([["a pub"], ["a river"]], {"prefix": ["a pub", None]})
    sample = read(rows, "generation").sample("prefix", "chrf")
    assert sample.columns["chrf_statistics"].shape == (1, 18)
    assert read(rows, "generation").sample("prefix", "loss").columns["nll"].tolist() == [10.0, 10.0]


def test_a_system_that_was_to_be_scored_is_there_without_rows() -> None:
    rows = scored_rows.classification(LABELS, {"prefix": LABELS}, expected=["prefix", "champion"])
    assert {name: len(lines) for name, lines in read(rows, "classification").systems.items()} == {
        "prefix": 4,
        "champion": 0,
    }


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="confidence: no such column; expected for classification"):
        read(GOOD.drop_columns(["confidence"]), "classification")
    with pytest.raises(DataError, match="nll: no such column"):
        read(GOOD, "generation")


@pytest.mark.parametrize("column", ["row_id", "system", "label", "prediction", "confidence", "loss"])
def test_a_null_cell_is_refused(column: str) -> None:
    with pytest.raises(DataError, match=f"{column}: 1 cells are null"):
        read(_changed(column, 1, None), "classification")


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(DataError, match="system: got 'basis'; expected one of prefix, base, champion"):
        read(_changed("system", 6, "basis"), "classification")


def test_a_row_that_is_there_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"row_id: 1 rows are there twice for base"):
        read(_changed("row_id", 6, scored_rows.row_ids(1)[0]), "classification")


def test_a_row_that_the_prefix_was_not_scored_on_is_refused() -> None:
    with pytest.raises(DataError, match="1 rows of base were not scored for the prefix"):
        read(_changed("row_id", 6, "f" * 64), "classification")


def test_systems_that_disagree_on_a_label_are_refused() -> None:
    with pytest.raises(DataError, match="label: 1 rows of base have another label than for the prefix"):
        read(_changed("label", 6, 1), "classification")


def test_rows_without_the_prefix_are_refused() -> None:
    with pytest.raises(DataError, match="no row of the prefix itself"):
        read(GOOD.slice(4), "classification")
    with pytest.raises(DataError, match="no row of the prefix itself"):
        read(schema("classification", [], ["prefix"]).empty_table(), "classification")
