"""What the steps of a retraining hand on: the plan, then the experiment that was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.base_model import ResolvedBase
from pipeline.judge.verdict import Verdict
from pipeline.params import PrefixEntry
from pipeline.pins import WarmStart
from pipeline.register.registry import Known
from pipeline.versioning.experiment import Experiment
from pipeline.versioning.snapshot import DatasetVersion
from pipeline.versioning.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """What a retraining is, decided before anything is computed.

    Attributes:
        warm_start: the adapter that the training goes on from; None where it begins anew.
        known: what is known of the run key; None when it has to be carried out.
        prefect_run: the id of the flow run that carries it out; None where there is none.
        started: seconds since the epoch.
    """

    workspace: Workspace
    name: str
    entry: PrefixEntry
    base: ResolvedBase
    dataset: DatasetVersion
    code: Mapping[str, str]
    warm_start: WarmStart | None
    run_key: str
    known: Known | None
    prefect_run: str | None
    started: float


@dataclass(frozen=True)
class Judged:
    """A finished experiment, fetched, verified and judged.

    Attributes:
        folder: holds train/ (adapter, curves) and evaluate/ (rows, samples).
        prepared, trained, evaluated: the stages' git-tracked records.
        seconds: what preparing, training and evaluating took in their own processes.
    """

    experiment: Experiment
    run_id: str
    folder: Path
    prepared: Mapping[str, Any]
    trained: Mapping[str, Any]
    evaluated: Mapping[str, Any]
    verdict: Verdict

    @property
    def adapter(self) -> Path:
        """The trained adapter's folder."""
        return self.folder / "train" / "adapter"

    @property
    def curves(self) -> Path:
        """The training's curves.jsonl."""
        return self.folder / "train" / "curves.jsonl"

    @property
    def rows(self) -> Path:
        """The scored test rows."""
        return self.folder / "evaluate" / "evaluation" / "rows.parquet"

    @property
    def samples(self) -> Path:
        """A few rows to read."""
        return self.folder / "evaluate" / "evaluation" / "samples.json"
