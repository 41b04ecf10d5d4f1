"""What a person reads in the terminal of a reproduction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from pipeline.show.console import console, plain

_RESULT = {
    "identical": "[green]is reproduced[/]: every file of the adapter is the same to the bit",
    "within tolerance": "[green]is reproduced within the tolerance[/]: the files are others, the metrics agree",
    "different": "[red]is not reproduced[/]: metrics are further off than the tolerance",
}


def show_reproduction(result: Mapping[str, Any]) -> None:
    """Whether the same came of it, metrics side by side, and what was not as it was then."""
    out = console()
    name = f"{plain(result['prefix'])} version {result['version']}"
    out.print(f"[bold]{name}[/bold] {_RESULT[result['result']]} ({result['seconds']:,.0f} s)", soft_wrap=True)
    grid = Table(title="Metrics", title_justify="left", title_style="bold")
    for column in ("system", "metric", "recorded", "now", "tolerance", ""):
        grid.add_column(column, justify="right" if column in ("recorded", "now", "tolerance") else "left")
    for figure in result["metrics"]:
        said = "" if figure["within"] else "[red]too far off[/]"
        grid.add_row(
            plain(figure["system"]),
            plain(figure["metric"]),
            _number(figure["recorded"]),
            _number(figure["now"]),
            f"{figure['tolerance']:g}",
            said,
        )
    out.print(grid)
    for key, title in (
        ("files", "Files of the adapter, by SHA-256"),
        ("prepared", "Prepared rows, by SHA-256: what follows from them differs too"),
        ("environment", "What ran is not what was recorded"),
    ):
        if result[key]:
            out.print(_differences(title, result[key]))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _differences(title: str, differences: Iterable[Mapping[str, Any]]) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", "recorded", "now"):
        grid.add_column(column, overflow="fold")
    for each in differences:
        grid.add_row(
            plain(each["what"]),
            *(plain("not there" if each[key] is None else each[key]) for key in ("recorded", "now")),
        )
    return grid
