"""What a person reads in the terminal of a version's lineage, as a tree, and of a prefix's audit, in short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.tree import Tree

from pipeline.ledger.events import STAGES
from pipeline.show.audit_page import checked
from pipeline.show.console import console, plain
from pipeline.show.counted import counted
from pipeline.show.graph import SHORT, Graph, Node
from pipeline.show.lineage_graph import faults_by_version, unknown_later, version_graph
from pipeline.show.report_analysis import metric_number, metric_title
from pipeline.show.report_tables import tables
from pipeline.show.terminal import show_out_of_step

VERSIONS_SHOWN = 20
EVENTS_SHOWN = 10


def show_lineage(found: Mapping[str, Any]) -> None:
    """What a version was made from, each thing below what was made of it, and then what was made of the version.

    Args:
        found: as `pipeline.audit.ancestry.ancestry` gives it.
    """
    graph, record = version_graph(found), found["record"]
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for source, target in graph.edges:
        before.setdefault(target, []).append(source)
        after.setdefault(source, []).append(target)
    tree = Tree(f"[bold]{plain(record['prefix'])} version {record['version']}[/bold]")
    _add_facts(tree, graph.named[graph.first])
    for heading, near in (("made from", before), ("led to", after)):
        if near.get(graph.first):
            _grow(tree.add(f"[bold]{heading}[/bold]"), graph, graph.first, near, {graph.first})
    out = console()
    out.print(tree)
    for sentence in unknown_later(found["later"]):
        out.print(plain(sentence), soft_wrap=True)


def show_audit(found: Mapping[str, Any]) -> None:
    """Stages, the newest versions and events, and what verification came to; the page has all of it.

    Args:
        found: as `pipeline.audit.prefix_audit.audit` gives it.
    """
    out = console()
    name = found["prefix"]
    out.print(f"[bold]Audit of {plain(name)}[/bold]")
    out.print(_stages(found["stages"]))
    show_out_of_step(out, name, found["out_of_step"])
    _newest(out.print, "version", found["versions"], VERSIONS_SHOWN, lambda shown: _versions(found, shown))
    _newest(out.print, "event", found["events"], EVENTS_SHOWN, _events)
    for sentence in unknown_later(found["later"]):
        out.print(plain(sentence), soft_wrap=True)
    result, sentence = checked(found["verification"])
    sound = None if found["verification"] is None else found["verification"]["sound"]
    style = {None: "yellow", True: "green", False: "bold red"}[sound]
    out.print(f"[{style}]{result}[/]: {sentence}", soft_wrap=True)
    if sound is False:
        out.print(f"`prefixline verify {name}` lists everything that is wrong.")


def _grow(tree: Tree, graph: Graph, key: str, near: Mapping[str, Sequence[str]], shown: set[str]) -> None:
    """Add what is next to the node `key`, and what is next to that; each node in full only once."""
    for other in near.get(key, ()):
        node = graph.named[other]
        title = f"{plain(node.kind)}: [bold]{plain(node.title)}[/bold] ({plain(node.note)})"
        if other in shown:
            tree.add(f"{title}, see above")
            continue
        shown.add(other)
        branch = tree.add(title)
        _add_facts(branch, node)
        _grow(branch, graph, other, near, shown)


def _add_facts(tree: Tree, node: Node) -> None:
    if node.sentence:
        tree.add(f"[red]{plain(node.sentence)}[/]" if node.tone == "fail" else plain(node.sentence))
    for table in tables(node.facts, ""):
        # What is not inside another mapping has no caption.
        branch = tree.add(plain(table["caption"])) if table["caption"] else tree
        for row in table["rows"]:
            cells = [_short(cell) for cell in row["cells"]]
            if table["columns"]:
                cells = [f"{column} {cell}" for column, cell in zip(table["columns"], cells, strict=True)]
            branch.add(plain(f"{row['key']}: {', '.join(cells)}"))


def _short(cell: Mapping[str, Any]) -> str:
    text: str = cell["text"]
    return text[:SHORT] if cell["is_hash"] else text


def _newest(
    say: Callable[[Any], None],
    one: str,
    rows: Sequence[Any],
    most: int,
    table: Callable[[Sequence[Any]], Table],
) -> None:
    """The newest of what is listed oldest first, and how many there are besides."""
    say(table(rows[-most:][::-1]))
    if len(rows) > most:
        more = counted(len(rows) - most, f"earlier {one}")
        say(f"{more}: on the page, which --html writes, or with --json.")


def _stages(standing: Sequence[Mapping[str, Any]]) -> Table:
    held = {at["stage"]: at for at in standing}
    grid = Table(title="Stages", title_justify="left", title_style="bold")
    for column in ("stage", "version", "who", "when", "why"):
        grid.add_column(column, overflow="fold")
    for stage in STAGES:
        if stage not in held:
            grid.add_row(stage, "none")
            continue
        event = held[stage]["event"]
        grid.add_row(
            stage,
            held[stage]["version"],
            plain(event["actor"]),
            _time(event["time"]),
            plain(event["reason"]),
        )
    return grid


def _versions(found: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Table:
    faults = faults_by_version(found["verification"])
    records = [version["record"] for version in shown if version["record"] is not None]
    metrics = dict.fromkeys(metric for record in records for metric in record["metrics"].get("prefix", {}))
    grid = Table(title="Versions", title_justify="left", title_style="bold")
    for column in (
        "version",
        "stage",
        *map(metric_title, metrics),
        "criteria met",
        "dataset",
        "started from",
        "verified",
    ):
        grid.add_column(plain(column))
    for version in shown:
        record = version["record"]
        stage = ", ".join(version["stages"]) or "none"
        if version["duplicate_of"]:
            stage += f"\nduplicate of {plain(version['duplicate_of'])}"
        if version["tainted"]:
            stage += "\ntainted"
        count = faults.get(version["version"])
        verified = (
            "–"
            if count is None
            else f"[red]{count} {'fault' if count == 1 else 'faults'}[/]"
            if count
            else "[green]sound[/]"
        )
        if record is None:
            why = "registered by hand" if version["by_hand"] else "no record"
            grid.add_row(version["version"], stage, *("–" for _ in metrics), "–", "–", why, verified)
            continue
        asked, start = record["verdict"].get("criteria", ()), record["warm_start"]
        measured = record["metrics"].get("prefix", {})
        grid.add_row(
            version["version"],
            stage,
            *(metric_number(metric, measured.get(metric)) for metric in metrics),
            f"{sum(one['passed'] is True for one in asked)} of {len(asked)}",
            record["dataset"]["md5"][:SHORT],
            plain(
                "–"
                if start is None
                else f"{start['prefix']} {start['version']}"
                if "version" in start
                else "a folder"
            ),
            verified,
        )
    return grid


def _events(shown: Sequence[Mapping[str, Any]]) -> Table:
    grid = Table(title="Events", title_justify="left", title_style="bold")
    for column in ("epoch", "what", "who", "when", "why"):
        grid.add_column(column, justify="right" if column == "epoch" else "left", overflow="fold")
    for event in shown:
        grid.add_row(
            str(event["epoch"]),
            plain(event["sentence"]),
            plain(event["actor"]),
            _time(event["time"]),
            plain(event["reason"]),
        )
    return grid


def _time(text: str) -> str:
    return datetime.fromisoformat(text).astimezone().isoformat(" ", "seconds")
