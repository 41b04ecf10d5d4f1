"""What a person reads in the terminal: outcomes, status, lineage and data cards as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from pipeline.judge.verdict import TABLE_HEADER, Verdict, table
from pipeline.outcome import Outcome

_STYLE = {"passed": "green", "FAILED": "bold red"}


def _console() -> Console:
    # A pipe has no width; tables that are cut there lose digests.
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def show_outcome(outcome: Outcome) -> None:
    """The headline, the verdict, and where the page is."""
    console = _console()
    console.print(f"[bold]{escape(outcome.headline)}[/bold]")
    console.print(f"dataset  {outcome.dataset['rows']:,} rows, md5 {outcome.dataset['md5']}")
    console.print(f"run key  {outcome.run_key}")
    grid = Table(title="Verdict", title_justify="left", title_style="bold")
    for column in TABLE_HEADER:
        grid.add_column(column, justify="right" if column in ("figure", "asked for", "rows") else "left")
    for cells in table(Verdict.from_json(outcome.verdict)):
        grid.add_row(*(escape(cell) for cell in cells[:-1]), f"[{_STYLE[cells[-1]]}]{cells[-1]}[/]")
    console.print(grid)
    if outcome.report:
        console.print(f"page     {outcome.report}", soft_wrap=True)


def show_overview(state: Mapping[str, Any]) -> None:
    """One table of prefixes, and where the servers are."""
    console = _console()
    grid = Table(title=f"Workspace {state['workspace']}", title_justify="left", title_style="bold")
    for column in (
        "prefix",
        "task",
        "base model",
        "dataset",
        "version",
        "stages",
        "last retraining",
        "schedule",
    ):
        grid.add_column(column)
    for prefix in state["prefixes"]:
        newest = prefix["versions"][-1] if prefix["versions"] else None
        stages = [f"{stage}: {v['version']}" for v in prefix["versions"] for stage in v["stages"]]
        last = prefix["last"]
        grid.add_row(
            prefix["name"],
            prefix["task"],
            prefix["base_model"],
            f"{prefix['dataset']['path']}\n{(prefix['dataset']['md5'] or 'not versioned yet')[:16]}",
            newest["version"] if newest else "none",
            "\n".join(stages) or "none",
            f"{last['outcome']}\n{last['ended']}" if last else "never",
            prefix["schedule"] or "none",
        )
    console.print(grid)
    servers = state["servers"]
    if servers:
        console.print(f"MLflow {servers['mlflow']}   Prefect {servers['prefect'].removesuffix('/api')}")
    else:
        console.print("No servers are up; `prefixline up` starts them.")


def show_lineage(record: Mapping[str, Any]) -> None:
    """Everything a version was made from, as a tree."""
    title = f"{record['prefix']} version {record['version']}"
    tree = Tree(f"[bold]{escape(title)}[/bold] ({', '.join(record['stages']) or 'no stage'})")
    for key in ("run_key", "created", "lineage_digest", "adapter_digest"):
        tree.add(f"{key.replace('_', ' ')}: {record[key]}")
    for key in ("base_model", "dataset", "code", "experiment", "runs", "environment"):
        _add(tree, key.replace("_", " "), record[key])
    _add(tree, "params", record["params"])
    _add(tree, "metrics", record["metrics"])
    _console().print(tree)


def show_card(card: Mapping[str, Any], page: Path) -> None:
    """Rows per split and class, lengths, and what was left out."""
    console = _console()
    tree = Tree("[bold]data card[/bold]")
    for key, value in card.items():
        if key not in ("examples", "lengths_histogram", "histogram"):
            _add(tree, key.replace("_", " "), value)
    console.print(tree)
    console.print(f"page     {page}", soft_wrap=True)


def _add(tree: Tree, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        branch = tree.add(escape(name))
        for key, inner in value.items():
            _add(branch, str(key), inner)
    elif isinstance(value, list) and len(value) > 8:
        tree.add(f"{escape(name)}: {len(value)} entries")
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        tree.add(f"{escape(name)}: {escape(text)}")
