"""What a person reads in the terminal: outcomes, status, history, verifications and data cards as tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from pipeline.data.splits import SPLITS
from pipeline.judge.verdict import TABLE_HEADER, Verdict, table
from pipeline.ledger.events import STAGES, Event
from pipeline.ledger.fold import State
from pipeline.outcome import Outcome
from pipeline.promotion import Waiting
from pipeline.show import compare_page
from pipeline.show.console import console, plain
from pipeline.show.counted import counted

CLASSES_SHOWN = 20
QUANTILES_SHOWN = ("min", "median", "p95", "max")

_STYLE = {"passed": "green", "FAILED": "bold red"}


def show_outcome(outcome: Outcome) -> None:
    """The headline, the verdict, and where the page is."""
    out = console()
    out.print(f"[bold]{plain(outcome.headline)}[/bold]")
    out.print(f"dataset  {outcome.dataset['rows']:,} rows, md5 {outcome.dataset['md5']}")
    out.print(f"run key  {outcome.run_key}")
    grid = Table(title="Verdict", title_justify="left", title_style="bold")
    for column in TABLE_HEADER:
        grid.add_column(column, justify="right" if column in ("figure", "asked for", "rows") else "left")
    for cells in table(Verdict.from_json(outcome.verdict)):
        grid.add_row(*(plain(cell) for cell in cells[:-1]), f"[{_STYLE[cells[-1]]}]{cells[-1]}[/]")
    out.print(grid)
    if outcome.report:
        out.print(f"page     {plain(outcome.report)}", soft_wrap=True)


def show_overview(state: Mapping[str, Any]) -> None:
    """One table of prefixes, and where the servers are."""
    out = console()
    grid = Table(title=f"Workspace {plain(state['workspace'])}", title_justify="left", title_style="bold")
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
        stages = [
            f"{stage}: {v['version']}{_tainted(v)}" for v in prefix["versions"] for stage in v["stages"]
        ]
        last, md5 = prefix["last"], prefix["dataset"]["md5"]
        cells = (
            prefix["name"],
            prefix["task"],
            prefix["base_model"],
            f"{prefix['dataset']['path']}\n{md5[:16] if md5 else 'not versioned yet'}",
            newest["version"] if newest else "none",
            "\n".join(stages) or "none",
            f"{last['outcome']}\n{last['ended']}" if last else "never",
            prefix["schedule"] or "none",
        )
        grid.add_row(*map(plain, cells))
    out.print(grid)
    for prefix in state["prefixes"]:
        show_out_of_step(out, prefix["name"], prefix["out_of_step"])
    servers = state["servers"]
    if servers:
        out.print(f"MLflow {servers['mlflow']}   Prefect {servers['prefect'].removesuffix('/api')}")
    else:
        out.print("No servers are up; `prefixline up` starts them.")


def show_moved(event: Event, state: State) -> None:
    """What has happened, and what stands where now."""
    out = console()
    out.print(f"[bold]{plain(event.prefix)}: {event.sentence}[/bold] (epoch {event.epoch})")
    out.print(f"actor    {plain(event.actor)}")
    out.print(f"stages   {_stages(state.stages)}")


def show_waiting(waiting: Waiting) -> None:
    """What was asked for, and what it lacks."""
    out = console()
    asked, rules = waiting.request.asked, waiting.rules
    out.print(f"[bold]{plain(asked.prefix)}: {asked.sentence}[/bold] (epoch {asked.epoch})")
    out.print(f"request  {asked.id}", soft_wrap=True)
    out.print(f"actor    {plain(asked.actor)}", soft_wrap=True)
    for approval in waiting.approvals:
        out.print(f"approved {plain(approval.actor)} (epoch {approval.epoch})", soft_wrap=True)
    out.print(
        f"missing  {waiting.missing} of {rules.approvals} approvals, by {plain(', '.join(rules.approvers.values()))}: "
        f"prefixline approve {asked.prefix} --request {asked.id[:8]} --reason …",
        soft_wrap=True,
    )


def show_answer(event: Event) -> None:
    """What an approver has said."""
    out = console()
    out.print(f"[bold]{plain(event.prefix)}: {event.sentence}[/bold] (epoch {event.epoch})")
    out.print(f"actor    {plain(event.actor)}", soft_wrap=True)
    out.print(f"request  {event.request}", soft_wrap=True)


def show_history(told: Mapping[str, Any], *, newest: int | None = None) -> None:
    """One line for each event, oldest first, and what the events come to.

    Args:
        newest: how many events are shown; None for all. A table of thousands takes longer to lay out than to read.
    """
    out = console()
    shown = told["events"] if newest is None else told["events"][-newest:]
    if hidden := len(told["events"]) - len(shown):
        out.print(
            f"{counted(hidden, 'earlier event')} not shown; `prefixline history {told['prefix']} --all` shows them",
            soft_wrap=True,
        )
    if not told["events"]:
        until = "yet" if told["at"] is None else f"up to {told['at']}"
        out.print(f"nothing has happened to {told['prefix']} {until}", soft_wrap=True)
        return
    grid = Table(title=f"History of {told['prefix']}", title_justify="left", title_style="bold")
    for column in ("epoch", "version", "what", "who", "when", "why"):
        grid.add_column(column, justify="right" if column in ("epoch", "version") else "left")
    for row in shown:
        joined = {
            "promoted": "promoted to",
            "requested": "requested for",
            "approved": "approved for",
            "refused": "refused for",
            "rolled back": "brought back to",
        }
        what = f"{joined[row['event']]} {row['stage']}" if row["event"] in joined else row["event"]
        what += f"\nby row {row['row'][:12]}" if row["row"] else ""
        moved = row["event"] in ("promoted", "rolled back", "registered")
        before = f"\ninstead of {row['expected']}" if moved and row["expected"] else ""
        by = "" if row["key"] is None else f"\nsigned by {row['signed_by'] or 'the key ' + row['key'][:16]}"
        time = datetime.fromisoformat(row["time"]).astimezone().isoformat(" ", "seconds")
        behind = "\nits clock is behind" if row["clock_behind"] else ""
        grid.add_row(
            str(row["epoch"]),
            row["version"],
            f"{what}{before}",
            plain(f"{row['actor']}{by}"),
            f"{time}{behind}",
            plain(row["reason"]),
        )
    out.print(grid)
    out.print(f"{'stages' if told['at'] is None else 'stages at ' + told['at']}   {_stages(told['stages'])}")
    for request in told["requests"]:
        out.print(
            f"open     {request['id']}: version {request['version']} for {request['stage']}, asked for by "
            f"{plain(request['actor'])}, {len(request['approvals'])} approved",
            soft_wrap=True,
        )
    show_out_of_step(out, told["prefix"], told["out_of_step"] or ())


def _tainted(version: Mapping[str, Any]) -> str:
    return " (tainted)" if version["tainted"] else ""


def _stages(stages: Mapping[Any, str | None]) -> str:
    return ", ".join(f"{stage}: {stages.get(stage) or 'none'}" for stage in STAGES)


def show_out_of_step(out: Console, name: str, sentences: Collection[str]) -> None:
    """Say which aliases are not where the ledger says."""
    for sentence in sentences:
        out.print(f"[bold red]{plain(name)} is out of step[/]: {plain(sentence)}", soft_wrap=True)
    if sentences:
        out.print(f"`prefixline history {name} --repair` puts every alias where the ledger says.")


_MEANING = {
    "tampered": "it is there, and its bytes are not those recorded: bring a good copy back, and find out who changed it",
    "missing": "it is recorded, and not there",
    "unreachable": "it could not be looked at: mend what it says, and verify again",
    "out of step": "two records that are whole contradict each other: one was changed by hand",
    "unauthorised": "it stands there by an event that the rules in params.yaml do not allow: promote it anew by the rules, "
    "or archive it, and find out who promoted it",
}


def show_verification(result: Mapping[str, Any]) -> None:
    """A line for each version, then every fault by version, then what its kind means."""
    out = console()
    versions, gone = result["versions"], result["gone"]
    grid = Table(title="Verified", title_justify="left", title_style="bold")
    for column in ("version", "stages", "result"):
        grid.add_column(column)
    for version in versions:
        grid.add_row(
            plain(f"{version['name']} version {version['version']}"),
            "not known" if version["stages"] is None else plain(", ".join(version["stages"]) or "none"),
            _result(version),
        )
    out.print(grid)
    for version in (version for version in versions if version["faults"]):
        tree = Tree(f"[bold]{plain(version['name'])} version {plain(version['version'])}[/bold]")
        for fault in version["faults"]:
            style = "yellow" if fault["kind"] == "unreachable" else "red"
            branch = tree.add(f"[{style}]{fault['kind']}[/] {fault['link']}: {plain(fault['where'])}")
            branch.add(f"expected {plain(fault['expected'])}")
            branch.add(f"found    {plain(fault['actual'])}")
        if version["unchecked"]:
            tree.add(f"not looked at, for want of a record to go by: {', '.join(version['unchecked'])}")
        out.print(tree, soft_wrap=True)
    for lost in gone:
        by = (
            "the ledger has it in a stage"
            if lost["run_id"] is None
            else f"run {lost['run_id']} registered it"
        )
        out.print(
            f"[red]missing[/] {plain(lost['name'])} version {plain(lost['version'])}: {by}, and the registry does not have it",
            soft_wrap=True,
        )
    kinds = {fault["kind"] for version in versions for fault in version["faults"]}
    for kind in (kind for kind in _MEANING if kind in kinds):
        out.print(f"{kind}: {_MEANING[kind]}", soft_wrap=True)
    faults = sum(len(version["faults"]) for version in versions) + len(gone)
    looked = f"{counted(len(versions), 'version')}, {counted(result['files'], 'file')}, {counted(result['bytes'], 'byte')} hashed in {result['seconds']:g} s"
    wrong = "nothing is wrong" if result["sound"] else counted(faults, "fault")
    out.print(f"[bold]{wrong}[/bold]: {looked}", soft_wrap=True)


def show_signers(signed_by: Sequence[str], *, asked: str | None) -> None:
    """Whose signature a bundle has, and what that says."""
    out = console()
    if not signed_by:
        out.print("not signed: whoever can write the bundle can have written all of it")
    for key in signed_by:
        out.print(f"signed by {key}", soft_wrap=True)
    if signed_by and asked is None:
        out.print(
            "anybody can sign: compare the key with one you have from elsewhere, or pass it as --public-key"
        )


def _result(version: Mapping[str, Any]) -> str:
    said = []
    if version["by_hand"]:
        said.append("registered by hand, without lineage")
    if version["duplicate_of"]:
        said.append(f"a duplicate of version {plain(version['duplicate_of'])}")
    count = len(version["faults"])
    said.append(f"[red]{count} {'fault' if count == 1 else 'faults'}[/]" if count else "[green]sound[/]")
    if version["tainted"]:
        said.append("but tainted: it saw a row that was to be erased")
    return ", ".join(said)


def show_card(card: Mapping[str, Any], page: Path) -> None:
    """Rows per split and class, lengths, what was left out and what changed; the page has the rest."""
    out = console()
    rows = Table(title="Rows", title_justify="left", title_style="bold")
    for column in ("", *SPLITS, "total"):
        rows.add_column(column, justify="right" if column else "left")
    classes = card["classes"] or {}
    shown = list(classes.items())[:CLASSES_SHOWN]
    for name, counts in [*shown, ("all", card["rows"])]:
        figures = [counts[split] for split in SPLITS]
        rows.add_row(plain(name), *(f"{figure:,}" for figure in (*figures, sum(figures))))
    out.print(rows)
    if len(classes) > len(shown):
        out.print(f"{len(classes) - len(shown)} more classes are on the page.")
    lengths = Table(title="Tokens", title_justify="left", title_style="bold")
    for column in ("", *QUANTILES_SHOWN):
        lengths.add_column(column, justify="right" if column else "left")
    for part in ("input", "target"):
        quantiles = card["tokens"].get(part, {}).get("quantiles", {})
        for split in (split for split in SPLITS if split in quantiles):
            lengths.add_row(f"{part}, {split}", *(f"{quantiles[split][name]:,}" for name in QUANTILES_SHOWN))
    out.print(lengths)
    window, limit = card["tokens"]["window"], card["tokens"]["limit"]
    if card["tokens"]["prefix"]:
        out.print(f"the window is {window:,} tokens, of which {limit:,} are left beside the prefix")
    else:
        out.print(f"source and target may have {limit:,} tokens each")
    too_long, conflicts = card["too_long"], card["conflicting_labels"]
    out.print(
        f"{card['duplicates']['dropped']:,} duplicates dropped, {card['duplicates']['near']:,} near duplicates, "
        f"{too_long['dropped']:,} too long and dropped, {too_long['truncated']:,} truncated"
        + (f", {conflicts['texts']:,} texts with more than one label" if conflicts else "")
    )
    if (references := card["references"]) is not None:
        out.print(
            f"{references['total']:,} references, {references['mean']:g} a source, {references['max']} at most"
        )
    if (changes := card["changes"]) is None:
        out.print("no version before this one is known")
    else:
        out.print(
            f"since the version before: {changes['added']:,} rows added, {changes['removed']:,} removed, "
            f"{changes['kept']:,} kept"
        )
    out.print(f"page     {plain(str(page))}", soft_wrap=True)


def show_impact(found: Mapping[str, Any]) -> None:
    """Which versions came from what was asked about, those in a stage first; then what cannot be told."""
    out = console()
    what = {
        "dataset": f"dataset version {found['meant'] or found['asked']}",
        "row": "the row" if found["rows"] in (None, 1) else f"the {found['rows']:,} rows",
        "base": f"base model {found['meant'] or found['asked']}",
        "code": f"code commit {found['meant'] or found['asked']}",
    }[found["kind"]]
    came, count = found["versions"], found["searched"]
    held = sum(bool(version["stages"]) for version in came)
    if came:
        out.print(
            f"[bold]{len(came):,} of {count:,} version{'s' * (count != 1)} came from {what}; "
            f"{held:,} {'holds' if held == 1 else 'hold'} a stage now[/bold]"
        )
        out.print(_reasons(sorted(came, key=lambda version: not version["stages"])))
    else:
        out.print(f"[bold]No version came from {what}[/bold] ({count:,} searched)")
    if found["unknown"]:
        out.print(f"[bold]It cannot be told of {len(found['unknown']):,}[/bold]")
        out.print(_reasons(found["unknown"]))
    for version in found["by_hand"]:
        stages = ", ".join(version["stages"]) or "no stage"
        out.print(
            f"{plain(version['name'])} version {version['version']} ({stages}) was registered by hand, without lineage: "
            "nobody can tell what it came from"
        )


def _reasons(versions: Iterable[Mapping[str, Any]]) -> Table:
    grid = Table()
    for column in ("prefix", "version", "stages", "because"):
        grid.add_column(column, overflow="fold")
    for version in versions:
        duplicate = f" (duplicate of {version['duplicate_of']})" if version["duplicate_of"] else ""
        grid.add_row(
            plain(version["name"]),
            f"{version['version']}{duplicate}",
            ("\n".join(version["stages"]) or "none") + _tainted(version),
            plain(version["why"]),
        )
    return grid


def show_comparison(result: Mapping[str, Any]) -> None:
    """One line for each method, and what was equal and what was not."""
    out = console()
    table = Table(title=plain(compare_page.summary(result)), title_justify="left", title_style="bold")
    for number, column in enumerate(compare_page.columns(result)):
        table.add_column(column, justify="right" if number else "left")
    for row in compare_page.rows(result):
        table.add_row(*(plain("\n".join(cell)) for cell in row))
    out.print(table)
    for heading, sentences in (
        ("Held equal", result["equal"]),
        ("Not equal, or to keep in mind", result["not_equal"]),
    ):
        out.print(f"[bold]{heading}[/bold]")
        for sentence in sentences:
            out.print(f"  - {plain(sentence)}")
    out.print(f"page     {plain(result['page'])}", soft_wrap=True)
