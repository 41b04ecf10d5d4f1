"""Raw data becomes three validated splits, the same every time; anything wrong with it is said before any training."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.data import dataset, staging, tokenised
from pipeline.data.dataset import PreparedSummary, load_prepared, prepare, summarise
from pipeline.data.splits import SPLITS, row_id, split_of
from pipeline.digest import manifest
from pipeline.errors import BaseModelError, DataError, PrefixError
from pipeline.params import DataParams, SplitParams
from tests.tiny import WORDS

WINDOW, PREFIX = 40, 8
THIRDS = SplitParams(train=0.5, validation=0.25, test=0.25)


@pytest.fixture(scope="session")
def encoder_tokenizer(encoder_folder):
    return PreTrainedTokenizerFast.from_pretrained(encoder_folder)


@pytest.fixture(scope="session")
def decoder_tokenizer(decoder_folder):
    return PreTrainedTokenizerFast.from_pretrained(decoder_folder)


def some_rows(count: int = 60, labels: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    texts = {" ".join(draw.choices(WORDS, k=draw.randint(3, 9))): None for _ in range(2 * count)}
    return [{"text": text, "label": labels[n % len(labels)]} for n, text in enumerate(list(texts)[:count])]


def jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def classify(tmp_path, encoder_tokenizer):
    """Prepare rows (or a path) for classification into tmp_path/prepared."""

    def run(
        rows, *, out="prepared", previous=None, prefix_length=PREFIX, window=WINDOW, **params
    ) -> PreparedSummary:
        raw = rows if isinstance(rows, Path) else jsonl(tmp_path / "rows.jsonl", rows)
        return prepare(
            raw,
            DataParams(path="rows.jsonl", **{"splits": THIRDS, **params}),
            "classification",
            tokenizer=encoder_tokenizer,
            window=window,
            prefix_length=prefix_length,
            out=tmp_path / out,
            previous=previous,
        )

    return run


@pytest.fixture
def generate(tmp_path, decoder_tokenizer):
    """Prepare rows for generation into tmp_path/prepared."""

    def run(rows, *, tokenizer=decoder_tokenizer, **params) -> PreparedSummary:
        return prepare(
            rows if isinstance(rows, Path) else jsonl(tmp_path / "rows.jsonl", rows),
            DataParams(path="rows.jsonl", **{"splits": THIRDS, **params}),
            "generation",
            tokenizer=tokenizer,
            window=WINDOW,
            prefix_length=PREFIX,
            out=tmp_path / "prepared",
        )

    return run


def all_rows(folder: Path) -> list[dict]:
    return [{**row, "split": split} for split in SPLITS for row in load_prepared(folder, split)]


def problems(run, rows, **params) -> list[str]:
    """The faults reported, without the folder's name."""
    with pytest.raises(DataError) as error:
        run(rows, **params)
    return [re.sub(r"/\S*/", "", line) for line in error.value.problems]


# -- what comes out ----------------------------------------------------------------------------------------


def test_every_row_arrives_once_in_the_split_of_its_text_with_the_tokenizers_ids(
    classify, tmp_path, encoder_tokenizer
):
    rows = some_rows()
    summary = classify(rows)
    out = all_rows(tmp_path / "prepared")
    assert {(row["text"], summary.labels[row["label"]]) for row in out} == {
        (r["text"], r["label"]) for r in rows
    }
    assert len(out) == len(rows) == sum(summary.rows.values()) == summary.raw_rows
    for row in out:
        assert row["split"] == split_of(row["text"], THIRDS)
        assert row["input_ids"] == encoder_tokenizer(row["text"])["input_ids"]
        assert row["row_id"] == row_id(row["text"], [summary.labels[row["label"]]])
    split = load_prepared(tmp_path / "prepared", "train")
    assert split.column_names == ["row_id", "text", "label", "input_ids"]
    assert split.features["label"].dtype == "int32"
    assert split.features["input_ids"].feature.dtype == "int32"


def test_rows_keep_the_order_of_the_files(classify, tmp_path):
    rows = some_rows()
    classify(rows)
    texts = [row["text"] for row in rows if split_of(row["text"], THIRDS) == "train"]
    assert load_prepared(tmp_path / "prepared", "train")["text"][:] == texts


def test_a_tokenizers_own_truncation_and_padding_are_not_used_and_not_changed(
    classify, tmp_path, encoder_tokenizer
):
    encoder_tokenizer.backend_tokenizer.enable_truncation(3)
    encoder_tokenizer.backend_tokenizer.enable_padding(length=20)
    try:
        classify(some_rows())
        assert encoder_tokenizer.backend_tokenizer.truncation["max_length"] == 3
        assert encoder_tokenizer.backend_tokenizer.padding["length"] == 20
    finally:
        encoder_tokenizer.backend_tokenizer.no_truncation()
        encoder_tokenizer.backend_tokenizer.no_padding()
    for row in all_rows(tmp_path / "prepared"):
        assert row["input_ids"] == encoder_tokenizer(row["text"])["input_ids"]


def test_labels_are_sorted_or_in_the_declared_order(classify):
    rows = some_rows(labels=("dog", "cat", "Eel"))
    assert classify(rows).labels == ("Eel", "cat", "dog")
    assert classify(rows, labels=("dog", "Eel", "cat")).labels == ("dog", "Eel", "cat")


def test_whole_numbers_and_truth_values_are_labels(classify):
    assert classify([{**row, "label": n % 2} for n, row in enumerate(some_rows())]).labels == ("0", "1")
    assert classify([{**row, "label": n % 2 == 0} for n, row in enumerate(some_rows())]).labels == (
        "false",
        "true",
    )


def test_the_three_formats_and_a_folder_give_the_same_rows(classify, tmp_path):
    rows = some_rows()
    csv_lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows)]
    (tmp_path / "a.csv").write_bytes("\r\n".join(csv_lines).encode("utf-8-sig"))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(1, "label", table["label"].dictionary_encode()), tmp_path / "a.parquet")
    jsonl(tmp_path / "folder" / "a.jsonl", rows[:20])
    jsonl(tmp_path / "folder" / "b" / "b.jsonl", rows[20:])
    kinds = [
        jsonl(tmp_path / "a.jsonl", rows),
        *(tmp_path / name for name in ("a.csv", "a.parquet", "folder")),
    ]
    summaries = [classify(path, out=f"out{n}") for n, path in enumerate(kinds)]
    assert len({summary.row_ids for summary in summaries}) == 1
    for split in SPLITS:
        name = f"{split}/data-00000-of-00001.arrow"
        assert len({summary.manifest[name] for summary in summaries}) == 1


def test_preparing_twice_gives_the_same_bytes(classify, tmp_path):
    rows = some_rows()
    one = classify(rows, slices=("label",))
    other = classify(rows, slices=("label",), out="elsewhere/other")
    assert one == other
    assert dict(one.manifest) == manifest(tmp_path / "prepared") == manifest(tmp_path / "elsewhere" / "other")
    assert {"card.json", "card.html", "row_ids", "train/state.json"} < set(one.manifest)


def test_batches_of_any_size_give_the_same_rows(classify, generate, monkeypatch, tmp_path):
    rows = some_rows()
    references = [
        {"source": row["text"], "target": f"{n} red"} for row in rows for n in ("one", "two", "one")
    ]
    references = references[::2] + references[1::2]
    found = []
    for batch in (4096, 7):
        monkeypatch.setattr(staging, "BATCH_ROWS", batch)
        monkeypatch.setattr(staging, "BATCH_CHARACTERS", 1000 * batch)
        monkeypatch.setattr(tokenised, "CHUNK_EXAMPLES", batch)
        monkeypatch.setattr(tokenised, "CHUNK_CHARACTERS", 13 * batch)
        for run, content in ((classify, rows), (generate, references)):
            run(content)
            found.append((all_rows(tmp_path / "prepared"), (tmp_path / "prepared/card.json").read_text()))
    assert found[:2] == found[2:]


def test_nothing_but_the_prepared_folder_is_left(classify, tmp_path):
    classify(some_rows())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "rows.jsonl"]


def test_a_refusal_leaves_the_folder_as_it_was(classify, tmp_path):
    before = classify(some_rows())
    problems(classify, [*some_rows(), {"text": "", "label": "cat"}])
    assert manifest(tmp_path / "prepared") == dict(before.manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "rows.jsonl"]


def test_a_full_disk_leaves_the_folder_as_it_was(classify, tmp_path, monkeypatch):
    before = classify(some_rows())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        classify(some_rows(80))
    assert manifest(tmp_path / "prepared") == dict(before.manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared", "rows.jsonl"]


def test_a_summary_survives_json(classify, generate):
    references = [{"source": row["text"], "target": "red"} for row in some_rows()]
    for summary in (classify(some_rows()), generate(references)):
        assert PreparedSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_slices_become_text_columns(classify, tmp_path):
    rows = [
        {**row, "lang": "en" if n % 3 else "de", "year": 2000 + n % 2} for n, row in enumerate(some_rows())
    ]
    classify(rows, slices=("lang", "year"))
    expected = {row["text"]: (row["lang"], str(row["year"])) for row in rows}
    out = all_rows(tmp_path / "prepared")
    assert {row["text"]: (row["slice.lang"], row["slice.year"]) for row in out} == expected


# -- duplicates and conflicts ------------------------------------------------------------------------------


def test_exact_duplicates_are_dropped_and_counted(classify, tmp_path):
    rows = some_rows()
    summary = classify([*rows, rows[3], rows[3], rows[7]])
    assert summary.duplicates_dropped == 3
    assert sum(summary.rows.values()) == len(rows)
    assert summary.raw_rows == len(rows) + 3
    assert len({row["row_id"] for row in all_rows(tmp_path / "prepared")}) == len(rows)


def test_near_duplicates_are_kept_and_share_a_split(classify, tmp_path):
    rows = some_rows()
    summary = classify([*rows, *({**row, "text": f" {row['text'].upper()}  "} for row in rows)])
    assert summary.duplicates_dropped == 0
    out = all_rows(tmp_path / "prepared")
    splits: dict[str, set[str]] = {}
    for row in out:
        splits.setdefault(row["text"].strip().lower(), set()).add(row["split"])
    assert len(out) == 2 * len(rows)
    assert all(len(found) == 1 for found in splits.values())
    assert json.loads((tmp_path / "prepared/card.json").read_text())["duplicates"]["near"] == len(rows)


def test_texts_with_several_labels_are_kept_counted_and_shown(classify, tmp_path):
    rows = some_rows()
    first, second = rows[2]["text"], rows[5]["text"]
    other = {"cat": "dog", "dog": "cat"}
    summary = classify(
        [
            *rows,
            {"text": first.upper(), "label": other[rows[2]["label"]]},
            {**rows[5], "label": other[rows[5]["label"]]},
        ]
    )
    assert summary.conflicting_labels == 2
    assert sum(summary.rows.values()) == len(rows) + 2
    assert json.loads((tmp_path / "prepared/card.json").read_text())["conflicting_labels"] == {
        "texts": 2,
        "rows": 4,
        "examples": [{"text": first, "labels": ["cat", "dog"]}, {"text": second, "labels": ["cat", "dog"]}],
    }


def test_a_duplicate_under_another_slice_is_counted_and_the_first_row_stands(classify, tmp_path):
    rows = [{**row, "lang": "en"} for row in some_rows()]
    classify([*rows, {**rows[0], "lang": "de"}], slices=("lang",))
    card = json.loads((tmp_path / "prepared/card.json").read_text())
    assert card["duplicates"]["slice_disagreements"] == 1
    assert {row["slice.lang"] for row in all_rows(tmp_path / "prepared")} == {"en"}


# -- generation --------------------------------------------------------------------------------------------


def test_rows_with_an_equal_source_are_one_example_with_all_of_their_targets(
    generate, tmp_path, decoder_tokenizer
):
    sources = [row["text"] for row in some_rows()]
    rows = [{"source": source, "target": "the cat"} for source in sources]
    rows += [{"source": source, "target": ["a dog", "the cat", "two"]} for source in sources[::2]]
    summary = generate(rows)
    out = all_rows(tmp_path / "prepared")
    assert len(out) == len(sources) == sum(summary.rows.values())
    assert summary.duplicates_dropped == len(sources[::2])
    assert summary.labels is None
    eos = decoder_tokenizer.eos_token_id
    for row in out:
        targets = ["the cat", "a dog", "two"] if row["source"] in sources[::2] else ["the cat"]
        assert row["targets"] == targets
        assert row["target_ids"] == [[*decoder_tokenizer(target)["input_ids"], eos] for target in targets]
        assert row["input_ids"] == decoder_tokenizer(f"{row['source']}\n")["input_ids"]
        assert row["row_id"] == row_id(row["source"], targets)
        assert row["split"] == split_of(row["source"], THIRDS)
    split = load_prepared(tmp_path / "prepared", "train")
    assert split.column_names == ["row_id", "source", "targets", "input_ids", "target_ids"]


def test_the_prompt_begins_with_bos_where_the_tokenizer_adds_one(generate, tmp_path, decoder_folder):
    from tokenizers import processors

    tokenizer = PreTrainedTokenizerFast.from_pretrained(decoder_folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    generate([{"source": row["text"], "target": "the cat"} for row in some_rows()], tokenizer=tokenizer)
    for row in all_rows(tmp_path / "prepared"):
        plain = tokenizer(f"{row['source']}\n", add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == [2, *plain]
        assert row["target_ids"] == [[*tokenizer("the cat", add_special_tokens=False)["input_ids"], 3]]


def test_targets_come_as_lists_from_parquet(generate, tmp_path):
    rows = [{"source": row["text"], "target": ["the cat", "a dog"]} for row in some_rows()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert generate(tmp_path / "a.parquet").row_ids == generate(rows).row_ids


def test_a_tokenizer_without_end_of_sequence_cannot_generate(generate, decoder_folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(decoder_folder, eos_token=None)
    tokenizer.eos_token = None
    with pytest.raises(BaseModelError, match="no end-of-sequence token"):
        generate([{"source": row["text"], "target": "red"} for row in some_rows()], tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ([], "got an empty list; expected a text or texts"),
        (["the", None], "got null; expected text"),
        ("", "got an empty text; expected text"),
        (["the", " "], "got only white space; expected text"),
        ([["the"]], 'got list ["the"]; expected text'),
        (7, "got whole number 7; expected text"),
        (None, "got null; expected text"),
    ],
)
def test_a_target_that_is_no_text_is_named(generate, cell, expected):
    rows = [{"source": row["text"], "target": "red"} for row in some_rows()]
    rows[4]["target"] = cell
    assert problems(generate, rows) == [f'rows.jsonl:5: column "target": {expected}']


# -- rows that are too long --------------------------------------------------------------------------------

LONG = " ".join(["red"] * 31)


def test_a_text_that_just_fits_beside_the_prefix_is_kept(classify, tmp_path):
    rows = [*some_rows(), {"text": " ".join(["red"] * (WINDOW - PREFIX - 2)), "label": "cat"}]
    assert classify(rows).max_tokens == WINDOW - PREFIX
    assert max(len(row["input_ids"]) for row in all_rows(tmp_path / "prepared")) == WINDOW - PREFIX


def test_a_text_longer_than_the_window_less_the_prefix_is_named(classify):
    rows = [*some_rows(), {"text": LONG, "label": "cat"}]
    (problem,) = problems(classify, rows)
    assert problem == (
        "rows.jsonl:61: the text is 33 tokens long; expected at most 32 (the base's window of 40 less the prefix's 8):"
        " shorten it, or set data.too_long to truncate or drop"
    )


def test_a_text_longer_than_max_tokens_is_named(classify):
    (problem,) = problems(classify, [*some_rows(), {"text": LONG, "label": "cat"}], max_tokens=20)
    assert "is 33 tokens long; expected at most 20 (data.max_tokens)" in problem


def test_too_long_texts_are_dropped_if_wished_and_counted(classify, tmp_path):
    summary = classify([*some_rows(), {"text": LONG, "label": "cat"}], too_long="drop")
    assert summary.too_long_dropped == 1
    assert sum(summary.rows.values()) == 60
    assert LONG not in {row["text"] for row in all_rows(tmp_path / "prepared")}
    assert (tmp_path / "prepared/row_ids").stat().st_size == 60 * 16


def test_too_long_texts_are_shortened_if_wished_with_their_special_tokens(
    classify, tmp_path, encoder_tokenizer
):
    summary = classify([*some_rows(), {"text": LONG, "label": "cat"}], too_long="truncate")
    assert summary.truncated == 1
    (row,) = [row for row in all_rows(tmp_path / "prepared") if row["text"] == LONG]
    assert row["input_ids"] == encoder_tokenizer(LONG, truncation=True, max_length=32)["input_ids"]


def test_classes_are_checked_again_after_dropping(classify):
    rows = [*some_rows(), {"text": LONG, "label": "eel"}, {"text": "the eel", "label": "eel"}]
    (problem,) = problems(classify, rows, too_long="drop")
    assert problem.startswith('rows.jsonl: class "eel" has one row')


def test_a_source_with_a_target_that_does_not_fit_behind_it_is_named(generate):
    rows = [{"source": row["text"], "target": "red"} for row in some_rows()]
    rows[9] = {"source": "the dog", "target": ["red", LONG]}
    (problem,) = problems(generate, rows)
    assert problem.startswith(
        "rows.jsonl:10: the source with its longest target is 34 tokens long; expected at most 32"
    )


@pytest.mark.parametrize(("source_words", "target_words"), [(40, 5), (5, 40), (40, 40), (15, 16)])
def test_shortened_sources_and_targets_fit_and_keep_newline_and_eos(
    generate, tmp_path, decoder_tokenizer, source_words, target_words
):
    source, target = " ".join(["red"] * source_words + ["\n"]), " ".join(["dog"] * target_words)
    rows = [{"source": row["text"], "target": "red"} for row in some_rows()]
    assert (
        generate([*rows, {"source": source, "target": [target, "cat"]}], too_long="truncate").truncated == 1
    )
    (row,) = [row for row in all_rows(tmp_path / "prepared") if row["source"] == source]
    long, short = row["target_ids"]
    assert len(row["input_ids"]) + len(long) <= 32
    assert long[-1] == short[-1] == decoder_tokenizer.eos_token_id
    red, dog = (decoder_tokenizer(word)["input_ids"][0] for word in ("red", "dog"))
    assert set(row["input_ids"][:-1]) == {red}
    assert set(long[:-1]) == {dog}
    assert min(len(row["input_ids"]), len(long)) >= min(source_words, target_words, 15)
    assert row["targets"] == [target, "cat"]


def test_a_prefix_that_fills_the_window_is_refused_before_anything_is_read(classify, tmp_path):
    with pytest.raises(
        PrefixError, match=r"a prefix of 38 in a window of 40 leaves 2 tokens, of which 2 are special"
    ):
        classify(tmp_path / "not there", prefix_length=38)


# -- bad input ---------------------------------------------------------------------------------------------

BAD_CELLS = {
    "null text": ({"text": None, "label": "cat"}, 'column "text": got null; expected text'),
    "NaN text": ('{"text": NaN, "label": "cat"}', 'column "text": got NaN; expected text'),
    "number text": ({"text": 3.5, "label": "cat"}, 'column "text": got number 3.5; expected text'),
    "list text": ({"text": ["a"], "label": "cat"}, 'column "text": got list ["a"]; expected text'),
    "empty text": ({"text": "", "label": "cat"}, 'column "text": got an empty text; expected text'),
    "white space": (
        {"text": " \t\u00a0", "label": "cat"},
        'column "text": got only white space; expected text',
    ),
    "NUL": ({"text": "a\0b", "label": "cat"}, 'column "text": got a NUL character; expected text'),
    "NUL among others": (
        {"text": "é\0b", "label": "cat"},
        'column "text": got a NUL character; expected text',
    ),
    "surrogate": (
        {"text": "ab\ud800", "label": "cat"},
        'column "text": got half of a surrogate pair at character 3',
    ),
    "null label": ({"text": "a", "label": None}, 'column "label": got null; expected text or a whole number'),
    "NaN label": ('{"text": "a", "label": NaN}', 'column "label": got NaN; expected text or a whole number'),
    "spelt NaN label": (
        {"text": "a", "label": "nan"},
        'column "label": got "nan", a missing number; expected a label',
    ),
    "empty label": ({"text": "a", "label": ""}, 'column "label": got an empty text'),
    "fraction label": (
        {"text": "a", "label": 1.0},
        'column "label": got number 1.0; expected text or a whole number',
    ),
    "object label": (
        {"text": "a", "label": {}},
        'column "label": got object {}; expected text or a whole number',
    ),
    "mixed labels": ({"text": "a", "label": 3}, 'column "label": got whole number 3; expected text, as in '),
    "truth among texts": (
        {"text": "a", "label": True},
        'column "label": got true/false true; expected text, as in ',
    ),
    "no tokens": ({"text": "\u0001", "label": "cat"}, "the text has no tokens"),
}


@pytest.mark.parametrize("kind", BAD_CELLS)
def test_a_bad_cell_is_named_with_file_and_line(classify, kind):
    bad, expected = BAD_CELLS[kind]
    rows: list = some_rows()
    rows.insert(6, bad)
    (problem,) = problems(classify, rows)
    assert problem.startswith(f"rows.jsonl:7: {expected}")


def test_mixed_types_name_the_row_that_set_the_type(classify):
    rows = [*some_rows(), {"text": "a", "label": 3}]
    with pytest.raises(
        DataError, match=r"rows.jsonl:61: .* got whole number 3; expected text, as in .*rows.jsonl:1$"
    ):
        classify(rows)


def test_an_empty_csv_cell_is_no_label(classify, tmp_path):
    lines = [f"{row['text']},{row['label']}" for row in some_rows()]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label", *lines, "the cat,"]))
    assert problems(classify, path) == ['a.csv:62: column "label": got an empty text; expected text']


def test_missing_values_in_parquet_are_named_by_row(classify, tmp_path):
    rows = [*some_rows(), {"text": None, "label": "cat"}, {"text": "red", "label": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert problems(classify, tmp_path / "a.parquet") == [
        'a.parquet:61: column "text": got null; expected text',
        'a.parquet:62: column "label": got null; expected text or a whole number',
    ]


def test_a_parquet_label_column_that_pandas_turned_to_floats_is_refused(classify, tmp_path):
    rows = some_rows()
    table = pa.table({"text": [row["text"] for row in rows], "label": np.array([1.0, np.nan] * 30)})
    pq.write_table(table, tmp_path / "a.parquet")
    found = problems(classify, tmp_path / "a.parquet")
    assert found[:2] == [
        'a.parquet:1: column "label": got number 1.0; expected text or a whole number',
        'a.parquet:2: column "label": got NaN; expected text or a whole number',
    ]


def test_a_label_outside_the_declared_set_is_named(classify):
    rows = [*some_rows(), {"text": "the cat", "label": "cta"}]
    assert problems(classify, rows, labels=("cat", "dog")) == [
        'rows.jsonl:61: column "label": got "cta"; expected one of data.labels: "cat", "dog"'
    ]


def test_a_label_that_looks_like_a_missing_number_can_be_declared(classify):
    rows = [{**row, "label": "nan" if row["label"] == "cat" else "rice"} for row in some_rows()]
    assert classify(rows, labels=("nan", "rice")).labels == ("nan", "rice")


def test_a_declared_class_without_rows_is_refused(classify):
    (problem,) = problems(classify, some_rows(), labels=("cat", "dog", "eel"))
    assert problem.startswith('rows.jsonl: class "eel" is in data.labels and has no rows')


def test_a_class_with_one_row_is_refused(classify):
    (problem,) = problems(classify, [*some_rows(), {"text": "the eel", "label": "eel"}])
    assert problem.startswith('rows.jsonl: class "eel" has one row; expected at least 2')


def test_a_class_seen_only_in_test_is_refused(classify):
    unseen = [row["text"] for row in some_rows(400, seed=1) if split_of(row["text"], THIRDS) == "test"]
    rows = [*some_rows(), *({"text": text, "label": "eel"} for text in unseen[:3])]
    (problem,) = problems(classify, rows)
    assert problem.startswith(
        'rows.jsonl: class "eel" has rows only outside train (3 in test); expected some'
    )


def test_one_class_is_no_classification(classify):
    (problem,) = problems(classify, some_rows(labels=("cat",)))
    assert problem == 'rows.jsonl: got 1 class ("cat"); expected at least 2'


def test_an_empty_split_is_refused(classify):
    texts = [row["text"] for row in some_rows(400) if split_of(row["text"], THIRDS) != "validation"]
    rows = [{"text": text, "label": "cat" if n % 2 else "dog"} for n, text in enumerate(texts)]
    (problem,) = problems(classify, rows)
    assert problem.startswith(f"rows.jsonl: no rows fall into validation (of {len(rows)})")


def test_an_unknown_slice_column_lists_the_columns_there_are(classify):
    found = problems(classify, some_rows(), slices=("lang",))
    assert found[0] == 'rows.jsonl:1: no column "lang"; columns there are: "text", "label"'


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, "got null"),
        (1.5, "got number 1.5"),
        ([], "got list []"),
        (3, "got whole number 3; expected text, as in"),
    ],
)
def test_a_bad_slice_cell_is_named(classify, cell, expected):
    rows = [{**row, "lang": "en"} for row in some_rows()]
    rows[3]["lang"] = cell
    (problem,) = problems(classify, rows, slices=("lang",))
    assert problem.startswith(f'rows.jsonl:4: slice column "lang": {expected}')


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.jsonl", "\n \n")])
def test_a_file_without_rows_is_refused(classify, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert problems(classify, tmp_path / name) == [f"{name}: has no rows; expected at least one"]


def test_a_parquet_file_without_rows_is_refused(classify, tmp_path):
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        tmp_path / "a.parquet",
    )
    assert problems(classify, tmp_path / "a.parquet") == ["a.parquet: has no rows; expected at least one"]


def test_faults_of_many_kinds_and_files_are_reported_at_once(classify, tmp_path):
    folder = tmp_path / "rows"
    jsonl(folder / "a.jsonl", [*some_rows(), "{", {"text": "", "label": None}])
    jsonl(folder / "b.jsonl", ["[]", {"text": "x", "label": "cat"}])
    found = problems(classify, folder)
    assert [line.split(": ")[0] for line in found] == ["a.jsonl:61", "a.jsonl:62", "a.jsonl:62", "b.jsonl:1"]


# -- the version before ------------------------------------------------------------------------------------


def test_the_card_says_what_changed_since_the_version_before(classify, tmp_path):
    rows = some_rows()
    before = classify(rows, out="before")
    assert json.loads((tmp_path / "before/card.json").read_text())["changes"] is None
    grown = [*rows[5:], *({"text": f"{text} eel", "label": "eel"} for text in WORDS)]
    classify(grown, previous=tmp_path / "before")
    changes = json.loads((tmp_path / "prepared/card.json").read_text())["changes"]
    assert (changes["kept"], changes["added"], changes["removed"]) == (55, len(WORDS), 5)
    assert sum(changes["added_by_split"].values()) == len(WORDS)
    assert changes["previous"] == {"row_ids": before.row_ids, "rows": 60}
    assert (changes["labels_added"], changes["labels_removed"]) == (["eel"], [])


def test_row_ids_alone_are_enough_to_compare_with(classify, tmp_path):
    classify(some_rows(), out="before")
    (tmp_path / "ids").mkdir()
    (tmp_path / "before/row_ids").rename(tmp_path / "ids/row_ids")
    classify(some_rows()[1:], previous=tmp_path / "ids")
    changes = json.loads((tmp_path / "prepared/card.json").read_text())["changes"]
    assert (changes["kept"], changes["added"], changes["removed"]) == (59, 0, 1)


def test_a_version_before_without_whole_row_ids_is_refused(classify, tmp_path):
    assert problems(classify, some_rows(), previous=tmp_path) == [
        "row_ids: no such file; expected the row ids of the version before"
    ]
    (tmp_path / "row_ids").write_bytes(b"x" * 17)
    (problem,) = problems(classify, some_rows(), previous=tmp_path)
    assert problem.startswith("row_ids: got 17 bytes; expected a multiple of 16")


def test_growing_data_never_moves_a_row(classify, tmp_path):
    rows = some_rows(120)
    classify(rows[:60], out="small")
    classify([*rows[60:], *rows[:60]], out="large")
    before = {row["row_id"]: row["split"] for row in all_rows(tmp_path / "small")}
    after = {row["row_id"]: row["split"] for row in all_rows(tmp_path / "large")}
    assert before.items() <= after.items()
    assert len(after) == 120


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_normalised_text_is_in_two_splits(classify, tmp_path, data):
    base = some_rows()
    spelling = st.sampled_from(
        [str.upper, str.title, lambda text: f"{text} ", lambda text: text.replace(" ", "\t")]
    )
    copies = [{**row, "text": data.draw(spelling)(row["text"])} for row in base]
    classify([*base, *copies])
    homes: dict[str, set[str]] = {}
    for row in all_rows(tmp_path / "prepared"):
        homes.setdefault(" ".join(row["text"].lower().split()), set()).add(row["split"])
    assert all(len(found) == 1 for found in homes.values())


# -- the rest ----------------------------------------------------------------------------------------------


def test_summarise_gives_the_card_and_leaves_only_its_page(tmp_path, encoder_tokenizer, classify):
    classify(some_rows())
    raw = jsonl(tmp_path / "only" / "rows.jsonl", some_rows())
    data = DataParams(path="rows.jsonl", splits=THIRDS)
    arguments = {"tokenizer": encoder_tokenizer, "window": WINDOW, "prefix_length": PREFIX}
    card = summarise(raw, data, "classification", page=tmp_path / "pages" / "card.html", **arguments)
    assert card == json.loads((tmp_path / "prepared/card.json").read_text())
    assert (tmp_path / "pages/card.html").read_bytes() == (tmp_path / "prepared/card.html").read_bytes()
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["rows.jsonl"]


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="train: not there or incomplete; expected a prepared split"):
        load_prepared(tmp_path, "train")


def test_long_work_is_shown_on_stderr_and_short_work_is_not(classify, monkeypatch, capfd):
    classify(some_rows())
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("pipeline.data.row_progress.DELAY_SECONDS", 0.0)
    classify(some_rows())
    out, err = capfd.readouterr()
    assert out == ""
    assert "Checking rows.jsonl" in err
    assert "Tokenising rows.jsonl" in err
