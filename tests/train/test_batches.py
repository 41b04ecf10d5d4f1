from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import PrefixError
from pipeline.train.batches import (
    ClassificationRows,
    GenerationRows,
    Ragged,
    SourceTargetRows,
    epoch_steps,
    validation_batches,
)
from tests.prefix.models import decoder


def rows_of(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_a_ragged_column_reads_as_arrow_itself_does_over_chunks_slices_and_nesting() -> None:
    plain = pa.chunked_array([[[1, 2], [], [3]], [], [[4, 5, 6]]], pa.list_(pa.int32())).slice(1)
    nested = pa.chunked_array(
        [[[[1, 2], [3]], [[4]]], [[[5], [6, 7, 8], [9]]]], pa.list_(pa.list_(pa.int32()))
    )
    for column, depth in ((plain, 1), (nested.slice(1), 2), (nested, 2)):
        ragged = Ragged(column)
        expected = column.to_pylist()
        read = [ragged[i] for i in range(len(ragged))]
        assert [x.tolist() if depth == 1 else [y.tolist() for y in x] for x in read] == expected
        assert ragged.lengths().tolist() == [len(x) for x in expected]
        if depth == 2:
            assert ragged.longest_inside().tolist() == [max(map(len, x)) for x in expected]
    empty = pa.chunked_array([[[], [[1, 2, 3], [4]], []], [[[5, 6]], []]], pa.list_(pa.list_(pa.int32())))
    assert Ragged(empty).longest_inside().tolist() == [0, 3, 0, 2, 0]
    assert Ragged(empty.slice(0, 1)).longest_inside().tolist() == [0]


def test_what_lies_behind_a_selection_does_not_count() -> None:
    columns = {"input_ids": [[1, 2], [3], [4]], "target_ids": [[[5]], [[6, 7]], [[8] * 50]]}
    rows = GenerationRows(rows_of(**columns).select(range(2)), pad=0)
    assert rows.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("examples", [1, 7, 64, 1000])
def test_an_epoch_sees_every_example_once_in_steps_of_the_batch_size(examples: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, examples)
    steps = epoch_steps(lengths, 8, seed=3, epoch=2)
    assert sorted(np.concatenate(steps).tolist()) == list(range(examples))
    assert sorted(map(len, steps), reverse=True)[: examples // 8] == [8] * (examples // 8)
    assert len(steps) == -(-examples // 8)


def test_the_steps_follow_from_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [step.tolist() for step in epoch_steps(lengths, 8, seed=seed, epoch=epoch)]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)


def test_grouping_by_length_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 4000)

    def padding(steps: list[Any]) -> float:
        return 1 - lengths.sum() / sum(lengths[step].max() * len(step) for step in steps)

    shuffled = np.random.default_rng(1).permutation(4000).reshape(-1, 16)
    assert padding(list(shuffled)) > 0.4
    assert padding(epoch_steps(lengths, 16, seed=0, epoch=0)) < 0.06


def test_a_classification_batch_is_padded_on_the_right_and_keeps_labels_with_rows() -> None:
    rows = ClassificationRows(rows_of(input_ids=[[5, 6, 7], [8], [9, 10]], label=[2, 0, 1]), pad=99)
    (batch,) = rows.batches(np.array([0, 1, 2]), 1)
    assert batch.input_ids.tolist() == [[8, 99, 99], [9, 10, 99], [5, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [0, 1, 2]
    assert batch.positions is None
    assert [b.targets.tolist() for b in rows.batches(np.array([0, 1, 2]), 2)] == [[0, 1], [2]]
    assert len(rows.batches(np.array([0, 1]), 5)) == 2


def test_a_generation_batch_has_a_row_per_reference_and_points_at_the_targets() -> None:
    rows = GenerationRows(rows_of(input_ids=[[1, 2], [3]], target_ids=[[[4, 5], [6, 7, 8]], [[9]]]), pad=0)
    assert rows.lengths.tolist() == [4, 1]
    (batch,) = rows.batches(np.array([0, 1]), 1)
    assert batch.input_ids.tolist() == [[3, 0, 0, 0], [1, 2, 4, 0], [1, 2, 6, 7]]
    assert batch.targets.tolist() == [9, 4, 5, 6, 7, 8]
    assert batch.positions is not None
    # the token before each target, as row × width + column
    assert batch.positions.tolist() == [0, 5, 6, 9, 10, 11]
    assert [len(b.targets) for b in rows.batches(np.array([0, 1]), 3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "rows_for",
    [
        partial(GenerationRows, pad=0, model=decoder()),
        partial(GenerationRows, pad=0),
        partial(SourceTargetRows, pad=0, start=2),
    ],
    ids=["packed", "padded", "encoder-decoder"],
)
@pytest.mark.parametrize(
    ("source", "references", "counts"),
    [
        ([1, 2], [[4, 5], []], r"2 tokens and references of \[.*0.*\]"),
        ([], [[4]], r"0 tokens and references of \[1\]"),
        ([1, 2], [], r"2 tokens and references of \[\]"),
    ],
)
def test_a_source_or_target_without_tokens_is_refused(
    rows_for: Any, source: list[int], references: list[list[int]], counts: str
) -> None:
    columns = {"input_ids": [source, [3]], "target_ids": [references, [[9]]]}
    typed = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int64")),
            "target_ids": datasets.List(datasets.List(datasets.Value("int64"))),
        }
    )
    rows = rows_for(datasets.Dataset.from_dict(columns, features=typed))
    with pytest.raises(PrefixError, match=f"got a source of {counts}; expected"):
        rows.batches(np.array([0, 1]), 1)


def test_a_validation_sees_every_example_once_shortest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 150).tolist()
    rows = ClassificationRows(rows_of(input_ids=[[1] * n for n in lengths], label=list(range(150))), pad=0)
    batches = list(validation_batches(rows))
    assert [len(batch.targets) for batch in batches] == [64, 64, 22]
    assert sorted(torch.cat([batch.targets for batch in batches]).tolist()) == list(range(150))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths)


def test_rows_are_read_from_the_mapped_file_without_a_copy(tmp_path: Path) -> None:
    rows_of(input_ids=[[1, 2, 3]] * 50_000, label=[0] * 50_000).save_to_disk(str(tmp_path / "rows"))
    saved = datasets.load_from_disk(str(tmp_path / "rows"))
    before = pa.total_allocated_bytes()
    rows = ClassificationRows(saved, pad=0)
    assert (
        pa.total_allocated_bytes() - before <= 50_000 * 8
    )  # the labels; the tokens would be three times that
    assert not rows._input_ids[40_000].flags.owndata
