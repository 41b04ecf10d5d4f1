"""The fresh evaluation: a registered version on the test rows of the data as it is now.

Which rows are test rows follows from the version's own split parameters, so that none is among those that it was trained on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.errors import DataError, RefusedError, WorkspaceError
from pipeline.params import BaseModelParams, GateParams, PrefixEntry, SplitParams
from pipeline.register import versions
from pipeline.register.versions import VerifiedVersion
from pipeline.state import adapters_folder
from pipeline.tracking.connection import Registry
from pipeline.versioning import snapshot
from pipeline.versioning.workspace import Workspace


def fresh_evaluation(
    workspace: Workspace, registry: Registry, verified: VerifiedVersion, entry: PrefixEntry
) -> None:
    """Score the version on today's test rows, and hold it to the floors of the gate.

    Raises:
        RefusedError: it does not reach them, or the data cannot be put to it (it has a label that is new, say).
        WorkspaceError: the data as it lies is no dataset version.
        IntegrityError, BaseModelError, AdapterError: base or adapter are not the recorded ones, or not here.
    """
    from pipeline.base import base_model
    from pipeline.data import dataset
    from pipeline.evaluate import evaluation
    from pipeline.judge import gate

    record, name = verified.record, verified.version.name
    where = f"{name} version {verified.version.version}: the fresh evaluation"
    if (data := snapshot.current(workspace, entry.data)) is None:
        raise WorkspaceError(
            f"{where} needs a dataset version, and {entry.data.path} was changed since the last one: "
            f"prefixline retrain {name} makes one"
        )
    recorded = record.base_model
    base = base_model.resolve(
        recorded["name"],
        BaseModelParams(source=recorded["source"], digest=recorded["digest"]),
        workspace.root,
    )
    adapter = versions.fetch(registry, verified, adapters_folder(workspace.root))
    labels = record.dataset["labels"]
    columns = entry.data.model_copy(
        update={
            "splits": SplitParams.model_validate(record.params["data"]["splits"]),
            "labels": None if labels is None else tuple(labels),
        }
    )
    scratch = workspace.state / "trial"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        prepared, out = Path(folder) / "prepared", Path(folder) / "evaluation"
        try:
            dataset.prepare(
                workspace.root / entry.data.path,
                columns,
                entry.task,
                tokenizer=base_model.tokenizer(base),
                window=base_model.window(base),
                prefix_length=record.params["prefix"]["length"],
                encoder_decoder=base_model.is_encoder_decoder(base),
                out=prepared,
            )
        except DataError as error:
            raise RefusedError(
                f"{where} failed: the data of {data.md5} cannot be put to it: {error}"
            ) from error
        evaluation.evaluate(
            base,
            adapter.folder,
            prepared,
            out,
            task=entry.task,
            data=columns,
            params=entry.evaluation,
            labels=labels,
        )
        floors = GateParams(
            confidence=entry.gate.confidence, resamples=entry.gate.resamples, floors=entry.gate.floors
        )
        verdict = gate.judge(out / evaluation.ROWS, floors, entry.task, entry.evaluation)
    if not verdict.passed:
        raise RefusedError(f"{where} on dataset version {data.md5} failed: {'; '.join(verdict.reasons)}")
