"""Complete lineage records for tests, with made-up but well-formed content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.digest import digest
from pipeline.register.lineage import LineageRecord


def lineage(**changes: Any) -> LineageRecord:
    """A complete record; `changes` replace whole fields, and `adapter_digest` follows `files`."""
    files: Mapping[str, str] = changes.pop("files", {"adapter_model.safetensors": "a" * 64})
    content: dict[str, Any] = {
        "prefix": "reviews",
        "run_key": "1" * 64,
        "base_model": {
            "name": "tiny",
            "digest": "b" * 64,
            "source": {"path": "base"},
            "files": {"config.json": "c" * 64},
        },
        "dataset": {
            "path": "data/reviews.jsonl",
            "md5": "d" * 32,
            "git_commit": "e" * 40,
            "manifest": {"reviews.jsonl": "f" * 64},
            "rows": {"train": 8, "validation": 1, "test": 1, "total": 10},
            "labels": ["bad", "good"],
            "splits": {"train": "2" * 64, "validation": "3" * 64, "test": "4" * 64},
            "row_ids": "5" * 64,
            "row_root": "0" * 64,
        },
        "params": {"task": "classification", "training": {"learning_rate": 0.03, "seed": 7}},
        "code": {"commit": "9" * 40, "version": "0.1.0", "digest": "8" * 64, "dirty": False},
        "environment": {
            "python": "3.11.0",
            "platform": "linux-x86_64",
            "libraries": {"torch": "2.13.0"},
            "lock": "a" * 64,
        },
        "experiment": {"commit": "7" * 40, "name": "exp-reviews"},
        "runs": {"mlflow": "6" * 32, "prefect": None},
        "metrics": {"prefix": {"accuracy": 0.9}, "base": {"accuracy": 0.5}},
        "verdict": {"passed": True, "criteria": []},
        "seed": 7,
        "created": "2024-02-29T12:00:00+00:00",
    }
    return LineageRecord(files=files, adapter_digest=digest(dict(files)), **{**content, **changes})
