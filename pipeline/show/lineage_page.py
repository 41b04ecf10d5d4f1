"""The page of one version's lineage: its graph, and what is known of each node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import write_bytes
from pipeline.show.graph import picture
from pipeline.show.lineage_graph import unknown_later, version_graph
from pipeline.show.pages import REPORTS
from pipeline.show.report import render
from pipeline.show.report_view import spoken_time


def default_path(root: Path, found: Mapping[str, Any]) -> Path:
    """Where the page lies unless somebody wants it elsewhere."""
    record = found["record"]
    return root / REPORTS / str(record["prefix"]) / f"lineage-{record['version']}.html"


def write(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a version to `path`; `path`.

    Args:
        found: as `pipeline.audit.ancestry.ancestry` gives it.
    """
    record = found["record"]
    page = {
        "title": f"{record['prefix']} version {record['version']}",
        "time": spoken_time(record["created"]),
        "stages": record["stages"],
        "passed": record["verdict"].get("passed") is True,
        "summary": _summary(found),
        "picture": picture(version_graph(found), "graph"),
        "unknown": unknown_later(found["later"]),
        "digests": [
            ("Lineage record", record["lineage_digest"]),
            ("Prefix files", record["adapter_digest"]),
            ("Run key", record["run_key"]),
        ],
    }
    write_bytes(path, render("lineage.html.j2", page).encode())
    return path


def _summary(found: Mapping[str, Any]) -> str:
    record, earlier, later = found["record"], found["earlier"], found["later"]["versions"]
    start = record["warm_start"]
    if start is None:
        began = "Its training began anew"
    elif earlier:
        began = f"Its training went on from version {start['version']} of {start['prefix']}"
        if len(earlier) > 1:
            began += f", the last of {len(earlier)} before it"
    else:
        began = f"Its training went on from an adapter in a folder, {start['adapter']}"
    count = len(later)
    came = (
        f"{count} {'version' if count == 1 else 'versions'} went on from it"
        if count
        else "no version went on from it"
    )
    data, base = record["dataset"], record["base_model"]
    return f"Trained on {data['rows']:,} rows of {data['path']} for {base['name']}. {began}; {came}."
