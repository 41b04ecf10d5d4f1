"""The three stages of dvc.yaml: `python -m pipeline.stages prepare|train|evaluate NAME`, run by DVC.

A stage is a function of the files it finds in the current folder, pins/NAME.json above all; it writes below
artifacts/NAME and knows no MLflow and no Prefect. From the true workspace (`PREFIXLINE_WORKSPACE`; the current
folder is the experiment's copy) it takes only what it verifies by hash, and keeps its checkpoints there.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import forkserver
from pipeline.environment import SWITCHES
from pipeline.errors import PrefixlineError, WorkspaceError, disk_fault
from pipeline.pins import Pins, read_pins
from pipeline.state import adapters_folder, checkpoint_folder, row_ids_folder
from pipeline.train import launched

WORKSPACE = "PREFIXLINE_WORKSPACE"
"""The environment variable that names the true workspace."""


def workspace_root() -> Path:
    """The true workspace: from the environment, else the current folder."""
    return Path(os.environ.get(WORKSPACE) or Path.cwd())


def prepare(pins: Pins, artifacts: Path) -> Mapping[str, Any]:
    """Raw data → artifacts/NAME/prepared; what goes into prepared.json, the card included."""
    import json

    from pipeline.base import base_model
    from pipeline.data import dataset

    base = base_model.resolve(pins.base_name, pins.base, workspace_root())
    out = artifacts / "prepared"
    previous = None
    if pins.previous is not None:
        previous = row_ids_folder(workspace_root(), pins.name, pins.previous)
    summary = dataset.prepare(
        Path(pins.data.path),
        pins.data,
        pins.task,
        tokenizer=base_model.tokenizer(base),
        window=base_model.window(base),
        prefix_length=pins.prefix.length,
        encoder_decoder=base_model.is_encoder_decoder(base),
        out=out,
        previous=previous if previous is not None and previous.is_dir() else None,
    )
    return {**summary.to_json(), "manifest": _below("prepared", summary.manifest)} | {
        "card": json.loads((out / "card.json").read_text(encoding="utf-8"))
    }


def train(pins: Pins, artifacts: Path) -> Mapping[str, Any]:
    """artifacts/NAME/prepared → adapter/ and curves.jsonl; what goes into trained.json.

    With several `training.processes` this stage is run once more in each of them, and the first one writes.
    """
    from pipeline.base import base_model
    from pipeline.train import initialisation, launch, training

    if pins.training.processes > 1 and not launched.launched():
        launch.launch(
            pins.training.processes,
            "pipeline.stages",
            ["train", pins.name],
            threads=pins.training.threads,
        )
        return _record(artifacts / "trained.json")
    base = base_model.resolve(pins.base_name, pins.base, workspace_root())
    labels = _record(artifacts / "prepared.json")["labels"]
    warm_start = None
    if pins.warm_start is not None:
        digest, source = pins.warm_start.adapter_digest, pins.warm_start.source
        warm_start = initialisation.WarmStart(adapters_folder(workspace_root()) / digest, digest, source)
    summary = training.train(
        base_model.load(
            base, pins.task, labels=labels, pooling=pins.training.head_pooling, seed=pins.training.seed
        ),
        pins.prefix,
        pins.training,
        pins.task,
        artifacts / "prepared",
        artifacts,
        checkpoint_folder(workspace_root(), pins.run_key),
        tokenizer=base_model.tokenizer(base),
        labels=labels,
        base_name=pins.base_name,
        base_digest=base.digest,
        warm_start=warm_start,
    )
    return summary.to_json()


def evaluate(pins: Pins, artifacts: Path) -> Mapping[str, Any]:
    """Score the adapter, the frozen base and the champion → evaluation/; what goes into evaluated.json."""
    from pipeline.base import base_model
    from pipeline.evaluate import evaluation

    base = base_model.resolve(pins.base_name, pins.base, workspace_root())
    labels = _record(artifacts / "prepared.json")["labels"]
    champion = None
    if pins.champion is not None:
        champion = evaluation.Champion(
            folder=adapters_folder(workspace_root()) / pins.champion.adapter_digest,
            adapter_digest=pins.champion.adapter_digest,
            version=pins.champion.version,
            splits=pins.champion.splits,
            base=base_model.resolve(pins.champion.base_name, pins.champion.base, workspace_root()),
        )
    summary = evaluation.evaluate(
        base,
        artifacts / "adapter",
        artifacts / "prepared",
        artifacts / "evaluation",
        task=pins.task,
        data=pins.data,
        params=pins.evaluation,
        labels=labels,
        champion=champion,
    )
    return {**summary.to_json(), "manifest": _below("evaluation", summary.manifest)}


STAGES = {
    "prepare": (prepare, "prepared.json"),
    "train": (train, "trained.json"),
    "evaluate": (evaluate, "evaluated.json"),
}


def main(arguments: list[str]) -> int:
    """Run one stage; its exit code. What the user must know is the last thing on stderr."""
    from pipeline.files import write_json

    if len(arguments) != 2 or arguments[0] not in STAGES:
        print(f"usage: python -m pipeline.stages {'|'.join(STAGES)} NAME", file=sys.stderr)  # noqa: T201
        return 2
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    stage, name = arguments
    started = time.monotonic()
    try:
        function, record = STAGES[stage]
        pins = read_pins(Path.cwd(), name)
        _check_code(pins)
        artifacts = Path("artifacts") / name
        artifacts.mkdir(parents=True, exist_ok=True)
        result = function(pins, artifacts)
        if launched.is_first():
            write_json(artifacts / record, {**result, "stage_seconds": round(time.monotonic() - started, 3)})
    except PrefixlineError as error:
        return _failed(error, str(error))
    except OSError as error:
        if (message := disk_fault(error)) is None:
            raise
        return _failed(error, message)
    except KeyboardInterrupt:
        print(f"stopped: {stage} of {name}; run it again to go on", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _failed(error: Exception, message: str) -> int:
    """Say what went wrong: to the launcher of several processes, which says it once, or to the user."""
    if not launched.report(type(error).__name__, message):
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 1


def _check_code(pins: Pins) -> None:
    """What runs must be what the lineage record will name."""
    from pipeline.register.lineage import code_identity

    here = code_identity()["digest"]
    if here != pins.code["digest"]:
        raise WorkspaceError(
            f"the code has the digest {here}, and pins/{pins.name}.json names {pins.code['digest']}: prefixline was "
            f"changed after the retraining began. Run prefixline retrain {pins.name} again"
        )


def _below(folder: str, manifest: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": digest for name, digest in manifest.items()}


def _record(path: Path) -> dict[str, Any]:
    import json

    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkspaceError(f"{path}: no such file; the stage before this one writes it") from None
    return value


if __name__ == "__main__":
    # Python would search a million living objects for garbage at the end: 1.6 s a stage.
    atexit.register(gc.freeze)
    launched.end_with_launcher()
    forks = os.environ.get(forkserver.FORKSERVER)
    status = forkserver.run(forks, "pipeline.stages", sys.argv[1:]) if forks else None
    sys.exit(main(sys.argv[1:]) if status is None else status)
