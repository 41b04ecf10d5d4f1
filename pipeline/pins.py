"""pins/NAME.json: everything an experiment was started with, resolved. The flow writes it, the stages read it.

It is in git and `dvc.yaml` depends on its keys, so that DVC sees what is no file of the workspace: the base
model, the code, the champion; and so that a change of the gate or the schedule re-runs no stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import WorkspaceError
from pipeline.params import (
    BaseModelParams,
    DataParams,
    EvaluationParams,
    PrefixParams,
    SplitParams,
    Task,
    TrainingParams,
)


@dataclass(frozen=True)
class Champion:
    """The version in production.

    Attributes:
        adapter_digest: SHA-256 over its adapter's files.
        splits: the split parameters it was trained with.
        base_name, base: its base model, which may be another than that of the prefix to be judged.
    """

    version: str
    adapter_digest: str
    splits: SplitParams
    base_name: str
    base: BaseModelParams


@dataclass(frozen=True)
class WarmStart:
    """The adapter that a training goes on from.

    Attributes:
        adapter_digest: SHA-256 over its files.
        source: {"prefix", "version"} of a registered version, or {"adapter"}: a folder as params.yaml names it.
    """

    adapter_digest: str
    source: Mapping[str, str]

    def to_json(self) -> dict[str, str]:
        """As pins and lineage record hold it."""
        return {"adapter_digest": self.adapter_digest, **self.source}


@dataclass(frozen=True)
class Pins:
    """What the stages of one prefix are to use.

    Attributes:
        name: the prefix.
        base_model: {"name"} and its source and digest.
        warm_start: what the training goes on from; None where it begins anew.
        previous: DVC's md5 of the dataset version before this one, for the card's comparison.
    """

    name: str
    run_key: str
    task: Task
    base_name: str
    base: BaseModelParams
    code: Mapping[str, str]
    dataset: Mapping[str, Any]
    data: DataParams
    prefix: PrefixParams
    training: TrainingParams
    evaluation: EvaluationParams
    champion: Champion | None = None
    warm_start: WarmStart | None = None
    previous: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `read_pins` gives back an equal object."""
        champion = self.champion
        return {
            "run_key": self.run_key,
            "base_model": {"name": self.base_name, **self.base.model_dump(mode="json")},
            "code": dict(self.code),
            "data": {**self.dataset, "previous": self.previous},
            "champion": None
            if champion is None
            else {
                "version": champion.version,
                "adapter_digest": champion.adapter_digest,
                "splits": champion.splits.model_dump(mode="json"),
                "base_model": {"name": champion.base_name, **champion.base.model_dump(mode="json")},
            },
            "warm_start": None if self.warm_start is None else self.warm_start.to_json(),
            "params": {
                "task": self.task,
                "data": self.data.model_dump(mode="json"),
                "prefix": self.prefix.model_dump(mode="json"),
                "training": self.training.model_dump(mode="json"),
                "evaluation": self.evaluation.model_dump(mode="json"),
            },
        }


def read_pins(folder: Path, name: str) -> Pins:
    """The pins of the prefix `name` in the workspace, or experiment's copy of it, at `folder`.

    Raises:
        WorkspaceError: there are none, or they are not what `Pins.to_json` writes.
    """
    path = folder / "pins" / f"{name}.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        base, dataset = dict(raw["base_model"]), dict(raw["data"])
        champion, params = raw["champion"], raw["params"]
        # Pins of a retraining before there were warm starts do not have the key.
        warm = None if raw.get("warm_start") is None else dict(raw["warm_start"])
        return Pins(
            name=name,
            run_key=raw["run_key"],
            task=params["task"],
            base_name=base.pop("name"),
            base=BaseModelParams.model_validate(base),
            code=raw["code"],
            previous=dataset.pop("previous"),
            dataset=dataset,
            data=DataParams.model_validate(params["data"]),
            prefix=PrefixParams.model_validate(params["prefix"]),
            training=TrainingParams.model_validate(params["training"]),
            evaluation=EvaluationParams.model_validate(params["evaluation"]),
            champion=None if champion is None else _champion(champion),
            warm_start=None if warm is None else WarmStart(warm.pop("adapter_digest"), warm),
        )
    except FileNotFoundError:
        raise WorkspaceError(
            f"{path}: no such file; `prefixline retrain {name}` writes it, and then runs the stages"
        ) from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise WorkspaceError(
            f"{path}: is not a pins file ({type(error).__name__}: {error}); `prefixline retrain {name}` writes it"
        ) from None


def _champion(raw: Mapping[str, Any]) -> Champion:
    base = dict(raw["base_model"])
    return Champion(
        version=raw["version"],
        adapter_digest=raw["adapter_digest"],
        splits=SplitParams.model_validate(raw["splits"]),
        base_name=base.pop("name"),
        base=BaseModelParams.model_validate(base),
    )


def previous_dataset(root: Path, name: str, md5: str | None) -> str | None:
    """DVC's md5 of the dataset version that `md5` follows, by the pins of the last retraining; None for none.

    Args:
        md5: of the data at hand; None for data that is no version yet.
    """
    if not (root / "pins" / f"{name}.json").exists():
        return None
    last = read_pins(root, name)
    return last.previous if last.dataset["md5"] == md5 else str(last.dataset["md5"])
