"""Make a registered version again from its lineage record, and say whether the same came of it.

Base model, data, parameters, seed and warm start are the recorded ones, each verified by hash before it is used; the
stages run from nothing (`versioning.rerun`). What may differ is where: libraries, Python, platform and prefixline
itself, which are compared and named. Nothing is registered; workspace, repository and MLflow stay as they are, except that
DVC's cache then has what it lacked.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import digest, recording, server_access, stage_output, warm_start
from pipeline.audit.remade import DEFAULT_TOLERANCE, Difference, Figure, figures, unequal
from pipeline.base import base_model
from pipeline.errors import IntegrityError, RegistryError, UnreachableError
from pipeline.params import VERSION, BaseModelParams
from pipeline.pins import WarmStart
from pipeline.register import lineage, registry, versions
from pipeline.register.lineage import LineageRecord
from pipeline.register.registry import Registry
from pipeline.state import adapters_folder
from pipeline.versioning.rerun import Rerun, copied
from pipeline.versioning.workspace import Workspace, find_workspace, read_json_at

Result = Literal["identical", "within tolerance", "different"]


@dataclass(frozen=True)
class Remade:
    """What the stages made this time.

    Attributes:
        files: {file of the adapter folder: SHA-256}.
        splits: {split: SHA-256 over its prepared files}.
        metrics: {system: {metric: value}} on the test split.
        code: {version, digest} of the prefixline that ran.
        environment: as a lineage record has it.
        installed: {distribution: version}, whose digest is the environment's lock.
    """

    files: Mapping[str, str]
    splits: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, float | None]]
    code: Mapping[str, str]
    environment: Mapping[str, Any]
    installed: Mapping[str, str]


@dataclass(frozen=True)
class Reproduction:
    """A version beside what was made again.

    Attributes:
        files: the adapter's files that are not the same to the bit, by SHA-256.
        identical_files: how many are.
        prepared: the splits whose prepared rows are not the same, by SHA-256.
        environment: what ran that is not what was recorded.
        metrics: of the prefix and of the frozen base alone, on the test split.
        seconds: all of it took.
    """

    prefix: str
    version: str
    files: tuple[Difference, ...]
    identical_files: int
    prepared: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    metrics: tuple[Figure, ...]
    seconds: float

    @property
    def result(self) -> Result:
        """`identical` where every file is and every metric agrees; metrics that do not agree make it `different`."""
        if not all(figure.within for figure in self.metrics):
            return "different"
        return "within tolerance" if self.files else "identical"

    @property
    def reproduced(self) -> bool:
        """Whether it counts as the same."""
        return self.result != "different"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = [{**asdict(figure), "within": figure.within} for figure in self.metrics]
        return {"reproduced": self.reproduced, "result": self.result, **asdict(self), "metrics": figures}


def reproduce(
    root: Path, reference: str, tolerances: Mapping[str, float] = DEFAULT_TOLERANCE
) -> Reproduction:
    """Make a version again and compare. What the stages print goes to stderr as it comes.

    The version that was in production then is not scored again: it decides nothing of what was trained.

    Args:
        reference: NAME:NUMBER or NAME@STAGE.
        tolerances: {metric: how far it may be off, in its own unit}; of one that is not named, nothing may be.

    Raises:
        RegistryError: there is no such version, or it was registered by hand.
        IntegrityError: something it was made from is not what was recorded.
        BaseModelError: the base model is gone.
        WorkspaceError: its experiment or its data is gone.
        PrefixError: the adapter it went on from is gone.
        ExperimentError: a stage failed.
        UnreachableError: MLflow does not answer.
    """
    started = time.monotonic()
    if not re.fullmatch(VERSION, reference):
        raise RegistryError(f"{reference!r} is no version's name; expected NAME:NUMBER or NAME@STAGE")
    workspace = find_workspace(root)
    connection = server_access.connect(workspace.root)
    found = versions.lookup(connection, *re.split("[:@]", reference))
    record = found.record
    base = BaseModelParams(source=record.base_model["source"], digest=record.base_model["digest"])
    base_model.resolve(record.base_model["name"], base, workspace.root)  # which verifies it
    commit = record.experiment["commit"]
    pins = read_json_at(workspace, commit, f"pins/{record.prefix}.json")
    _check_pins(pins, record)
    with copied(workspace, commit, lambda: stage_output.to_stderr(_WAITING)) as rerun:
        rerun.put_data(record.dataset["git_commit"], record.dataset["path"], record.dataset["manifest"])
        _put_warm_start(connection, rerun, record)
        code = lineage.code_identity()
        mine = {**pins, "code": {**pins["code"], **code}, "champion": None}
        mine["base_model"] = {**pins["base_model"], "source": _absolute(workspace, base)}
        out = rerun.run(record.prefix, mine, stage_output.terminal(), stage_output.to_stderr)
        remade = Remade(
            files=digest.manifest(out / "adapter"),
            splits=lineage.split_digests(_json(out / "prepared.json")["manifest"]),
            metrics=_json(out / "evaluated.json")["systems"],
            code=code,
            environment=lineage.environment_identity(),
            installed=lineage.installed(),
        )
    return compared(
        found.version.version,
        record,
        _lock(connection, record),
        remade,
        tolerances,
        time.monotonic() - started,
    )


_WAITING = "another version is being reproduced in this workspace; waiting for it\n"


def compared(
    version: str,
    record: LineageRecord,
    lock: Mapping[str, str] | None,
    remade: Remade,
    tolerances: Mapping[str, float],
    seconds: float,
) -> Reproduction:
    """What was recorded beside what was made again.

    Args:
        lock: what was installed then, {distribution: version}; None where that cannot be had any more.
    """
    files = unequal("", record.files, remade.files)
    systems = {system: record.metrics[system] for system in ("prefix", "base") if system in record.metrics}
    return Reproduction(
        prefix=record.prefix,
        version=version,
        files=files,
        identical_files=len(record.files.keys() | remade.files.keys()) - len(files),
        prepared=unequal("", record.dataset["splits"], remade.splits),
        environment=_environment(record, lock, remade),
        metrics=figures(systems, remade.metrics, tolerances),
        seconds=round(seconds, 3),
    )


def _environment(
    record: LineageRecord, lock: Mapping[str, str] | None, remade: Remade
) -> tuple[Difference, ...]:
    then, now = record.environment, remade.environment
    code = {key: record.code[key] for key in ("version", "digest")}
    parts = ("python", "platform")
    found = unequal("prefixline ", code, remade.code)
    found += unequal("", {key: then[key] for key in parts}, {key: now[key] for key in parts})
    if lock is not None:
        return found + unequal("package ", lock, remade.installed)
    return (
        found
        + unequal("package ", then["libraries"], now["libraries"])
        + unequal("", {"lock": then["lock"]}, {"lock": now["lock"]})
    )


def _lock(connection: Registry, record: LineageRecord) -> Mapping[str, str] | None:
    """What was installed then, by the run; None where the run does not have it as it was recorded."""
    try:
        kept = registry.read_json(connection, record.runs["mlflow"], recording.LOCK_FILE)
    except (RegistryError, UnreachableError):
        return None
    return kept if digest.digest(kept) == record.environment["lock"] else None


def _check_pins(pins: Any, record: LineageRecord) -> None:
    """What the experiment was started with must be what the record names."""
    try:
        pairs = {
            "run_key": (pins["run_key"], record.run_key),
            "data.md5": (pins["data"]["md5"], record.dataset["md5"]),
            "data.manifest": (pins["data"]["manifest"], record.dataset["manifest"]),
            "base_model.digest": (pins["base_model"]["digest"], record.base_model["digest"]),
            "warm_start": (pins.get("warm_start"), record.warm_start),
            "params": (lineage.pinned_params(record.params, pins["params"]), record.params),
        }
    except (TypeError, LookupError, AttributeError) as error:
        raise IntegrityError([f"{error!r}"], heading=_other_pins(record)) from None
    problems = [f"{key}: got {got!r}, expected {was!r}" for key, (got, was) in pairs.items() if got != was]
    if problems:
        raise IntegrityError(problems, heading=_other_pins(record))


def _other_pins(record: LineageRecord) -> str:
    return (
        f"pins/{record.prefix}.json in the experiment {record.experiment['commit']} is not what the lineage record says; "
        "nothing was run:"
    )


def _put_warm_start(connection: Registry, rerun: Rerun, record: LineageRecord) -> None:
    """The adapter that the training went on from, where the stages look for it."""
    if record.warm_start is None:
        return
    source = dict(record.warm_start)
    start = WarmStart(source.pop("adapter_digest"), source)
    folder = warm_start.fetch(connection, rerun.workspace.root, start, adapters_folder(rerun.stand_in))
    if folder.name != start.adapter_digest:
        raise IntegrityError(
            [f"its adapter is {folder.name}, expected {start.adapter_digest}"],
            heading=f"Version {source['version']} of {source['prefix']} is not the one that was gone on from:",
        )


def _absolute(workspace: Workspace, base: BaseModelParams) -> dict[str, Any]:
    """Where the base model is for a stage whose workspace is not the true one."""
    source = base.source.model_dump(mode="json")
    return {"path": str(workspace.root / source["path"])} if "path" in source else source


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
