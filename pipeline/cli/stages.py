"""Commands that move versions from stage to stage, and the history of it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import as_json, print_json

if TYPE_CHECKING:
    from pipeline.promotion import Moved
    from pipeline.tracking.connection import Registry

with_reason = click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the ledger.")
with_expectation = click.option(
    "--expect",
    metavar="VERSION|none",
    help="The version that must stand there now, `none` for none; exit code 4 if it is another.",
)


def ledger_of(workspace: Path, name: str) -> tuple[Registry, str]:
    """The connection to MLflow, and who acts, for a prefix of the workspace."""
    from pipeline import server_access
    from pipeline.actor import actor
    from pipeline.tracking.connection import connect
    from pipeline.versioning.workspace import find_workspace

    found = find_workspace(workspace)
    found.params().prefix(name)
    where = server_access.endpoints(found.root)
    return connect(where.mlflow_uri, artifact_root=where.artifact_root), actor(found.root)


def _print_moved(moved: Moved, json_output: bool) -> None:
    for each in moved.repaired:
        click.echo(f"put right first: {each}", err=True)
    if json_output:
        event, stages, repaired = (
            moved.event,
            dict(moved.state.stages),
            [str(each) for each in moved.repaired],
        )
        told = {**json.loads(event.to_json()), "sha256": event.digest, "stages": stages, "repaired": repaired}
        print_json(told)
    else:
        from pipeline.show.terminal import show_moved

        show_moved(moved.event, moved.state)


@click.command()
@click.argument("name")
@click.argument("version")
@click.option(
    "--to", required=True, type=click.Choice(["staging", "production"]),
    help="The stage: staging first, then production.",
)  # fmt: skip
@with_reason
@with_expectation
@as_json
@click.pass_obj
def promote(
    workspace: Path, name: str, version: str, to: Any, reason: str, expect: str | None, json_output: bool
) -> None:
    """Move VERSION of the prefix NAME up a stage. What production held goes to archived.

    Its verdict must have passed and its lineage record must verify. Exit code 4: somebody else moved a stage first;
    nothing was changed, and the message says what stands now.
    """
    from pipeline import promotion

    registry, actor = ledger_of(workspace, name)
    moved = promotion.promote(registry, name, version, to=to, reason=reason, actor=actor, expect=expect)
    _print_moved(moved, json_output)


@click.command()
@click.argument("name")
@with_reason
@with_expectation
@as_json
@click.pass_obj
def rollback(workspace: Path, name: str, reason: str, expect: str | None, json_output: bool) -> None:
    """Bring back to production what it held before, by the ledger. What it holds goes to archived.

    A version put away by `archive` is passed over. Exit code 4: somebody else moved a stage first.
    """
    from pipeline import promotion

    registry, actor = ledger_of(workspace, name)
    _print_moved(promotion.rollback(registry, name, reason=reason, actor=actor, expect=expect), json_output)


@click.command()
@click.argument("name")
@click.argument("version")
@with_reason
@as_json
@click.pass_obj
def archive(workspace: Path, name: str, version: str, reason: str, json_output: bool) -> None:
    """Put VERSION of the prefix NAME away, from whichever stage it stands in.

    Exit code 4: somebody else moved a stage first.
    """
    from pipeline import promotion

    registry, actor = ledger_of(workspace, name)
    _print_moved(promotion.archive(registry, name, version, reason=reason, actor=actor), json_output)


def _time(ctx: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """An ISO 8601 time; without an offset it is this machine's local time."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"got {value!r}; expected ISO 8601, as 2024-02-29, 2024-02-29T12:00 or 2024-02-29T12:00:00+00:00",
            ctx,
            option,
        ) from error


@click.command()
@click.argument("name")
@click.option(
    "--at", callback=_time, metavar="TIME",
    help="Only what was recorded up to then, and what stood in each stage. ISO 8601; local time if it has no offset.",
)  # fmt: skip
@click.option("--repair", is_flag=True, help="Put every alias where the ledger says, first.")
@as_json
@click.pass_obj
def history(workspace: Path, name: str, at: datetime | None, repair: bool, json_output: bool) -> None:
    """Say who moved which version of the prefix NAME from stage to stage, when and why, and what stands where now.

    An alias that is not where the ledger says is named: it was moved by hand, or a command was stopped on the way.
    """
    from pipeline.show.overview import history_of

    if repair:
        from pipeline.ledger.events import STAGES
        from pipeline.ledger.projection import project

        registry, _ = ledger_of(workspace, name)
        for each in project(registry, name, stages=STAGES)[1]:
            click.echo(f"put right: {each}", err=True)
    told = history_of(workspace, name, at=at)
    if json_output:
        print_json(told)
    else:
        from pipeline.show.terminal import show_history

        show_history(told)


COMMANDS = (promote, rollback, archive, history)
