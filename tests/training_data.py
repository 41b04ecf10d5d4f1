"""Prepared folders as `pipeline.data.dataset.prepare` leaves them, small enough to train on in a second."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny import WORDS

LABELS = ("cat", "dog", "bird")


def classification_rows(folder: Path, tokenizer: Any, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Texts of 3 to 12 words, one of which is the label's name."""
    draw = random.Random(seed)
    others = [word for word in WORDS if word not in LABELS]
    for split, count in counts.items():
        rows = []
        for _ in range(count):
            label = draw.randrange(len(LABELS))
            words = draw.choices(others, k=draw.randint(2, 11))
            words.insert(draw.randint(0, len(words)), LABELS[label])
            text = " ".join(words)
            rows.append({"text": text, "label": label, "input_ids": tokenizer(text).input_ids})
        _save(folder / split, rows, {"text": "string", "label": "int32", "input_ids": ["int32"]})
    return folder


def generation_rows(
    folder: Path, tokenizer: Any, counts: Mapping[str, int], *, seed: int = 0, encoder_decoder: bool = False
) -> Path:
    """Sources of 1 to 4 words, each with one to three references that begin with the source's first word."""
    draw = random.Random(seed)
    for split, count in counts.items():
        rows = []
        for _ in range(count):
            source = " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))
            targets = [
                " ".join([source.split()[0], *draw.choices(WORDS[:6], k=draw.randint(1, 6))])
                for _ in range(draw.randint(1, 3))
            ]
            if encoder_decoder:
                ids = [tokenizer(text).input_ids for text in (source, *targets)]
                rows.append(
                    {"source": source, "targets": targets, "input_ids": ids[0], "target_ids": ids[1:]}
                )
                continue
            prompt = [tokenizer.bos_token_id, *tokenizer(source + " \n", add_special_tokens=False).input_ids]
            ids = [
                [*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for t in targets
            ]
            rows.append({"source": source, "targets": targets, "input_ids": prompt, "target_ids": ids})
        _save(
            folder / split,
            rows,
            {"source": "string", "targets": ["string"], "input_ids": ["int32"], "target_ids": [["int32"]]},
        )
    return folder


def _save(folder: Path, rows: list[dict[str, Any]], columns: Mapping[str, Any]) -> None:
    import datasets

    def feature(kind: Any) -> Any:
        return datasets.List(feature(kind[0])) if isinstance(kind, list) else datasets.Value(kind)

    for i, row in enumerate(rows):
        row["row_id"] = hashlib.sha256(f"{folder.name} {i}".encode()).hexdigest()
    features = {"row_id": "string", **columns}
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(
        rows, features=datasets.Features({name: feature(kind) for name, kind in features.items()})
    ).save_to_disk(str(folder))
