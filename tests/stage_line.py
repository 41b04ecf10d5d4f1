"""One prefix through the stages as DVC starts them, and into a registry: what the tests of the stages have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import stages
from pipeline.files import write_json
from pipeline.params import (
    BaseModelParams,
    DataParams,
    EvaluationParams,
    PrefixParams,
    SplitParams,
    TrainingParams,
)
from pipeline.pins import Pins
from pipeline.register import registration
from pipeline.register.lineage import LineageRecord, code_identity
from pipeline.register.registry import start_run
from tests import mlflow_world

NAME, KEY, ROWS = "words", "c" * 64, "rows.jsonl"


@dataclass(frozen=True)
class StageLine:
    """A prefix called "words" whose stages have run in `root`, for a base as `mlflow_world.base_record` tells it."""

    root: Path
    base: Mapping[str, Any]
    pins: Pins

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts" / NAME

    @property
    def scored(self) -> Path:
        return self.artifacts / "evaluation" / "rows.parquet"

    def scores(self) -> list[dict[str, Any]]:
        """The prefix's test rows."""
        rows: list[dict[str, Any]] = pq.read_table(
            self.scored, filters=[("system", "=", "prefix")]
        ).to_pylist()
        return rows

    def registered(self, example: Sequence[str]) -> tuple[LineageRecord, Any]:
        """Register it: its record, and the model as MLflow loads it by its alias."""
        import mlflow

        registry = mlflow_world.database(self.root / "registry")
        run_id = start_run(registry, NAME, KEY, params={})
        pins, adapter = self.pins, self.artifacts / "adapter"
        params = {
            "task": pins.task,
            "data": pins.data.model_dump(),
            "evaluation": pins.evaluation.model_dump(),
        }
        record = mlflow_world.record(adapter, run_id, KEY, self.base, pins.task, params=params, prefix=NAME)
        registration.register(
            registry,
            run_id=run_id,
            record=record,
            adapter=adapter,
            example=list(example),
            actor=mlflow_world.ACTOR,
        )
        registry.activate()
        return record, mlflow.pyfunc.load_model(f"models:/{NAME}@candidate")


def run(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    base: Path,
    lines: str,
    task: Any,
    training: TrainingParams,
    evaluation: EvaluationParams,
) -> StageLine:
    """Prepare, train and evaluate on `lines` of JSON, in the workspace `root`."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(root))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")
    (root / ROWS).write_text(lines)
    recorded = mlflow_world.base_record(base, root)
    pins = Pins(
        name=NAME,
        run_key=KEY,
        task=task,
        base_name="tiny",
        base=BaseModelParams(source=recorded["source"], digest=recorded["digest"]),
        code=code_identity(),
        dataset={"md5": "d" * 32, "manifest": {}},
        data=DataParams(path=ROWS, splits=SplitParams(train=0.4, validation=0.2, test=0.4)),
        prefix=PrefixParams(length=4),
        training=training,
        evaluation=evaluation,
    )
    (root / "pins").mkdir()
    write_json(root / "pins" / f"{NAME}.json", pins.to_json())
    for stage in ("prepare", "train", "evaluate"):
        assert stages.main([stage, NAME]) == 0, capsys.readouterr().err
    return StageLine(root, recorded, pins)
