"""One training to be compared: what decides its result, as JSON for the process that does it.

OUT/
  prepared/                   the splits, as `prepare` makes them
  trainings/KEY/              KEY: the digest of all that decides the training
    job.json
    checkpoints/              while it is under way
    result/content/           once it is done: artefact/ and record.json, under a manifest
    scored/content/           rows.parquet, of the trainings whose test rows were scored
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.base import base_model
from pipeline.base.base_model import ResolvedBase
from pipeline.compare.methods import METHODS
from pipeline.digest import digest
from pipeline.params import BaseModelParams, EvaluationParams, PrefixParams, Task, TrainingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JOB, RESULT, SCORED, ARTEFACT = "job.json", "result", "scored", "artefact"
RECORD, ROWS, KEY = "record.json", "rows.parquet", "key.json"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a comparison share.

    Attributes:
        workspace: where a base model's relative path is taken from.
        prepared: the folder with the splits.
        rows: the SHA-256 of every split's Arrow files.
        versions: of the code and the libraries, PEFT left out.
    """

    task: Task
    base_name: str
    base: BaseModelParams
    workspace: Path
    prepared: Path
    labels: tuple[str, ...] | None
    prefix: PrefixParams
    training: TrainingParams
    evaluation: EvaluationParams
    rows: Mapping[str, list[str]]
    versions: Mapping[str, str]

    def resolve(self) -> ResolvedBase:
        """The base model, verified."""
        return base_model.resolve(self.base_name, self.base, self.workspace)

    def load(self, base: ResolvedBase, seed: int = 0) -> PreTrainedModel:
        """The base as every method is put on it, its head drawn from `seed`."""
        return base_model.load(
            base, self.task, labels=self.labels, pooling=self.training.head_pooling, seed=seed
        )


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        method: a key of `pipeline.compare.methods.METHODS`.
        rate: the method's learning rate; None for the probe.
        seed: of the head, of what the method draws, and of the order of the rows.
        lora_rank: as asked for; None for the nearest to the prefix, and for other methods.
    """

    setting: Setting
    method: str
    rate: float | None
    seed: int
    lora_rank: int | None = None

    @property
    def training(self) -> TrainingParams:
        """How it is trained: to the end, whatever the validation loss, so that all see the same rows."""
        changes: dict[str, Any] = {"seed": self.seed, "patience": None}
        if self.rate is not None:
            changes["learning_rate"] = self.rate
        return self.setting.training.model_copy(update=changes)

    @property
    def key(self) -> str:
        """The digest of all that decides the result, 64 hex characters."""
        shared = self.setting
        return digest(
            {
                "method": self.method,
                "lora_rank": self.lora_rank,
                "training": self.training.deciding(),
                "prefix": shared.prefix.model_dump(),
                "task": shared.task,
                "labels": None if shared.labels is None else list(shared.labels),
                "rows": {split: shared.rows[split] for split in ("train", "validation")},
                "base": [shared.base_name, shared.base.digest],
                "versions": {**shared.versions, **self._peft_version()},
            }
        )

    def _peft_version(self) -> dict[str, str]:
        return {"peft": importlib.metadata.version("peft")} if METHODS[self.method].peft else {}

    @property
    def scored_key(self) -> str:
        """The digest of all that decides its scores on the test rows."""
        shared = self.setting
        return digest([self.key, shared.rows["test"], shared.evaluation.model_dump()])

    def folder(self, out: Path) -> Path:
        """Where it lies."""
        return out / "trainings" / self.key[:16]

    def write(self, folder: Path) -> None:
        """As job.json."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        raw = {**own, "setting": _plain(self.setting)}
        files.write_json(folder / JOB, raw)


def read(folder: Path) -> Job:
    """The job that `Job.write` wrote to `folder`."""
    raw = json.loads((folder / JOB).read_text(encoding="utf-8"))
    setting = raw.pop("setting")
    labels = setting.pop("labels")
    return Job(
        setting=Setting(
            task=setting["task"],
            base_name=setting["base_name"],
            base=BaseModelParams.model_validate(setting["base"]),
            workspace=Path(setting["workspace"]),
            prepared=Path(setting["prepared"]),
            labels=None if labels is None else tuple(labels),
            prefix=PrefixParams.model_validate(setting["prefix"]),
            training=TrainingParams.model_validate(setting["training"]),
            evaluation=EvaluationParams.model_validate(setting["evaluation"]),
            rows=setting["rows"],
            versions=setting["versions"],
        ),
        **raw,
    )


def _plain(setting: Setting) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(setting):
        value = getattr(setting, field.name)
        if isinstance(value, Path):
            value = str(value)
        elif hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        elif isinstance(value, tuple):
            value = list(value)
        values[field.name] = value
    return values
