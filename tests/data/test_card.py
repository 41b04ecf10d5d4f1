"""The card's figures equal those counted by hand, and its page is self-contained, safe and complete."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.card import CARD, PAGE, TEXT_SHOWN
from pipeline.data.card_page import render
from pipeline.data.dataset import load_prepared, prepare
from pipeline.data.splits import SPLITS
from pipeline.params import DataParams, SplitParams

ROWS = 90


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def classified(tmp_path_factory, encoder_folder):
    folder = tmp_path_factory.mktemp("classified")
    rows = [
        {
            "text": " ".join(["red"] * (1 + n % 9)) + f" cat {n}",
            "label": "abc"[n % 3],
            "lang": "de" if n % 5 else "<b>",
        }
        for n in range(ROWS)
    ]
    rows += [
        rows[0],
        {**rows[1], "label": "c"},
        {"text": "<script>alert(1)</script> &amp;", "label": "a", "lang": "de"},
    ]
    rows += [{"text": "x" * 400, "label": "b", "lang": "de"}] * 2
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder_folder)
    prepare(
        write(folder / "rows.jsonl", rows),
        DataParams(
            path="rows.jsonl", slices=("lang",), splits=SplitParams(train=0.5, validation=0.25, test=0.25)
        ),
        "classification",
        tokenizer=tokenizer,
        window=64,
        prefix_length=10,
        out=folder / "prepared",
    )
    return folder / "prepared"


@pytest.fixture(scope="module")
def generated(tmp_path_factory, decoder_folder):
    folder = tmp_path_factory.mktemp("generated")
    targets = [" ".join(["red"] * length) for length in range(1, 12)]
    rows = [{"source": f"the cat {n}", "target": targets[: (1, 2, 11)[n % 3]]} for n in range(ROWS)]
    prepare(
        write(folder / "rows.jsonl", rows),
        DataParams(path="rows.jsonl", max_tokens=30),
        "generation",
        tokenizer=PreTrainedTokenizerFast.from_pretrained(decoder_folder),
        window=64,
        prefix_length=10,
        out=folder / "prepared",
    )
    return folder / "prepared"


def card_of(folder):
    return json.loads((folder / CARD).read_text(encoding="utf-8"))


def test_counts_per_class_split_and_slice_are_those_of_the_rows(classified):
    card = card_of(classified)
    assert card["labels"] == ["a", "b", "c"]
    slices = {row["value"]: row for row in card["slices"]["lang"]["shown"]}
    for split in SPLITS:
        rows = load_prepared(classified, split)
        assert card["rows"][split] == len(rows)
        labels = Counter(card["labels"][label] for label in rows["label"])
        assert {label: card["classes"][label][split] for label in card["labels"]} == {
            label: labels[label] for label in card["labels"]
        }
        langs = Counter(rows["slice.lang"])
        assert {value: row[split] for value, row in slices.items()} == {
            value: langs[value] for value in slices
        }
    assert card["duplicates"] == {"dropped": 2, "near": 0, "slice_disagreements": 0}
    assert card["raw"]["rows"] == ROWS + 5
    assert card["raw"]["files"]["rows.jsonl"]["rows"] == ROWS + 5


@pytest.mark.parametrize("kind", ["classified", "generated"])
def test_lengths_are_those_of_the_token_ids(kind, request):
    folder = request.getfixturevalue(kind)
    tokens = card_of(folder)["tokens"]
    for split in SPLITS:
        rows = load_prepared(folder, split)
        lengths = {"input": [len(ids) for ids in rows["input_ids"]]}
        if kind == "generated":
            lengths["target"] = [len(ids) for group in rows["target_ids"] for ids in group]
        for key, found in lengths.items():
            quantiles = tokens[key]["quantiles"][split]
            ordered = sorted(found)
            assert (quantiles["min"], quantiles["max"]) == (ordered[0], ordered[-1])
            assert quantiles["median"] == ordered[(len(ordered) - 1) // 2]
            assert quantiles["mean"] == pytest.approx(sum(found) / len(found), abs=0.006)
            edges = tokens[key]["histogram"]["edges"]
            counted = [sum(a <= n < b for n in found) for a, b in itertools.pairwise(edges)]
            assert tokens[key]["histogram"][split] == counted
            assert sum(counted) == len(found)
    assert tokens["limit"] == (54 if kind == "classified" else 30)


def test_references_are_counted_per_source(generated):
    card = card_of(generated)
    assert card["references"] == {
        "total": 14 * ROWS // 3,
        "mean": 4.667,
        "max": 11,
        "sources": {"1": ROWS // 3, "2": ROWS // 3, "11": ROWS // 3},
    }
    assert card["labels"] is card["classes"] is card["conflicting_labels"] is None


def test_conflicts_are_shown_with_all_of_their_labels(classified):
    assert card_of(classified)["conflicting_labels"] == {
        "texts": 1,
        "rows": 2,
        "examples": [{"text": "red red cat 1", "labels": ["b", "c"]}],
    }


def test_examples_are_rows_of_their_split_and_cut_short(classified, generated):
    for folder, column in ((classified, "text"), (generated, "source")):
        card = card_of(folder)
        for split in SPLITS:
            rows = {row["row_id"]: row for row in load_prepared(folder, split)}
            assert len(card["examples"][split]) == 4
            for shown in card["examples"][split]:
                assert rows[shown["row_id"]][column].startswith(shown[column].rstrip("…"))
                assert len(shown[column]) <= TEXT_SHOWN


def test_nothing_in_the_prepared_folder_names_where_it_was_made(classified, generated):
    for folder in (classified, generated):
        for path in folder.rglob("*"):
            if path.is_file():
                assert str(folder.parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", ["classified", "generated"])
def test_the_page_follows_from_the_card_file_alone(kind, request):
    folder = request.getfixturevalue(kind)
    assert render(card_of(folder)) == (folder / PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["classified", "generated"])
def test_the_page_loads_nothing_from_elsewhere(kind, request):
    page = (request.getfixturevalue(kind) / PAGE).read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(?!#)([^\"]*)\"", page) == ["data:,"]
    assert "@import" not in page
    assert "url(" not in page


def test_data_cannot_become_markup(classified):
    page = (classified / PAGE).read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "alert(1)</script>" not in page


def test_the_page_says_every_figure_of_the_card(classified):
    card, page = card_of(classified), (classified / PAGE).read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", " ", page)
    assert card["row_ids"] in plain
    assert card["raw"]["files"]["rows.jsonl"]["sha256"] in plain
    for label in card["labels"]:
        cells = [str(card["classes"][label][split]) for split in SPLITS]
        assert re.search(rf"\b{label}\s+" + r"\s+".join(cells), plain)
    assert "red red cat 1" in plain
    bars = re.findall(r"<rect [^>]*><title>([^<]*): ([\d,]+)</title>", page)
    assert sum(int(count.replace(",", "")) for _, count in bars) == sum(card["rows"].values())


def test_the_limit_is_drawn_where_lengths_reach_it(classified):
    card = card_of(classified)
    longest = max(card["tokens"]["input"]["quantiles"][split]["max"] for split in SPLITS)
    card["tokens"]["limit"] = longest
    assert f"limit {longest}</text>" in render(card)
    card["tokens"]["limit"] = 10 * longest
    assert "</text>" in render(card)
    assert f"limit {10 * longest}</text>" not in render(card)


def test_quantiles_are_lengths_that_occur(generated):
    quantiles = card_of(generated)["tokens"]["target"]["quantiles"]["train"]
    occurring = {len(ids) for group in load_prepared(generated, "train")["target_ids"] for ids in group}
    assert {value for name, value in quantiles.items() if name != "mean"} <= occurring
    assert all(isinstance(value, int) for name, value in quantiles.items() if name != "mean")
    assert np.isfinite(quantiles["mean"])
