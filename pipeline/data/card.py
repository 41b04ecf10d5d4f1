"""The dataset card: what is in a prepared dataset, as plain JSON. Its page is made by `card_page`.

Nothing in it depends on the machine, the time or where the files lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.grouping import Examples, class_counts, conflicts
from pipeline.data.merkle import merkle_root
from pipeline.data.reading import DataFiles
from pipeline.data.splits import DIGEST_BYTES, SPLITS, Digests, Split, as_digests, first_equal
from pipeline.data.staging import Staged, gather
from pipeline.data.tokenised import Tokenised
from pipeline.digest import sha256_file
from pipeline.errors import DataError
from pipeline.params import DataParams, Task

if TYPE_CHECKING:
    from datasets import Dataset

CARD, PAGE, ROW_IDS = "card.json", "card.html", "row_ids"

EXAMPLES_PER_SPLIT = 4
CONFLICTS_SHOWN = 20
SLICE_VALUES_SHOWN = 50
TEXT_SHOWN = 280
BINS = 40
QUANTILES = {
    "min": 0.0,
    "p5": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "p99": 0.99,
    "max": 1.0,
}
"""Names and shares; each is a length that occurs, not one between two."""


@dataclass(frozen=True)
class Made:
    """Everything a card is made from: what `prepare` was given and what it made of it."""

    task: Task
    data: DataParams
    files: DataFiles
    window: int
    prefix_length: int
    limit: int
    staged: Staged
    examples: Examples
    tokenised: Tokenised
    splits: Mapping[Split, Dataset]
    row_ids: str


@dataclass(frozen=True)
class Previous:
    """The version before: its row ids, sorted, and its labels where they are known.

    Attributes:
        row_ids: [rows, 16].
        digest: SHA-256 of its row_ids file.
        labels: its label set; None for generation or where its card is not there.
    """

    row_ids: Digests
    digest: str
    labels: tuple[str, ...] | None


def read_previous(folder: Path) -> Previous:
    """Row ids, and labels if there is a card, from the prepared folder of the version before.

    Raises:
        DataError: the folder has no row ids, or not whole ones.
    """
    path = folder / ROW_IDS
    if not path.is_file():
        raise DataError([f"{path}: no such file; expected the row ids of the version before"])
    content = path.read_bytes()
    if len(content) % DIGEST_BYTES:
        raise DataError(
            [f"{path}: got {len(content)} bytes; expected a multiple of {DIGEST_BYTES}: it was cut short"]
        )
    card = folder / CARD
    labels = json.loads(card.read_text(encoding="utf-8"))["labels"] if card.is_file() else None
    return Previous(as_digests(content), sha256_file(path), tuple(labels) if labels is not None else None)


def rows_root(content: bytes) -> str:
    """The Merkle root over the row ids in the content of a row_ids file."""
    return merkle_root([content[i : i + DIGEST_BYTES] for i in range(0, len(content), DIGEST_BYTES)])


def build_card(made: Made, previous: Previous | None) -> dict[str, Any]:
    """The card as plain JSON values."""
    staged, examples, tokenised = made.staged, made.examples, made.tokenised
    kept = tokenised.kept
    card: dict[str, Any] = {
        "task": made.task,
        "row_ids": made.row_ids,
        "raw": {
            "format": made.files.format,
            "rows": sum(staged.files.values()),
            "files": {
                name: {"rows": rows, "sha256": sha256_file(path)}
                for (name, rows), path in zip(staged.files.items(), made.files.paths, strict=True)
            },
        },
        "rows": {split: len(rows) for split, rows in made.splits.items()},
        "split_params": made.data.splits.model_dump(),
        "labels": list(staged.labels) if staged.labels is not None else None,
        "classes": None,
        "duplicates": {
            "dropped": examples.duplicates,
            "near": examples.near_duplicates,
            "slice_disagreements": examples.slice_disagreements,
        },
        "conflicting_labels": None,
        "references": None,
        "tokens": {
            "window": made.window,
            "prefix": made.prefix_length,
            "limit": made.limit,
            "input": _lengths(tokenised.input_lengths[kept], examples.split[kept]),
        },
        "too_long": {
            "policy": made.data.too_long,
            "dropped": int(np.count_nonzero(~kept)),
            "truncated": tokenised.truncated,
        },
        "slices": {column: _slice(made.splits, column) for column in made.data.slices},
        "examples": {split: _examples(rows, staged.labels) for split, rows in made.splits.items()},
        "changes": _changes(previous, made) if previous is not None else None,
    }
    if staged.labels is not None:
        counts = class_counts(examples, kept, len(staged.labels)).tolist()
        card["classes"] = {
            label: dict(zip(SPLITS, row, strict=True))
            for label, row in zip(staged.labels, counts, strict=True)
        }
        card["conflicting_labels"] = _conflicts(staged, examples, staged.labels)
    else:
        references = tokenised.references[kept]
        sizes, counts = np.unique(references, return_counts=True)
        card["references"] = {
            "total": int(references.sum()),
            "mean": round(float(references.mean()), 3),
            "max": int(references.max()),
            "sources": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
        }
        card["tokens"]["target"] = _lengths(tokenised.target_lengths, tokenised.target_splits)
    return card


def _lengths(lengths: npt.NDArray[np.int32], splits: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Quantiles per split, and one histogram with common edges: bin i counts edges[i] ≤ length < edges[i + 1]."""
    width = -(-(int(lengths.max()) + 1) // BINS)
    edges = np.arange(0, int(lengths.max()) + 1 + width, width)
    parts = {split: lengths[splits == number] for number, split in enumerate(SPLITS)}
    return {
        "quantiles": {split: _quantiles(part) for split, part in parts.items()},
        "histogram": {
            "edges": edges.tolist(),
            **{split: np.histogram(part, edges)[0].tolist() for split, part in parts.items()},
        },
    }


def _quantiles(lengths: npt.NDArray[np.int32]) -> dict[str, float]:
    figures = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf").tolist()
    return {**dict(zip(QUANTILES, figures, strict=True)), "mean": round(float(lengths.mean()), 2)}


def _conflicts(staged: Staged, examples: Examples, labels: tuple[str, ...]) -> dict[str, Any]:
    found = conflicts(staged, examples, CONFLICTS_SHOWN)
    shown = []
    if found.first:
        with pa.memory_map(str(staged.path)) as source:
            batches = pa.ipc.open_stream(source).read_all().to_batches()
            texts = gather(batches, np.array([conflict.row for conflict in found.first]))["key"].to_pylist()
        shown = [
            {"text": clip(text), "labels": [labels[number] for number in conflict.labels]}
            for text, conflict in zip(texts, found.first, strict=True)
        ]
    return {"texts": found.texts, "rows": found.rows, "examples": shown}


def _slice(splits: Mapping[Split, Dataset], column: str) -> dict[str, Any]:
    """Rows per value and split: the most frequent values."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in splits.items():
        for entry in pc.value_counts(rows.data.column(f"slice.{column}")).to_pylist():
            counts.setdefault(entry["values"], dict.fromkeys(SPLITS, 0))[split] = entry["counts"]
    ranked = sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    shown = [{"value": value, **parts} for value, parts in ranked[:SLICE_VALUES_SHOWN]]
    return {"distinct": len(ranked), "shown": shown}


def _examples(rows: Dataset, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """A few rows, evenly spaced."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(EXAMPLES_PER_SPLIT, len(rows))).astype(int))
    shown = []
    for row in (rows[int(place)] for place in places):
        example: dict[str, Any] = {"row_id": row["row_id"], "tokens": len(row["input_ids"])}
        if labels is not None:
            example |= {"text": clip(row["text"]), "label": labels[row["label"]]}
        else:
            targets = [clip(target) for target in row["targets"][:3]]
            example |= {"source": clip(row["source"]), "targets": targets, "references": len(row["targets"])}
        shown.append(example)
    return shown


def _changes(previous: Previous, made: Made) -> dict[str, Any]:
    before, ids = previous.row_ids, made.tokenised.row_ids
    known = first_equal(np.concatenate([before, ids]))[len(before) :] < len(before)
    splits = made.examples.split[made.tokenised.kept]
    added = np.bincount(splits[~known], minlength=len(SPLITS)).tolist()
    labels, old = made.staged.labels, previous.labels
    return {
        "previous": {"row_ids": previous.digest, "rows": len(before)},
        "kept": int(np.count_nonzero(known)),
        "added": int(np.count_nonzero(~known)),
        "removed": len(before) - int(np.count_nonzero(known)),
        "added_by_split": dict(zip(SPLITS, added, strict=True)),
        "labels_added": [label for label in labels if label not in old] if labels and old else [],
        "labels_removed": [label for label in old if label not in labels] if labels and old else [],
    }


def clip(text: str) -> str:
    """`text`, cut to what a card shows."""
    return text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 1]}…"
