"""What the command line shows of a workspace without changing it: status, lineage, history, the data's card."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import server_access
from pipeline.base import base_model
from pipeline.errors import DataError, WorkspaceError
from pipeline.ledger import log
from pipeline.ledger.history import history
from pipeline.ledger.projection import out_of_step
from pipeline.pins import previous_dataset
from pipeline.register import registry, versions
from pipeline.register.lineage import LineageRecord
from pipeline.register.reference import parse
from pipeline.register.versions import RegisteredVersion
from pipeline.show.pages import REPORTS
from pipeline.state import row_ids_folder
from pipeline.versioning import git, snapshot
from pipeline.versioning.workspace import Workspace, find_workspace


def overview(root: Path) -> dict[str, Any]:
    """Where every prefix of the workspace stands.

    Returns:
        {workspace, commit, servers {mlflow, prefect} | null, prefixes: [{name, task, base_model, dataset {path,
        md5 | null}, schedule | null, versions: [{version, stages, tainted, run_key, dataset_md5}], out_of_step [sentence], last
        {outcome, run} | null}]}
    """
    workspace = find_workspace(root)
    params = workspace.params()
    connection = server_access.connect(workspace.root)
    running = server_access.endpoints(workspace.root)
    prefixes = []
    for name, entry in params.prefixes.items():
        found = versions.list_versions(connection, name)
        prefixes.append(
            {
                "name": name,
                "task": entry.task,
                "base_model": entry.base_model,
                "dataset": {"path": entry.data.path, "md5": _current_md5(workspace, entry.data.path)},
                "schedule": None if entry.schedule is None else entry.schedule.cron,
                "versions": [
                    {
                        "version": version.version,
                        "stages": list(version.stages),
                        "tainted": version.tainted,
                        "run_key": version.run_key,
                        "dataset_md5": version.tags.get(versions.DATASET_MD5),
                    }
                    for version in found
                    if version.duplicate_of is None
                ],
                "out_of_step": [str(each) for each in out_of_step(log.read(connection, name))],
                "last": registry.last_outcome(connection, name),
            }
        )
    return {
        "workspace": str(workspace.root),
        "commit": git.resolve(workspace.root, "HEAD"),
        "servers": {
            "mlflow": connection.shown,
            "prefect": running.prefect_api_url,
        }
        if running.prefect_api_url
        else None,
        "prefixes": prefixes,
    }


def lineage_of(root: Path, reference: str) -> dict[str, Any]:
    """What a version was made from: its verified lineage record, with its number and stages.

    Args:
        reference: NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest version.

    Raises:
        RegistryError: there is no such version.
        IntegrityError: the record is not what the version was registered with.
    """
    workspace = find_workspace(root)
    connection = server_access.connect(workspace.root)
    name, which = parse(connection, reference)
    found = versions.lookup(connection, name, which)
    return told(found.version, found.record)


def told(version: RegisteredVersion, record: LineageRecord) -> dict[str, Any]:
    """A version's lineage record as it is shown: with its number, its stages and whether it is tainted, and the rows of
    each split apart."""
    stages = list(version.stages)
    raw = json.loads(record.to_json())
    return {
        "version": version.version,
        "stage": stages[-1] if stages else None,
        "stages": stages,
        "tainted": version.tainted,
        "lineage_digest": record.digest,
        **raw,
        "dataset": {**raw["dataset"], "rows": raw["dataset"]["rows"]["total"],
                    "rows_per_split": {k: v for k, v in raw["dataset"]["rows"].items() if k != "total"}},
    }  # fmt: skip


def history_of(root: Path, name: str, *, at: datetime | None = None) -> dict[str, Any]:
    """Who moved which version of the prefix when and why, and where they stand, as `ledger.history.history` gives it.

    With `signed_by` at each event: the name that params.yaml has for its key; null where it has none. A prefix that params.yaml
    does not have any more has its history still.

    Args:
        at: only up to this time.

    Raises:
        ParamsError: params.yaml has no such prefix, and it has no ledger either.
        IntegrityError: the ledger is not what was written.
    """
    workspace = find_workspace(root)
    params = workspace.params()
    reading = log.read(server_access.connect(workspace.root), name)
    if not reading.events:
        params.prefix(name)
    told = history(reading, at)
    names = {key: who for who, key in params.keys.items()}
    return {**told, "events": [{**row, "signed_by": names.get(row["key"])} for row in told["events"]]}


def data_card(root: Path, name: str) -> tuple[dict[str, Any], Path]:
    """Validate the prefix's data as it lies in the workspace; its card, and the path of the card's page.

    The card says what changed since the dataset version before.

    Raises:
        DataError: every fault found, with file and line.
    """
    from pipeline.data import dataset

    workspace = find_workspace(root)
    params = workspace.params()
    entry = params.prefix(name)
    raw = workspace.root / entry.data.path
    if entry.data.imported_from is not None and not raw.exists():
        raise DataError(
            [
                f"{raw}: is not here yet; it is imported from {entry.data.imported_from} by `prefixline retrain {name}`"
            ]
        )
    version = snapshot.current(workspace, entry.data)
    before = previous_dataset(workspace.root, name, None if version is None else version.md5)
    row_ids = None if before is None else row_ids_folder(workspace.root, name, before)
    base = base_model.resolve(entry.base_model, params.base_model(name), workspace.root)
    page = workspace.root / REPORTS / name / "data.html"
    card = dataset.summarise(
        raw,
        entry.data,
        entry.task,
        tokenizer=base_model.tokenizer(base),
        window=base_model.window(base),
        prefix_length=entry.prefix.length,
        encoder_decoder=base_model.is_encoder_decoder(base),
        previous=row_ids if row_ids is not None and row_ids.is_dir() else None,
        page=page,
    )
    return card, page


def _current_md5(workspace: Workspace, path: str) -> str | None:
    from pipeline.versioning.stored import hash_in

    file = workspace.root / f"{path}.dvc"
    if not file.exists():
        return None
    try:
        return hash_in(file.read_bytes(), str(file))
    except WorkspaceError:
        return None
