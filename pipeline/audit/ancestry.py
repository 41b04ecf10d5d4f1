"""Where one version came from and what came from it: its lineage record, and the warm starts before and after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import server_access
from pipeline.audit import warm_starts
from pipeline.audit.warm_starts import Key, key_of
from pipeline.errors import IntegrityError, RegistryError
from pipeline.ledger import log
from pipeline.ledger.history import history
from pipeline.ledger.log import Reading
from pipeline.register import versions
from pipeline.register.registry import Registry
from pipeline.register.versions import RegisteredVersion
from pipeline.show.overview import lineage_of, told
from pipeline.versioning.workspace import find_workspace


def ancestry(root: Path, reference: str) -> dict[str, Any]:
    """A version, the versions that its training went on from, and those whose training went on from it.

    Args:
        reference: NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest version.

    Returns:
        {record: as `lineage_of`, standing: [{stage, and the event that put it there, as `events_of`}], earlier: as
        `earlier`, nearest first, later: as `later`}

    Raises:
        RegistryError: there is no such version.
        IntegrityError: its record is not what it was registered with, or the ledger is not what was written.
    """
    record = lineage_of(root, reference)
    connection = server_access.connect(find_workspace(root).root)
    reading = log.read(connection, record["prefix"])
    return {
        "record": record,
        "standing": [at for at in standing(reading) if at["version"] == record["version"]],
        "earlier": earlier(connection, record),
        "later": later(connection, [(record["prefix"], record["version"])]),
    }


def events_of(reading: Reading) -> list[dict[str, Any]]:
    """The events as `history` gives them, each with the `sentence` that says what happened."""
    rows = history(reading)["events"]
    return [{**row, "sentence": event.sentence} for row, event in zip(rows, reading.events, strict=True)]


def standing(reading: Reading) -> list[dict[str, Any]]:
    """What stands in each stage that is not empty: {stage, version, event: what put it there, as `events_of`}."""
    told_of = {row["id"]: row for row in events_of(reading)}
    state = reading.state
    return [
        {"stage": stage, "version": version, "event": told_of[state.moved[stage].id]}
        for stage, version in state.stages.items()
    ]


def earlier(connection: Registry, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chain of versions that a training went on from, nearest first: [{prefix, version, problem, record}].

    `record` is as `lineage_of` gives it; where it cannot be had it is null, `problem` says why, and the chain ends.
    A chain that began from an adapter in a folder ends there; the last record's `warm_start` names it.
    """
    chain: list[dict[str, Any]] = []
    passed = {(record["prefix"], record["version"])}
    start = record["warm_start"]
    while start is not None and "version" in start:
        key = (start["prefix"], start["version"])
        link: dict[str, Any] = {"prefix": key[0], "version": key[1], "problem": None, "record": None}
        chain.append(link)
        if key in passed:
            link["problem"] = "its lineage leads back to itself: a record was forged"
            break
        passed.add(key)
        try:
            found = versions.lookup(connection, *key)
        except (IntegrityError, RegistryError) as error:
            link["problem"] = str(error)
            break
        if found.record.adapter_digest != start["adapter_digest"]:
            link["problem"] = (
                f"its adapter is {found.record.adapter_digest}; the training went on from {start['adapter_digest']}"
            )
            break
        link["record"] = told(found.version, found.record)
        start = link["record"]["warm_start"]
    return chain


def later(connection: Registry, keys: list[Key]) -> dict[str, Any]:
    """The versions of all prefixes whose training went on from one of `keys`, at however many removes.

    Returns:
        {versions: [{prefix, version, stages, duplicate_of, started_from: {prefix, version}}], nearest first,
        unknown: [{prefix, version, why}] of which it cannot be told, problem: why none can be told of, or null}
    """
    try:
        everything = versions.list_all(connection)
    except (IntegrityError, RegistryError) as error:  # such as another prefix's ledger that was tampered with
        return {"versions": [], "unknown": [], "problem": str(error)}
    made = {key_of(each): each for each in everything if versions.LINEAGE_DIGEST in each.tags}
    known, unknown = warm_starts.origins(connection, made.values())
    following = warm_starts.children(warm_starts.parents(made, known)[0])
    found: list[dict[str, Any]] = []
    waiting, met = deque(keys), set(keys)
    while waiting:
        parent = waiting.popleft()
        for child in following.get(parent, ()):
            if child not in met:
                met.add(child)
                waiting.append(child)
                found.append(_later(made[child], parent))
    return {
        "versions": found,
        "unknown": [
            {"prefix": name, "version": number, "why": why}
            for (name, number), why in unknown.items()
            if (name, number) not in keys
        ],
        "problem": None,
    }


def _later(version: RegisteredVersion, parent: Key) -> dict[str, Any]:
    return {
        "prefix": version.name,
        "version": version.version,
        "stages": list(version.stages),
        "duplicate_of": version.duplicate_of,
        "started_from": {"prefix": parent[0], "version": parent[1]},
    }
