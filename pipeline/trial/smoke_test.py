"""The smoke test: a registered version, loaded as any MLflow client loads it, predicts what its evaluation recorded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import IntegrityError, PrefixlineError, RefusedError, WorkspaceError
from pipeline.register.versions import VerifiedVersion
from pipeline.tracking.connection import Registry
from pipeline.versioning.stored import fetch_outputs
from pipeline.versioning.workspace import Workspace

ROWS = 512
"""Test rows that are predicted again, spread evenly over all of them."""

TOLERANCE = 1e-4
"""Of a probability: batches are put together otherwise than in the evaluation, which rounds otherwise."""


def smoke_test(workspace: Workspace, registry: Registry, verified: VerifiedVersion) -> None:
    """Load the version from the registry and compare its predictions with the recorded ones.

    For classification the probability of the recorded class must be the recorded one; for generation the text.

    Raises:
        RefusedError: it does not load, or predicts something else.
        WorkspaceError, IntegrityError: its recorded evaluation cannot be fetched, or is not what was recorded.
    """
    record, version = verified.record, verified.version
    name, task = version.name, record.params["task"]
    with tempfile.TemporaryDirectory(dir=_scratch(workspace)) as folder:
        texts, recorded = _recorded(workspace, verified, Path(folder))
        with _environment(workspace), registry.errors(f"loading {name} version {version.version}"):
            import mlflow

            registry.activate()
            try:
                model = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
                answers = model.predict(list(texts))
            except (
                PrefixlineError
            ) as error:  # of our own model's code: base or adapter are not the recorded ones
                raise RefusedError(
                    f"{name} version {version.version}: the smoke test could not load it: {error}"
                ) from error
    wrong = [
        place
        for place, row in enumerate(recorded)
        if not _same(answers.iloc[place], row, task, record.dataset["labels"])
    ]
    if wrong:
        raise RefusedError(
            f"{name} version {version.version}: the smoke test failed: it predicts otherwise than its evaluation "
            f"recorded on {len(wrong):,} of {len(recorded):,} test rows, the first {recorded[wrong[0]]['row_id']}"
        )


def _same(answer: Any, row: dict[str, Any], task: str, labels: Sequence[str] | None) -> bool:
    if task == "generation":
        return bool(answer["text"] == row["hypothesis"])
    assert labels is not None
    return bool(abs(answer[f"probability.{labels[row['prediction']]}"] - row["confidence"]) <= TOLERANCE)


def _recorded(
    workspace: Workspace, verified: VerifiedVersion, folder: Path
) -> tuple[list[str], list[dict[str, Any]]]:
    """Test rows, and what the evaluation recorded of them: out of DVC, verified by their hashes."""
    import numpy as np
    import pyarrow.parquet as pq

    from pipeline.evaluate.systems import read_examples

    record, version = verified.record, verified.version
    commit = record.experiment["commit"]
    try:
        prepared = fetch_outputs(workspace, commit, version.name, "prepare", folder / "prepare")
        evaluated = fetch_outputs(workspace, commit, version.name, "evaluate", folder / "evaluate")
    except (WorkspaceError, IntegrityError) as error:
        raise WorkspaceError(
            f"{version.name} version {version.version}: the smoke test needs its recorded evaluation, of experiment "
            f"{commit}: {error}"
        ) from error
    examples = read_examples(prepared / "prepared", "test", record.params["task"])
    texts = dict(zip(examples.row_ids, examples.texts, strict=True))
    rows = pq.read_table(
        evaluated / "evaluation" / "rows.parquet", filters=[("system", "=", "prefix")]
    ).to_pylist()
    rows = [row for row in rows if row.get("hypothesis", "") is not None]  # not all need have been generated
    places = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))
    chosen = [rows[place] for place in places]
    return [texts[row["row_id"]] for row in chosen], chosen


def _scratch(workspace: Workspace) -> Path:
    folder = workspace.state / "trial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _environment(workspace: Workspace) -> Iterator[None]:
    """Where a relative base path starts; and MLflow exports its addresses, which are taken back afterwards."""
    names = ("PREFIXLINE_WORKSPACE", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    os.environ["PREFIXLINE_WORKSPACE"] = str(workspace.root)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
