"""Format 1 of the lineage record, by its page in docs/ alone: one record and what it names, verified for ever.

No digest here is made by the project's own code.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.register.lineage import _NEEDED, LineageRecord

FIXTURE = Path(__file__).parent / "fixtures" / "lineage-v1"
PAGE = Path(__file__).parents[2] / "docs" / "lineage-v1.md"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def of_value(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha(text.encode())


def manifest(folder: str) -> dict[str, str]:
    root = FIXTURE / folder
    return {p.relative_to(root).as_posix(): sha(p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def tree_hash(entries: list[bytes]) -> bytes:
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return hashlib.sha256(b"\1" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def row_id(*parts: str) -> bytes:
    told = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return hashlib.sha256(told).digest()


RECORD: dict[str, Any] = json.loads((FIXTURE / "lineage.json").read_bytes())


def test_this_release_reads_the_record_and_writes_the_same_bytes() -> None:
    content = (FIXTURE / "lineage.json").read_bytes()
    record = LineageRecord.from_json(content)
    assert record.format_version == 1
    assert record.to_json() == content
    assert record.digest == sha(content) == (FIXTURE / "lineage.sha256").read_text().strip()


def test_the_records_bytes_are_canonical_json() -> None:
    assert of_value(RECORD) == sha((FIXTURE / "lineage.json").read_bytes())


def test_adapter_base_and_data_have_the_recorded_digests() -> None:
    assert manifest("adapter") == RECORD["files"]
    assert of_value(manifest("adapter")) == RECORD["adapter_digest"]
    assert manifest("base") == RECORD["base_model"]["files"]
    assert of_value(manifest("base")) == RECORD["base_model"]["digest"]
    data = RECORD["dataset"]
    assert manifest("data") == data["manifest"]
    assert hashlib.md5((FIXTURE / "data/rows.jsonl").read_bytes()).hexdigest() == data["md5"]


def test_rows_splits_and_merkle_root_follow_from_the_rows() -> None:
    data = RECORD["dataset"]
    rows = [
        json.loads(line) for line in (FIXTURE / "data/rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    ids = sorted(row_id(row["text"], row["label"])[:16] for row in rows)
    assert b"".join(ids) == (FIXTURE / "prepared/row_ids").read_bytes()
    assert sha(b"".join(ids)) == data["row_ids"]
    assert tree_hash(ids).hex() == data["row_root"]
    assert len(ids) == data["rows"]["total"]
    splits = {split: of_value(manifest(f"prepared/{split}")) for split in ("train", "validation", "test")}
    assert splits == data["splits"]


def test_lock_and_run_key_follow_from_what_they_are_made_of() -> None:
    assert of_value(json.loads((FIXTURE / "lock.json").read_bytes())) == RECORD["environment"]["lock"]
    data = RECORD["dataset"]
    assert RECORD["run_key"] == of_value(
        {
            "base_model": RECORD["base_model"]["digest"],
            "code": RECORD["code"]["digest"],
            "dataset": {"manifest": data["manifest"], "md5": data["md5"]},
            "params": RECORD["params"],
            "warm_start": None,
        }
    )


def test_the_pages_example_is_the_record() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(example) == RECORD


def test_the_page_has_every_field() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = [f"`{name}.{key}`" for name, needed in _NEEDED.items() for key in needed]
    names += [f"`{field.name}`" for field in fields(LineageRecord) if not _NEEDED.get(field.name)]
    assert len(names) == 36
    assert [name for name in names if name not in page] == []
