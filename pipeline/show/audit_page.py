"""The page of a prefix's audit: stages, timeline, versions, verdicts, lineage, verification, events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_bytes
from pipeline.ledger.events import STAGES
from pipeline.params import METRICS
from pipeline.show.counted import counted
from pipeline.show.graph import SHORT, picture
from pipeline.show.lineage_graph import faults_by_version, prefix_graph, unknown_later
from pipeline.show.metric_history import metric_histories
from pipeline.show.pages import REPORTS
from pipeline.show.report import render
from pipeline.show.report_analysis import metric_number, metric_title
from pipeline.show.report_view import criterion_row, spoken_time
from pipeline.show.timeline import timeline


def default_path(root: Path, found: Mapping[str, Any]) -> Path:
    """Where the page lies unless somebody wants it elsewhere."""
    return root / REPORTS / str(found["prefix"]) / "audit.html"


def write(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of an audit to `path`; `path`.

    Args:
        found: as `pipeline.audit.prefix_audit.audit` gives it.
    """
    write_bytes(path, render("audit.html.j2", _page(found)).encode())
    return path


def checked(verification: Mapping[str, Any] | None) -> tuple[str, str]:
    """What a verification came to, in two or three words and in a sentence."""
    if verification is None:
        return (
            "Not verified",
            "Nothing was hashed again for this page: it shows what is recorded, not whether it is still true.",
        )
    faults = sum(len(version["faults"]) for version in verification["versions"]) + len(verification["gone"])
    looked = f"{counted(verification['files'], 'file')}, {counted(verification['bytes'], 'byte')} hashed"
    if verification["sound"]:
        return (
            "Sound",
            f"Every version was followed to what it was made from, and nothing is wrong: {looked}.",
        )
    return counted(faults, "fault"), f"Something is not what was recorded: {looked}."


def _page(found: Mapping[str, Any]) -> dict[str, Any]:
    result, sentence = checked(found["verification"])
    sound = None if found["verification"] is None else found["verification"]["sound"]
    histories = metric_histories(found["versions"])
    metrics = [history["metric"] for history in histories]
    versions = _versions(found, metrics)
    return {
        "prefix": found["prefix"],
        "made": spoken_time(found["made"]),
        "summary": _summary(found),
        "tiles": _tiles(found, result, histories),
        "result": result,
        "sentence": sentence,
        "sound": sound,
        "stages": _stages(found["stages"]),
        "out_of_step": found["out_of_step"],
        "timeline": timeline(found["held"], found["events"], found["made"]),
        "histories": histories,
        "metrics": [
            {"name": metric_title(metric), "arrow": "↑" if METRICS.get(metric, "higher") == "higher" else "↓"}
            for metric in metrics
        ],
        "versions": versions,
        "verdicts": [_verdict(version) for version in reversed(found["versions"])],
        "picture": picture(prefix_graph(found), "graph"),
        "unknown": unknown_later(found["later"]),
        "wrong": _wrong(found["verification"]),
        "gone": [] if found["verification"] is None else found["verification"]["gone"],
        "events": [_event(event) for event in reversed(found["events"])],
    }


def _summary(found: Mapping[str, Any]) -> str:
    standing = {at["stage"]: at["version"] for at in found["stages"]}
    count = counted(sum(version["duplicate_of"] is None for version in found["versions"]), "version")
    where = (
        f"version {standing['production']} is in production"
        if "production" in standing
        else "none is in production"
    )
    events = counted(len(found["events"]), "event")
    return f"{count}; {where}. The ledger has {events}."


def _tiles(
    found: Mapping[str, Any], result: str, histories: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    standing = {at["stage"]: at for at in found["stages"]}
    production = standing.get("production")
    duplicates = sum(version["duplicate_of"] is not None for version in found["versions"])
    tiles = [
        {
            "name": "In production",
            "figure": "none" if production is None else f"version {production['version']}",
            "note": "" if production is None else f"since {spoken_time(production['event']['time'])}",
        },
        {
            "name": "Versions",
            "figure": f"{len(found['versions']):,}",
            "note": f"{duplicates} of them duplicates" if duplicates else "",
        },
    ]
    if histories:
        first = histories[0]
        tiles.append(
            {
                "name": f"{first['name']}, newest version",
                "figure": first["newest"],
                "note": "on its test rows",
            }
        )
    note = (
        "nothing was hashed again"
        if found["verification"] is None
        else f"in {found['verification']['seconds']:g} s"
    )
    tiles.append({"name": "Verification", "figure": result, "note": note})
    return tiles


def _stages(standing: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    held = {at["stage"]: at for at in standing}
    rows = []
    for stage in STAGES:
        at = held.get(stage)
        event = None if at is None else at["event"]
        rows.append(
            {
                "stage": stage,
                "version": None if at is None else at["version"],
                "actor": "" if event is None else event["actor"],
                "time": "" if event is None else spoken_time(event["time"]),
                "reason": "" if event is None else event["reason"],
                "epoch": None if event is None else event["epoch"],
            }
        )
    return rows


def _versions(found: Mapping[str, Any], metrics: Sequence[str]) -> list[dict[str, Any]]:
    faults = faults_by_version(found["verification"])
    rows = []
    for version in reversed(found["versions"]):
        record = version["record"]
        measured = {} if record is None else record["metrics"].get("prefix", {})
        start = None if record is None else record["warm_start"]
        rows.append(
            {
                "version": version["version"],
                "stage": ", ".join(version["stages"]),
                "duplicate_of": version["duplicate_of"],
                "tainted": version["tainted"],
                "by_hand": version["by_hand"],
                "problem": version["problem"],
                "created": "–" if record is None else spoken_time(record["created"]),
                "order": "" if record is None else record["created"],
                "metrics": [
                    {"text": metric_number(metric, measured.get(metric)), "value": measured.get(metric)}
                    for metric in metrics
                ],
                "dataset": "–" if record is None else record["dataset"]["md5"][:SHORT],
                "rows": "" if record is None else f"{record['dataset']['rows']:,} rows",
                "start": _start(start),
                "faults": faults.get(version["version"]),
            }
        )
    return rows


def _start(start: Mapping[str, Any] | None) -> str:
    if start is None:
        return "–"
    return f"{start['prefix']} {start['version']}" if "version" in start else "a folder"


def _verdict(version: Mapping[str, Any]) -> dict[str, Any]:
    record = version["record"]
    raw = [] if record is None else record["verdict"].get("criteria", [])
    met = sum(one["passed"] is True for one in raw)
    return {
        "version": version["version"],
        "problem": version["problem"],
        "passed": record is not None and record["verdict"].get("passed") is True,
        "said": f"{met} of {counted(len(raw), 'criterion', 'criteria')} met",
        "criteria": [criterion_row(one) for one in raw],
    }


def _wrong(verification: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [
        version
        for version in (verification or {}).get("versions", ())
        if version["faults"] or version["by_hand"]
    ]


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "epoch": event["epoch"],
        "sentence": event["sentence"][:1].upper() + event["sentence"][1:],
        "kind": event["event"],
        "actor": event["actor"],
        "time": spoken_time(event["time"]),
        "order": event["time"],
        "behind": event["clock_behind"],
        "reason": event["reason"],
        "digest": event["sha256"][:SHORT],
    }
