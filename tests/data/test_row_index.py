"""A row index finds every row that went in and no other, and a changed byte is found before it is believed."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.row_index import (
    BLOCK_ENTRIES,
    ENTRY_BYTES,
    Columns,
    RowIndex,
    entries,
    entry,
    key_digest,
    write,
)
from pipeline.errors import IntegrityError
from pipeline.params import DataParams

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
COLUMNS = Columns("classification", "text", "label")


def spelling(text: str) -> str:
    """An independent word for word normal form: what counts as the same text."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def many(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(f"text {draw.randrange(10 * count)}", draw.choice(["good", "bad"])) for _ in range(count)]


def made(path: Path, rows: list[tuple[str, str]]) -> str:
    return write(path, COLUMNS, b"".join(entry("classification", *row) for row in rows))


@given(st.lists(st.tuples(texts, texts), max_size=30), st.lists(st.tuples(texts, texts), max_size=10))
def test_exactly_the_rows_that_went_in_are_found_by_text_and_as_a_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("index") / "row_index"
    digest = made(path, rows)
    keys = {spelling(text) for text, _ in rows}
    wholes = {(spelling(text), label) for text, label in rows}
    mixed = [(text, label) for text, _ in rows for _, label in others]
    with RowIndex(path, digest) as index:
        assert len(index) == len(wholes)
        for text, label in [*rows, *others, *mixed]:
            assert (key_digest(text) in index) == (spelling(text) in keys)
            assert (entry("classification", text, label) in index) == ((spelling(text), label) in wholes)


def test_rows_are_found_in_every_block_and_at_its_borders(tmp_path: Path) -> None:
    rows = many(3 * BLOCK_ENTRIES)
    digest = made(tmp_path / "index", rows)
    there = set(rows)
    with RowIndex(tmp_path / "index", digest) as index:
        assert len(index) == len(there) > 2 * BLOCK_ENTRIES
        assert all(key_digest(text) in index for text, _ in rows)
        wrong = [(text, {"good": "bad", "bad": "good"}[label]) for text, label in rows]
        assert [entry("classification", *row) in index for row in wrong] == [row in there for row in wrong]
        assert not any(key_digest(f"{text} too") in index for text, _ in rows)


def test_one_text_with_more_values_than_a_block_holds_is_found_with_each(tmp_path: Path) -> None:
    values = [f"label {number}" for number in range(BLOCK_ENTRIES + 9)]
    digest = write(tmp_path / "index", COLUMNS, entries("classification", "one text", values))
    with RowIndex(tmp_path / "index", digest) as index:
        assert key_digest("ONE  text") in index
        assert all(entry("classification", "one text", value) in index for value in values)
        assert entry("classification", "one text", "label -1") not in index


def test_order_and_repeats_of_the_rows_do_not_change_the_bytes(tmp_path: Path) -> None:
    rows = many(500)
    shuffled = random.Random(1).sample([*rows, *rows[:100]], 600)
    assert made(tmp_path / "one", rows) == made(tmp_path / "other", shuffled)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_row_takes_at_most_40_bytes_beside_its_row_id_of_16_bytes(tmp_path: Path) -> None:
    rows = [(f"text {number}", "good") for number in range(100_000)]
    made(tmp_path / "index", rows)
    assert ((tmp_path / "index").stat().st_size - 200) / len(rows) < ENTRY_BYTES * 1.01


def test_a_target_counts_in_any_spelling_and_a_label_only_as_it_is_written() -> None:
    assert entry("generation", "A  Source", "The Target") == entry("generation", "a source", "the  target ")
    assert entry("classification", "A  Text", "Good") != entry("classification", "a text", "good")
    assert entry("classification", "A  Text", "Good") == entry("classification", "ａ text", "Good")


def test_the_columns_are_those_of_the_task(tmp_path: Path) -> None:
    data = DataParams(path="data", text="t", label="l", source="s", target="g")
    for task, key, value in (("classification", "t", "l"), ("generation", "s", "g")):
        columns = Columns.of(task, data)
        assert columns == Columns(task, key, value)
        digest = write(tmp_path / task, columns, entries(task, "one", ["two"]))
        with RowIndex(tmp_path / task, digest) as index:
            assert index.columns == columns


def test_a_byte_changed_anywhere_is_found_before_an_answer_is_given_from_it(tmp_path: Path) -> None:
    rows = many(2 * BLOCK_ENTRIES + 50)
    digest = made(tmp_path / "index", rows)
    whole = (tmp_path / "index").read_bytes()
    head = len(whole) - len(set(rows)) * ENTRY_BYTES
    draw = random.Random(2)
    wanted = sorted(entry("classification", *row) for row in rows)[::100]
    places = [*range(head), *(draw.randrange(head, len(whole)) for _ in range(200)), len(whole) - 1]
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (tmp_path / "index").write_bytes(damaged)
        with (
            pytest.raises(IntegrityError, match="row index") as error,
            RowIndex(tmp_path / "index", digest) as index,
        ):
            assert all(row in index for row in wanted)
        assert str(tmp_path / "index") in str(error.value)
        found += 1
    assert found == head + 201


def test_what_no_answer_is_read_from_is_not_hashed_and_the_answer_stands(tmp_path: Path) -> None:
    rows = many(3 * BLOCK_ENTRIES)
    digest = made(tmp_path / "index", rows)
    damaged = bytearray((tmp_path / "index").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "index").write_bytes(damaged)
    smallest, largest = (
        min(rows, key=lambda row: entry("classification", *row)),
        max(rows, key=lambda row: entry("classification", *row)),
    )
    with RowIndex(tmp_path / "index", digest) as index:
        assert entry("classification", *smallest) in index
        with pytest.raises(IntegrityError, match=r"entries [\d,]+ to [\d,]+ are not those"):
            assert entry("classification", *largest) in index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], r"has [\d,]+ bytes, expected [\d,]+"),
        (lambda content: content + b"\0", r"has [\d,]+ bytes, expected [\d,]+"),
        (lambda content: b"", "is empty"),
        (lambda content: b"x" * len(content), "does not begin with the line"),
        (lambda content: b'{"entries": []}\n', "does not begin with the line"),
        (lambda content: b"[1]\n", "does not begin with the line"),
        (lambda content: content.replace(b'"entries":', b'"entries":9', 1), "SHA-256 of its table is"),
        (lambda content: content.replace(b'"key":"text"', b'"key":"Text"', 1), "SHA-256 of its table is"),
    ],
)
def test_another_file_in_its_place_is_refused(tmp_path: Path, change, message: str) -> None:
    digest = made(tmp_path / "index", many(100))
    (tmp_path / "index").write_bytes(change((tmp_path / "index").read_bytes()))
    with pytest.raises(IntegrityError, match=message):
        RowIndex(tmp_path / "index", digest)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data import row_index

    monkeypatch.setattr(row_index, "FORMAT_VERSION", 2)
    digest = made(tmp_path / "index", many(10))
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="format version is 2; this release reads 1"):
        RowIndex(tmp_path / "index", digest)
