"""Settings and jobs over tiny prepared data, and work done in this process instead of one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.base_files import identity_files
from pipeline.compare import worker
from pipeline.compare.job import Job, Setting
from pipeline.data.splits import SPLITS
from pipeline.digest import digest, sha256_file
from pipeline.params import BaseModelParams, EvaluationParams, PrefixParams, Task, TrainingParams
from tests.evaluation_world import LENGTH, classification_world, generation_world, resolved

TRAINING = {"epochs": 2, "batch_size": 8, "head_learning_rate": 0.1, "threads": 1, "validations_per_epoch": 2}


def setting(folder: Path, base: Path, task: Task, **training: Any) -> Setting:
    """Prepared data in `folder`, and what trainings on it share."""
    make = classification_world if task == "classification" else generation_world
    world = make(folder / "world", resolved(base))
    return Setting(
        task=task,
        base_name="tiny",
        base=BaseModelParams.model_validate(
            {"source": {"path": str(base)}, "digest": digest(identity_files(base))}
        ),
        workspace=folder,
        prepared=world.prepared,
        labels=world.summary.labels,
        prefix=PrefixParams(length=LENGTH),
        training=TrainingParams.model_validate({**TRAINING, **training}),
        evaluation=EvaluationParams(batch_size=8, max_new_tokens=6),
        rows={
            split: [sha256_file(file) for file in sorted((world.prepared / split).glob("*.arrow"))]
            for split in SPLITS
        },
        versions={"code": "0"},
    )


def written(job: Job, out: Path) -> Path:
    """The job's folder, with job.json in it."""
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder)
    return folder


def in_this_process(work: str, folders: Sequence[Path], *, what: str) -> Any:
    """What `worker.start` starts a process for."""
    return worker._work(work, list(folders))
