"""A training to look at: a tiny base, rows for it, and a place to train in."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.base.base_model import ResolvedBase
from pipeline.digest import digest
from pipeline.params import BaseModelParams, PrefixParams, TrainingParams
from pipeline.prefix.adapter import adapter_digest
from pipeline.train.initialisation import WarmStart
from pipeline.train.training import TrainedSummary, train
from tests.training_data import LABELS

PREFIX = {"length": 3, "initialisation": "text"}
TRAINING = {
    "learning_rate": 0.1,
    "head_learning_rate": 0.01,
    "epochs": 2,
    "batch_size": 8,
    "validations_per_epoch": 2,
    "checkpoint_seconds": 0,
}
"""10 steps over 40 training rows, with validations after steps 3, 5, 8 and 10."""


def resolved(folder: Path) -> ResolvedBase:
    params = {"source": {"path": str(folder)}, "digest": digest(identity_files(folder))}
    return base_model.resolve("tiny", BaseModelParams.model_validate(params), folder)


@dataclass
class Bench:
    """A base, rows for it, and a place to train in."""

    task: Any
    base: ResolvedBase
    prepared: Path
    root: Path
    pooling: Any = None
    lines: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, ...] | None:
        return LABELS if self.task == "classification" else None

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> bytes:
        return (self.root / "out" / "adapter" / "adapter_model.safetensors").read_bytes()

    def model(self) -> Any:
        return base_model.load(self.base, self.task, labels=self.labels, pooling=self.pooling)

    def train(
        self,
        *,
        model: Any = None,
        prefix: Mapping[str, Any] = PREFIX,
        warm_start: WarmStart | None = None,
        on_curve: Callable[[Mapping[str, Any]], None] | None = None,
        **training: Any,
    ) -> TrainedSummary:
        def note(line: Mapping[str, Any]) -> None:
            self.lines.append(line)
            if on_curve is not None:
                on_curve(line)

        return train(
            model or self.model(),
            PrefixParams.model_validate(prefix),
            # model_copy: params.yaml refuses the rates at which these tests make numbers overflow.
            TrainingParams.model_validate(TRAINING).model_copy(
                update={"head_pooling": self.pooling, **training}
            ),
            self.task,
            self.prepared,
            self.root / "out",
            self.checkpoints,
            tokenizer=base_model.tokenizer(self.base),
            labels=self.labels,
            base_name="tiny",
            base_digest=self.base.digest,
            warm_start=warm_start,
            on_curve=note,
        )

    def warm(self) -> WarmStart:
        """What was trained here, to go on from."""
        folder = self.root / "out" / "adapter"
        return WarmStart(folder, adapter_digest(folder), {"prefix": "words", "version": "1"})

    def train_until_killed(self, step: int) -> None:
        """Train in a process of its own, which SIGKILL ends at `step`."""
        where = (self.task, str(self.base.folder), str(self.prepared), str(self.root), str(step))
        command = [sys.executable, "-c", KILLED, *where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr

    def beside(self, name: str) -> Bench:
        """The same task, trained in another place."""
        return Bench(self.task, self.base, self.prepared, self.root / name)


def sharpened(folder: Path, copy: Path) -> Path:
    """A tiny base with larger weights, so that its attention tells tokens apart and a prefix can act."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    larger = {name: w if "norm" in name.lower() else w * 10 for name, w in weights.items()}
    save_file(larger, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def at_step(step: int, act: Callable[[], Any]) -> Callable[[Mapping[str, Any]], None]:
    """Do something once, when the curve has reached a step."""

    def on_curve(line: Mapping[str, Any]) -> None:
        if line["kind"] == "step" and line["step"] == step:
            act()

    return on_curve


def figures(path: Path) -> list[dict[str, Any]]:
    """The curve without what depends on the clock."""
    clock = {"seconds", "targets_per_second"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


class CrashError(Exception):
    """What no handler of ours expects."""


def crash() -> None:
    raise CrashError


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.environment import quiet_environment
os.environ.update(quiet_environment())
import torch
torch.set_num_threads(1)
from tests.train.bench import Bench, at_step, resolved
task, base, prepared, root, step = sys.argv[1:]
bench = Bench(task, resolved(Path(base)), Path(prepared), Path(root))
bench.train(on_curve=at_step(int(step), lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""
"""A process that trains and is ended by SIGKILL at a step: task, base, prepared, root, step."""
