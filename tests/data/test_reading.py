"""Files of every format are read as they are, and every fault of form is named by file and line."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import reading
from pipeline.data.reading import Faults, data_files, read_rows
from pipeline.errors import DataError


def read(path: Path, content: str | bytes, columns=("text", "label")):
    """Rows and fault lines (without the folder's name)."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    faults = Faults()
    rows = list(read_rows(path, columns, faults))
    return rows, [line.replace(f"{path.parent}/", "") for line in faults.lines]


def test_jsonl_rows_come_with_their_line_numbers(tmp_path):
    rows, faults = read(
        tmp_path / "a.jsonl", '{"text": "x", "label": 1, "more": [1]}\n\n{"label": null, "text": "é"}'
    )
    assert rows == [(1, ("x", 1)), (3, ("é", None))]
    assert faults == []


def test_csv_rows_come_with_the_line_they_begin_on(tmp_path):
    content = 'text,label,more\r\n"two\r\nlines",a,1\r\n\r\n"said ""so"", then",b,2\r\n'
    rows, faults = read(tmp_path / "a.csv", content)
    assert rows == [(2, ("two\r\nlines", "a")), (5, ('said "so", then', "b"))]
    assert faults == []


@pytest.mark.parametrize("cell", ["NA", "null", "nan", "007", "2020-01-01", "1e5", "TRUE", "'"])
def test_csv_cells_stay_the_texts_they_are(tmp_path, cell):
    rows, _ = read(tmp_path / "a.csv", f"text,label\n{cell},a\n")
    assert rows == [(2, (cell, "a"))]


def test_json_dates_stay_texts(tmp_path):
    rows, _ = read(tmp_path / "a.jsonl", '{"text": "2020-01-01", "label": "a"}\n')
    assert rows == [(1, ("2020-01-01", "a"))]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    content = "text,label\nx,a\n" if name == "a.csv" else '{"text": "x", "label": "a"}\n'
    rows, faults = read(tmp_path / name, content.encode("utf-8-sig"))
    assert [values for _, values in rows] == [("x", "a")]
    assert faults == []


def test_parquet_rows_come_with_their_row_numbers_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PARQUET_ROWS", 2)
    table = pa.table({"label": [1, 2, 3], "text": ["x", None, "z"], "more": [[1], [], [2]]})
    pq.write_table(table, tmp_path / "a.parquet")
    faults = Faults()
    assert list(read_rows(tmp_path / "a.parquet", ("text", "label"), faults)) == [
        (1, ("x", 1)),
        (2, (None, 2)),
        (3, ("z", 3)),
    ]
    assert not faults.count


def test_progress_adds_up_to_the_bytes_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n' * 100_000)
    table = pa.table({"text": ["x"] * 10_000, "label": ["a"] * 10_000})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        seen: list[int] = []
        list(read_rows(tmp_path / name, ("text", "label"), Faults(), seen.append))
        assert len(seen) > 1
        assert sum(seen) == pytest.approx((tmp_path / name).stat().st_size, rel=0.01)


JSONL_FAULTS = {
    "truncated": (
        '{"text": "x", "label": "a"}\n{"text": "y", "lab',
        "a.jsonl:2: got broken JSON (Unterminated string",
    ),
    "array": ('["x", "a"]\n', 'a.jsonl:1: got ["x", "a"]; expected a JSON object'),
    "number": ("7\n", "a.jsonl:1: got 7; expected a JSON object"),
    "two objects": ('{"text": "x", "label": "a"}{}\n', "a.jsonl:1: got broken JSON (Extra data"),
    "pretty printed": ('{\n"text": "x"}\n', "a.jsonl:1: got broken JSON"),
    "missing column": (
        '{"text": "x", "tag": 1}\n',
        'a.jsonl:1: no column "label"; columns there are: "text", "tag"',
    ),
    "no columns": ("{}\n", 'a.jsonl:1: no column "text", "label"; columns there are: none'),
    "duplicate key": ('{"text": "x", "label": "a", "text": "y"}\n', 'a.jsonl:1: got the key "text" twice'),
    "too deep": ("[" * 100_000 + "\n", "a.jsonl:1: got JSON nested too deeply"),
    "huge number": (
        '{"text": "x", "label": ' + "9" * 5000 + "}\n",
        "a.jsonl:1: got broken JSON (Exceeds the limit",
    ),
    "utf-8": (
        b'\n{"text": "caf\xe9", "label": "a"}\n',
        "a.jsonl:2: got byte 0xe9 at byte 14 of the line (byte 15 of",
    ),
    "utf-16": (
        '{"text": "x"}\n'.encode("utf-16"),
        "a.jsonl:1: got byte 0xff at byte 1 of the line (byte 1 of",
    ),
    "nul": (b'{"text": "x\0", "label": "a"}\n', "a.jsonl:1: got a NUL byte at byte 12 of the line"),
}


@pytest.mark.parametrize("kind", JSONL_FAULTS)
def test_a_broken_jsonl_line_is_named(tmp_path, kind):
    content, expected = JSONL_FAULTS[kind]
    _, faults = read(tmp_path / "a.jsonl", content)
    assert faults[0].startswith(expected)


CSV_FAULTS = {
    "missing column": ("text,tag\nx,a\n", 'a.csv:1: no column "label"; columns there are: "text", "tag"'),
    "semicolons": (
        "text;label\nx;a\n",
        'a.csv:1: no column "text", "label"; columns there are: "text;label"; the fields seem to be separated by ";": '
        "expected commas",
    ),
    "duplicate header": ("text,label,text\nx,a,y\n", 'a.csv:1: got the column "text" twice in the header'),
    "too few fields": ("text,label\nx,a\nx\n", "a.csv:3: got 1 fields; expected 2"),
    "too many fields": ("text,label\nx,a,b\n", "a.csv:2: got 3 fields; expected 2"),
    "open quote": ('text,label\nx,a\n"y,b\nz,c\n', "a.csv:3: got broken CSV (unexpected end of data)"),
    "stray quote": ('text,label\n"x"y,a\n', "a.csv:2: got broken CSV (',' expected after '\"')"),
    "utf-8": (
        b"text,label\nx,a\ncaf\xe9,b\n",
        "a.csv:3: got byte 0xe9 at byte 4 of the line (byte 19 of the file)",
    ),
    "utf-8 after a BOM": (
        b"\xef\xbb\xbftext\xff,label\n",
        "a.csv:1: got byte 0xff at byte 5 of the line (byte 8 of",
    ),
    "nul": (b"text,label\nx\0,a\n", "a.csv:2: got a NUL byte at byte 2 of the line"),
}


@pytest.mark.parametrize("kind", CSV_FAULTS)
def test_a_broken_csv_record_is_named(tmp_path, kind):
    content, expected = CSV_FAULTS[kind]
    _, faults = read(tmp_path / "a.csv", content)
    assert faults[0].startswith(expected)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_eleven_megabyte_line_is_refused_and_the_rest_is_still_read(tmp_path, name):
    long = b"x" * 11_000_000
    if name == "a.csv":
        content = b"text,label\n" + long + b",a\nbad\n"
    else:
        content = b'{"text": "a", "label": "a"}\n{"text": "' + long + b'", "label": "a"}\nbad\n'
    _, faults = read(tmp_path / name, content)
    assert faults[0] == f"{name}:2: got a line of over 10,000,000 bytes; expected at most that"
    assert faults[1].startswith(f"{name}:3: got ")
    assert len(faults) == 2


def test_a_line_of_just_under_the_limit_is_read(tmp_path):
    line = b'{"text": "' + b"x" * 9_999_000 + b'", "label": "a"}\n'
    rows, faults = read(tmp_path / "a.jsonl", line)
    assert len(rows) == 1
    assert not faults


def test_reading_csv_leaves_the_process_wide_field_limit_as_it_was(tmp_path):
    before = csv.field_size_limit()
    rows, faults = read(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",a\n")
    assert len(rows) == 1
    assert not faults
    assert csv.field_size_limit() == before


def test_a_parquet_file_cut_short_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "label": ["a"]}), path)
    _, faults = read(path, path.read_bytes()[:-10])
    assert faults[0].startswith("a.parquet:1: got a broken Parquet file (")


def test_damaged_pages_in_a_parquet_file_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(500)], "label": ["a"] * 500}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    _, faults = read(path, bytes(content))
    assert faults[0].startswith("a.parquet:1: got a broken Parquet file (")


def test_parquet_text_that_is_not_utf8_is_named(tmp_path):
    text = pa.array([b"x", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": text, "label": ["a", "b"]}), tmp_path / "a.parquet")
    _, faults = read(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert faults[0].startswith("a.parquet:1: got a broken Parquet file (")
    assert "UTF8" in faults[0]


def test_a_parquet_file_without_a_column_lists_those_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "tag": ["a"]}), path)
    _, faults = read(path, path.read_bytes())
    assert faults == ['a.parquet:1: no column "label"; columns there are: "text", "tag"']


def test_faults_are_reported_twenty_at_a_time():
    faults = Faults()
    for number in range(25):
        faults.add(f"a.csv:{number}", "got this; expected that")
    with pytest.raises(DataError) as error:
        faults.raise_if_any(Path("a.csv"))
    assert len(error.value.problems) == 21
    assert error.value.problems[-1] == "… and 5 more"
    assert "25 faults" in str(error.value)


def test_no_faults_raise_nothing():
    Faults().raise_if_any(Path("a.csv"))


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")
    return folder


def test_a_folder_is_its_files_in_order_without_hidden_ones(tmp_path):
    make(tmp_path, "b.csv", "a/c.csv", ".gitignore", ".cache/d.csv", "A.CSV")
    files = data_files(tmp_path)
    assert files.format == "CSV"
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == ["A.CSV", "a/c.csv", "b.csv"]
    assert files.bytes == 6


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "is a folder without data files; expected .jsonl, .ndjson, .csv or .parquet"),
        (("a.csv", "b.jsonl"), "got CSV (a.csv) and JSONL (b.jsonl); expected files of one format"),
        (("a.csv", "LICENSE"), "LICENSE: got no suffix; expected .jsonl"),
        (("a.xlsx",), "a.xlsx: got .xlsx; expected .jsonl"),
    ],
)
def test_a_folder_that_is_not_one_data_set_is_refused(tmp_path, names, expected):
    make(tmp_path, *names)
    with pytest.raises(DataError) as error:
        data_files(tmp_path)
    assert expected in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv: no such file or folder"):
        data_files(tmp_path / "rows.csv")


def test_every_empty_file_of_a_folder_is_named(tmp_path):
    make(tmp_path, "b.csv")
    (tmp_path / "a.csv").touch()
    (tmp_path / "c.csv").touch()
    with pytest.raises(DataError) as error:
        data_files(tmp_path)
    assert [line.split("/")[-1] for line in error.value.problems] == [
        f"{name}: is empty (0 bytes); expected at least one row" for name in ("a.csv", "c.csv")
    ]
