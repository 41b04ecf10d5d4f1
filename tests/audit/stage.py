"""Stands in for `python -m pipeline.stages STAGE NAME`: the same outputs and records, small, of plain text.

It imports nothing of the project: what it writes is the reference that `verify` is tested against.
"""

import hashlib
import json
import sys
from pathlib import Path


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree_hash(entries: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return hashlib.sha256(b"\1" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


stage, name = sys.argv[1:]
base = Path("artifacts") / name
pins = json.loads(Path("pins", f"{name}.json").read_text())
raw = Path(pins["params"]["data"]["path"])
lines = sorted(
    line
    for path in sorted([raw] if raw.is_file() else raw.rglob("*.jsonl"))
    for line in path.read_text().splitlines()
)
parts = {"train": lines[2:], "validation": lines[1:2], "test": lines[:1]}
ids = sorted(hashlib.sha256(line.encode()).digest()[:16] for line in lines)
outputs: dict[str, bytes] = {
    "prepare": {
        **{f"prepared/{split}/rows.txt": "\n".join(part).encode() for split, part in parts.items()},
        "prepared/train/state.json": b"{}",
        "prepared/row_ids": b"".join(ids),
        "prepared/card.json": b"{}",
    },
    "train": {
        "adapter/adapter_config.json": json.dumps(pins["params"]["training"]).encode(),
        "adapter/adapter_model.safetensors": f"weights of {pins['run_key']}".encode(),
        "curves.jsonl": b'{"step": 1}\n',
    },
    "evaluate": {"evaluation/rows.txt": b"scores", "evaluation/base/probe.txt": pins["run_key"].encode()},
}[stage]
for path, content in outputs.items():
    (base / path).parent.mkdir(parents=True, exist_ok=True)
    (base / path).write_bytes(content)
record = {"manifest": {path: sha(content) for path, content in outputs.items()}}
if stage == "prepare":
    record["rows"] = {split: len(part) for split, part in parts.items()}
    record["labels"] = ["x", "y"]
    record["row_ids"] = sha(b"".join(ids))
    record["row_root"] = tree_hash(ids).hex()
if stage == "evaluate":
    record["systems"] = {"prefix": {"accuracy": 0.9}, "base": {"accuracy": 0.5}}
records = {"prepare": "prepared.json", "train": "trained.json", "evaluate": "evaluated.json"}
(base / records[stage]).write_text(json.dumps(record))
