"""Figures of methods and their differences to the prefix, against references written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from pipeline.compare.quality import judged
from pipeline.evaluate.scored import schema
from pipeline.params import EvaluationParams, GateParams

ROWS = 60


def scored(path: Path, right: np.ndarray, loss: np.ndarray) -> Path:
    """Rows whose label is 0, predicted right or not."""
    wanted = schema("classification", (), ["prefix"])
    columns: dict[str, Any] = {
        "row_id": [f"{i:04d}" for i in range(len(right))],
        "system": ["prefix"] * len(right),
        "label": np.zeros(len(right), dtype=np.int32),
        "prediction": np.where(right, 0, 1).astype(np.int32),
        "confidence": np.full(len(right), 0.7),
        "loss": loss,
    }
    pq.write_table(
        pa.Table.from_arrays([pa.array(columns[f.name], type=f.type) for f in wanted], schema=wanted), path
    )
    return path


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[Path]]:
    draw = np.random.default_rng(0)
    return {
        method: [
            scored(tmp_path / f"{method}{seed}.parquet", draw.random(ROWS) < share, draw.random(ROWS) + worse)
            for seed in range(seeds)
        ]
        for method, share, worse, seeds in (("prefix", 0.8, 0.0, 3), ("lora", 0.6, 0.5, 3), ("probe", 0.5, 0.2, 1))
    }  # fmt: skip


def results(rows: dict[str, list[Path]], **gate: Any) -> dict[str, Any]:
    return judged(rows, "classification", EvaluationParams(), GateParams(**gate))


def losses(paths: list[Path]) -> np.ndarray:
    return np.array([pq.read_table(path)["loss"].to_numpy() for path in paths])  # [seeds, rows]


def test_a_difference_is_taken_seed_by_seed_with_students_interval(rows: dict[str, list[Path]]):
    found = results(rows, confidence=0.9)["lora"]["loss"]
    by_seed = losses(rows["prefix"]).mean(axis=1) - losses(rows["lora"]).mean(axis=1)  # lower is better
    difference = found["difference"]
    assert difference["seeds"] == pytest.approx(by_seed)
    assert difference["figure"] == pytest.approx(by_seed.mean())
    expected = scipy.stats.t.interval(0.9, 2, by_seed.mean(), scipy.stats.sem(by_seed))
    assert difference["over_seeds"] == pytest.approx(expected)
    assert found["seeds"] == pytest.approx(losses(rows["lora"]).mean(axis=1))
    # By the table: t(0.95, 2 degrees of freedom) = 2.920.
    half = 2.920 * by_seed.std(ddof=1) / np.sqrt(3)
    assert difference["over_seeds"][1] - difference["figure"] == pytest.approx(half, rel=1e-3)


def test_over_rows_both_methods_and_all_seeds_are_drawn_together(rows: dict[str, list[Path]]):
    difference = results(rows, resamples=20_000)["lora"]["loss"]["difference"]
    each_row = (losses(rows["prefix"]) - losses(rows["lora"])).mean(axis=0)
    # The bootstrap of a mean of rows: normal, with the standard error of the rows' own differences.
    half = 1.96 * each_row.std() / np.sqrt(ROWS)
    low, high = difference["over_rows"]
    assert [low, high] == pytest.approx([each_row.mean() - half, each_row.mean() + half], abs=0.1 * half)


def test_higher_is_better_in_every_difference(rows: dict[str, list[Path]]):
    found = results(rows)["lora"]
    assert found["loss"]["difference"]["figure"] < 0
    assert found["accuracy"]["difference"]["figure"] < 0


def test_a_method_like_the_prefix_differs_from_it_by_nothing(rows: dict[str, list[Path]]):
    found = results({"prefix": rows["prefix"], "lora": rows["prefix"]})["lora"]
    for metric in found.values():
        assert metric["difference"]["figure"] == 0
        assert metric["difference"]["over_rows"] == metric["difference"]["over_seeds"] == [0, 0]


def test_a_method_without_seeds_meets_each_of_the_prefixs(rows: dict[str, list[Path]]):
    found = results(rows)["probe"]["loss"]
    assert found["over_seeds"] is None
    assert found["over_rows"] is not None
    expected = losses(rows["prefix"]).mean(axis=1) - losses(rows["probe"]).mean()
    assert found["difference"]["seeds"] == pytest.approx(expected)


def test_with_one_seed_there_is_no_interval_over_seeds(rows: dict[str, list[Path]]):
    found = results({name: paths[:1] for name, paths in rows.items()})
    assert found["prefix"]["accuracy"]["over_seeds"] is None
    assert found["lora"]["accuracy"]["difference"]["over_seeds"] is None


def test_a_figure_that_is_not_finite_is_none(tmp_path: Path, rows: dict[str, list[Path]]):
    broken = scored(tmp_path / "x.parquet", np.ones(ROWS, bool), np.full(ROWS, np.inf))
    found = results({"prefix": rows["prefix"], "lora": [*rows["lora"][:2], broken]})["lora"]["loss"]
    assert found["figure"] is None
    assert found["difference"]["figure"] is None
    assert found["over_rows"] is found["over_seeds"] is None
