"""How an encoder-decoder's source and targets become token ids: each has the whole window, and its special tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.dataset import PreparedSummary, load_prepared, prepare
from pipeline.data.encoding import Encoder, SourceTargetEncoder, encoder_for
from pipeline.errors import BaseModelError, DataError, PrefixError
from pipeline.params import DataParams, SplitParams
from tests.tiny import WORDS

SPLITS = SplitParams(train=0.5, validation=0.25, test=0.25)


@pytest.fixture
def t5(t5_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(t5_folder)


@pytest.fixture
def bart(bart_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(bart_folder)


def encoder(tokenizer: PreTrainedTokenizerFast, **more: Any) -> Encoder:
    arguments: dict[str, Any] = {
        "window": 12,
        "prefix_length": 8,
        "max_tokens": None,
        "encoder_decoder": True,
    }
    return encoder_for(tokenizer, **{**arguments, **more})


def test_source_and_targets_are_what_the_tokenizer_makes_of_each(
    t5: PreTrainedTokenizerFast, bart: PreTrainedTokenizerFast
) -> None:
    source, targets = "the red cat", ["a dog runs", "bird"]
    for tokenizer in (t5, bart):
        (found,) = encoder(tokenizer).sources([source], [targets])
        assert found.input_ids == tokenizer(source).input_ids
        assert found.target_ids == [tokenizer(target).input_ids for target in targets]
        assert all(ids[-1] == tokenizer.eos_token_id for ids in (found.input_ids, *found.target_ids))
        assert (found.length, found.content) == (len(found.input_ids), 1)
    assert bart(source).input_ids[0] == bart.bos_token_id


def test_a_tokenizer_that_adds_nothing_leaves_the_source_bare_and_a_target_still_ends(
    decoder_folder: Path,
) -> None:
    bare = PreTrainedTokenizerFast.from_pretrained(decoder_folder)
    found = encoder(bare).sources(["the red cat"], [["a dog"]])[0]
    assert found.input_ids == bare("the red cat").input_ids
    assert found.target_ids == [[*bare("a dog").input_ids, bare.eos_token_id]]
    assert (found.length, found.content) == (3, 2)
    cut = encoder(bare, window=4).cut_source(found, "cat " * 9, ["dog " * 9])
    assert cut == (bare("cat " * 4).input_ids, [[*bare("dog " * 3).input_ids, bare.eos_token_id]])


def test_source_and_target_have_a_limit_each_of_which_the_prefix_takes_nothing(
    bart: PreTrainedTokenizerFast,
) -> None:
    made = encoder(bart)
    assert isinstance(made, SourceTargetEncoder)
    assert (made.limit, made.window, made.taken, made.reason) == (12, 12, 0, "the base's window of 12")
    fits, source, target = made.sources(
        ["cat " * 10, "cat " * 11, "cat"], [["dog " * 10], ["dog"], ["dog", "dog " * 11]]
    )
    assert [found.length for found in (fits, source, target)] == [12, 13, 13]
    assert encoder(bart, max_tokens=5).limit == 5
    assert encoder(bart, max_tokens=5).reason == "data.max_tokens"
    assert encoder(bart, max_tokens=50).limit == 12


def test_what_is_too_long_is_cut_at_its_own_end_and_keeps_its_special_tokens(
    t5: PreTrainedTokenizerFast, bart: PreTrainedTokenizerFast
) -> None:
    for tokenizer, kept in ((t5, 11), (bart, 10)):
        made = encoder(tokenizer)
        (found,) = made.sources(["cat " * 40], [["dog " * 30, "bird"]])
        cut = made.cut_source(found, "cat " * 40, ["dog " * 30, "bird"])
        expected = [tokenizer(text).input_ids for text in ("cat " * kept, "dog " * kept, "bird")]
        assert cut == (expected[0], expected[1:])
        assert made.sources(["cat " * 40], [["dog"]])[0].length > 12  # it goes on uncut


def test_max_tokens_is_the_limit_of_a_base_that_names_none_and_without_it_nothing_is_prepared(
    t5: PreTrainedTokenizerFast,
) -> None:
    assert encoder(t5, window=None, max_tokens=7).limit == 7
    with pytest.raises(
        BaseModelError, match=r"neither the base's config nor its tokenizer names a window.*set data\.max_"
    ):
        encoder(t5, window=None)


def test_special_tokens_that_fill_the_limit_are_refused(bart: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PrefixError, match="2 are special"):
        encoder(bart, max_tokens=2)


def test_a_tokenizer_without_an_end_is_refused(t5: PreTrainedTokenizerFast) -> None:
    t5.eos_token = None
    with pytest.raises(BaseModelError, match="no end-of-sequence token"):
        encoder(t5).sources(["cat"], [["dog"]])


def test_a_text_of_nothing_has_no_content(bart: PreTrainedTokenizerFast) -> None:
    found = encoder(bart).sources(["", "cat"], [["dog"], ["dog", ""]])
    assert [one.content for one in found] == [0, 0]


# -- prepared whole ------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path, bart: PreTrainedTokenizerFast) -> Callable[..., PreparedSummary]:
    """Prepare one-word rows and those given, for a BART with a window of 12, into tmp_path/prepared."""

    def run(rows: list[dict[str, Any]], **params: Any) -> PreparedSummary:
        plain = [{"source": word, "target": WORDS[:2]} for word in WORDS]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*plain, *rows]))
        return prepare(
            tmp_path / "rows.jsonl",
            DataParams(path="rows.jsonl", splits=SPLITS, **params),
            "generation",
            tokenizer=bart,
            window=12,
            prefix_length=8,
            encoder_decoder=True,
            out=tmp_path / "prepared",
        )

    return run


LONG = [
    {"source": "red " + "cat " * 10, "target": "dog"},
    {"source": "blue cat", "target": ["dog", "dog " * 20]},
]


def test_prepared_rows_hold_the_source_and_every_target_as_the_tokenizer_makes_them(
    prepared: Callable[..., PreparedSummary], tmp_path: Path, bart: PreTrainedTokenizerFast
) -> None:
    summary = prepared([{"source": "red cat " * 5, "target": "dog " * 10}])
    assert summary.max_tokens == 12
    rows = [
        row
        for split in ("train", "validation", "test")
        for row in load_prepared(tmp_path / "prepared", split)
    ]
    assert len(rows) == sum(summary.rows.values()) == len(WORDS) + 1
    for row in rows:
        assert row["input_ids"] == bart(row["source"]).input_ids
        assert row["target_ids"] == [bart(target).input_ids for target in row["targets"]]
    card = json.loads((tmp_path / "prepared" / "card.json").read_text())
    assert {key: card["tokens"][key] for key in ("window", "prefix", "limit")} == {
        "window": 12,
        "prefix": 0,
        "limit": 12,
    }
    assert "Source and target may have 12 each." in (tmp_path / "prepared" / "card.html").read_text()


def test_a_source_or_a_target_that_does_not_fit_is_named_with_its_line(
    prepared: Callable[..., PreparedSummary],
) -> None:
    with pytest.raises(DataError) as caught:
        prepared(LONG)
    said = str(caught.value)
    for line, length in ((len(WORDS) + 1, 13), (len(WORDS) + 2, 22)):
        assert (
            f"rows.jsonl:{line}: the source or its longest target is {length} tokens long; expected at most 12 "
            "(the base's window of 12)" in said
        )


def test_too_long_rows_are_dropped_or_cut_where_params_say_so(
    prepared: Callable[..., PreparedSummary], tmp_path: Path
) -> None:
    assert prepared(LONG, too_long="drop").too_long_dropped == 2
    summary = prepared(LONG, too_long="truncate")
    assert summary.truncated == 2
    rows = [
        row
        for split in ("train", "validation", "test")
        for row in load_prepared(tmp_path / "prepared", split)
    ]
    lengths = [len(ids) for row in rows for ids in (row["input_ids"], *row["target_ids"])]
    assert len(rows) == len(WORDS) + 2
    assert max(lengths) == 12
    assert lengths.count(12) == 2
