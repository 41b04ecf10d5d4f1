"""All that an audit of one prefix asks for, gathered once: stages, events, versions with their records, verification."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import server_access
from pipeline.audit.ancestry import events_of, later, standing
from pipeline.audit.verification import verify
from pipeline.errors import IntegrityError, RegistryError
from pipeline.ledger import log
from pipeline.ledger.events import Event, Stage
from pipeline.ledger.fold import standing_after_each
from pipeline.ledger.projection import out_of_step
from pipeline.register import versions
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion
from pipeline.show.overview import told
from pipeline.versioning.workspace import find_workspace


def audit(root: Path, name: str, *, verified: bool = True) -> dict[str, Any]:
    """Everything that is known of a prefix.

    Args:
        name: of a prefix with at least one registered version, also one that params.yaml has no more.
        verified: also verify all of its versions, which hashes every file again.

    Returns:
        {prefix, made: this moment, stages: as `ancestry.standing`, out_of_step: [sentence], events: as
        `ancestry.events_of`, held: [{stage, version, since, until | null}] in order, versions: [{version, stages,
        duplicate_of, tainted, run_id, by_hand, problem: why there is no record or null, record: as `lineage_of` or null}],
        oldest first, later: as `ancestry.later` of all of them, verification: as `Verification.to_json`, or null}

    Raises:
        RegistryError: no version is registered under this name; or MLflow refused.
        IntegrityError: the ledger is not what was written.
        UnreachableError: MLflow does not answer.
        WorkspaceError: `root` is in no workspace.
    """
    workspace = find_workspace(root)
    if not re.fullmatch("[a-z][a-z0-9_-]*", name):
        raise RegistryError(f"{name!r} is no prefix's name; expected lower case letters, digits, _ and -")
    connection = server_access.connect(workspace.root)
    reading = log.read(connection, name)
    listed = versions.versions_of(connection, name, reading.state)
    if not listed:
        raise RegistryError(
            f"{name}: no version is registered under this name; `prefixline status` lists them, "
            "`prefixline retrain NAME` makes one"
        )
    return {
        "prefix": name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": standing(reading),
        "out_of_step": [str(each) for each in out_of_step(reading)],
        "events": events_of(reading),
        "held": held(reading.events),
        "versions": [_version(connection, version) for version in listed],
        "later": later(connection, [(name, version.version) for version in listed]),
        "verification": verify(workspace.root, name).to_json() if verified else None,
    }


def _version(connection: Registry, version: RegisteredVersion) -> dict[str, Any]:
    by_hand = versions.LINEAGE_DIGEST not in version.tags
    record, problem = None, None
    try:
        record = told(version, versions.lineage_record(connection, version))
    except (IntegrityError, RegistryError) as error:
        problem = str(error)
    return {
        "version": version.version,
        "stages": list(version.stages),
        "duplicate_of": version.duplicate_of,
        "tainted": version.tainted,
        "run_id": version.run_id,
        "by_hand": by_hand,
        "problem": problem,
        "record": record,
    }


def held(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Which version held which stage from when to when, by the clocks of those who acted.

    Returns:
        [{stage, version, since, until: null where it still does}], in the order in which they began.
    """
    spans: list[dict[str, Any]] = []
    open_now: dict[Stage, dict[str, Any]] = {}
    for event, stages in zip(events, standing_after_each(events), strict=True):
        for stage, span in list(open_now.items()):
            if stages.get(stage) != span["version"]:
                span["until"] = event.time
                del open_now[stage]
        for stage, version in stages.items():
            if stage not in open_now:
                open_now[stage] = {"stage": stage, "version": version, "since": event.time, "until": None}
                spans.append(open_now[stage])
    return spans
