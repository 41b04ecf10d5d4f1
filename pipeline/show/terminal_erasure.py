"""What a person reads in the terminal of an erasure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.show.console import console, plain
from pipeline.show.terminal import show_impact


def show_erasure(told: Mapping[str, Any]) -> None:
    """Which versions saw the row, what was done about it, and what is left to do."""
    out = console()
    would = "would be " if told["dry_run"] else ""
    show_impact({**told, "kind": "row", "meant": None, "asked": told["row"]})
    out.print(f"row      {told['row']} (its digest, which is all that is written down of it)", soft_wrap=True)
    for path, count in told["removed"].items():
        out.print(f"data     {count:,} {'row' if count == 1 else 'rows'} {would}taken out of {plain(path)}")
    if not told["removed"]:
        out.print("data     no prefix's data holds it now")
    if told["dry_run"]:
        out.print(f"retrain  {', '.join(told['retrain']) or 'none'}; nothing was changed")
    elif told["tainted"]:
        out.print(f"tainted  {plain(', '.join(told['tainted']))}", soft_wrap=True)
    for each in told["retrained"]:
        version = f", version {each['version']}" if each["version"] else ""
        said = f"[red]failed[/]: {plain(each['error'])}" if each["error"] else f"{each['outcome']}{version}"
        out.print(f"retrain  {plain(each['name'])} {said}", soft_wrap=True)
    for name in told["left_out"]:
        out.print(
            f"retrain  {plain(name)} is not in params.yaml any more: archive its versions, or bring it back"
        )
    for each in told["in_use"]:
        out.print(
            f"[bold red]{plain(each['name'])} {each['stage']} holds version {each['version']}[/], which saw it: {_remedy(each)}",
            soft_wrap=True,
        )
    if not told["in_use"]:
        out.print("[green]no candidate, staging or production holds a version that saw it[/]")
    if told["not_erased"]:
        out.print("[bold]Not erased, and yours to decide on[/bold]")
        for sentence in told["not_erased"]:
            out.print(f"  - {plain(sentence)}", soft_wrap=True)


def _remedy(held: Mapping[str, Any]) -> str:
    name, stage = plain(held["name"]), held["stage"]
    away = f"`prefixline archive {name} {held['version']} --reason …`"
    if held["clean"] is None or stage == "candidate":
        return f"{away}, or retrain"
    steps = ["staging"] if stage == "staging" else ["staging", "production"]
    up = ", then ".join(
        f"`prefixline promote {name} {held['clean']} --to {step} --reason …`" for step in steps
    )
    return f"{up}; or {away}"
