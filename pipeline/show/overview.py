"""What the command line shows of a workspace without changing it: status, lineage, history, the data's card."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import server_access
from pipeline.base import base_model
from pipeline.errors import DataError, RegistryError, WorkspaceError
from pipeline.ledger import log
from pipeline.ledger.history import history
from pipeline.ledger.projection import out_of_step
from pipeline.pins import previous_dataset
from pipeline.register import registry, versions
from pipeline.register.registry import Registry
from pipeline.show.pages import REPORTS
from pipeline.state import row_ids_folder
from pipeline.versioning import git, snapshot
from pipeline.versioning.workspace import Workspace, find_workspace


def overview(root: Path) -> dict[str, Any]:
    """Where every prefix of the workspace stands.

    Returns:
        {workspace, commit, servers {mlflow, prefect} | null, prefixes: [{name, task, base_model, dataset {path,
        md5 | null}, schedule | null, versions: [{version, stages, run_key, dataset_md5}], out_of_step [sentence], last
        {outcome, run} | null}]}
    """
    workspace = find_workspace(root)
    params = workspace.params()
    connection = _connect(workspace)
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
    connection = _connect(workspace)
    name, which = _parse(connection, reference)
    found = versions.lookup(connection, name, which)
    stages = list(found.version.stages)
    record = json.loads(found.record.to_json())
    return {
        "version": found.version.version,
        "stage": stages[-1] if stages else None,
        "stages": stages,
        "lineage_digest": found.record.digest,
        **record,
        "dataset": {**record["dataset"], "rows": record["dataset"]["rows"]["total"],
                    "rows_per_split": {k: v for k, v in record["dataset"]["rows"].items() if k != "total"}},
    }  # fmt: skip


def history_of(root: Path, name: str, *, at: datetime | None = None) -> dict[str, Any]:
    """Who moved which version of the prefix when and why, and where they stand, as `ledger.history.history` gives it.

    Args:
        at: only up to this time.

    Raises:
        ParamsError: params.yaml has no such prefix.
        IntegrityError: the ledger is not what was written.
    """
    workspace = find_workspace(root)
    workspace.params().prefix(name)
    return history(log.read(_connect(workspace), name), at)


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


def _connect(workspace: Workspace) -> Registry:
    where = server_access.endpoints(workspace.root)
    return registry.connect(where.mlflow_uri, artifact_root=where.artifact_root)


def _parse(connection: Registry, reference: str) -> tuple[str, str]:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*([:@][\w-]+)?", reference):
        raise RegistryError(f"{reference!r} is no version's name; expected NAME, NAME:NUMBER or NAME@STAGE")
    for separator in ("@", ":"):
        name, found, which = reference.partition(separator)
        if found and name and which:
            return name, which
    counting = [v for v in versions.list_versions(connection, reference) if v.duplicate_of is None]
    if not counting:
        raise RegistryError(
            f"{reference}: no version is registered under this name; `prefixline status` lists them, "
            "`prefixline retrain NAME` makes one"
        )
    return reference, counting[-1].version


def _current_md5(workspace: Workspace, path: str) -> str | None:
    from pipeline.versioning.stored import hash_in

    file = workspace.root / f"{path}.dvc"
    if not file.exists():
        return None
    try:
        return hash_in(file.read_bytes(), str(file))
    except WorkspaceError:
        return None
