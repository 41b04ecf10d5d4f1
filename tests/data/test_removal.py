"""Rows go out of raw files and nothing else changes, to the byte."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.removal import Removal
from pipeline.data.row_index import entry, key_digest
from pipeline.errors import DataError
from pipeline.params import DataParams, Task

GONE = "Where is my card?"


def data(**changes: Any) -> DataParams:
    return DataParams(path="data/rows", **changes)


def remove(
    raw: Path, *parts: bytes, task: Task = "classification", params: DataParams | None = None
) -> dict[str, set[int]]:
    """What was found, after it was removed; and that it is not found again."""
    removal = Removal()
    removal.look(raw, params or data(), task, set(parts))
    removal.write()
    removal.replace()
    again = Removal()
    assert again.look(raw, params or data(), task, set(parts)) == 0
    assert not raw.with_name(f".{raw.name}.erasing").exists()
    return {path.name: lines for path, lines in removal.found.items()}


def line(text: str, label: str = "a", **more: Any) -> bytes:
    return json.dumps({"text": text, "label": label, **more}).encode() + b"\n"


def test_every_other_line_of_jsonl_keeps_its_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    kept = [
        b'{ "label":"a",  "text" : "one\\u00e9" }\r\n',
        b"\n",
        '{"text": "drei \u00e4", "label": "b", "x": [1.0, 2e3]}\n'.encode(),
        b'{"text": "four", "label": "a"}',
    ]
    raw.write_bytes(
        b"\xef\xbb\xbf" + line(GONE) + kept[0] + line(f"  {GONE.upper()} ", "b") + b"".join(kept[1:])
    )
    assert remove(raw, key_digest(GONE)) == {"rows.jsonl": {1, 3}}
    assert raw.read_bytes() == b"\xef\xbb\xbf" + b"".join(kept)


def test_every_other_record_of_csv_keeps_its_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "rows.csv"
    head, first, last = b'label,"text"\r\n', b'a,"two ""lines""\nof, text"\r\n', 'b,"f\u00fcnf"\n'.encode()
    raw.write_bytes(head + b'a,"Where\nis my card?"\r\n' + first + b"\n" + b"b,where  is my CARD?\n" + last)
    assert remove(raw, key_digest(GONE)) == {"rows.csv": {2, 7}}
    assert raw.read_bytes() == head + first + b"\n" + last


@given(
    st.lists(st.tuples(st.text("ab\"',\n \u00e9", min_size=1), st.sampled_from("xy")), min_size=2), st.data()
)
@settings(max_examples=60, deadline=None)
def test_what_is_left_of_any_csv_is_what_was_not_asked_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], draw: st.DataObject
) -> None:
    rows = [(f"t{text}", label) for text, label in rows]
    gone, _ = draw.draw(st.sampled_from(rows))
    left = [row for row in rows if key_digest(row[0]) != key_digest(gone)]
    if not left:
        return
    raw = tmp_path_factory.mktemp("csv") / "rows.csv"
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("text", "label"), *rows])
    raw.write_bytes(written.getvalue().encode())
    remove(raw, key_digest(gone))
    with raw.open(encoding="utf-8", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("text", "label"), *left]


def test_parquet_keeps_its_schema_row_groups_and_compression(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = tmp_path / "rows.parquet"
    texts = [f"text {number}" for number in range(9)]
    texts[4] = texts[7] = GONE
    table = pa.table(
        {"text": texts, "label": pa.array(["a"] * 9).dictionary_encode(), "x": pa.array(range(9), pa.int8())}
    ).replace_schema_metadata({"made": "by hand"})
    pq.write_table(table, raw, row_group_size=4, compression="zstd")
    assert remove(raw, key_digest(GONE)) == {"rows.parquet": {5, 8}}
    with pq.ParquetFile(raw) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [4, 2, 1]
        assert {group.column(0).compression for group in groups} == {"ZSTD"}
        left = file.read()
    assert left.schema.equals(table.schema, check_metadata=True)
    assert left.column("x").to_pylist() == [0, 1, 2, 3, 5, 6, 8]


def test_a_whole_row_goes_by_its_label_and_a_text_whatever_its_label(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    raw.write_bytes(line(GONE, "a") + line(GONE, "b") + line("other", "a"))
    assert remove(raw, entry("classification", GONE, "b")) == {"rows.jsonl": {2}}
    assert remove(raw, key_digest(GONE)) == {"rows.jsonl": {1}}


def test_a_generation_row_goes_when_one_of_its_targets_is_asked_for(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    rows = [{"source": "s", "target": ["one", "two"]}, {"source": "s", "target": "three"}]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert remove(raw, entry("generation", "s", "TWO"), task="generation") == {"rows.jsonl": {1}}


def test_of_a_folder_a_file_without_a_row_left_goes_and_the_others_stay(tmp_path: Path) -> None:
    raw = tmp_path / "rows"
    (raw / "deep").mkdir(parents=True)
    (raw / "a.jsonl").write_bytes(line(GONE))
    (raw / "deep/b.jsonl").write_bytes(line("one") + line(GONE))
    (raw / "c.jsonl").write_bytes(line("two"))
    untouched = (raw / "c.jsonl").stat()
    assert remove(raw, key_digest(GONE)) == {"a.jsonl": {1}, "b.jsonl": {2}}
    assert sorted(path.name for path in raw.rglob("*.jsonl")) == ["b.jsonl", "c.jsonl"]
    assert (raw / "deep/b.jsonl").read_bytes() == line("one")
    assert (raw / "c.jsonl").stat().st_mtime_ns == untouched.st_mtime_ns


def test_data_of_which_nothing_would_be_left_is_refused_and_stays(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    raw.write_bytes(line(GONE))
    removal = Removal()
    removal.look(raw, data(), "classification", {key_digest(GONE)})
    with pytest.raises(DataError, match=r"rows\.jsonl: no row would be left"):
        removal.write()
    assert raw.read_bytes() == line(GONE)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (line(GONE) + b'{"text": "cut off', r"rows\.jsonl:2: got broken JSON"),
        (line(GONE) + line("", "a"), r'rows\.jsonl:2: column "text": got an empty text'),
        (line(GONE) + b'{"text": "x", "label": 1.5}\n', r'rows\.jsonl:2: column "label": got'),
    ],
)
def test_data_that_is_not_usable_is_refused_with_the_line(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    raw = tmp_path / "rows.jsonl"
    raw.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        Removal().look(raw, data(), "classification", {key_digest(GONE)})
    assert raw.read_bytes() == content


def test_data_that_two_prefixes_read_with_other_columns_loses_what_either_finds(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    raw.write_bytes(line(GONE, title="x") + line("one", title=GONE) + line("two", title="y"))
    removal = Removal()
    for column in ("text", "title"):
        assert removal.look(raw, data(text=column), "classification", {key_digest(GONE)}) == 1
    removal.write()
    removal.replace()
    assert raw.read_bytes() == line("two", title="y")
