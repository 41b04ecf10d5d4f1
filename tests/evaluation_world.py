"""Prepared data, a base and adapters, all real and tiny, for the tests of evaluation."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.base.base_model import ResolvedBase
from pipeline.data.dataset import PreparedSummary, prepare
from pipeline.digest import digest
from pipeline.evaluate.evaluation import Champion, EvaluatedSummary, evaluate
from pipeline.params import BaseModelParams, DataParams, EvaluationParams, Pooling, SplitParams, Task
from pipeline.prefix.adapter import adapter_digest, install_head, save_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape
from tests.tiny import WORDS

LABELS = ("bird", "cat", "dog")
LENGTH = 4
SPLITS = SplitParams(train=0.5, validation=0.2, test=0.3)


def resolved(folder: Path, name: str = "tiny") -> ResolvedBase:
    params = BaseModelParams.model_validate(
        {"source": {"path": str(folder)}, "digest": digest(identity_files(folder))}
    )
    return base_model.resolve(name, params, folder)


@dataclass(frozen=True)
class World:
    """What `evaluate` is called with."""

    task: Task
    base: ResolvedBase
    prepared: Path
    summary: PreparedSummary
    data: DataParams
    adapter: Path

    def evaluate(
        self, out: Path, *, params: EvaluationParams | None = None, **changed: Any
    ) -> EvaluatedSummary:
        arguments: dict[str, Any] = {
            "task": self.task,
            "data": self.data,
            "params": params or EvaluationParams(batch_size=8, max_new_tokens=6),
            "labels": self.summary.labels,
            **changed,
        }
        adapter = arguments.pop("adapter", self.adapter)
        return evaluate(self.base, adapter, self.prepared, out, **arguments)

    def champion(
        self, folder: Path, *, splits: SplitParams = SPLITS, base: ResolvedBase | None = None
    ) -> Champion:
        return Champion(folder, adapter_digest(folder), "7", splits, base)


def adapter(
    folder: Path,
    base: ResolvedBase,
    task: Task,
    *,
    labels: tuple[str, ...] | None = None,
    seed: int = 0,
    pooling: Pooling | None = None,
) -> Path:
    """A random prefix, and for classification a random head that tells texts apart."""
    model = base_model.load(base, task, labels=labels, pooling=pooling)
    generator = torch.Generator().manual_seed(seed)
    prefix = Prefix(PrefixShape.of_model(model), LENGTH)
    prefix.init_random(1.0, generator)
    head = {} if labels is None else _head(model, prefix, generator)
    save_adapter(
        folder,
        prefix,
        model,
        head=head,
        task=task,
        base_name=base.name,
        base_digest=base.digest,
        labels=labels,
    )
    return folder


def _head(model: Any, prefix: Prefix, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random directions, centred and stretched so that texts fall on all sides of them."""
    head = base_model.head_parameters(model)
    install_head(model, {name: torch.randn(p.shape, generator=generator) for name, p in head.items()})
    input_ids = torch.randint(5, 40, (200, 7), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 2, 3  # [CLS] and [SEP]
    with torch.no_grad(), attach(model, prefix):
        logits = model(input_ids=input_ids).logits
    mean, spread = logits.mean(dim=0), logits.std(dim=0)
    (weight, w), (bias, b) = head.items()
    return {weight: w / spread[:, None], bias: (b - mean) / spread}


def classification_world(folder: Path, base: ResolvedBase, *, rows: int = 150) -> World:
    """Texts of 3 to 12 words, one of which is the label; the town is a slice."""
    draw = random.Random(0)
    others = [word for word in WORDS if word not in LABELS]
    folder.mkdir(parents=True)
    with (folder / "raw.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "town"])
        for _ in range(rows):
            label = draw.choice(LABELS)
            words = draw.choices(others, k=draw.randint(2, 11))
            words.insert(draw.randint(0, len(words)), label)
            writer.writerow([" ".join(words), label, draw.choice(["north", "south"])])
    data = DataParams(path="raw.csv", slices=("town",), splits=SPLITS)
    return _world(folder, base, "classification", data, LABELS)


def generation_world(folder: Path, base: ResolvedBase, *, rows: int = 40) -> World:
    """Sources of 2 to 5 words with one to three references."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    lines = [
        {
            "source": " ".join(draw.choices(WORDS, k=draw.randint(2, 5))),
            "target": [
                " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 3))
            ],
        }
        for _ in range(rows)
    ]
    (folder / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return _world(folder, base, "generation", DataParams(path="raw.jsonl", splits=SPLITS), None)


def _world(
    folder: Path, base: ResolvedBase, task: Task, data: DataParams, labels: tuple[str, ...] | None
) -> World:
    summary = prepare(
        folder / data.path,
        data,
        task,
        tokenizer=base_model.tokenizer(base),
        window=base_model.window(base),
        prefix_length=LENGTH,
        encoder_decoder=base_model.is_encoder_decoder(base),
        out=folder / "prepared",
    )
    made = adapter(folder / "adapter", base, task, labels=labels)
    return World(task, base, folder / "prepared", summary, data, made)
